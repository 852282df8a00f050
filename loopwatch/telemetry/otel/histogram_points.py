"""Histograms as data points of the SDK, made from counts by bucket: exact, and without recording each duration.

Only for loopwatch's own exports. An application's SDK takes single durations and nothing else, see
:mod:`loopwatch.telemetry.otel.instruments`. Imports the SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from opentelemetry.sdk.metrics import Exemplar as Example
from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint
from opentelemetry.sdk.metrics.export import Histogram as Data
from opentelemetry.sdk.metrics.export import Metric as SdkMetric

from loopwatch.telemetry.metrics.cardinality import Key
from loopwatch.telemetry.metrics.catalog import CATALOG, LOOP, Metric
from loopwatch.telemetry.metrics.exemplars import Exemplar, Exemplars
from loopwatch.telemetry.metrics.records import Reading, Spread

_NANO = 1_000_000_000


class Spreads:
    """Makes the histogram points of one receiver.

    Args:
        exemplars: stalls that belong to traces.
        started_at: when counting began, seconds since the epoch.
        delta: whether to export differences to the last points.
    """

    def __init__(self, exemplars: Exemplars, started_at: float, *, delta: bool) -> None:
        self._exemplars = exemplars
        self._since = started_at
        self._delta = delta
        self._told: dict[tuple[str, Key], tuple[list[int], float]] = {}
        self._tied: dict[str, float] = {}

    def of(self, reading: Reading, pause: Callable[[], None] = lambda: None) -> list[SdkMetric]:
        """Return the histograms of a reading.

        Args:
            reading: the current metrics.
            pause: called between parts of the work, to yield the GIL.
        """
        temporality = AggregationTemporality.DELTA if self._delta else AggregationTemporality.CUMULATIVE
        found = []
        for metric in CATALOG:
            spreads = reading.spreads.get(metric.name, ())
            points = [self._point(metric, spread, spreads, reading.at) for spread in spreads]
            if points:
                data = Data(data_points=points, aggregation_temporality=temporality)
                pause()
                found.append(SdkMetric(metric.name, metric.description, metric.unit, data))
        if self._delta:
            self._since = reading.at
        return found

    def _point(self, metric: Metric, spread: Spread, others: Sequence[Spread], at: float) -> HistogramDataPoint:
        histogram = spread.histogram
        upto = histogram.at_most(metric.bounds)
        counts, total = [now - before for now, before in zip(upto, [0, *upto], strict=False)], histogram.total
        if self._delta:
            key = (metric.name, spread.attributes)
            before, sum_before = self._told.get(key, ([0] * len(counts), 0.0))
            self._told[key] = counts, total
            counts = [max(now - then, 0) for now, then in zip(counts, before, strict=True)]
            total = max(total - sum_before, 0.0)
        return HistogramDataPoint(
            attributes=dict(zip(metric.attributes, spread.attributes, strict=True)),
            start_time_unix_nano=int(self._since * _NANO),
            time_unix_nano=int(at * _NANO),
            count=sum(counts),
            sum=total,
            bucket_counts=counts,
            explicit_bounds=metric.bounds,
            min=0.0 if self._delta else histogram.lowest,
            max=histogram.highest,
            exemplars=self._examples(spread, others) if metric.attributes == (LOOP,) else [],
        )

    def _examples(self, spread: Spread, others: Sequence[Spread]) -> list[Example]:
        """Return the stalls of a loop that are not exported yet."""
        loop = spread.attributes[0]
        since = self._tied.get(loop, 0.0)
        found = self._exemplars.of(loop, {other.attributes[0] for other in others})
        new = [each for each in found.values() if each.at > since]
        self._tied[loop] = max((each.at for each in new), default=since)
        return [_example(each) for each in new]


def _example(exemplar: Exemplar) -> Example:
    trace: Mapping[str, str] = exemplar.trace
    return Example({}, exemplar.value, int(exemplar.at * _NANO), int(trace["span_id"], 16), int(trace["trace_id"], 16))

"""The catalog's instruments on a meter of the SDK: what a reader of the application collects."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from stalls import make_stall

from loopwatch.core.histogram import Histogram
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.catalog import CATALOG, LAG_BOUNDS, Kind
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Point, Reading, Spread
from loopwatch.telemetry.otel.instruments import MOST_RECORDS, Instruments, instruments_of

LAG = "asyncio.eventloop.lag"
PASSES = "asyncio.eventloop.passes"


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the SDK's metrics by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: metric for scope in scopes for metric in scope.metrics}


class Source:
    """A source of readings that a test can change; counts how often it is read."""

    def __init__(self) -> None:
        self.lag = Histogram()
        self.passes = 0
        self.asked = 0

    def read(self, _pause: Callable[[], None]) -> Reading:
        self.asked += 1
        points = {PASSES: (Point(("main",), self.passes),), "asyncio.tasks": (Point((), 3),)}
        return Reading(1.0, points, {LAG: (Spread(("main",), self.lag.copy()),)})


def attached(source: Source, *, readers: int = 1, exemplars: Exemplars | None = None) -> list[InMemoryMetricReader]:
    found = [InMemoryMetricReader() for _ in range(readers)]
    instruments = Instruments(MeterProvider(found, shutdown_on_exit=False).get_meter("loopwatch"))
    instruments.attach(Account(source.read, exemplars or Exemplars()))
    return found


def test_every_metric_of_the_catalog_has_an_instrument() -> None:
    """Each metric has its unit, description and kind, and histograms have their bounds."""
    points = {m.name: (Point(("x",) * len(m.attributes), 1),) for m in CATALOG if m.kind is not Kind.HISTOGRAM}
    lag = Histogram()
    lag.record(0.01)
    spreads = {
        m.name: (Spread(("x",) * len(m.attributes), lag),) for m in CATALOG if m.kind is Kind.HISTOGRAM
    }  # fmt: skip
    reader = InMemoryMetricReader()
    instruments = Instruments(MeterProvider([reader], shutdown_on_exit=False).get_meter("loopwatch"))
    instruments.attach(Account(lambda _pause: Reading(1.0, points, spreads), Exemplars()))
    found = collected(reader)
    assert set(found) == {metric.name for metric in CATALOG}
    kinds = {Kind.COUNTER: "Sum", Kind.GAUGE: "Gauge", Kind.HISTOGRAM: "Histogram"}
    for metric in CATALOG:
        got = found[metric.name]
        assert (got.unit, got.description) == (metric.unit, metric.description)
        assert type(got.data).__name__ == kinds[metric.kind]
        (point,) = got.data.data_points
        assert set(point.attributes) == set(metric.attributes)
        if metric.kind is Kind.HISTOGRAM:
            assert tuple(point.explicit_bounds) == metric.bounds
            assert point.count == 1
        if metric.kind is Kind.COUNTER:
            assert got.data.is_monotonic


def test_a_collection_reads_once() -> None:
    """All instruments of a collection share one reading; two readers of one provider have one each."""
    source = Source()
    first, second = attached(source, readers=2)
    for number in range(1, 4):
        source.passes = number
        assert collected(first)[PASSES].data.data_points[0].value == number
        assert source.asked == 2 * number - 1
        assert collected(second)[PASSES].data.data_points[0].value == number
        assert source.asked == 2 * number


def test_histograms_are_replayed_once() -> None:
    """Each duration is recorded once, at the next collection, in its bucket; the sum is right within 5 percent."""
    source = Source()
    (reader,) = attached(source)
    for _ in range(100):
        source.lag.record(0.003)
    source.lag.record(0.3)
    (point,) = collected(reader)[LAG].data.data_points
    assert point.count == 101
    assert point.sum == pytest.approx(0.6, rel=0.05)
    assert point.bucket_counts[LAG_BOUNDS.index(0.005)] == 100
    assert point.bucket_counts[LAG_BOUNDS.index(0.5)] == 1
    source.lag.record(0.02)
    (point,) = collected(reader)[LAG].data.data_points
    assert point.count == 102
    (point,) = collected(reader)[LAG].data.data_points
    assert point.count == 102, "nothing new"


def test_many_durations_are_sampled() -> None:
    """Of 20,000 durations an even sample of 500 is recorded, as a collection must not take seconds."""
    source = Source()
    (reader,) = attached(source)
    source.lag.record(0.001)
    collected(reader)
    dice = random.Random(1)
    for _ in range(10_000):
        source.lag.record(0.003)
        source.lag.record(dice.uniform(0.11, 0.24))
    (point,) = collected(reader)[LAG].data.data_points
    assert point.count == 1 + MOST_RECORDS
    assert point.bucket_counts[LAG_BOUNDS.index(0.005)] == pytest.approx(MOST_RECORDS / 2, abs=20)
    assert point.bucket_counts[LAG_BOUNDS.index(0.25)] == pytest.approx(MOST_RECORDS / 2, abs=20)


def test_a_late_provider_does_not_replay_old_durations() -> None:
    """Earlier durations are not recorded at once; counters continue from their totals."""
    source = Source()
    source.passes = 1000
    for _ in range(5000):
        source.lag.record(0.003)
    (reader,) = attached(source)
    found = collected(reader)
    assert LAG not in found
    assert found[PASSES].data.data_points[0].value == 1000
    source.lag.record(0.003)
    assert collected(reader)[LAG].data.data_points[0].count == 1


def test_lag_of_a_traced_stall_has_an_exemplar() -> None:
    """It has the trace and span of the blocking request; other durations have none, even if the collection is
    traced."""
    source, exemplars = Source(), Exemplars()
    (reader,) = attached(source, exemplars=exemplars)
    collected(reader)
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    exemplars.saw(make_stall(duration=0.3, context={"trace_id": trace, "span_id": span}))
    source.lag.record(0.29)
    source.lag.record(0.002)
    request = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    with use_span(request):  # a scrape that is itself traced
        (point,) = collected(reader)[LAG].data.data_points
    (example,) = point.exemplars
    assert (example.trace_id, example.span_id) == (int(trace, 16), int(span, 16))
    assert example.value == pytest.approx(0.29, rel=0.05)
    source.lag.record(0.29)
    (point,) = collected(reader)[LAG].data.data_points
    assert not point.exemplars, "an exemplar is exported once"


def test_a_collection_yields_the_gil_except_on_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection in a thread yields the GIL between instruments; one on a loop's own thread never sleeps."""
    source, sleeps = Source(), []
    (reader,) = attached(source)
    monkeypatch.setattr("loopwatch.telemetry.metrics.account.time.sleep", sleeps.append)
    collected(reader)
    assert len(sleeps) >= len([metric for metric in CATALOG if metric.kind is not Kind.HISTOGRAM])
    assert set(sleeps) == {0.0001}
    sleeps.clear()

    async def collects() -> None:
        collected(reader)

    asyncio.run(collects())
    assert sleeps == []


def test_instruments_without_an_agent_export_nothing() -> None:
    """Instruments stay on a meter for ever; without an agent they export nothing, and the next agent reuses them."""
    source, reader = Source(), InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    first = instruments_of(provider, "1")
    first.attach(Account(source.read, Exemplars()))
    assert PASSES in collected(reader)
    first.detach()
    assert collected(reader) == {}
    second = instruments_of(provider, "1")
    assert second is first
    second.attach(Account(source.read, Exemplars()))
    source.passes = 7
    assert collected(reader)[PASSES].data.data_points[0].value == 7


def test_a_no_op_provider_is_accepted() -> None:
    """The API's own no-op provider works like any other."""
    Instruments(NoOpMeterProvider().get_meter("loopwatch")).attach(Account(Source().read, Exemplars()))

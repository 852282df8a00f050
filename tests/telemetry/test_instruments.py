"""The instruments of the catalog on a meter of the SDK: what a reader of the application collects."""

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


def told(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the SDK's metrics by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: metric for scope in scopes for metric in scope.metrics}


class Source:
    """A reading that a test can change, and how often it was asked for."""

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


def test_every_metric_of_the_catalog_is_there() -> None:
    """With its unit, its description and its kind, and histograms with their bounds."""
    points = {m.name: (Point(("x",) * len(m.attributes), 1),) for m in CATALOG if m.kind is not Kind.HISTOGRAM}
    lag = Histogram()
    lag.record(0.01)
    spreads = {
        m.name: (Spread(("x",) * len(m.attributes), lag),) for m in CATALOG if m.kind is Kind.HISTOGRAM
    }  # fmt: skip
    reader = InMemoryMetricReader()
    instruments = Instruments(MeterProvider([reader], shutdown_on_exit=False).get_meter("loopwatch"))
    instruments.attach(Account(lambda _pause: Reading(1.0, points, spreads), Exemplars()))
    found = told(reader)
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


def test_one_reading_for_a_collection() -> None:
    """However many instruments ask; two readers of one provider have one each."""
    source = Source()
    first, second = attached(source, readers=2)
    for number in range(1, 4):
        source.passes = number
        assert told(first)[PASSES].data.data_points[0].value == number
        assert source.asked == 2 * number - 1
        assert told(second)[PASSES].data.data_points[0].value == number
        assert source.asked == 2 * number


def test_histograms_are_replayed_once() -> None:
    """Each duration is recorded at the collection after it, in its bucket; their sum is right to 5 percent."""
    source = Source()
    (reader,) = attached(source)
    for _ in range(100):
        source.lag.record(0.003)
    source.lag.record(0.3)
    (point,) = told(reader)[LAG].data.data_points
    assert point.count == 101
    assert point.sum == pytest.approx(0.6, rel=0.05)
    assert point.bucket_counts[LAG_BOUNDS.index(0.005)] == 100
    assert point.bucket_counts[LAG_BOUNDS.index(0.5)] == 1
    source.lag.record(0.02)
    (point,) = told(reader)[LAG].data.data_points
    assert point.count == 102
    (point,) = told(reader)[LAG].data.data_points
    assert point.count == 102, "nothing new"


def test_of_very_many_durations_an_even_sample_is_recorded() -> None:
    """500 of 20,000, of all lengths: a collection must not take seconds."""
    source = Source()
    (reader,) = attached(source)
    source.lag.record(0.001)
    told(reader)
    dice = random.Random(1)
    for _ in range(10_000):
        source.lag.record(0.003)
        source.lag.record(dice.uniform(0.11, 0.24))
    (point,) = told(reader)[LAG].data.data_points
    assert point.count == 1 + MOST_RECORDS
    assert point.bucket_counts[LAG_BOUNDS.index(0.005)] == pytest.approx(MOST_RECORDS / 2, abs=20)
    assert point.bucket_counts[LAG_BOUNDS.index(0.25)] == pytest.approx(MOST_RECORDS / 2, abs=20)


def test_a_provider_that_is_set_late_begins_with_what_comes() -> None:
    """Hours of durations are not recorded at once; counters go on from their totals."""
    source = Source()
    source.passes = 1000
    for _ in range(5000):
        source.lag.record(0.003)
    (reader,) = attached(source)
    found = told(reader)
    assert LAG not in found
    assert found[PASSES].data.data_points[0].value == 1000
    source.lag.record(0.003)
    assert told(reader)[LAG].data.data_points[0].count == 1


def test_a_lag_that_a_traced_stall_caused_leads_to_its_trace() -> None:
    """Its exemplar has the trace and span of what blocked; those of other durations have none, whoever collects."""
    source, exemplars = Source(), Exemplars()
    (reader,) = attached(source, exemplars=exemplars)
    told(reader)
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    exemplars.saw(make_stall(duration=0.3, context={"trace_id": trace, "span_id": span}))
    source.lag.record(0.29)
    source.lag.record(0.002)
    request = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    with use_span(request):  # a scrape that is itself traced
        (point,) = told(reader)[LAG].data.data_points
    (example,) = point.exemplars
    assert (example.trace_id, example.span_id) == (int(trace, 16), int(span, 16))
    assert example.value == pytest.approx(0.29, rel=0.05)
    source.lag.record(0.29)
    (point,) = told(reader)[LAG].data.data_points
    assert not point.exemplars, "it is told once"


def test_it_rests_between_instruments_but_never_on_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection in a thread lets loops have the GIL again and again; one on a loop's own thread never sleeps."""
    source, naps = Source(), []
    (reader,) = attached(source)
    monkeypatch.setattr("loopwatch.telemetry.metrics.account.time.sleep", naps.append)
    told(reader)
    assert len(naps) >= len([metric for metric in CATALOG if metric.kind is not Kind.HISTOGRAM])
    assert set(naps) == {0.0001}
    naps.clear()

    async def collects() -> None:
        told(reader)

    asyncio.run(collects())
    assert naps == []


def test_without_an_agent_nothing_is_told() -> None:
    """Instruments stay on a meter for ever; those of an agent that is gone are silent, and the next one uses them."""
    source, reader = Source(), InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    first = instruments_of(provider, "1")
    first.attach(Account(source.read, Exemplars()))
    assert PASSES in told(reader)
    first.detach()
    assert told(reader) == {}
    second = instruments_of(provider, "1")
    assert second is first
    second.attach(Account(source.read, Exemplars()))
    source.passes = 7
    assert told(reader)[PASSES].data.data_points[0].value == 7


def test_a_provider_that_does_nothing() -> None:
    """What the API itself offers is as good a provider as any."""
    Instruments(NoOpMeterProvider().get_meter("loopwatch")).attach(Account(Source().read, Exemplars()))

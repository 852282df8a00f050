"""Metrics of private providers: a message has the exact values of one reading, and is encoded in small pieces."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.resources import Resource
from otlp_receiver import points_of
from stalls import make_stall

from loopwatch.core.histogram import Histogram
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.catalog import BY_NAME, CATALOG, LAG_BOUNDS, Kind
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Point, Reading, Spread
from loopwatch.telemetry.otel import metric_reader
from loopwatch.telemetry.otel.metric_reader import GROUPS, PIECE, Metering
from loopwatch.telemetry.otel.otlp_config import Temporality

LAG = "asyncio.eventloop.lag"


def full(number: float = 1.0) -> Reading:
    """Return a reading with every metric in as many attribute sets as the catalog allows."""
    points, spreads = {}, {}
    for metric in CATALOG:
        sets = [(f"{index}",) * len(metric.attributes) for index in range(metric.sets)]
        if metric.kind is Kind.HISTOGRAM:
            durations = Histogram()
            for bound in metric.bounds:
                durations.record(bound * 0.8 * number)
            spreads[metric.name] = tuple(Spread(attributes, durations.copy()) for attributes in sets)
        else:
            points[metric.name] = tuple(Point(attributes, number) for attributes in sets)
    return Reading(1000.0, points, spreads)


class Pauses:
    """Counts pauses, and the points that were encoded between two of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.points = self.most = 0
        original = metric_reader.encode_metrics

        def counting(data):  # type: ignore[no-untyped-def]
            scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
            self.points += sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)
            self.most = max(self.most, self.points)
            return original(data)

        monkeypatch.setattr(metric_reader, "encode_metrics", counting)

    def __call__(self) -> None:
        self.count += 1
        self.points = 0


def made(account: Account, pause: object = lambda: None, temporality: Temporality = Temporality.CUMULATIVE) -> Metering:
    return Metering(account, Resource({"service.name": "shop"}), "1.2", temporality, pause)  # type: ignore[arg-type]


def decoded(found: Metering) -> ExportMetricsServiceRequest:
    message = found.message()
    assert message is not None
    return ExportMetricsServiceRequest.FromString(message)


def test_every_metric_is_collected_once() -> None:
    """The groups of metrics that are collected together make up the catalog, in its order."""
    assert [metric for group in GROUPS for metric in group] == list(CATALOG)


def test_a_message_has_all_points_of_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """All points of a full reading are in one resource and scope, encoded a few dozens at a time, with pauses."""
    pauses, reading = Pauses(monkeypatch), full(3.0)
    message = decoded(made(Account(lambda _pause: reading, Exemplars()), pauses))
    (of_resource,) = message.resource_metrics
    assert [item.key for item in of_resource.resource.attributes] == ["service.name"]
    (of_scope,) = of_resource.scope_metrics
    assert (of_scope.scope.name, of_scope.scope.version) == ("loopwatch", "1.2")
    found = points_of(message)
    assert set(found) == {metric.name for metric in CATALOG}
    for name, points in reading.points.items():
        assert found[name] == {point.attributes: point.value for point in points}
    for name, spreads in reading.spreads.items():
        for spread in spreads:
            point = found[name][spread.attributes]
            assert point.count == sum(point.bucket_counts) == len(BY_NAME[name].bounds)
            assert point.sum == pytest.approx(spread.histogram.total)
            assert tuple(point.explicit_bounds) == BY_NAME[name].bounds
            assert (point.min, point.max) == (spread.histogram.lowest, spread.histogram.highest)
    for metric in of_scope.metrics:
        assert (metric.unit, metric.description) == (BY_NAME[metric.name].unit, BY_NAME[metric.name].description)
    assert pauses.most <= max(PIECE, *(metric.sets for metric in CATALOG))
    assert pauses.count > len(CATALOG)


def test_a_message_is_made_from_one_reading() -> None:
    """All values of a message are from the same moment."""
    asked = []

    def read(_pause: object) -> Reading:
        asked.append(1)
        return full(len(asked))

    found = made(Account(read, Exemplars()))
    for number in (1, 2, 3):
        exported = points_of(decoded(found))
        plain = [points for name, points in exported.items() if BY_NAME[name].kind is not Kind.HISTOGRAM]
        values = {value for points in plain for value in points.values()}
        assert values == {number}
        assert len(asked) == number


def test_delta_histograms() -> None:
    """Each message has the durations since the previous one, and its start time."""
    lag = Histogram()
    account = Account(lambda _pause: Reading(lag.count + 1.0, {"asyncio.tasks": (Point((), 1),)}, {
        LAG: (Spread(("main",), lag.copy()),)}), Exemplars())  # fmt: skip
    found = made(account, temporality=Temporality.DELTA)
    counts, sums, begins = [], 0.0, []
    for number in (3, 0, 2):
        for _ in range(number):
            lag.record(0.2)
        point = points_of(decoded(found))[LAG][("main",)]
        counts.append(point.count)
        assert point.bucket_counts[LAG_BOUNDS.index(0.25)] == number
        sums += point.sum
        begins.append((point.start_time_unix_nano, point.time_unix_nano))
    assert counts == [3, 0, 2]
    assert sums == pytest.approx(1.0)
    assert begins[1][0] == begins[0][1] == 4_000_000_000
    assert begins[2][0] == begins[1][1]


def test_exemplars_lead_to_traces() -> None:
    """A stall in a trace is exported once as an exemplar of its loop's lag."""
    exemplars, lag = Exemplars(), Histogram()
    lag.record(0.3)
    account = Account(lambda _pause: Reading(1.0, {"asyncio.tasks": (Point((), 1),)}, {
        LAG: (Spread(("main",), lag.copy()),)}), exemplars)  # fmt: skip
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    exemplars.saw(make_stall(loop="main", duration=0.3, context={"trace_id": trace, "span_id": span}))
    found = made(account)
    (example,) = points_of(decoded(found))[LAG][("main",)].exemplars
    assert (example.trace_id.hex(), example.span_id.hex(), example.as_double) == (trace, span, 0.3)
    assert not points_of(decoded(found))[LAG][("main",)].exemplars


def test_without_a_reading_there_is_no_message() -> None:
    """An agent that is off gives no message, and neither does a detached reader."""
    assert made(Account(lambda _pause: None, Exemplars())).message() is None
    found = made(Account(lambda _pause: full(), Exemplars()))
    found.detach()
    assert found.message() is None

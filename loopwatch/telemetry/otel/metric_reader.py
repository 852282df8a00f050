"""Metrics of private providers: collected and encoded piece by piece, yielding the GIL, so that no loop waits for it.

The SDK reads counters and gauges through loopwatch's meters, of several providers, as it collects those of one in a
single go; histogram points are added as they are. Imports the SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource

from loopwatch.core.originals import time
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.catalog import AGENT, LOOPS, OFFLOAD, POOLS
from loopwatch.telemetry.metrics.records import Reading
from loopwatch.telemetry.otel.histogram_points import Spreads
from loopwatch.telemetry.otel.instruments import Instruments
from loopwatch.telemetry.otel.otlp_config import Temporality

GROUPS = (LOOPS[:10], LOOPS[10:], POOLS[:7], POOLS[7:], (*OFFLOAD, *AGENT))
"""Metrics that are collected together."""
PIECE = 25
"""Points that are encoded in one go, about a quarter of a millisecond."""
PATIENCE = 30_000.0
"""Milliseconds that a collection may take."""


class Metering:
    """Reads all metrics and encodes them as OTLP messages.

    Args:
        account: source of the metrics.
        resource: of this process.
        version: of loopwatch.
        temporality: how counts are exported.
        pause: yields the GIL for a moment.
    """

    def __init__(
        self, account: Account, resource: Resource, version: str, temporality: Temporality, pause: Callable[[], None]
    ) -> None:
        self._account = account
        self._pause = pause
        self._latest: Reading | None = None
        shared = Account(lambda _pause: self._latest, account.exemplars)
        self._readers = [_Reader(temporality) for _ in GROUPS]
        self.instruments = []
        for reader, group in zip(self._readers, GROUPS, strict=True):
            provider = _Meters([reader], resource, shutdown_on_exit=False)
            instruments = Instruments(provider.get_meter("loopwatch", version), group, with_histograms=False)
            instruments.pause = pause
            instruments.attach(shared)
            self.instruments.append(instruments)
        self._spreads = Spreads(account.exemplars, time.time(), delta=temporality is not Temporality.CUMULATIVE)

    def message(self) -> bytes | None:
        """Return all current metrics as one message, None if there are none."""
        self._latest = reading = self._account.read(self._pause)
        self._pause()
        if reading is None:
            return None
        found: list[sdk.Metric] = []
        about: sdk.ResourceMetrics | None = None
        for reader in self._readers:
            data = reader.take()
            if data is not None:
                about = data.resource_metrics[0]
                found += about.scope_metrics[0].metrics
            self._pause()
        if about is None:
            return None
        return encoded(about, [*self._spreads.of(reading, self._pause), *found], self._pause)

    def detach(self) -> None:
        """Export nothing from now on."""
        for instruments in self.instruments:
            instruments.detach()


class _Meters(MeterProvider):
    """A provider that does nothing in a forked child, as in :mod:`loopwatch.telemetry.otel.sdk`."""

    def _handle_fork(self) -> None:
        """Do nothing."""


class _Reader(sdk.MetricReader):
    """A reader without a thread, which collects on demand."""

    def __init__(self, temporality: Temporality) -> None:
        kinds: dict[Temporality, tuple[type, ...]] = {
            Temporality.DELTA: (Counter, Histogram, ObservableCounter),
            Temporality.LOWMEMORY: (Counter, Histogram),
        }
        delta = sdk.AggregationTemporality.DELTA
        super().__init__(preferred_temporality=dict.fromkeys(kinds.get(temporality, ()), delta))
        self._data: sdk.MetricsData | None = None

    def take(self) -> sdk.MetricsData | None:
        """Collect now, and return the data."""
        self.collect(PATIENCE)
        data, self._data = self._data, None
        return data

    def _receive_metrics(self, metrics_data: sdk.MetricsData, *_: Any, **__: Any) -> None:
        self._data = metrics_data

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def encoded(about: sdk.ResourceMetrics, metrics: Sequence[sdk.Metric], pause: Callable[[], None]) -> bytes:
    """Return an OTLP message, encoded piece by piece.

    The pieces are joined as protobuf allows: fields of one message may come in any number of parts.

    Args:
        about: resource and scope of the message.
        metrics: its content.
        pause: called between two pieces, to yield the GIL.
    """
    scope = about.scope_metrics[0]
    empty = sdk.ScopeMetrics(scope.scope, [], scope.schema_url)
    head = encode_metrics(sdk.MetricsData([sdk.ResourceMetrics(about.resource, [empty], about.schema_url)]))
    parts = [head.resource_metrics[0].scope_metrics[0].SerializeToString()]
    head.resource_metrics[0].ClearField("scope_metrics")
    pause()
    for some in _portions(metrics):
        piece = sdk.ScopeMetrics(scope.scope, some, scope.schema_url)
        whole = encode_metrics(sdk.MetricsData([sdk.ResourceMetrics(_NOBODY, [piece], "")]))
        found: ScopeMetrics = whole.resource_metrics[0].scope_metrics[0]
        found.ClearField("scope")
        found.ClearField("schema_url")
        parts.append(found.SerializeToString())
        pause()
    of_scope = _field(ResourceMetrics.SCOPE_METRICS_FIELD_NUMBER, b"".join(parts))
    of_resource = head.resource_metrics[0].SerializeToString() + of_scope
    return _field(ExportMetricsServiceRequest.RESOURCE_METRICS_FIELD_NUMBER, of_resource)


_NOBODY = Resource({})


def _portions(metrics: Sequence[sdk.Metric]) -> Iterable[list[sdk.Metric]]:
    some: list[sdk.Metric] = []
    points = 0
    for metric in metrics:
        count = len(metric.data.data_points)
        if some and points + count > PIECE:
            yield some
            some, points = [], 0
        some.append(metric)
        points += count
    if some:
        yield some


def _field(number: int, content: bytes) -> bytes:
    """Return a field with a message in it (protobuf encoding: tag, length, content)."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)

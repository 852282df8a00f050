"""Private providers of the OpenTelemetry SDK: ours alone, passed explicitly, exported by one thread of ours.

Imports the SDK: it is imported only where a receiver is configured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics, ScopeMetrics
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
)
from opentelemetry.sdk.metrics import export as metrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from loopwatch._faults import Faults
from loopwatch.telemetry import resource as own_resource
from loopwatch.telemetry.exporting import Exporter, nap
from loopwatch.telemetry.instruments import Account, Instruments
from loopwatch.telemetry.sending import sender_of
from loopwatch.telemetry.targets import Signal, Target, Targets

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadWriteLogRecord

PIECE = 40
"""Points that are encoded in one go, about a third of a millisecond."""
PATIENCE = 30_000.0
"""ms that a collection may take."""


class Private:
    """Providers of those signals that the application has none for.

    Args:
        targets: how often, how much.
        wanted: where to, by signal.
        account: where what is told comes from.
        faults: of the agent.
        version: of loopwatch.

    Raises:
        ConfigError: grpc is wanted and not installed, or a certificate cannot be used.
    """

    def __init__(
        self,
        targets: Targets,
        wanted: Mapping[Signal, Target],
        account: Account,
        faults: Faults,
        version: str,
    ) -> None:
        self._targets, self._wanted, self._account = targets, wanted, account
        self._faults, self._version = faults, version
        self._senders = {signal: sender_of(target) for signal, target in wanted.items()}
        self._resource = Resource.create(own_resource.attributes())
        self._begin()
        self._make()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._made = False
        self._providers: dict[Signal, Any] = {}
        self._reader: _Reader | None = None
        self.instruments: Instruments | None = None
        self._exporter = Exporter(self._targets, self._faults, self._collect)
        encoders: dict[Signal, Callable[[Sequence[Any]], bytes]] = {
            Signal.METRICS: lambda messages: messages[0],
            Signal.TRACES: lambda spans: encode_spans(spans).SerializeToString(),
            Signal.LOGS: lambda records: encode_logs(records).SerializeToString(),
        }
        for signal, sender in self._senders.items():
            self._exporter.add(signal, sender, self._wanted[signal].shown, encoders[signal])

    def in_child(self) -> Private:
        """Return what takes this one's place in a forked child, and let go of what is the parent's.

        Costs next to nothing: a child that runs no loop never needs providers, else they are made by its first use.
        """
        self._exporter.abandon()
        child = Private.__new__(Private)
        child._targets, child._wanted, child._account = self._targets, self._wanted, self._account
        child._faults = self._faults
        child._version, child._senders = self._version, self._senders
        child._resource = self._resource.merge(Resource(own_resource.attributes()))
        child._begin()
        return child

    def start(self) -> None:
        """Begin to export."""
        self._exporter.start()

    def end(self, signal: Signal) -> None:
        """Tell what there is of ``signal`` once more, and then no more: the application exports it now."""
        self._exporter.end(signal)

    def stop(self, timeout: float, *, wait: bool = True) -> None:
        """Tell what there is once more, and end; waits at most ``timeout`` s, or not at all."""
        self._exporter.stop(timeout, wait=wait)
        if not wait:
            return
        if self.instruments is not None:
            self.instruments.detach()

    def provider(self, signal: Signal) -> Any | None:
        """Return the provider of ``signal``, None if it is not exported."""
        self._make()
        return self._providers.get(signal)

    @property
    def cpu(self) -> float:
        """Processor s of the exporting thread."""
        return self._exporter.cpu

    @property
    def dropped(self) -> dict[Signal, int]:
        """Items that will never be told."""
        return self._exporter.dropped

    def _make(self) -> None:
        with self._lock:
            if self._made:
                return
            resource = self._resource
            silent = NoOpMeterProvider()  # the SDK's figures of itself: else it would look for a global provider
            if Signal.METRICS in self._wanted:
                self._reader = _Reader(delta=self._targets.delta)
                provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
                self._providers[Signal.METRICS] = provider
                self.instruments = Instruments(provider.get_meter("loopwatch", self._version))
                self.instruments.pause = self._pause
                self.instruments.attach(self._account)
            if Signal.TRACES in self._wanted:
                tracers = TracerProvider(resource=resource, shutdown_on_exit=False, meter_provider=silent)
                tracers.add_span_processor(_Spans(self._exporter))
                self._providers[Signal.TRACES] = tracers
            if Signal.LOGS in self._wanted:
                loggers = LoggerProvider(resource, shutdown_on_exit=False, meter_provider=silent)
                loggers.add_log_record_processor(_Records(self._exporter))
                self._providers[Signal.LOGS] = loggers
            self._made = True

    def _pause(self) -> None:
        if self._exporter.is_own_thread:
            nap()

    def _collect(self) -> bytes | None:
        """Return the metrics as they are now as one message; in the exporting thread."""
        self._make()
        if self._reader is None:
            return None
        data = self._reader.take()
        return None if data is None else encoded(data)


class _Reader(metrics.MetricReader):
    """Hands out what was collected to whoever asks; has no thread of its own."""

    def __init__(self, *, delta: bool) -> None:
        told = metrics.AggregationTemporality.DELTA
        kinds: tuple[type, ...] = (Counter, Histogram, ObservableCounter)
        super().__init__(preferred_temporality=dict.fromkeys(kinds, told) if delta else None)
        self._data: metrics.MetricsData | None = None

    def take(self) -> metrics.MetricsData | None:
        """Collect now."""
        self.collect(PATIENCE)
        data, self._data = self._data, None
        return data

    def _receive_metrics(self, metrics_data: metrics.MetricsData, *_: Any, **__: Any) -> None:
        self._data = metrics_data

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Nothing to end."""


class _Spans(SpanProcessor):
    """Hands spans that have ended to the exporter."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._exporter.put(Signal.TRACES, span)


class _Records(LogRecordProcessor):
    """Hands log records to the exporter."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self._exporter.put(Signal.LOGS, log_record)

    def shutdown(self) -> None:
        """Nothing to end."""

    def force_flush(self, *_: Any) -> bool:
        return True


def encoded(data: metrics.MetricsData) -> bytes:
    """Return an OTLP message of ``data``, made piece by piece with naps between them.

    The pieces are put together as protobuf has it: fields of one message may come in any number of parts.
    """
    message = []
    for of_resource in data.resource_metrics:
        about = encode_metrics(metrics.MetricsData([_with(of_resource, [])])).resource_metrics[0]
        body = [about.SerializeToString()]
        for of_scope in of_resource.scope_metrics:
            parts = list(_pieces(of_scope))
            body.append(_field(ResourceMetrics.SCOPE_METRICS_FIELD_NUMBER, b"".join(parts)))
        message.append(_field(ExportMetricsServiceRequest.RESOURCE_METRICS_FIELD_NUMBER, b"".join(body)))
    return b"".join(message)


_NOBODY = Resource({})


def _pieces(of_scope: metrics.ScopeMetrics) -> Iterable[bytes]:
    first = True
    for some in _portions(of_scope.metrics):
        piece = metrics.ScopeMetrics(of_scope.scope, some, of_scope.schema_url)
        whole = encode_metrics(metrics.MetricsData([metrics.ResourceMetrics(_NOBODY, [piece], "")]))
        found: ScopeMetrics = whole.resource_metrics[0].scope_metrics[0]
        if not first:
            found.ClearField("scope")
            found.ClearField("schema_url")
        first = False
        yield found.SerializeToString()
        nap()


def _portions(items: Sequence[metrics.Metric]) -> Iterable[list[metrics.Metric]]:
    some: list[metrics.Metric] = []
    points = 0
    for item in items:
        some.append(item)
        points += len(item.data.data_points)
        if points >= PIECE:
            yield some
            some, points = [], 0
    if some:
        yield some


def _with(of_resource: metrics.ResourceMetrics, scopes: list[metrics.ScopeMetrics]) -> metrics.ResourceMetrics:
    return metrics.ResourceMetrics(of_resource.resource, scopes, of_resource.schema_url)


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

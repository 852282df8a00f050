"""Builds private providers of the OpenTelemetry SDK, passed explicitly and exported by one thread of the agent.

Imports the SDK: it is imported only where a receiver is configured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from loopwatch.core.faults import Faults
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.telemetry import resource as own_resource
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.otel.exporter import Exporter, nap
from loopwatch.telemetry.otel.metric_reader import Metering
from loopwatch.telemetry.otel.otlp import sender_of
from loopwatch.telemetry.otel.otlp_config import Protocol, Signal, Target, Targets

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadWriteLogRecord

PIECE = 8
"""Spans or log records that are encoded in one go, some tenths of a millisecond."""


class PrivateProviders:
    """Providers of those signals that the application has none for.

    Args:
        targets: interval, queue and batch sizes.
        wanted: receivers by signal.
        account: source of the metrics.
        faults: the agent's fault handling.
        version: of loopwatch.

    Raises:
        ConfigError: grpc is configured and not installed, or a certificate cannot be used.
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
        self._made = self._is_forked = False
        self._providers: dict[Signal, Any] = {}
        self._metering: Metering | None = None
        self._exporter = Exporter(self._targets, self._faults, self._collect)
        encoders: dict[Signal, Callable[[Sequence[Any]], bytes]] = {
            Signal.METRICS: lambda messages: messages[0],
            Signal.TRACES: lambda spans: _in_pieces(encode_spans, spans),
            Signal.LOGS: lambda records: _in_pieces(encode_logs, records),
        }
        for signal, sender in self._senders.items():
            self._exporter.add(signal, sender, self._wanted[signal].shown, encoders[signal])

    def in_child(self) -> PrivateProviders:
        """Return the replacement for a forked child, and release the parent's connections.

        Costs next to nothing: a child that runs no loop never needs providers, else they are made by its first use.
        """
        self._exporter.abandon()
        child = PrivateProviders.__new__(PrivateProviders)
        child._targets, child._wanted, child._account = self._targets, self._wanted, self._account
        child._faults = self._faults
        child._version, child._senders = self._version, self._senders
        child._resource = self._resource
        child._begin()
        child._is_forked = True
        return child

    @property
    def thread(self) -> OwnThread:
        """The export thread."""
        return self._exporter.thread

    @property
    def uses_grpc(self) -> bool:
        """Whether anything goes over grpc, whose threads a process that forks must not have."""
        return any(target.protocol is Protocol.GRPC for target in self._wanted.values())

    def start(self) -> None:
        """Start exporting; a second call does nothing."""
        self._exporter.start()

    def end(self, signal: Signal) -> None:
        """Export ``signal`` once more, and then no more: the application exports it now."""
        self._exporter.end(signal)

    def stop(self, timeout: float, *, wait: bool = True) -> None:
        """Export once more, and stop; waits at most ``timeout`` seconds, or not at all."""
        self._exporter.stop(timeout, wait=wait)
        if not wait:
            return
        if self._metering is not None:
            self._metering.detach()

    def provider(self, signal: Signal) -> Any | None:
        """Return the provider of ``signal``, None if it is not exported."""
        self._make()
        return self._providers.get(signal)

    @property
    def meters(self) -> list[Any]:
        """The meters of the metrics."""
        return [] if self._metering is None else [each.meter for each in self._metering.instruments]

    @property
    def cpu(self) -> float:
        """CPU time of the export thread, seconds."""
        return self._exporter.cpu

    @property
    def dropped(self) -> dict[Signal, int]:
        """Items that will never be exported, by signal."""
        return self._exporter.dropped

    def _make(self) -> None:
        with self._lock:
            if self._made:
                return
            if self._is_forked:
                self._is_forked, self._resource = False, self._resource.merge(Resource(own_resource.attributes()))
            resource = self._resource
            silent = NoOpMeterProvider()  # for the SDK's metrics of itself: else it would use a global provider
            if Signal.METRICS in self._wanted:
                self._metering = Metering(self._account, resource, self._version, self._targets.temporality, nap)
            if Signal.TRACES in self._wanted:
                tracers = _Tracers(resource=resource, shutdown_on_exit=False, meter_provider=silent)
                tracers.add_span_processor(_Spans(self._exporter))
                self._providers[Signal.TRACES] = tracers
            if Signal.LOGS in self._wanted:
                loggers = _Loggers(resource, shutdown_on_exit=False, meter_provider=silent)
                loggers.add_log_record_processor(_Records(self._exporter))
                self._providers[Signal.LOGS] = loggers
            self._made = True

    def _collect(self) -> bytes | None:
        """Return the current metrics as one message; in the export thread."""
        self._make()
        return None if self._metering is None else self._metering.message()


class _Tracers(TracerProvider):
    """Does nothing in a forked child: there :class:`PrivateProviders` makes others, once they are needed.

    Since 1.45 providers of the SDK detect the child's resource at a fork: they search for detectors, import them, start
    threads and wait for those, up to 5 seconds each, and for ever where a thread of the parent was importing.
    """

    def _handle_fork(self) -> None:
        """Do nothing."""


class _Loggers(LoggerProvider):
    """Does nothing in a forked child, see :class:`_Tracers`."""

    def _handle_fork(self) -> None:
        """Do nothing."""


def _in_pieces(encode: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> bytes:
    """Return one message of all items, encoded by a few at a time: messages of protobuf may be concatenated."""
    parts = []
    for at in range(0, len(items), PIECE):
        parts.append(encode(items[at : at + PIECE]).SerializeToString())
        nap()
    return b"".join(parts)


class _Spans(SpanProcessor):
    """Hands ended spans to the exporter."""

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
        """Do nothing."""

    def force_flush(self, *_: Any) -> bool:
        return True

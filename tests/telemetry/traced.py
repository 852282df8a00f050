"""OpenTelemetry providers of a program, in memory, for tests of the spans and records that stalls export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry._logs import _internal as logs
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

STALL = "asyncio.eventloop.stall"
FLAGGED = "asyncio.eventloop.flagged"


class Exported:
    """What was exported, and a tracer for the program.

    Args:
        sampler: of the program's provider.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._spans, self._records = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.tracer_provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self._records))
        self.tracer = self.tracer_provider.get_tracer("program")

    def spans(self, name: str = STALL) -> list[ReadableSpan]:
        """Return the spans of this name."""
        return [each for each in self._spans.get_finished_spans() if each.name == name]

    def span(self, name: str = STALL) -> ReadableSpan:
        """Return the one span of this name."""
        (found,) = self.spans(name)
        return found

    def records(self, event: str = STALL) -> list[Any]:
        """Return the log records of this event."""
        return [each.log_record for each in self._records.get_finished_logs() if each.log_record.event_name == event]

    def text(self) -> str:
        """Return all exported spans and records as text."""
        spans = [each.to_json() for each in self._spans.get_finished_spans()]
        return "\n".join([*spans, *(each.to_json() for each in self._records.get_finished_logs())])

    def close(self) -> None:
        """Shut the providers down."""
        self.tracer_provider.shutdown()
        self.logger_provider.shutdown()


@contextmanager
def set_globally(monkeypatch: pytest.MonkeyPatch, exported: Exported) -> Iterator[Exported]:
    """Set the providers of ``exported`` globally while the test runs."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", exported.tracer_provider)
    monkeypatch.setattr(logs, "_LOGGER_PROVIDER", exported.logger_provider)
    yield exported
    exported.close()


def ratio(share: float) -> Sampler:
    """Return the usual sampler: by the parent, else this share of traces."""
    return ParentBased(TraceIdRatioBased(share))


def events(span: ReadableSpan) -> list[Any]:
    """Return the events of stalls in ``span``."""
    return [event for event in span.events if event.name == STALL]

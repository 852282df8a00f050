"""Emits the span and the log record of each stall to OpenTelemetry, and marks the traces of its waiters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loopwatch.core.patches import loaded
from loopwatch.events import FlaggedFunction, Stall
from loopwatch.telemetry.otel.logs import StallRecords
from loopwatch.telemetry.otel.spans import SpanContext, StallSpans, parent_of
from loopwatch.telemetry.otel.waiter_spans import WaiterSpans
from loopwatch.watch.observation import Case, Notice


class Traces:
    """Emits stalls, flagged functions and the events of waiters.

    Args:
        tracer: returns the tracer in use, None if there is none; cheap.
        logger: the same of ``opentelemetry._logs``.

    Example:
        >>> traces = Traces(lambda: None, lambda: None)
        >>> traces.held_back()
        {'traces': 0, 'logs': 0}
    """

    def __init__(self, tracer: Callable[[], Any | None], logger: Callable[[], Any | None]) -> None:
        self._tracer, self._logger = tracer, logger
        self.spans = StallSpans(tracer)
        self.records = StallRecords(logger)
        self.victims = WaiterSpans(self.spans)

    def emit_stall(self, stall: Stall, span: SpanContext | None = None) -> None:
        """Emit the span and the log record of ``stall``.

        Args:
            stall: over, or an ongoing hang: that has a log record only.
            span: context of the span that was current where the loop was blocked; default the one named by
                ``stall.context``.
        """
        if self._tracer() is None and self._logger() is None:
            return
        around = span or parent_of(stall)
        own = self.spans.emit(stall, around) if self._tracer() is not None else None
        self.records.emit(stall, own or around)

    def emit(self, stall: Stall, flagged: FlaggedFunction | None, span: SpanContext | None) -> None:
        """Emit the span and the log record of ``stall``, and the log record of the function that it has flagged."""
        self.emit_stall(stall, span)
        if flagged is not None:
            self.emit_flagged(flagged)

    def emit_flagged(self, function: FlaggedFunction) -> None:
        """Emit the log record of a function that has just been flagged."""
        if self._logger() is not None:
            self.records.emit_flagged(function)

    def begin(self, case: Case, started_at: float) -> None:
        """Begin the span of a block that will be a stall, early enough for the spans of its waiters to link to it."""
        if self._tracer() is not None:
            self.spans.begin(case.id, started_at, case.span)

    def annotate_waiters(self, notice: Notice) -> None:
        """Mark the spans of the waiters in ``notice``, which may end in a moment."""
        if loaded("opentelemetry.trace") is not None:
            self.victims.annotate(notice)

    def forget(self, stall_id: str) -> None:
        """Drop the span of a stall that will not happen."""
        self.spans.forget(stall_id)

    def held_back(self) -> Mapping[str, int]:
        """Return how many items the rate limits suppressed, by signal; events of waiters count as traces."""
        return {
            "traces": self.spans.allowance.held_back + self.victims.allowance.held_back,
            "logs": self.records.allowance.held_back,
        }

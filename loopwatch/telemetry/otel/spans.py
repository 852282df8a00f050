"""Emits a stall as an OpenTelemetry span, with exact start and end, in the trace of the callback that blocked.

One span per stall, when it is over; an ongoing hang is announced by a log record only: a span that has not ended is not
exported. A stall of a request that is not sampled has no span. The number of spans per minute is limited.

Nothing here runs on a loop's thread. The current context of the emitting thread is never used: a stall's span is a
child of the span that was current where the loop was blocked, else a root.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from loopwatch.core.text import timing
from loopwatch.events import Severity, Stall
from loopwatch.telemetry.metrics.attributes import EVENT, HELD_BACK, of_stall
from loopwatch.telemetry.otel.rate_limit import Allowance

SPANS_A_MINUTE = 100

MAX_KNOWN = 32
"""Stalls whose spans are remembered; a span that was begun and is forgotten never ends, so it is not exported."""

Tracer = Any
SpanContext = Any

_NANO = 1_000_000_000


class StallSpans:
    """Creates the spans of stalls.

    Args:
        tracer: returns the tracer in use, None if there is none.
        allowance: rate limit of the spans.

    Example:
        >>> spans = StallSpans(lambda: None)
        >>> spans.begin("7f", started_at=0.0, parent=None) is None
        True
    """

    def __init__(self, tracer: Callable[[], Tracer | None], allowance: Allowance | None = None) -> None:
        self._tracer = tracer
        self.allowance = allowance or Allowance(SPANS_A_MINUTE)
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.RLock()  # a finalizer of the program may run while it is held

    def begin(self, stall_id: str, started_at: float, parent: SpanContext | None) -> SpanContext | None:
        """Begin the span of an expected stall, so that others can link to it; a second call returns the same one.

        Args:
            stall_id: of the stall.
            started_at: seconds since the epoch.
            parent: span context of the callback that blocked, None if it has none.

        Returns:
            The context of the span; None if there will be none, or it is not sampled.
        """
        span = self._known_or_begun(stall_id, started_at, parent)
        context = None if span is None else span.get_span_context()
        return context if context is not None and context.trace_flags.sampled else None

    def emit(self, stall: Stall, parent: SpanContext | None = None) -> SpanContext | None:
        """Emit the span of ``stall``, with the stall's start and end; its status is an error if the stall is one.

        Args:
            stall: one that is over; an ongoing one has no span.
            parent: context of the span that was current in the callback; default the one named by ``stall.context``,
                which is then assumed to be sampled.

        Returns:
            The context of the span, None if there is none.
        """
        if stall.ongoing:
            return None
        from opentelemetry.trace import NonRecordingSpan, Status, StatusCode

        span = self._known_or_begun(stall.id, stall.started_at, parent or parent_of(stall))
        if span is None or not span.is_recording():
            return None
        held = self.allowance.held_lately()
        span.set_attributes(of_stall(stall) | ({HELD_BACK: held} if held else {}))
        if stall.severity is Severity.ERROR:
            span.set_status(Status(StatusCode.ERROR, _status_text(stall)))
        span.end(_nanoseconds(stall.started_at + stall.duration))
        context = span.get_span_context()
        with self._lock:
            self._known[stall.id] = NonRecordingSpan(context)  # its waiters may link to it a moment later
        return context

    def forget(self, stall_id: str) -> None:
        """Drop the span of a stall that will not happen: it never ends, so it is not exported."""
        with self._lock:
            self._known.pop(stall_id, None)

    def _known_or_begun(self, stall_id: str, started_at: float, parent: SpanContext | None) -> Any | None:
        with self._lock:
            if stall_id not in self._known:
                self._known[stall_id] = self._start(started_at, parent)
                while len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
            return self._known[stall_id]

    def _start(self, started_at: float, parent: SpanContext | None) -> Any | None:
        from opentelemetry.trace import SpanKind

        tracer = self._tracer()
        if tracer is None or (parent is not None and parent.is_valid and not parent.trace_flags.sampled):
            return None
        if not self.allowance.take():
            return None
        return tracer.start_span(EVENT, context_of(parent), kind=SpanKind.INTERNAL, start_time=_nanoseconds(started_at))


def context_of(span: SpanContext | None) -> Any:
    """Return an OpenTelemetry context in which ``span`` is the current one; for None, one without a span."""
    from opentelemetry.context import Context
    from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, set_span_in_context

    # Never an empty one: some functions then use the current one of this thread, which may be the program's.
    return set_span_in_context(INVALID_SPAN if span is None else NonRecordingSpan(span), Context())


def parent_of(stall: Stall) -> SpanContext | None:
    """Return the span context named by ``stall.context``, None if it names none."""
    from opentelemetry.trace import SpanContext as Made
    from opentelemetry.trace import TraceFlags

    try:
        trace_id, span_id = int(stall.context["trace_id"], 16), int(stall.context["span_id"], 16)
    except (KeyError, ValueError):
        return None
    made = Made(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return made if made.is_valid else None


def _status_text(stall: Stall) -> str:
    limit = stall.evidence.threshold
    return f"blocked the event loop for {timing(stall.duration)}" + (f", threshold {timing(limit)}" if limit else "")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANO)

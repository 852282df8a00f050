"""A stall as a span of OpenTelemetry, with exact start and end, in the trace of the callback that blocked.

One span a stall, when it is over; a hang that still goes on is announced by a log record only: a span that has not
ended is not exported. A stall of a request that is not sampled gives no span. In a storm so many are told a minute.

Nothing here runs on a loop's thread. The current context of the thread that tells is never used: a span of ours is a
child of the span that was current where the loop was blocked, else a root.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from loopwatch.events import Stall
from loopwatch.telemetry.metrics.attributes import EVENT, HELD_BACK, of_stall
from loopwatch.telemetry.otel.rate_limit import Allowance

SPANS_A_MINUTE = 100

MAX_KNOWN = 32
"""Stalls whose spans are remembered; one that has begun and is forgotten is never ended, so nobody exports it."""

Tracer = Any
SpanContext = Any

_NANO = 1_000_000_000


class StallSpans:
    """Makes the spans of stalls.

    Args:
        tracer: returns the tracer in use, None if there is none.
        allowance: how many may be told.

    Example:
        >>> spans = StallSpans(lambda: None)
        >>> spans.tell(stall) is None
        True
    """

    def __init__(self, tracer: Callable[[], Tracer | None], allowance: Allowance | None = None) -> None:
        self._tracer = tracer
        self.allowance = allowance or Allowance(SPANS_A_MINUTE)
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.RLock()  # a finalizer of the program may come in between

    def begin(self, stall_id: str, started_at: float, parent: SpanContext | None) -> SpanContext | None:
        """Begin the span of a stall that will be told, so that others can link to it; a second call returns the same.

        Args:
            stall_id: of the stall.
            started_at: s since the epoch.
            parent: of the callback that blocked, None if it has none.

        Returns:
            The context of the span; None if there will be none, or none that is sampled.
        """
        span = self._known_or_begun(stall_id, started_at, parent)
        context = None if span is None else span.get_span_context()
        return context if context is not None and context.trace_flags.sampled else None

    def tell(self, stall: Stall, parent: SpanContext | None = None) -> SpanContext | None:
        """Have the span of ``stall`` begin and end at its times, and be exported.

        Args:
            stall: one that is over; an ongoing one has no span.
            parent: context of the span that was current in the callback; default what ``stall.context`` names, which
                is then taken for sampled.

        Returns:
            The context of the span, None if there is none.
        """
        if stall.ongoing:
            return None
        from opentelemetry.trace import NonRecordingSpan

        span = self._known_or_begun(stall.id, stall.started_at, parent or parent_of(stall))
        if span is None or not span.is_recording():
            return None
        held = self.allowance.held_lately()
        span.set_attributes(of_stall(stall) | ({HELD_BACK: held} if held else {}))
        span.end(_nanoseconds(stall.started_at + stall.duration))
        context = span.get_span_context()
        with self._lock:
            self._known[stall.id] = NonRecordingSpan(context)  # who waited for it may be told a moment later
        return context

    def forget(self, stall_id: str) -> None:
        """There will be no such stall: what has begun of it never ends, so that nobody exports it."""
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
    """Return a context of OpenTelemetry in which ``span`` is the current one; one without a span for None."""
    from opentelemetry.context import Context
    from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, set_span_in_context

    # Never an empty one: that counts as none in places, and the current one of this thread may be the program's.
    return set_span_in_context(INVALID_SPAN if span is None else NonRecordingSpan(span), Context())


def parent_of(stall: Stall) -> SpanContext | None:
    """Return the context of the span that ``stall.context`` names, None if it names none."""
    from opentelemetry.trace import SpanContext as Made
    from opentelemetry.trace import TraceFlags

    try:
        trace_id, span_id = int(stall.context["trace_id"], 16), int(stall.context["span_id"], 16)
    except (KeyError, ValueError):
        return None
    made = Made(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return made if made.is_valid else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANO)

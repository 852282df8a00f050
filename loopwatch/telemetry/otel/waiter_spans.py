"""Marks the traces of a stall's waiters: an event in each one's current span, and a link to the blocking span.

Runs in a thread of the agent, before the loop continues, so that the spans are still open.
"""

from __future__ import annotations

from loopwatch.core.patches import loaded
from loopwatch.telemetry.metrics import attributes
from loopwatch.telemetry.metrics.catalog import LOOP
from loopwatch.telemetry.otel.rate_limit import Allowance
from loopwatch.telemetry.otel.spans import StallSpans
from loopwatch.watch.observation import Notice, Variable

EVENTS_A_MINUTE = 1000
MAX_VICTIMS = 20
"""Spans that are marked per stall."""

_NANO = 1_000_000_000


def current_span_variable() -> Variable | None:
    """Return the context variable that holds OpenTelemetry's context in this program.

    None while the program does not use OpenTelemetry, or keeps its context in another way (``OTEL_PYTHON_CONTEXT``).
    """
    if loaded("opentelemetry.trace") is None:
        return None
    context = loaded("opentelemetry.context")
    return getattr(getattr(context, "_RUNTIME_CONTEXT", None), "_current_context", None)


class WaiterSpans:
    """Adds events and links to the spans of waiting callbacks.

    Args:
        spans: those of the stalls, to link to.
        allowance: rate limit of the events.
    """

    def __init__(self, spans: StallSpans, allowance: Allowance | None = None) -> None:
        self._spans = spans
        self.allowance = allowance or Allowance(EVENTS_A_MINUTE)

    def annotate(self, notice: Notice) -> int:
        """Mark the spans of ``notice``; return how many were marked.

        A span is marked once when a stall is over, and once before if it might have ended by then. Not marked are spans
        that began after the block, the span of the blocking callback, and spans that are not recorded.

        Args:
            notice: the waiters.
        """
        from opentelemetry.trace import get_current_span

        count, event = 0, None
        for context in notice.contexts:
            span = get_current_span(context)
            if not span.is_recording():
                continue
            own = span.get_span_context()
            key = (own.span_id, notice.ongoing)
            began = getattr(span, "start_time", None) or 0
            blocker = notice.case.span
            if key in notice.case.annotated or began >= _at(notice.started_at + notice.duration):
                continue
            if blocker is not None and blocker.span_id == own.span_id:
                continue
            if len(notice.case.annotated) >= MAX_VICTIMS:
                break
            if not self.allowance.take():
                continue
            notice.case.annotated.add(key)
            if event is None:
                event = _event(notice)
                link = self._spans.begin(notice.case.id, notice.started_at, blocker) or blocker
            if link is not None and link.is_valid and (own.span_id, not notice.ongoing) not in notice.case.annotated:
                span.add_link(link, {attributes.ID: notice.case.id})
            span.add_event(attributes.EVENT, event, max(_at(notice.started_at), began))
            count += 1
        return count


def _event(notice: Notice) -> attributes.Attributes:
    foreseen = notice.case.foreseen  # the early diagnosis, made while it lasted; None if there is none
    found: attributes.Attributes = {
        attributes.ID: notice.case.id,
        attributes.DURATION: notice.duration,
        LOOP: notice.loop,
    }
    if notice.ongoing:
        found[attributes.ONGOING] = True
    return attributes.clean(found if foreseen is None else found | attributes.blame(foreseen))


def _at(seconds: float) -> int:
    return int(seconds * _NANO)

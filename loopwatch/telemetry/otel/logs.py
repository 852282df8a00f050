"""Emits a stall, or a flagged function, as an OpenTelemetry log record, with its event name and trace context.

One record per stall, one more where a hang is announced while it lasts. The number of records per minute is limited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwatch.core.originals import time
from loopwatch.events import FlaggedFunction, Severity, Stall
from loopwatch.sinks.log import describe, describe_flagged
from loopwatch.telemetry.metrics import attributes
from loopwatch.telemetry.otel.rate_limit import Allowance
from loopwatch.telemetry.otel.spans import SpanContext, context_of

RECORDS_A_MINUTE = 100

Logger = Any

_NANO = 1_000_000_000


class StallRecords:
    """Emits the log records.

    Args:
        logger: returns the logger of ``opentelemetry._logs`` in use, None if there is none.
        allowance: rate limit of the records.
    """

    def __init__(self, logger: Callable[[], Logger | None], allowance: Allowance | None = None) -> None:
        self._logger = logger
        self.allowance = allowance or Allowance(RECORDS_A_MINUTE)

    def emit(self, stall: Stall, span: SpanContext | None = None) -> bool:
        """Emit the record of ``stall``; return whether it was emitted.

        A stall that is over is dated to its end, when its length became known; a hang to when it was announced. The
        record's severity is that of the stall, WARN or ERROR.

        Args:
            stall: the stall.
            span: context of its own span, or of the one that was current where the loop was blocked.
        """
        from opentelemetry._logs import SeverityNumber

        severity = SeverityNumber.ERROR if stall.severity is Severity.ERROR else SeverityNumber.WARN
        return self._emit(
            attributes.EVENT,
            describe(stall),
            attributes.of_stall(stall),
            at=stall.started_at + stall.duration,
            severity=severity,
            span=span,
        )

    def emit_flagged(self, function: FlaggedFunction) -> bool:
        """Emit the record of ``function``, which has just been flagged; return whether it was emitted."""
        from opentelemetry._logs import SeverityNumber

        return self._emit(
            attributes.FLAGGED_EVENT,
            describe_flagged(function),
            attributes.of_flagged(function),
            at=function.last_at,
            severity=SeverityNumber.WARN,
            span=None,
        )

    def _emit(
        self, event: str, body: str, found: attributes.Attributes, *, at: float, severity: Any, span: SpanContext | None
    ) -> bool:
        from opentelemetry._logs import LogRecord

        logger = self._logger()
        if logger is None or not self.allowance.take():
            return False
        held = self.allowance.held_lately()
        logger.emit(
            LogRecord(
                timestamp=int(at * _NANO),
                observed_timestamp=time.time_ns(),
                context=context_of(span),
                severity_text=severity.name,
                severity_number=severity,
                body=attributes.utf8(body),
                attributes=found | ({attributes.HELD_BACK: held} if held else {}),
                event_name=event,
            )
        )
        return True

"""A stall, and a flagged function, is one OpenTelemetry log record with event name and trace context."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from opentelemetry import context, trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from loopwatch.agent import Agent
from loopwatch.events import Evidence
from loopwatch.sinks.log import describe, describe_flagged
from loopwatch.telemetry.otel.logs import StallRecords
from tests.conftest import Run
from tests.support.stalls import T0, make_stall
from tests.telemetry.traced import FLAGGED, Exported, set_globally

pytestmark = pytest.mark.measures


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The program's providers."""
    with set_globally(monkeypatch, Exported()) as made:
        yield made


def records(exported: Exported) -> StallRecords:
    logger = exported.logger_provider.get_logger("loopwatch")
    return StallRecords(lambda: logger)


def test_record_of_a_stall(exported: Exported) -> None:
    """Event name, severity, attributes, times and trace context are those of the stall; the body is the log line."""
    stall, span = make_stall(victims=3), SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1))
    assert records(exported).emit(stall, span)
    (record,) = exported.records()
    assert record.event_name == "asyncio.eventloop.stall"
    assert record.severity_number is SeverityNumber.WARN
    assert record.body == describe(stall)
    assert record.timestamp == pytest.approx((T0 + 0.25) * 1e9, abs=1000)
    assert record.observed_timestamp >= record.timestamp
    assert (record.trace_id, record.span_id, record.trace_flags) == (7, 8, 1)
    assert record.attributes["loopwatch.stall.duration"] == 0.25
    assert record.attributes["loopwatch.stall.victims"] == 3
    assert record.attributes["code.function.name"] == "app.images.resize"


def test_record_outside_a_trace_has_no_trace_context(exported: Exported) -> None:
    """That holds too if the emitting thread was started inside a span of the program."""
    other = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(other)))
    try:
        records(exported).emit(make_stall())
    finally:
        context.detach(token)
    (record,) = exported.records()
    assert (record.trace_id, record.span_id) == (0, 0)


def test_flagged_function_is_a_record(agent: Agent, exported: Exported, run: Run) -> None:
    """Three stalls of one function are three records, plus one that flags the function."""

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(0.02)
            time.sleep(0.15)
        await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert len(exported.records()) == 3
    (record,) = exported.records(FLAGGED)
    (flagged,) = agent.flagged()
    assert record.body == describe_flagged(flagged)
    assert record.attributes["loopwatch.function"] == flagged.name
    assert record.attributes["loopwatch.flagged.stalls"] == 3
    assert record.attributes["loopwatch.flagged.blocked"] == pytest.approx(flagged.blocked)
    assert record.attributes["loopwatch.remedy"] == flagged.remedy


def test_without_a_provider_there_is_no_record() -> None:
    """Without a logger no record is made."""
    assert not StallRecords(lambda: None).emit(make_stall())


def test_a_failing_log_processor_is_a_fault(
    agent: Agent, exported: Exported, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """If a processor of the program raises, a fault is counted and logged once; stalls are still counted."""

    class Broken:
        def on_emit(self, _record: object) -> None:
            raise OSError("no space left")

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    exported.logger_provider.add_log_record_processor(Broken())  # type: ignore[arg-type]

    async def main() -> None:
        for _ in range(2):
            await asyncio.sleep(0.02)
            time.sleep(0.15)
        await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert len(agent.stalls()) == 2
    assert agent.snapshot().agent.faults == {"traces": 2}
    assert sum("its traces failed" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("duration", "ongoing", "severity"),
    [(0.99, False, SeverityNumber.WARN), (1.0, False, SeverityNumber.ERROR), (0.3, True, SeverityNumber.ERROR)],
)
def test_severity_of_a_record(exported: Exported, duration: float, ongoing: bool, severity: SeverityNumber) -> None:
    """The severity of the record is that of the stall."""
    evidence = Evidence(1.0, threshold=0.1)
    assert records(exported).emit(make_stall(duration=duration, ongoing=ongoing, evidence=evidence))
    (record,) = exported.records()
    assert (record.severity_number, record.severity_text) == (severity, severity.name)

"""A stall, and a function that is flagged, is one log record of OpenTelemetry, with event name and trace context."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from opentelemetry import context, trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from loopwatch.agent import Agent
from loopwatch.sinks.log import describe, describe_flagged
from loopwatch.telemetry.otel.logs import StallRecords
from tests.conftest import Run
from tests.support.stalls import T0, make_stall
from tests.telemetry.traced import FLAGGED, Told, set_globally


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """The program's providers."""
    with set_globally(monkeypatch, Told()) as made:
        yield made


def records(told: Told) -> StallRecords:
    logger = told.logger_provider.get_logger("loopwatch")
    return StallRecords(lambda: logger)


def test_a_record_says_what_the_log_line_says(told: Told) -> None:
    """Event name, severity, body, attributes, times and trace context are those of the stall."""
    stall, span = make_stall(victims=3), SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1))
    assert records(told).emit(stall, span)
    (record,) = told.records()
    assert record.event_name == "asyncio.eventloop.stall"
    assert record.severity_number is SeverityNumber.WARN
    assert record.body == describe(stall)
    assert record.timestamp == pytest.approx((T0 + 0.25) * 1e9, abs=1000)
    assert record.observed_timestamp >= record.timestamp
    assert (record.trace_id, record.span_id, record.trace_flags) == (7, 8, 1)
    assert record.attributes["loopwatch.stall.duration"] == 0.25
    assert record.attributes["loopwatch.stall.victims"] == 3
    assert record.attributes["code.function.name"] == "app.images.resize"


def test_a_record_outside_any_trace_has_none(told: Told) -> None:
    """Also where the thread that tells was started inside a span of the program."""
    other = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(other)))
    try:
        records(told).emit(make_stall())
    finally:
        context.detach(token)
    (record,) = told.records()
    assert (record.trace_id, record.span_id) == (0, 0)


def test_a_function_that_keeps_blocking_is_a_record_too(agent: Agent, told: Told, run: Run) -> None:
    """Three stalls of one function are three records, and one more that it is flagged."""

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(0.02)
            time.sleep(0.15)
        await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert len(told.records()) == 3
    (record,) = told.records(FLAGGED)
    (flagged,) = agent.flagged()
    assert record.body == describe_flagged(flagged)
    assert record.attributes["loopwatch.function"] == flagged.name
    assert record.attributes["loopwatch.flagged.stalls"] == 3
    assert record.attributes["loopwatch.flagged.blocked"] == pytest.approx(flagged.blocked)
    assert record.attributes["loopwatch.remedy"] == flagged.remedy


def test_without_a_provider_there_is_no_record() -> None:
    """No logger: nothing is made."""
    assert not StallRecords(lambda: None).emit(make_stall())


def test_an_exporter_that_raises_hurts_nobody(
    agent: Agent, told: Told, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A processor of the program that fails is a fault of this part, told once; stalls are still counted."""

    class Broken:
        def on_emit(self, _record: object) -> None:
            raise OSError("no space left")

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    told.logger_provider.add_log_record_processor(Broken())  # type: ignore[arg-type]

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

"""A stall is one span in the culprit's own trace, with exact times and all attributes, and spans are rate limited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from loopwatch.agent import Agent
from loopwatch.events import Cause, Evidence, Frame, Stall
from loopwatch.telemetry.metrics.attributes import MAX_STACK, of_stall, stack_text
from loopwatch.telemetry.otel.rate_limit import Allowance
from loopwatch.telemetry.otel.spans import MAX_KNOWN, SPANS_A_MINUTE, StallSpans
from loopwatch.telemetry.otel.traces import Traces
from tests.conftest import Run
from tests.support.stalls import T0, frame, make_stall
from tests.telemetry.traced import Exported, ratio, set_globally

pytestmark = pytest.mark.measures

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SECRET = "s3cret"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The program's providers."""
    with set_globally(monkeypatch, Exported()) as made:
        yield made


def parent(*, sampled: bool = True) -> SpanContext:
    return SpanContext(TRACE, SPAN, is_remote=True, trace_flags=TraceFlags(int(sampled)))


def in_trace(number: int = 0, **fields: object) -> Stall:
    labels = {"trace_id": f"{TRACE:032x}", "span_id": f"{SPAN:016x}", "http.route": "/thumb/{id}", "tenant": "acme"}
    return make_stall(number, context=labels, **fields)


def traces(exported: Exported) -> Traces:
    logger = exported.logger_provider.get_logger("loopwatch")
    return Traces(lambda: exported.tracer_provider.get_tracer("loopwatch"), lambda: logger)


def test_a_stall_is_a_child_span_of_the_blocking_request(agent: Agent, exported: Exported, run: Run) -> None:
    """Its start and end match the blocking function's own measurement, within the stall's uncertainty."""
    truth = []

    async def request() -> None:
        with exported.tracer.start_as_current_span("request"):
            await asyncio.sleep(0.02)
            began = time.time()
            time.sleep(0.3)
            truth.extend([began, time.time()])
            await asyncio.sleep(0.02)

    async def main() -> None:
        await asyncio.create_task(request(), name="the-task")
        await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    found, culprit = exported.span(), exported.span("request")
    assert found.parent is not None and found.start_time is not None and found.end_time is not None
    assert found.context.trace_id == culprit.context.trace_id
    assert found.parent.span_id == culprit.context.span_id
    stall = agent.stalls()[-1]
    assert found.attributes is not None
    allowed = stall.uncertainty + 0.02
    assert abs(found.start_time / 1e9 - truth[0]) <= allowed
    assert abs(found.end_time / 1e9 - truth[1]) <= allowed
    assert (found.end_time - found.start_time) / 1e9 == pytest.approx(stall.duration, abs=0.001)
    assert found.kind is SpanKind.INTERNAL
    assert found.attributes["loopwatch.stall.id"] == stall.id
    assert found.attributes["loopwatch.cause"] == "sleep"
    assert found.attributes["loopwatch.task"] == "the-task"
    assert str(found.attributes["loopwatch.coroutine"]).endswith("request")
    assert str(found.attributes["code.function.name"]).endswith("request")
    assert found.attributes["code.file.path"] == __file__
    assert str(found.attributes["code.stacktrace"]).rstrip().endswith("in " + stall.stack[-1].function)
    assert "asyncio.sleep" in str(found.attributes["loopwatch.remedy"])


def test_a_stall_outside_a_trace_is_a_root_span(agent: Agent, exported: Exported, run: Run) -> None:
    """Without an active trace, the stall has a trace of its own."""

    async def main() -> None:
        await asyncio.sleep(0.02)
        time.sleep(0.2)
        await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert exported.span().parent is None


def test_attributes_of_a_span(exported: Exported) -> None:
    """A span has all facts of its stall, under names of the semantic conventions where they exist."""
    context = traces(exported).spans.emit(
        in_trace(victims=17, uncertainty=0.004, task="t", coroutine="handle", thread="M")
    )
    found = exported.span()
    assert context == found.context
    assert found.attributes == {
        "loopwatch.cause": "python",
        "loopwatch.culprit": "app.images:resize",
        "loopwatch.task": "t",
        "loopwatch.coroutine": "handle",
        "loopwatch.stall.id": "s0",
        "asyncio.eventloop.name": "main",
        "loopwatch.stall.duration": 0.25,
        "loopwatch.stall.uncertainty": 0.004,
        "loopwatch.stall.samples": 9,
        "loopwatch.stall.victims": 17,
        "loopwatch.remedy": "Move it off the loop with @loopwatch.offload.",
        "code.function.name": "app.images.resize",
        "code.file.path": "/srv/app/images.py",
        "code.line.number": 42,
        "code.stacktrace": '  File "/srv/app/main.py", line 7, in handle\n'
        '  File "/srv/app/images.py", line 42, in resize\n',
        "thread.name": "M",
        "process.pid": 100,
        "http.route": "/thumb/{id}",
        "loopwatch.context.tenant": "acme",
    }
    assert found.start_time == pytest.approx(T0 * 1e9, abs=1000)
    assert found.end_time == pytest.approx((T0 + 0.25) * 1e9, abs=1000)
    assert found.parent is not None
    assert (found.parent.trace_id, found.parent.span_id) == (TRACE, SPAN)


def test_starvation_in_the_attributes_of_a_span(exported: Exported) -> None:
    """A stall without a processor says for how long, how much of it the quota took, and where the thread was."""
    where = Frame("resize\x1b[31m", "app.images", "/srv/app/images.py", 42)
    stall = make_stall(culprit=None, cause=Cause.STARVED, starved=0.2, throttled=0.15, was_in=where)
    traces(exported).emit_stall(stall)
    expected = {
        "loopwatch.cause": "starved",
        "loopwatch.culprit": "[starved]",
        "loopwatch.stall.duration": 0.25,
        "loopwatch.stall.starved": 0.2,
        "loopwatch.stall.throttled": 0.15,
        "loopwatch.stall.was_in": "resize\\x1b[31m (/srv/app/images.py:42)",
    }
    (record,) = exported.records()
    for attributes in (exported.span().attributes, record.attributes):
        assert {name: value for name, value in (attributes or {}).items() if name in expected} == expected


def test_a_stall_with_a_processor_has_no_attribute_of_starvation() -> None:
    """Attributes of 0 seconds are left out, throttled time is the quota's part alone, and text is bounded."""
    names = {"loopwatch.stall.starved", "loopwatch.stall.throttled", "loopwatch.stall.was_in"}
    assert not names & set(of_stall(make_stall()))
    by_neighbours = of_stall(make_stall(starved=0.1))
    assert by_neighbours["loopwatch.stall.starved"] == 0.1
    assert names & set(by_neighbours) == {"loopwatch.stall.starved"}
    long = of_stall(make_stall(was_in=Frame("f" * 5000, "m", "/srv/m.py", 7)))["loopwatch.stall.was_in"]
    assert isinstance(long, str) and len(long) == 256 and long.endswith("(/srv/m.py:7)")


def test_an_unsampled_request_has_no_stall_span(exported: Exported) -> None:
    """The flags of the parent decide, whatever the provider's sampler says."""
    spans = traces(exported).spans
    assert spans.emit(in_trace(), parent(sampled=False)) is None
    assert spans.begin("other", T0, parent(sampled=False)) is None
    assert exported.spans() == []


def test_a_sampler_that_drops_all_gives_no_span() -> None:
    """The program's sampler decides about a root span."""
    exported = Exported(ratio(0.0))
    assert traces(exported).spans.emit(make_stall()) is None
    assert exported.spans() == []
    exported.close()


def test_the_current_span_of_the_emitting_thread_is_not_the_parent(exported: Exported) -> None:
    """A thread that was started inside a span of the program creates no children of it."""
    other = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(other)))
    try:
        traces(exported).emit_stall(make_stall())
    finally:
        context.detach(token)
    assert exported.span().parent is None
    assert exported.span().context.trace_id != 1
    assert exported.records()[0].trace_id == exported.span().context.trace_id


def test_a_hang_has_one_span_and_two_records(agent: Agent, exported: Exported, run: Run) -> None:
    """A hang is announced by a record of severity ERROR; its only span is exported when it is over."""
    agent.configure(hang_after=0.2)

    async def main() -> None:
        with exported.tracer.start_as_current_span("request"):
            await asyncio.sleep(0.02)
            time.sleep(0.6)
            await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    announced, over = exported.records()
    assert (announced.severity_text, over.severity_text) == ("ERROR", "WARN")
    assert announced.attributes["loopwatch.stall.ongoing"] is True
    found = exported.span()
    assert found.attributes is not None
    assert "loopwatch.stall.ongoing" not in found.attributes
    assert announced.attributes["loopwatch.stall.id"] == found.attributes["loopwatch.stall.id"]
    assert announced.trace_id == over.trace_id == found.context.trace_id
    assert announced.span_id == exported.span("request").context.span_id
    assert over.span_id == found.context.span_id


def test_spans_and_records_are_rate_limited(exported: Exported) -> None:
    """Of 1,000 stalls as many as a minute allows are exported; the next one carries the number of suppressed ones."""
    clock = [0.0]
    all_ = traces(exported)
    all_.spans.allowance = Allowance(SPANS_A_MINUTE, lambda: clock[0])
    all_.records.allowance = Allowance(SPANS_A_MINUTE, lambda: clock[0])
    for number in range(1000):
        all_.emit_stall(make_stall(number), parent())
    assert len(exported.spans()) == len(exported.records()) == SPANS_A_MINUTE == 100
    assert all_.held_back() == {"traces": 900, "logs": 900}
    assert all("loopwatch.stall.held_back" not in (each.attributes or {}) for each in exported.spans())
    clock[0] = 30.0
    for number in range(1000, 1100):
        all_.emit_stall(make_stall(number), parent())
    assert len(exported.spans()) == len(exported.records()) == 150
    assert (exported.spans()[100].attributes or {})["loopwatch.stall.held_back"] == 900
    assert exported.records()[100].attributes["loopwatch.stall.held_back"] == 900
    assert all_.held_back() == {"traces": 950, "logs": 950}


def test_a_span_that_began_early_is_the_exported_span(exported: Exported) -> None:
    """It has the start it was given and the same identity, also when it is asked for again after the export."""
    spans = traces(exported).spans
    early = spans.begin("s0", T0, parent())
    assert early is not None
    assert spans.begin("s0", T0, parent()) == early
    assert spans.emit(make_stall()) == early
    assert spans.begin("s0", T0, parent()) == early
    assert exported.span().context == early
    assert exported.span().parent is not None


def test_a_span_without_a_stall_is_not_exported(exported: Exported) -> None:
    """A span that began and whose stall never came is neither exported nor kept."""
    spans = traces(exported).spans
    spans.begin("gone", T0, parent())
    spans.forget("gone")
    for number in range(2 * MAX_KNOWN):
        spans.begin(f"b{number}", T0, parent())
    assert len(spans._known) == MAX_KNOWN
    assert exported.spans() == []


def test_without_a_provider_nothing_is_done() -> None:
    """Without a tracer and a logger, a stall leaves no state."""
    disabled = Traces(lambda: None, lambda: None)
    disabled.emit_stall(in_trace())
    assert disabled.spans._known == {}
    assert StallSpans(lambda: None).emit(make_stall()) is None


def test_no_values_are_exported(agent: Agent, exported: Exported, run: Run) -> None:
    """Locals, arguments and query strings are in no span or record."""

    def work(argument: str) -> None:
        local = argument + "?token=" + SECRET
        time.sleep(0.2)
        del local

    async def main() -> None:
        with exported.tracer.start_as_current_span("request"):
            await asyncio.sleep(0.02)
            work(SECRET)
            await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert len(exported.spans()) == len(exported.records()) == 1
    assert SECRET not in exported.text()


def test_a_stack_is_bounded() -> None:
    """A deep stack is truncated to its innermost frames, with a mark for the others."""
    deep = [frame(f"package.module.function_{number}", number) for number in range(500)]
    text = stack_text(deep)
    assert len(text) <= MAX_STACK
    assert text.startswith("...\n")
    assert text.endswith("in function_499\n")
    assert stack_text(deep[:2]).count("\n") == 2


@pytest.mark.parametrize(
    ("duration", "status", "text"),
    [
        (0.99, StatusCode.UNSET, None),
        (1.5, StatusCode.ERROR, "blocked the event loop for 1.50 s, threshold 100 ms"),
    ],
)
def test_status_of_a_span(exported: Exported, duration: float, status: StatusCode, text: str | None) -> None:
    """The span of a stall of severity ``error`` has the status ERROR with a description; others have none."""
    traces(exported).spans.emit(make_stall(duration=duration, evidence=Evidence(1.0, threshold=0.1)))
    span = exported.span()
    assert (span.status.status_code, span.status.description) == (status, text)

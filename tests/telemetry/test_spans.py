"""A stall is one span in the culprit's own trace, with exact times and what is known of it, and never too many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from loopwatch.agent import Agent
from loopwatch.events import Stall
from loopwatch.telemetry.metrics.attributes import MAX_STACK, stack_text
from loopwatch.telemetry.otel.rate_limit import Allowance
from loopwatch.telemetry.otel.spans import MAX_KNOWN, SPANS_A_MINUTE, StallSpans
from loopwatch.telemetry.otel.traces import Traces
from tests.conftest import Run
from tests.support.stalls import T0, frame, make_stall
from tests.telemetry.traced import Told, ratio, set_globally

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SECRET = "s3cret"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """The program's providers."""
    with set_globally(monkeypatch, Told()) as made:
        yield made


def parent(*, sampled: bool = True) -> SpanContext:
    return SpanContext(TRACE, SPAN, is_remote=True, trace_flags=TraceFlags(int(sampled)))


def in_trace(number: int = 0, **fields: object) -> Stall:
    labels = {"trace_id": f"{TRACE:032x}", "span_id": f"{SPAN:016x}", "http.route": "/thumb/{id}", "tenant": "acme"}
    return make_stall(number, context=labels, **fields)


def traces(told: Told) -> Traces:
    logger = told.logger_provider.get_logger("loopwatch")
    return Traces(lambda: told.tracer_provider.get_tracer("loopwatch"), lambda: logger)


def test_a_block_is_a_span_with_its_times_in_the_trace_of_what_blocked(agent: Agent, told: Told, run: Run) -> None:
    """Start and end are those that the blocking function measured, within the stall's uncertainty; it is a child."""
    truth = []

    async def request() -> None:
        with told.tracer.start_as_current_span("request"):
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
    found, culprit = told.span(), told.span("request")
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


def test_a_block_outside_any_trace_is_a_root(agent: Agent, told: Told, run: Run) -> None:
    """Where nothing was traced, the stall has a trace of its own."""

    async def main() -> None:
        await asyncio.sleep(0.02)
        time.sleep(0.2)
        await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert told.span().parent is None


def test_the_attributes_are_these(told: Told) -> None:
    """A span says all that a stall knows, under the names of the semantic conventions where they have one."""
    context = traces(told).spans.emit(in_trace(victims=17, uncertainty=0.004, task="t", coroutine="handle", thread="M"))
    found = told.span()
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


def test_a_request_that_is_not_sampled_gives_no_span(told: Told) -> None:
    """The flags of the parent decide, whatever the provider's sampler says."""
    spans = traces(told).spans
    assert spans.emit(in_trace(), parent(sampled=False)) is None
    assert spans.begin("other", T0, parent(sampled=False)) is None
    assert told.spans() == []


def test_a_sampler_that_drops_all_gives_no_span() -> None:
    """A root is left to the program's sampler."""
    told = Told(ratio(0.0))
    assert traces(told).spans.emit(make_stall()) is None
    assert told.spans() == []
    told.close()


def test_what_is_current_where_it_is_told_is_not_the_parent(told: Told) -> None:
    """A thread that was started inside a span of the program makes no children of it."""
    other = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(other)))
    try:
        traces(told).emit_stall(make_stall())
    finally:
        context.detach(token)
    assert told.span().parent is None
    assert told.span().context.trace_id != 1
    assert told.records()[0].trace_id == told.span().context.trace_id


def test_a_hang_has_one_span_and_two_records(agent: Agent, told: Told, run: Run) -> None:
    """A hang is announced by a record of severity ERROR; its only span comes when it is over."""
    agent.configure(hang_after=0.2)

    async def main() -> None:
        with told.tracer.start_as_current_span("request"):
            await asyncio.sleep(0.02)
            time.sleep(0.6)
            await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    announced, over = told.records()
    assert (announced.severity_text, over.severity_text) == ("ERROR", "WARN")
    assert announced.attributes["loopwatch.stall.ongoing"] is True
    found = told.span()
    assert found.attributes is not None
    assert "loopwatch.stall.ongoing" not in found.attributes
    assert announced.attributes["loopwatch.stall.id"] == found.attributes["loopwatch.stall.id"]
    assert announced.trace_id == over.trace_id == found.context.trace_id
    assert announced.span_id == told.span("request").context.span_id
    assert over.span_id == found.context.span_id


def test_a_storm_is_held_back(told: Told) -> None:
    """Of 1,000 stalls as many are told as a minute allows; the next one says how many were not."""
    clock = [0.0]
    all_ = traces(told)
    all_.spans.allowance = Allowance(SPANS_A_MINUTE, lambda: clock[0])
    all_.records.allowance = Allowance(SPANS_A_MINUTE, lambda: clock[0])
    for number in range(1000):
        all_.emit_stall(make_stall(number), parent())
    assert len(told.spans()) == len(told.records()) == SPANS_A_MINUTE == 100
    assert all_.held_back() == {"traces": 900, "logs": 900}
    assert all("loopwatch.stall.held_back" not in (each.attributes or {}) for each in told.spans())
    clock[0] = 30.0
    for number in range(1000, 1100):
        all_.emit_stall(make_stall(number), parent())
    assert len(told.spans()) == len(told.records()) == 150
    assert (told.spans()[100].attributes or {})["loopwatch.stall.held_back"] == 900
    assert told.records()[100].attributes["loopwatch.stall.held_back"] == 900
    assert all_.held_back() == {"traces": 950, "logs": 950}


def test_what_others_link_to_is_the_span_that_is_told(told: Told) -> None:
    """A span that began early has the start it was given, and the same identity; also a moment after it was told."""
    spans = traces(told).spans
    early = spans.begin("s0", T0, parent())
    assert early is not None
    assert spans.begin("s0", T0, parent()) == early
    assert spans.emit(make_stall()) == early
    assert spans.begin("s0", T0, parent()) == early
    assert told.span().context == early
    assert told.span().parent is not None


def test_what_never_became_a_stall_is_never_told(told: Told) -> None:
    """A span that began and whose stall never came is not exported, and not kept."""
    spans = traces(told).spans
    spans.begin("gone", T0, parent())
    spans.forget("gone")
    for number in range(2 * MAX_KNOWN):
        spans.begin(f"b{number}", T0, parent())
    assert len(spans._known) == MAX_KNOWN
    assert told.spans() == []


def test_without_a_provider_nothing_is_done() -> None:
    """No tracer, no logger: a stall costs a look."""
    nobody = Traces(lambda: None, lambda: None)
    nobody.emit_stall(in_trace())
    assert nobody.spans._known == {}
    assert StallSpans(lambda: None).emit(make_stall()) is None


def test_no_values_leave_the_process(agent: Agent, told: Told, run: Run) -> None:
    """Locals, arguments and query strings are nowhere in spans and records."""

    def work(argument: str) -> None:
        local = argument + "?token=" + SECRET
        time.sleep(0.2)
        del local

    async def main() -> None:
        with told.tracer.start_as_current_span("request"):
            await asyncio.sleep(0.02)
            work(SECRET)
            await asyncio.sleep(0.02)

    run(main())
    assert agent.flush(5)
    assert len(told.spans()) == len(told.records()) == 1
    assert SECRET not in told.text()


def test_a_stack_is_bounded() -> None:
    """Of a deep stack the innermost frames are told, and that there were more."""
    deep = [frame(f"package.module.function_{number}", number) for number in range(500)]
    text = stack_text(deep)
    assert len(text) <= MAX_STACK
    assert text.startswith("...\n")
    assert text.endswith("in function_499\n")
    assert stack_text(deep[:2]).count("\n") == 2

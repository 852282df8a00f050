"""Those who waited learn it from their own traces: an event and a link in the span that is current in them, in time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult

from loopwatch.agent import Agent
from loopwatch.telemetry.otel.rate_limit import Allowance
from loopwatch.telemetry.otel.traces import Traces
from loopwatch.telemetry.otel.waiter_spans import EVENTS_A_MINUTE, MAX_VICTIMS
from loopwatch.watch import waiters
from loopwatch.watch.observation import Case, Notice
from tests.conftest import Run, runner
from tests.telemetry.traced import Told, events, set_globally

BLOCK = 0.35


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """The program's providers."""
    with set_globally(monkeypatch, Told()) as made:
        yield made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the thread that tells may come late: have the loop wait for it, where that is not the claim."""
    monkeypatch.setattr(waiters, "PATIENCE", 5.0)


def check(told: Told, names: list[str], *, culprit: str = "culprit", advance: bool = False) -> ReadableSpan:
    """Check that each span of ``names`` carries the event and the link to the stall in the culprit's trace."""
    stall, blocker = told.span(), told.span(culprit)
    assert stall.context.trace_id == blocker.context.trace_id
    assert events(blocker) == [] and len(blocker.links) == 0
    for name in names:
        (span,) = told.spans(name)
        found = events(span)
        assert len(found) == 1, (name, found)
        said = found[0].attributes
        assert said["asyncio.eventloop.name"] == "main"
        assert said["loopwatch.cause"] == "sleep"
        assert said["loopwatch.culprit"].endswith("block")
        assert said["loopwatch.stall.id"] == (stall.attributes or {})["loopwatch.stall.id"]
        if advance:
            assert said["loopwatch.stall.ongoing"] is True
            assert 0.1 <= said["loopwatch.stall.duration"] <= BLOCK + 0.2
        else:
            assert said["loopwatch.stall.duration"] == pytest.approx(BLOCK, abs=0.1)
        assert found[0].timestamp == pytest.approx(stall.start_time, abs=2e6)
        assert [link.context for link in span.links] == [stall.context]
    return stall


def block() -> None:
    time.sleep(BLOCK)


async def culprit(told: Told, go: asyncio.Event | None = None) -> None:
    with told.tracer.start_as_current_span("culprit"):
        await (go.wait() if go is not None else asyncio.sleep(0.05))
        block()


async def seen(agent: Agent) -> None:
    """Let the agent find the loop and that tracing is in use."""
    for _ in range(1000):
        if agent._parts.telemetry.waiters.in_use and agent._watch.watcher.loops[-1].pending is not None:
            break
        await asyncio.sleep(0.01)


def test_whose_timer_was_due_is_told(agent: Agent, told: Told, run: Run, patient: None) -> None:
    """Requests that slept through the block have the event and the link when their spans end, which is at once."""

    async def sleeper(number: int) -> None:
        with told.tracer.start_as_current_span(f"sleeper {number}"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await seen(agent)
        await asyncio.gather(culprit(told), *(sleeper(number) for number in range(3)))
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    check(told, [f"sleeper {number}" for number in range(3)])


def test_who_waited_for_an_answer_is_told(agent: Agent, told: Told, run: Run, patient: None) -> None:
    """A request whose peer answered during the block is found by the first poll after it."""
    listener = socket.create_server(("127.0.0.1", 0))
    reached = threading.Event()

    def peer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            reached.wait(10)
            connection.sendall(b"answer\n")

    async def asking() -> None:
        with told.tracer.start_as_current_span("asking"):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"question\n")
            assert await reader.readline() == b"answer\n"
            writer.close()

    async def main() -> None:
        await seen(agent)
        with told.tracer.start_as_current_span("culprit"):
            task = asyncio.get_running_loop().create_task(asking(), context=contextvars.Context())
            await asyncio.sleep(0.25)
            reached.set()
            block()
        await task
        await asyncio.sleep(0.05)

    thread = threading.Thread(target=peer)
    thread.start()
    with listener:
        run(main())
    thread.join()
    assert agent.flush(5)
    check(told, ["asking"])


def test_who_stood_behind_in_the_same_pass_is_told(
    agent: Agent, told: Told, run: Run, loop_kind: str, patient: None
) -> None:
    """Tasks that were woken together with the culprit run right after it, in their order, and are told before."""
    order: list[int] = []

    async def behind(number: int, go: asyncio.Event) -> None:
        with told.tracer.start_as_current_span(f"behind {number}"):
            await go.wait()
            order.append(number)

    async def main() -> None:
        go = asyncio.Event()
        await seen(agent)
        tasks = [asyncio.create_task(culprit(told, go))]
        tasks += [asyncio.create_task(behind(number, go)) for number in range(4)]
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    assert order == [0, 1, 2, 3]
    check(told, [f"behind {number}" for number in range(4)], advance=loop_kind == "uvloop")


def test_who_did_not_wait_is_not_told(agent: Agent, told: Told, run: Run, patient: None) -> None:
    """Spans that began after the block, spans around tasks that need more time anyway, and spans that have ended."""

    async def idle() -> None:
        with told.tracer.start_as_current_span("idle"):
            await asyncio.sleep(0.05 + BLOCK + 0.6)

    async def sleeper() -> None:
        with told.tracer.start_as_current_span("ended"):
            pass
        await asyncio.sleep(0.25)
        with told.tracer.start_as_current_span("after"):
            await asyncio.sleep(0)

    async def main() -> None:
        await seen(agent)
        await asyncio.gather(culprit(told), idle(), sleeper())

    run(main())
    assert agent.flush(5)
    assert [len(events(told.span(name))) for name in ("idle", "ended", "after", "culprit")] == [0, 0, 0, 0]
    assert len(told.spans()) == 1


def test_victims_are_bounded(agent: Agent, told: Told, run: Run, patient: None) -> None:
    """Of 100 who waited 20 are told, each once."""

    async def sleeper() -> None:
        with told.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await seen(agent)
        await asyncio.gather(culprit(told), *(sleeper() for _ in range(100)))
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    counts = [len(events(span)) for span in told.spans("sleeper")]
    assert max(counts) == 1
    assert sum(counts) == MAX_VICTIMS == 20


def test_a_storm_is_held_back(told: Told) -> None:
    """Of 1,200 who waited within a moment 1,000 are told; the others are counted."""
    tracer = told.tracer_provider.get_tracer("loopwatch")
    traces = Traces(lambda: tracer, lambda: None)
    traces.victims.allowance = Allowance(EVENTS_A_MINUTE, lambda: 0.0)
    spans = [told.tracer.start_span("waiting") for _ in range(1200)]
    for number in range(60):
        theirs = tuple(trace.set_span_in_context(span) for span in spans[20 * number : 20 * number + 20])
        notice = Notice(Case(float(number), f"s{number}"), "main", time.time(), 0.3, False, theirs)
        traces.annotate_waiters(notice)
    for span in spans:
        span.end()
    assert sum(len(events(span)) for span in told.spans("waiting")) == EVENTS_A_MINUTE == 1000
    assert traces.held_back() == {"traces": 200, "logs": 0}


class _Named(Sampler):
    """Drops the spans of one name."""

    def __init__(self, dropped: str) -> None:
        self._dropped = dropped

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any) -> SamplingResult:
        sampler = ALWAYS_OFF if name == self._dropped else ALWAYS_ON
        return sampler.should_sample(parent_context, trace_id, name, *args, **kwargs)

    def get_description(self) -> str:
        return "by name"


@pytest.mark.parametrize("dropped", ["culprit", "sleeper"])
def test_what_is_not_sampled(monkeypatch: pytest.MonkeyPatch, agent: Agent, patient: None, dropped: str) -> None:
    """A victim that is not sampled is not told. One whose culprit is not still has the event, and a link to it."""
    with set_globally(monkeypatch, Told(_Named(dropped))) as told:
        blocker: list[int] = []

        async def sleeper() -> None:
            with told.tracer.start_as_current_span("sleeper"):
                await asyncio.sleep(0.25)

        async def main() -> None:
            await seen(agent)
            with told.tracer.start_as_current_span("culprit") as span:
                blocker.append(span.get_span_context().trace_id)
                task = asyncio.get_running_loop().create_task(sleeper(), context=contextvars.Context())
                await asyncio.sleep(0.05)
                block()
            await task
            await asyncio.sleep(0.05)

        runner("asyncio")(main())
        assert agent.flush(5)
        if dropped == "sleeper":
            assert told.spans("sleeper") == []
            assert len(told.spans()) == 1
        else:
            victim = told.span("sleeper")
            assert len(events(victim)) == 1
            assert [link.context.trace_id for link in victim.links] == blocker
            assert told.spans() == []


def test_a_culprit_without_a_span_is_linked_to_all_the_same(agent: Agent, told: Told, run: Run, patient: None) -> None:
    """The link leads to the span of the stall, in a trace of its own."""

    async def sleeper() -> None:
        with told.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await seen(agent)
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(0.05)
        block()
        await task
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    stall, victim = told.span(), told.span("sleeper")
    assert stall.parent is None
    assert [link.context for link in victim.links] == [stall.context]
    assert victim.context.trace_id != stall.context.trace_id


STOPPED = """
    import asyncio, os, subprocess, sys
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    import loopwatch
    from loopwatch.watch import waiters
    from tests.conftest import runner

    waiters.PATIENCE = 5.0
    spans = InMemorySpanExporter()
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
    agent = loopwatch.install(threshold=0.1, log_level="CRITICAL", cpu_budget=1.0)

    async def sleeper():
        with trace.get_tracer("program").start_as_current_span("sleeper"):
            await asyncio.sleep(0.6)

    async def main():
        await asyncio.sleep(0.2)
        stop = f"sleep 0.3; kill -STOP {os.getpid()}; sleep 0.8; kill -CONT {os.getpid()}"
        stopper = subprocess.Popen(["sh", "-c", stop])
        await asyncio.gather(*(sleeper() for _ in range(3)))
        stopper.wait()

    runner(sys.argv[1])(main())
    assert agent.flush(5)
    (stall,) = agent.stalls()
    assert stall.evidence.asleep and stall.duration > 0.4
    for span in spans.get_finished_spans():
        if span.name == "sleeper":
            (event,) = span.events
            assert event.attributes["loopwatch.stall.id"] == stall.id
            assert abs(event.attributes["loopwatch.stall.duration"] - stall.duration) < 0.01
            print("told")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the cause is told from files of /proc")
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_who_slept_through_a_stop_of_the_process_is_told(kind: str) -> None:
    """A loop that could not wake up in time has victims too."""
    pytest.importorskip(kind)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOPPED), kind], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["told"] * 3, done.stderr


def test_the_loop_does_not_wait_for_a_thread_that_is_stuck(agent: Agent, told: Told, run: Run) -> None:
    """A span processor that never returns costs the loop nothing but its patience: it goes on meanwhile."""
    gone_on = threading.Event()
    stuck: list[bool] = []
    agent._parts.telemetry.waiters._annotate = lambda _notice: stuck.append(gone_on.wait(20))

    async def sleeper() -> None:
        with told.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)
        gone_on.set()

    async def main() -> None:
        await seen(agent)
        await asyncio.gather(culprit(told), sleeper())

    run(main())
    assert agent.flush(5)
    assert stuck and all(stuck)
    assert len(agent.stalls()) == 1


def test_a_failure_is_counted_and_hurts_nobody(
    agent: Agent, told: Told, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails is switched off, told once; the program and the stalls go on."""

    def fail(_notice: object) -> None:
        raise LookupError("nowhere")

    agent._parts.telemetry.waiters._annotate = fail

    async def sleeper() -> None:
        with told.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await seen(agent)
        for _ in range(2):
            await asyncio.gather(culprit(told), sleeper())
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    assert len(agent.stalls()) == 2
    assert "victims" in agent.snapshot().agent.faults
    assert sum("its victims failed" in record.getMessage() for record in caplog.records) == 1


def test_nothing_of_the_program_is_kept(agent: Agent, told: Told, run: Run, patient: None) -> None:
    """When the victims are told, neither their contexts nor what these hold lives on."""

    class Kept:
        pass

    variable: contextvars.ContextVar[Kept] = contextvars.ContextVar("kept")
    references: list[weakref.ref[Kept]] = []

    async def sleeper() -> None:
        kept = Kept()
        references.append(weakref.ref(kept))
        variable.set(kept)
        with told.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await seen(agent)
        await asyncio.gather(culprit(told), *(asyncio.create_task(sleeper()) for _ in range(3)))
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    assert sum(len(events(span)) for span in told.spans("sleeper")) == 3
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_without_tracing_there_is_no_thread_and_no_look() -> None:
    """A program that does not use OpenTelemetry pays for a look into sys.modules a tick, and its loop for nothing."""
    code = """
        import asyncio, sys, threading, time
        import loopwatch
        agent = loopwatch.install(threshold=0.1, log_level="CRITICAL")
        async def main():
            await asyncio.sleep(0.25)
            time.sleep(0.3)
            await asyncio.sleep(0.25)
            loop = agent._watch.watcher.loops[0]
            print(loop.probe._cell.taker, loop.pending, [t.name for t in threading.enumerate() if "victims" in t.name])
        asyncio.run(main())
        assert agent.flush(5)
        print(len(agent.stalls()), [name for name in sys.modules if name.startswith("opentelemetry")])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None None []", "1 []"]


def test_the_thread_ends_with_the_agent(agent: Agent, told: Told) -> None:
    """It runs as soon as tracing is in use, and is gone after uninstall."""

    async def main() -> None:
        await seen(agent)
        assert any(thread.name == "loopwatch-victims" for thread in threading.enumerate())

    runner("asyncio")(main())
    agent.stop()
    assert not any(thread.name == "loopwatch-victims" for thread in threading.enumerate())

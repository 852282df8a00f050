"""The spans of a stall's waiters are annotated in time with an event and a link to the stall."""

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
from loopwatch.events import Cause
from loopwatch.telemetry.otel.rate_limit import Allowance
from loopwatch.telemetry.otel.traces import Traces
from loopwatch.telemetry.otel.waiter_spans import EVENTS_A_MINUTE, MAX_VICTIMS
from loopwatch.watch import waiters
from loopwatch.watch.observation import Case, Notice
from tests.conftest import Run, runner
from tests.telemetry.traced import Exported, events, set_globally

pytestmark = pytest.mark.measures

BLOCK = 0.35


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The program's providers."""
    with set_globally(monkeypatch, Exported()) as made:
        yield made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extend the loop's wait for the annotating thread, which may be late on a busy machine."""
    monkeypatch.setattr(waiters, "PATIENCE", 5.0)


def check(exported: Exported, names: list[str], *, culprit: str = "culprit", advance: bool = False) -> ReadableSpan:
    """Check that each span of ``names`` carries the event, and the link to the stall in the culprit's trace."""
    stall, blocker = exported.span(), exported.span(culprit)
    assert stall.context.trace_id == blocker.context.trace_id
    assert events(blocker) == [] and len(blocker.links) == 0
    for name in names:
        (span,) = exported.spans(name)
        found = events(span)
        assert len(found) == 1, (name, found)
        attributes = found[0].attributes
        assert attributes["asyncio.eventloop.name"] == "main"
        assert attributes["loopwatch.cause"] == "sleep"
        assert attributes["loopwatch.culprit"].endswith("block")
        assert attributes["loopwatch.stall.id"] == (stall.attributes or {})["loopwatch.stall.id"]
        if advance:
            assert attributes["loopwatch.stall.ongoing"] is True
            assert 0.1 <= attributes["loopwatch.stall.duration"] <= BLOCK + 0.2
        else:
            assert attributes["loopwatch.stall.duration"] == pytest.approx(BLOCK, abs=0.1)
        assert found[0].timestamp == pytest.approx(stall.start_time, abs=2e6)
        assert [link.context for link in span.links] == [stall.context]
    return stall


def block() -> None:
    time.sleep(BLOCK)


async def culprit(exported: Exported, go: asyncio.Event | None = None) -> None:
    with exported.tracer.start_as_current_span("culprit"):
        await (go.wait() if go is not None else asyncio.sleep(0.05))
        block()


async def until_traced(agent: Agent) -> None:
    """Wait until the agent has found the loop and that tracing is in use."""
    for _ in range(1000):
        if agent._parts.telemetry.waiters.in_use and agent._watch.watcher.loops[-1].pending is not None:
            break
        await asyncio.sleep(0.01)


def test_waiters_on_timers_are_annotated(agent: Agent, exported: Exported, run: Run, patient: None) -> None:
    """Requests that slept through the block have the event and the link although their spans end right after it."""

    async def sleeper(number: int) -> None:
        with exported.tracer.start_as_current_span(f"sleeper {number}"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await until_traced(agent)
        await asyncio.gather(culprit(exported), *(sleeper(number) for number in range(3)))
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    check(exported, [f"sleeper {number}" for number in range(3)])


def test_waiters_on_sockets_are_annotated(agent: Agent, exported: Exported, run: Run, patient: None) -> None:
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
        with exported.tracer.start_as_current_span("asking"):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"question\n")
            assert await reader.readline() == b"answer\n"
            writer.close()

    async def main() -> None:
        await until_traced(agent)
        with exported.tracer.start_as_current_span("culprit"):
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
    check(exported, ["asking"])


def test_waiters_in_the_same_pass_are_annotated(
    agent: Agent, exported: Exported, run: Run, loop_kind: str, patient: None
) -> None:
    """Tasks that were woken together with the culprit run right after it, in order, and are annotated before they
    run."""
    order: list[int] = []

    async def behind(number: int, go: asyncio.Event) -> None:
        with exported.tracer.start_as_current_span(f"behind {number}"):
            await go.wait()
            order.append(number)

    async def main() -> None:
        go = asyncio.Event()
        await until_traced(agent)
        tasks = [asyncio.create_task(culprit(exported, go))]
        tasks += [asyncio.create_task(behind(number, go)) for number in range(4)]
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    assert order == [0, 1, 2, 3]
    check(exported, [f"behind {number}" for number in range(4)], advance=loop_kind == "uvloop")


def test_spans_that_did_not_wait_are_not_annotated(agent: Agent, exported: Exported, run: Run, patient: None) -> None:
    """A span that began after the block, one whose task needed more time anyway, and one that had ended have none."""

    async def idle() -> None:
        with exported.tracer.start_as_current_span("idle"):
            await asyncio.sleep(0.05 + BLOCK + 0.6)

    async def sleeper() -> None:
        with exported.tracer.start_as_current_span("ended"):
            pass
        await asyncio.sleep(0.25)
        with exported.tracer.start_as_current_span("after"):
            await asyncio.sleep(0)

    async def main() -> None:
        await until_traced(agent)
        await asyncio.gather(culprit(exported), idle(), sleeper())

    run(main())
    assert agent.flush(5)
    assert [len(events(exported.span(name))) for name in ("idle", "ended", "after", "culprit")] == [0, 0, 0, 0]
    assert len(exported.spans()) == 1


def test_annotated_waiters_are_bounded(agent: Agent, exported: Exported, run: Run, patient: None) -> None:
    """Of 100 waiters 20 are annotated, each once."""

    async def sleeper() -> None:
        with exported.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await until_traced(agent)
        await asyncio.gather(culprit(exported), *(sleeper() for _ in range(100)))
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    counts = [len(events(span)) for span in exported.spans("sleeper")]
    assert max(counts) == 1
    assert sum(counts) == MAX_VICTIMS == 20


def test_annotations_are_rate_limited(exported: Exported) -> None:
    """Of 1,200 waiters within a moment 1,000 are annotated; the others are counted."""
    tracer = exported.tracer_provider.get_tracer("loopwatch")
    traces = Traces(lambda: tracer, lambda: None)
    traces.victims.allowance = Allowance(EVENTS_A_MINUTE, lambda: 0.0)
    spans = [exported.tracer.start_span("waiting") for _ in range(1200)]
    for number in range(60):
        theirs = tuple(trace.set_span_in_context(span) for span in spans[20 * number : 20 * number + 20])
        notice = Notice(Case(float(number), f"s{number}"), "main", time.time(), 0.3, False, theirs)
        traces.annotate_waiters(notice)
    for span in spans:
        span.end()
    assert sum(len(events(span)) for span in exported.spans("waiting")) == EVENTS_A_MINUTE == 1000
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
def test_unsampled_spans(monkeypatch: pytest.MonkeyPatch, agent: Agent, patient: None, dropped: str) -> None:
    """An unsampled waiter is not annotated; one whose culprit is unsampled has the event, and a link to the culprit."""
    with set_globally(monkeypatch, Exported(_Named(dropped))) as exported:
        blocker: list[int] = []

        async def sleeper() -> None:
            with exported.tracer.start_as_current_span("sleeper"):
                await asyncio.sleep(0.25)

        async def main() -> None:
            await until_traced(agent)
            with exported.tracer.start_as_current_span("culprit") as span:
                blocker.append(span.get_span_context().trace_id)
                task = asyncio.get_running_loop().create_task(sleeper(), context=contextvars.Context())
                await asyncio.sleep(0.05)
                block()
            await task
            await asyncio.sleep(0.05)

        runner("asyncio")(main())
        assert agent.flush(5)
        if dropped == "sleeper":
            assert exported.spans("sleeper") == []
            assert len(exported.spans()) == 1
        else:
            victim = exported.span("sleeper")
            assert len(events(victim)) == 1
            assert [link.context.trace_id for link in victim.links] == blocker
            assert exported.spans() == []


def test_a_culprit_without_a_span_has_a_linked_stall(agent: Agent, exported: Exported, run: Run, patient: None) -> None:
    """The link leads to the span of the stall, in a trace of its own."""

    async def sleeper() -> None:
        with exported.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await until_traced(agent)
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(0.05)
        block()
        await task
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    stall, victim = exported.span(), exported.span("sleeper")
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
            print("annotated")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the cause is determined from files of /proc")
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_waiters_of_a_stopped_process_are_annotated(kind: str) -> None:
    """A loop that could not wake up in time has waiters too."""
    pytest.importorskip(kind)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOPPED), kind], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["annotated"] * 3, done.stderr


def test_the_loop_does_not_wait_for_a_stuck_thread(agent: Agent, exported: Exported, run: Run) -> None:
    """A span processor that never returns delays the loop by a bounded time only."""
    gone_on = threading.Event()
    stuck: list[bool] = []
    agent._parts.telemetry.waiters._annotate = lambda _notice: stuck.append(gone_on.wait(20))

    async def sleeper() -> None:
        with exported.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)
        gone_on.set()

    async def main() -> None:
        await until_traced(agent)
        await asyncio.gather(culprit(exported), sleeper())

    run(main())
    assert agent.flush(5)
    assert stuck and all(stuck)
    assert len(agent.stalls()) == 1


def test_a_failing_annotation_is_a_fault(
    agent: Agent, exported: Exported, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """It is switched off and logged once; the program and the stalls continue."""

    def fail(_notice: object) -> None:
        raise LookupError("nowhere")

    agent._parts.telemetry.waiters._annotate = fail

    async def sleeper() -> None:
        with exported.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await until_traced(agent)
        for _ in range(2):
            await asyncio.gather(culprit(exported), sleeper())
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    assert len([stall for stall in agent.stalls() if stall.cause is Cause.SLEEP]) == 2
    assert "victims" in agent.snapshot().agent.faults
    assert sum("its victims failed" in record.getMessage() for record in caplog.records) == 1


def test_contexts_of_waiters_are_released(agent: Agent, exported: Exported, run: Run, patient: None) -> None:
    """After the waiters are annotated, neither their contexts nor the objects in them are kept alive."""

    class Kept:
        pass

    variable: contextvars.ContextVar[Kept] = contextvars.ContextVar("kept")
    references: list[weakref.ref[Kept]] = []

    async def sleeper() -> None:
        kept = Kept()
        references.append(weakref.ref(kept))
        variable.set(kept)
        with exported.tracer.start_as_current_span("sleeper"):
            await asyncio.sleep(0.25)

    async def main() -> None:
        await until_traced(agent)
        await asyncio.gather(culprit(exported), *(asyncio.create_task(sleeper()) for _ in range(3)))
        await asyncio.sleep(0.05)

    run(main())
    assert agent.flush(5)
    assert sum(len(events(span)) for span in exported.spans("sleeper")) == 3
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_without_tracing_there_is_no_thread() -> None:
    """A program without OpenTelemetry pays for a look into sys.modules at each tick, and its loop for nothing."""
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


def test_the_thread_ends_with_the_agent(agent: Agent, exported: Exported) -> None:
    """The thread starts as soon as tracing is in use, and is gone after uninstall."""

    async def main() -> None:
        await until_traced(agent)
        assert any(thread.name == "loopwatch-victims" for thread in threading.enumerate())

    runner("asyncio")(main())
    agent.stop()
    assert not any(thread.name == "loopwatch-victims" for thread in threading.enumerate())

"""End to end, on every kind of loop: each block is found with its duration, cause and culprit."""

from __future__ import annotations

import asyncio
import contextvars
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from conftest import Run, runner

import loopwatch
from loopwatch import Cause, ConfigError, Stall
from loopwatch.agent import Agent
from loopwatch.testing import RecordingSink

pytestmark = pytest.mark.measures

LONG = 0.3


class Timed:
    """Runs a blocking function and remembers how long it really took."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self) -> None:
        began = time.monotonic()
        self.function()
        self.seconds = time.monotonic() - began


def near(stall: Stall, truth: float) -> bool:
    """Whether the duration is right within 5 percent, 5 ms, or the stall's own uncertainty."""
    return abs(stall.duration - truth) <= max(0.05 * truth, 0.005, stall.uncertainty) + 0.002


async def around(block: Callable[[], object]) -> None:
    """Block the loop inside a task of its own, between two quiet spells."""

    async def handler() -> None:
        block()

    await asyncio.sleep(0.12)
    await asyncio.create_task(handler(), name="the-task")
    await asyncio.sleep(0.12)


def sleeper() -> None:
    time.sleep(LONG)


def waiter_for_a_child() -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({LONG})"], check=True)


def locked_out() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=LONG)


@pytest.mark.parametrize(
    ("block", "cause"),
    [(sleeper, Cause.SLEEP), (waiter_for_a_child, Cause.IO), (locked_out, Cause.LOCK)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_waiting_blocks(  # noqa: PLR0917 - fixtures
    agent: Agent, sink: RecordingSink, run: Run, loop_kind: str, block: Callable[[], None], cause: Cause
) -> None:
    """A block that waits is found with cause, culprit, task, duration and remedy, on every kind of loop."""
    timed = Timed(block)
    run(around(timed))
    stall = max(sink.wait(), key=lambda stall: stall.duration)
    assert stall.cause is cause
    assert stall.culprit is not None, (stall.samples, stall.leaf, stall.evidence, stall.uncertainty)
    assert stall.culprit.function == block.__name__
    assert stall.culprit.file == __file__
    assert stall.task is not None
    assert stall.task == "the-task" or loop_kind == "eager"  # CPython names an eager task after it ran
    assert stall.coroutine is not None
    assert stall.coroutine.endswith("handler")
    assert near(stall, timed.seconds), (stall.duration, timed.seconds, stall.uncertainty)
    assert stall.samples[0] >= 3
    assert stall.remedy.endswith(".")
    assert stall.evidence.syscall is not None


def test_time_sleep_is_answered_with_asyncio_sleep(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """The remedy fits the call."""
    run(around(sleeper))
    assert "await asyncio.sleep()" in sink.wait()[0].remedy


def test_one_block_is_one_stall(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """Three blocks make three stalls, each with an id of its own, and no others."""

    async def main() -> None:
        for _ in range(3):
            await around(sleeper)

    run(main())
    agent.flush()
    found = [stall for stall in sink.stalls if stall.cause is Cause.SLEEP]
    assert len(found) == 3
    assert len({stall.id for stall in found}) == 3


def test_regular_expression_keeps_the_gil(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """A block in C code that holds the GIL stops the watcher too; the first sample after it names the line."""

    def seconds(length: int) -> float:
        began = time.monotonic()
        re.match(r"(a+)+$", "a" * length + "b")
        return time.monotonic() - began

    length = next(length for length in range(16, 40) if seconds(length) > 0.2)

    def catastrophic() -> None:
        re.match(r"(a+)+$", "a" * length + "b")

    run(around(catastrophic))
    stall = max(sink.wait(), key=lambda stall: stall.duration)
    assert stall.culprit is not None, (stall.samples, stall.leaf, stall.evidence, stall.uncertainty)
    assert stall.culprit.function.endswith("catastrophic")
    assert stall.cause is Cause.NATIVE_GIL, stall.evidence
    assert stall.evidence.watcher_late > 0.3 * stall.duration  # except for the time until its tick was due


def test_many_small_callbacks_are_overload(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """A long pass of short callbacks is distinguished from a long callback."""

    def small() -> None:
        time.sleep(0.002)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.12)
        for _ in range(200):
            loop.call_soon(small)
        await asyncio.sleep(0)
        await asyncio.sleep(0.12)

    run(main())
    stall = max(sink.wait(), key=lambda stall: stall.duration)
    assert stall.cause is Cause.OVERLOAD
    assert stall.duration >= 0.4
    assert stall.evidence.callbacks >= 5


def test_hang_is_announced_and_closed(sink: RecordingSink, run: Run) -> None:
    """A block longer than hang_after is announced while it lasts, and reported when it ends, under the same id."""
    agent = loopwatch.install(threshold=0.05, hang_after=0.2, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    seen_while_blocked: list[bool] = []

    def hang() -> None:
        seen_while_blocked.append(bool(sink.wait(1)[0].ongoing))

    run(around(hang))
    agent.flush()
    first, last = sink.wait(2)[:2]
    assert seen_while_blocked == [True]
    assert first.ongoing
    assert not last.ongoing
    assert first.id == last.id
    assert last.duration >= first.duration >= 0.2
    assert last.culprit is not None
    assert last.culprit.function.endswith("hang")


def test_context_labels(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """Labels are read from the blocking callback's own context, by name and by callable."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    remove = agent.add_context(lambda: {"upper": variable.get("").upper()})
    agent.configure(context=("tenant",))

    async def main() -> None:
        variable.set("acme")
        await around(sleeper)

    run(main())
    stall = sink.wait()[0]
    assert stall.context == {"tenant": "acme", "upper": "ACME"}
    remove()


def test_trace_and_span(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """With OpenTelemetry in use the stall names the span that was current in the callback."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("test")

    async def main() -> trace.SpanContext:
        with tracer.start_as_current_span("request") as span:
            await around(sleeper)
            return span.get_span_context()

    span = run(main())
    assert sink.wait()[0].context == {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def test_victims_on_asyncio(agent: Agent, sink: RecordingSink) -> None:
    """Waiters are the ready handles and due timers at the end of the block, and the events of the first poll."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.12)
        for _ in range(7):
            loop.call_later(0.05, lambda: None)
        for _ in range(5):
            loop.call_soon(lambda: None)
        ours, theirs = os.pipe()
        loop.add_reader(ours, lambda: os.read(ours, 1))
        os.write(theirs, b"x")
        time.sleep(0.2)
        await asyncio.sleep(0.12)
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)

    runner("asyncio")(main())
    victims = sink.wait()[0].victims
    assert victims is not None
    # 7 timers, 5 handles, 1 event; the heartbeat's own timer may be due too.
    assert 13 <= victims <= 14


def test_stopped_process_is_suspended(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """SIGSTOP of the whole process is distinguished from a block, and no culprit is named."""
    stop, go_on = (f"os.kill({os.getpid()}, signal.{name})" for name in ("SIGSTOP", "SIGCONT"))
    code = f"import os, signal, time; {stop}; time.sleep(0.6); {go_on}"

    async def main() -> None:
        # A child of a child: the kernel would notify a parent that waits for it.
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        ticks = 0
        while child.returncode is None:
            ticks += 1
            await asyncio.sleep(0.01)
        await child.wait()

    run(main())
    stalls = [stall for stall in sink.wait() if stall.duration > 0.4]
    assert [stall.cause for stall in stalls] == [Cause.SUSPENDED], stalls
    assert stalls[0].culprit is None


def test_loop_in_another_thread(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """Loops of other threads are watched as well, under the name of their thread."""
    thread = threading.Thread(target=lambda: run(around(sleeper)), name="second")
    thread.start()
    thread.join()
    stall = sink.wait()[0]
    assert (stall.loop, stall.thread) == ("second", "second")
    assert stall.culprit is not None, (stall.samples, stall.leaf, stall.evidence, stall.uncertainty)
    assert stall.culprit.function == "sleeper"


def test_installed_while_the_loop_runs(sink: RecordingSink, run: Run) -> None:
    """install() inside a running loop watches that loop."""

    async def main() -> None:
        loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
        await around(sleeper)

    run(main())
    assert sink.wait()[0].cause is Cause.SLEEP


def test_loops_of_other_threads_that_run_already(sink: RecordingSink, run: Run) -> None:
    """install() finds loops that already run in other threads, uvloop's too."""
    running, installed = threading.Event(), threading.Event()

    async def main() -> None:
        running.set()
        while not installed.is_set():
            await asyncio.sleep(0.01)
        await around(sleeper)

    thread = threading.Thread(target=lambda: run(main()), name="early")
    thread.start()
    assert running.wait(10)
    loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    installed.set()
    thread.join()
    stall = sink.wait()[0]
    assert stall.loop == "early"
    assert stall.cause is Cause.SLEEP


def test_debug_mode(agent: Agent, sink: RecordingSink, loop_kind: str) -> None:
    """loop.set_debug(True) does not change the results."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 100
        await around(sleeper)

    runner(loop_kind)(main())
    stall = sink.wait()[0]
    assert stall.cause is Cause.SLEEP
    assert stall.culprit is not None, (stall.samples, stall.leaf, stall.evidence, stall.uncertainty)
    assert stall.culprit.function == "sleeper"


def test_block_in_the_last_callback_of_a_loop(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """A block right before the program ends is not missed."""

    async def main() -> None:
        await asyncio.sleep(0.12)
        sleeper()

    run(main())
    assert sink.wait()[0].cause is Cause.SLEEP


def test_protocol_callbacks(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """Blocks inside Protocol.data_received, which patches of call_soon miss, are found."""

    class Slow(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            sleeper()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Slow, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await asyncio.sleep(0.12)
        writer.write(b"x")
        await asyncio.sleep(0.1)
        await asyncio.sleep(0.12)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())
    stall = sink.wait()[0]
    assert stall.culprit is not None, (stall.samples, stall.leaf, stall.evidence, stall.uncertainty)
    assert stall.culprit.function == "sleeper"
    assert any(frame.function.endswith("Slow.data_received") for frame in stall.stack)


def test_heartbeat_alone(sink: RecordingSink) -> None:
    """A loop of an unknown kind is watched by its heartbeat: a block is found and dated back, with its uncertainty."""

    class Exotic(asyncio.SelectorEventLoop):
        """Hides its selector, like a loop that is not asyncio's."""

        @property
        def _selector(self) -> object:
            frame = sys._getframe(1)
            if (
                frame.f_code.co_filename == asyncio.base_events.__file__
                or "selector_events" in frame.f_code.co_filename
            ):
                return self._hidden
            raise AttributeError("_selector")

        @_selector.setter
        def _selector(self, value: object) -> None:
            self._hidden = value

    loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    timed = Timed(sleeper)
    with asyncio.Runner(loop_factory=Exotic) as made:
        made.run(around(timed))
        agent = loopwatch.current_agent()
        assert agent is not None
        assert [loop.kind for loop in agent.snapshot().loops] == ["heartbeat"]
    stall = sink.wait()[0]
    assert stall.cause is Cause.SLEEP
    assert stall.culprit is not None, (stall.samples, stall.leaf, stall.evidence, stall.uncertainty)
    assert stall.culprit.function == "sleeper"
    assert 0 < stall.uncertainty <= 0.05
    assert abs(stall.duration - timed.seconds) <= stall.uncertainty + 0.01


def test_grace_excuses_the_start(sink: RecordingSink, run: Run) -> None:
    """Within the grace period nothing is reported."""
    agent = loopwatch.install(threshold=0.1, grace=3600, on_stall=sink, log_level="DEBUG")
    run(around(sleeper))
    agent.flush()
    assert sink.stalls == []


def test_debugger_is_not_a_stall(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """A program stopped in a debugger is not reported as blocked."""
    import pdb

    class Prompt(pdb.Pdb):
        def cmdloop(self, intro: object = None) -> None:
            time.sleep(LONG)
            self.set_continue()

    def breakpoint_here() -> None:
        debugger = Prompt(stdin=io.StringIO(), stdout=io.StringIO())
        try:
            debugger.set_trace(sys._getframe())
            _ = 1
        finally:
            sys.settrace(None)

    run(around(breakpoint_here))
    agent.flush()
    assert [stall for stall in sink.stalls if stall.duration >= LONG] == []


@pytest.mark.parametrize("bad", [object(), None, "loop", 3, asyncio])
def test_watch_loop_refuses_other_objects(agent: Agent, bad: object) -> None:
    """An object that is no loop is refused in one line that names it and the remedy."""
    with pytest.raises(ConfigError, match=r"not an event loop.*get_running_loop") as caught:
        agent.watch_loop(bad)
    assert "\n" not in str(caught.value)
    assert agent.snapshot().loops == ()


def test_watch_loop_refuses_a_closed_loop(agent: Agent) -> None:
    """A closed loop is refused."""
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(ConfigError, match="closed"):
        agent.watch_loop(loop)


@pytest.mark.long
def test_ten_thousand_loops_under_a_hot_watcher(loop_kind: str, sink: RecordingSink) -> None:
    """Opening, running and closing 10,000 loops under a watcher that ticks all the time neither crashes nor leaks."""
    agent = loopwatch.install(threshold=0.011, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)

    async def main() -> None:
        await asyncio.sleep(0)

    factory = asyncio.new_event_loop
    if loop_kind == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    stop = threading.Event()

    def heat() -> None:
        while not stop.wait(0.0005):
            agent._watch.watcher.wake()

    thread = threading.Thread(target=heat)
    thread.start()
    try:
        for _ in range(10_000 if loop_kind == "uvloop" else 1_000):
            loop = factory()
            try:
                loop.run_until_complete(main())
            finally:
                loop.close()
    finally:
        stop.set()
        thread.join()
    agent.flush()
    assert agent.snapshot().agent.faults == {}
    assert agent.snapshot().loops == ()
    assert len(agent._watch.watcher.loops) <= 1


def test_a_loop_that_never_waits_is_not_blocked(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """In ten thousand passes without a wait no pass is reported as a block, however late the watcher is."""

    async def main() -> float:
        longest, last = 0.0, time.monotonic()
        for _ in range(10_000):
            sum(range(2000))
            await asyncio.sleep(0)
            last, longest = time.monotonic(), max(longest, time.monotonic() - last)
        return longest

    longest = run(main())
    agent.flush()
    assert [stall.duration for stall in sink.stalls if stall.duration - stall.uncertainty > longest + 0.005] == []


def test_signal_wakes_are_not_stalls(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """A loop that waits for long, or is woken by signals, is idle and not blocked."""

    async def main() -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, done.set)
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        await done.wait()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    run(main())
    agent.flush()
    assert [stall for stall in sink.stalls if stall.cause is not Cause.STARVED] == []


def test_a_stall_between_two_heartbeats_of_an_idle_loop_is_lag(run: Run, sink: RecordingSink) -> None:
    """A stall is one value of the lag, shorter by at most a heartbeat, even if heartbeats of an idle loop are rare."""
    agent = loopwatch.install(threshold=0.1, heartbeat=0.05, on_stall=sink, log_level="CRITICAL")

    async def main() -> list[tuple[float, int]]:
        for _ in range(3):
            await asyncio.sleep(0.4)  # long enough for the heartbeats to become rare
            sleeper()
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(agent.flush)
        (watched,) = agent._watch.watcher.loops
        return [(seconds, count) for seconds, count in watched.lags().items() if seconds > 0.2]

    late = run(main())
    stalls = [stall for stall in sink.stalls if stall.cause is Cause.SLEEP]
    assert sum(count for _, count in late) >= len(stalls) == 3
    assert all(seconds >= 0.95 * (LONG - 0.05) for seconds, _ in late)

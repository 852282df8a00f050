"""The thread backend: order, limits, time-outs, several loops at once, and the end of every thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from loopwatch import ConfigError, OffloadError, PoolClosed, QueueFull, TaskTimeout
from loopwatch.workers import thread_backend as threads_module
from loopwatch.workers.options import CallOptions
from loopwatch.workers.thread_backend import Errand, ThreadBackend, _Thread
from tests.conftest import Run, runner
from tests.workers.helpers import script, stats_add_up

PLAIN = CallOptions()
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


class Hold:
    """A call that notifies its loop when it begins, and waits until it is released."""

    def __init__(self, value: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = asyncio.Event()
        self.opened = threading.Event()
        self.value = value

    def __call__(self) -> Any:
        self.loop.call_soon_threadsafe(self.began.set)
        assert self.opened.wait(30)
        return self.value


@asynccontextmanager
async def threads(most: int = 1, **options: Any) -> AsyncIterator[ThreadBackend]:
    """Threads that are closed at the end, with stats that add up."""
    backend = ThreadBackend(most, **options)
    try:
        yield backend
        stats_add_up(backend.stats())
    finally:
        await backend.close()
        stats = backend.stats()
        stats_add_up(stats)
        assert (stats.queued, stats.running) == (0, 0)


async def ended(backend: ThreadBackend) -> None:
    """Wait until the threads of a backend have ended, including abandoned ones."""
    for thread in threading.enumerate():
        if thread.name == f"loopwatch-{backend.name}":
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()


# -- order of calls ----------------------------------------------------------------------------------------------------


def test_order(run: Run) -> None:
    """Calls run by priority, equal ones in order of submission."""

    async def main() -> None:
        order: list[int] = []
        async with threads() as backend:
            hold = Hold()
            calls = [backend.submit(hold, (), {}, PLAIN)]
            await hold.began.wait()
            for number, priority in enumerate([0, 5, 0, -1, 5]):
                calls.append(backend.submit(order.append, (number,), {}, CallOptions(priority=priority)))
            assert (backend.stats().queued, backend.stats().running) == (5, 1)
            hold.opened.set()
            await asyncio.gather(*calls)
        assert order == [1, 4, 0, 2, 3]
        assert backend.stats().completed == 6

    run(main())


def test_max_concurrency(run: Run) -> None:
    """At most max_concurrency calls of a function run at a time, and other calls are not delayed."""

    async def main() -> None:
        lock, running, most = threading.Lock(), 0, 0

        def limited() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.001)
            with lock:
                running -= 1

        async with threads(4) as backend:
            options = CallOptions(max_concurrency=2)
            calls = [backend.submit(limited, (), {}, options) for _ in range(40)]
            passes = backend.submit(int, (), {}, PLAIN)
            assert await passes == 0
            assert not calls[-1].done()
            await asyncio.gather(*calls)
        assert most == 2

    run(main())


def test_unhashable_function_is_refused(run: Run) -> None:
    """A function that is not hashable is refused if its calls would have to be counted."""

    async def main() -> None:
        class Unhashable:
            __hash__ = None  # type: ignore[assignment]

            def __call__(self) -> int:
                return 3

        async with threads() as backend:
            assert await backend.submit(Unhashable(), (), {}, PLAIN) == 3
            with pytest.raises(ConfigError, match="must be hashable"):
                backend.submit(Unhashable(), (), {}, CallOptions(max_concurrency=1))
            with pytest.raises(ConfigError, match="function=5: must be callable"):
                backend.submit(5, (), {}, PLAIN)  # type: ignore[arg-type]

    run(main())


# -- room -------------------------------------------------------------------------------------------------------------


def test_queue_full(run: Run) -> None:
    """A call beyond ``max_queue`` is refused at once; a cancelled call frees its slot."""

    async def main() -> None:
        async with threads(max_queue=2) as backend:
            hold = Hold()
            first = backend.submit(hold, (), {}, PLAIN)
            waiting = [backend.submit(int, (), {}, PLAIN) for _ in range(2)]
            with pytest.raises(QueueFull, match=r"threads: 2 calls wait, max_queue=2; .*on_full='wait'"):
                backend.submit(int, (), {}, PLAIN)
            backend.cancel(waiting[0])
            await asyncio.wait([waiting[0]])
            assert backend.stats().queued == 1
            another = backend.submit(int, (), {}, PLAIN)
            hold.opened.set()
            await asyncio.gather(first, waiting[1], another)
        stats = backend.stats()
        assert (stats.submitted, stats.completed, stats.cancelled) == (4, 3, 1)

    run(main())


def test_limited_calls_do_not_keep_others_out(run: Run) -> None:
    """A queue full of calls that max_concurrency holds back accepts calls that can run at once."""

    async def main() -> None:
        async with threads(2, max_queue=1) as backend:
            hold, limited = Hold(), CallOptions(max_concurrency=1)
            calls = [backend.submit(hold, (), {}, limited) for _ in range(2)]
            with pytest.raises(QueueFull):
                backend.submit(hold, (), {}, limited)
            assert await backend.submit(int, (), {}, PLAIN) == 0
            hold.opened.set()
            await asyncio.gather(*calls)

    run(main())


def test_wait_for_room(run: Run) -> None:
    """With ``on_full="wait"`` calls wait for a slot in order, the loop goes on, and cancelled waiters are skipped."""

    async def main() -> None:
        order: list[int] = []
        async with threads(max_queue=1) as backend:
            hold, waits = Hold(), CallOptions(on_full="wait")
            calls = [backend.submit(hold, (), {}, waits)]
            await hold.began.wait()
            calls += [backend.submit(order.append, (number,), {}, waits) for number in range(5)]
            await asyncio.sleep(0)
            assert (backend.stats().queued, backend.stats().submitted) == (1, 2)
            calls[3].cancel()
            await asyncio.wait([calls[3]])
            hold.opened.set()
            await asyncio.wait(calls)
        assert order == [0, 1, 3, 4]
        stats = backend.stats()
        assert (stats.submitted, stats.completed, stats.cancelled) == (5, 5, 0)

    run(main())


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_several_loops_wait_for_room(kind: str) -> None:
    """Loops of several threads share one backend with two slots: each call runs once, none is lost."""
    backend = ThreadBackend(3, max_queue=2, name="shared")
    lock, done = threading.Lock(), []

    def note(value: tuple[int, int]) -> tuple[int, int]:
        with lock:
            done.append(value)
        return value

    async def client(number: int) -> None:
        calls = [backend.submit(note, ((number, each),), {}, CallOptions(on_full="wait")) for each in range(200)]
        assert await asyncio.gather(*calls) == [(number, each) for each in range(200)]

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda number: runner(kind)(client(number)), range(4)))
    assert sorted(done) == [(number, each) for number in range(4) for each in range(200)]
    stats = backend.stats()
    assert (stats.submitted, stats.completed, stats.queued, stats.running) == (800, 800, 0, 0)
    assert stats.started <= 3
    runner(kind)(backend.close())


# -- time-outs and cancellation ---------------------------------------------------------------------------------------


def test_timeout(run: Run) -> None:
    """A call that times out fails; another thread replaces its thread, which ends with the call."""

    async def main() -> None:
        async with threads() as backend:
            hold = Hold()
            with pytest.raises(TaskTimeout, match=r"Hold.* ran longer than 0\.01 s; a thread cannot be stopped"):
                await backend.submit(hold, (), {}, CallOptions(timeout=0.01))
            assert await backend.submit(int, (), {}, PLAIN) == 0
            stats = backend.stats()
            assert (stats.started, stats.failed, stats.timed_out, stats.completed, stats.running) == (2, 1, 1, 1, 0)
            assert 0 < stats.utilization <= 1
            hold.opened.set()
            await backend.close()
            await ended(backend)

    run(main())


def test_abandoned_threads_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many abandoned threads no replacement starts: calls wait until one has ended; closing refuses them."""
    monkeypatch.setattr(threads_module, "MOST_LEFT", 2)

    async def main() -> None:
        async with threads(2) as backend:
            stuck = [Hold() for _ in range(2)]
            for hold in stuck:
                with pytest.raises(TaskTimeout):
                    await backend.submit(hold, (), {}, CallOptions(timeout=0.01))
            waiting = backend.submit(abs, (-1,), {}, PLAIN)
            await asyncio.sleep(0)
            assert backend.stats().queued == 1
            stuck[0].opened.set()
            assert await waiting == 1
            stuck[1].opened.set()
            stuck = [Hold() for _ in range(2)]
            for hold in stuck:
                with pytest.raises(TaskTimeout):
                    await backend.submit(hold, (), {}, CallOptions(timeout=0.01))
            waiting = backend.submit(abs, (-1,), {}, PLAIN)
            await backend.close()
            with pytest.raises(PoolClosed):
                await waiting
            for hold in stuck:
                hold.opened.set()

    run(main())


def test_timeout_counts_run_time(run: Run) -> None:
    """A call that waits in the queue longer than its time-out still has its full run time."""

    async def main() -> None:
        async with threads() as backend:
            holds = [Hold(), Hold()]
            calls = [
                backend.submit(holds[0], (), {}, PLAIN),
                backend.submit(int, (), {}, CallOptions(timeout=5)),
                backend.submit(holds[1], (), {}, CallOptions(timeout=0.02)),
            ]
            await holds[0].began.wait()
            await asyncio.sleep(0.04)
            assert not any(call.done() for call in calls)
            holds[0].opened.set()
            await asyncio.wait(calls)
            holds[1].opened.set()
            assert calls[1].result() == 0
            assert isinstance(calls[2].exception(), TaskTimeout)

    run(main())


def test_ends_in_time(run: Run) -> None:
    """A call that ends in time leaves no timer behind."""

    async def main() -> None:
        async with threads() as backend:
            for _ in range(20):
                assert await backend.submit(int, ("7",), {}, CallOptions(timeout=60)) == 7
        assert backend.stats().timed_out == 0

    run(main())


def test_cancelled_while_queued(run: Run) -> None:
    """A call cancelled before it begins never runs."""

    async def main() -> None:
        ran: list[int] = []
        async with threads() as backend:
            hold = Hold("held")
            first = backend.submit(hold, (), {}, PLAIN)
            waiting = [backend.submit(ran.append, (number,), {}, PLAIN) for number in range(500)]
            for each in waiting[1:]:
                backend.cancel(each)
            await asyncio.wait(waiting[1:])
            assert backend.stats().queued == 1
            hold.opened.set()
            assert await first == "held"
            await waiting[0]
        assert ran == [0]
        assert backend.stats().cancelled == 499

    run(main())


def test_cancelled_while_it_runs(run: Run) -> None:
    """A call cancelled while it runs goes on without effect; its thread is replaced and takes no further call."""

    async def main() -> None:
        async with threads() as backend:
            hold = Hold()

            async def caller() -> Any:
                return await backend.submit(hold, (), {}, PLAIN)

            task = asyncio.ensure_future(caller())
            await hold.began.wait()
            (stuck,) = [thread for thread in threading.enumerate() if thread.name == "loopwatch-threads"]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await backend.submit(threading.get_ident, (), {}, PLAIN) != stuck.ident
            stats = backend.stats()
            assert (stats.cancelled, stats.completed, stats.running, stats.started) == (1, 1, 0, 2)
            hold.opened.set()
            await asyncio.to_thread(stuck.join, 30)
            assert not stuck.is_alive()
            assert await backend.submit(threading.get_ident, (), {}, PLAIN) != stuck.ident
        assert backend.stats().started == 2

    run(main())


def test_cancelled_running_call_counts_for_max_concurrency(run: Run) -> None:
    """A cancelled call counts for ``max_concurrency`` until it has actually ended."""

    async def main() -> None:
        async with threads(2) as backend:
            hold, limited = Hold(), CallOptions(max_concurrency=1)
            first = backend.submit(hold, (), {}, limited)
            await hold.began.wait()
            first.cancel()
            second = backend.submit(hold, (), {}, limited)
            assert await backend.submit(int, (), {}, PLAIN) == 0
            assert backend.stats().queued == 1
            hold.opened.set()
            await second

    run(main())


# -- arguments and results -------------------------------------------------------------------------------------------


def test_context_is_copied(run: Run) -> None:
    """A call sees the caller's context variables, and its own changes do not leak."""

    async def main() -> None:
        def change() -> tuple[str, str]:
            before = VARIABLE.get()
            VARIABLE.set("changed")
            return before, VARIABLE.get()

        async def later() -> str:
            await asyncio.sleep(0)
            return VARIABLE.get()

        VARIABLE.set("caller's")
        async with threads() as backend:
            assert await backend.submit(change, (), {}, PLAIN) == ("caller's", "changed")
            assert await backend.submit(change, (), {}, PLAIN) == ("caller's", "changed")
            assert await backend.submit(later, (), {}, PLAIN) == "caller's"
        assert VARIABLE.get() == "caller's"

    run(main())


def test_coroutine_function(run: Run) -> None:
    """A coroutine function runs on a loop of the thread, and its tasks end with the call."""

    async def main() -> None:
        ended: list[str] = []

        async def left() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("left")

        async def work(value: int) -> tuple[int, bool]:
            asyncio.current_task().helper = asyncio.ensure_future(left())  # type: ignore[union-attr]
            await asyncio.sleep(0)
            return value, asyncio.get_running_loop() is here

        here = asyncio.get_running_loop()
        async with threads() as backend:
            assert await backend.submit(work, (3,), {}, PLAIN) == (3, False)
        assert ended == ["left"]

    run(main())


@pytest.mark.parametrize("how", ["cancel", "timeout", "close"])
def test_coroutine_is_cancelled(run: Run, how: str) -> None:
    """A cancelled coroutine is cancelled in its thread, which ends after its ``finally``."""

    async def main() -> None:
        here, began, cleaned = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        async def endless() -> None:
            try:
                here.call_soon_threadsafe(began.set)
                await asyncio.Event().wait()
            finally:
                cleaned.set()

        backend = ThreadBackend(1)
        call = backend.submit(endless, (), {}, CallOptions(timeout=0.01 if how == "timeout" else None))
        await began.wait()
        if how == "cancel":
            backend.cancel(call)
        elif how == "close":
            await backend.close(force=True)
        await asyncio.wait([call])
        await ended(backend)
        assert cleaned.is_set()
        assert how == "cancel" or isinstance(call.exception(), {"timeout": TaskTimeout, "close": PoolClosed}[how])
        await backend.close()
        stats_add_up(backend.stats())

    run(main())


def test_coroutine_cancelled_before_its_loop_runs() -> None:
    """A coroutine cancelled between the call and its first step is cancelled at its first await."""
    steps: list[str] = []

    async def endless() -> None:
        steps.append("begun")
        await asyncio.Event().wait()

    errand = Errand(endless, (), {})
    errand.stop()
    with pytest.raises(asyncio.CancelledError):
        errand.run()
    errand.stop()
    assert steps == ["begun"]


def _raise(error: BaseException) -> None:
    raise error


def test_errors(run: Run) -> None:
    """An exception of a call arrives as itself; one that would end the program or confuse the loop is wrapped."""

    async def main() -> None:
        async with threads() as backend:
            with pytest.raises(ValueError, match="mine"):
                await backend.submit(_raise, (ValueError("mine"),), {}, PLAIN)
            for error in (SystemExit(3), KeyboardInterrupt("key"), StopIteration(4), asyncio.CancelledError("no")):
                with pytest.raises(OffloadError, match=f"the call raised {type(error).__name__}") as caught:
                    await backend.submit(_raise, (error,), {}, PLAIN)
                assert caught.value.__cause__ is error
        stats = backend.stats()
        assert (stats.failed, stats.started) == (5, 1)

    run(main())


def test_nothing_of_a_call_is_kept(run: Run) -> None:
    """Arguments, results and errors of finished calls can be collected while their thread lives."""

    class Big:
        pass

    async def main() -> None:
        async with threads() as backend:
            kept = []
            for function in (lambda big: big, lambda big: _raise(ValueError(big))):
                argument = Big()
                kept.append(weakref.ref(argument))
                future = backend.submit(function, (argument,), {}, PLAIN)
                await asyncio.wait([future])
                assert (future.exception() is None) == (len(kept) == 1)
                del argument, future
            assert await backend.submit(int, (), {}, PLAIN) == 0
            gc.collect()
            assert [each() for each in kept] == [None, None]

    run(main())


def test_stats(run: Run) -> None:
    """Each call is counted once, and each histogram holds the calls that ran."""

    async def main() -> None:
        async with threads(2, name="counted") as backend:
            await asyncio.gather(*(backend.submit(int, (), {}, PLAIN) for _ in range(10)))
            with pytest.raises(ValueError, match="invalid literal"):
                await backend.submit(int, ("x",), {}, PLAIN)
        stats = backend.stats()
        assert (stats.name, stats.submitted, stats.completed, stats.failed) == ("counted", 11, 10, 1)
        assert stats.run is not None
        assert stats.wait is not None
        assert (stats.run.count, stats.wait.count) == (11, 11)
        assert 0 < stats.utilization <= 1

    run(main())


# -- life and death of threads and loops ------------------------------------------------------------------------------


def test_idle_threads_end(run: Run) -> None:
    """An idle thread ends after a while, and the next call starts one."""

    async def main() -> None:
        async with threads() as backend:
            backend._idle_for = 0.01
            first = await backend.submit(threading.current_thread, (), {}, PLAIN)
            await asyncio.to_thread(first.join, 30)
            assert not first.is_alive()
            assert backend.stats().started == 1
            assert await backend.submit(threading.current_thread, (), {}, PLAIN) is not first
            assert backend.stats().started == 2

    run(main())


def test_close_waits(run: Run) -> None:
    """Closing waits for accepted calls, refuses waiting and new ones, and ends the threads."""

    async def main() -> None:
        backend = ThreadBackend(1, max_queue=1)
        hold = Hold("held")
        taken = [backend.submit(hold, (), {}, PLAIN), backend.submit(int, (), {}, PLAIN)]
        outside = backend.submit(int, (), {}, CallOptions(on_full="wait"))
        closing = [asyncio.ensure_future(backend.close()) for _ in range(2)]
        with pytest.raises(PoolClosed, match="threads was closed"):
            await outside
        with pytest.raises(PoolClosed, match="threads is closed"):
            backend.submit(int, (), {}, PLAIN)
        assert not closing[0].done()
        hold.opened.set()
        await asyncio.gather(*closing)
        assert [future.result() for future in taken] == ["held", 0]
        await backend.close()
        await ended(backend)
        assert backend.stats().completed == backend.stats().submitted == 2

    run(main())


def test_close_by_force(run: Run) -> None:
    """With force=True waiting and running calls fail at once; a thread ends with the call it runs."""

    async def main() -> None:
        backend = ThreadBackend(1)
        hold = Hold()
        calls = [backend.submit(hold, (), {}, PLAIN), backend.submit(int, (), {}, PLAIN)]
        await hold.began.wait()
        gentle = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0)
        await backend.close(force=True)
        await gentle
        for call in calls:
            with pytest.raises(PoolClosed, match="threads was closed"):
                call.result()
        stats = backend.stats()
        assert (stats.failed, stats.queued, stats.running) == (2, 0, 0)
        hold.opened.set()
        await ended(backend)
        stats_add_up(backend.stats())

    run(main())


def test_close_from_another_loop(loop_kind: str) -> None:
    """Any loop may close a backend used by another; futures are resolved on their own loop."""
    run = runner(loop_kind)
    backend = ThreadBackend(1)

    async def main() -> None:
        hold = Hold()
        calls = [backend.submit(hold, (), {}, PLAIN), backend.submit(int, (), {}, PLAIN)]
        await hold.began.wait()
        await asyncio.to_thread(run, backend.close(force=True))
        for call in calls:
            with pytest.raises(PoolClosed):
                await call
        hold.opened.set()
        await ended(backend)

    run(main())


def test_loop_closed_meanwhile(loop_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A loop closed while its calls wait or run is not notified: nothing is raised or logged."""
    run = runner(loop_kind)
    backend = ThreadBackend(1, max_queue=1)
    raised: list[Any] = []
    opened = threading.Event()

    async def leave() -> None:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(began.set)
            opened.wait(30)

        for _ in range(3):
            backend.submit(hold, (), {}, CallOptions(timeout=60, on_full="wait"))
        await began.wait()

    async def work() -> int:
        result: int = await backend.submit(int, ("7",), {}, CallOptions(on_full="wait"))
        await backend.close()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", raised.append)
        run(leave())
        opened.set()
        assert run(work()) == 7
    assert raised == []
    assert caplog.messages == []
    stats = backend.stats()
    assert (stats.submitted, stats.completed) == (4, 4)


def test_no_thread_can_be_started(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system allows no thread, the call fails with that reason; with one thread left, calls wait for it."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with threads(2, max_queue=1) as backend:
            with monkeypatch.context() as patch:
                patch.setattr(_Thread, "start", refuse)
                with pytest.raises(OffloadError, match="threads: no thread could be started: can't start new thread"):
                    await backend.submit(int, (), {}, PLAIN)
            hold = Hold("held")
            first = backend.submit(hold, (), {}, PLAIN)
            await hold.began.wait()
            with monkeypatch.context() as patch:
                patch.setattr(_Thread, "start", refuse)
                calls = [backend.submit(int, (), {}, CallOptions(on_full="wait")) for _ in range(3)]
                hold.opened.set()
                assert await asyncio.gather(first, *calls) == ["held", 0, 0, 0]
        stats = backend.stats()
        assert (stats.submitted, stats.completed, stats.failed, stats.started) == (5, 4, 1, 1)

    run(main())


def test_exit_with_a_stuck_thread(tmp_path: Path) -> None:
    """A program exits although a call never ends, be it waiting or computing."""
    done = script(
        tmp_path,
        """
        import asyncio, threading, loopwatch

        @loopwatch.offload(to="thread", timeout=0.05)
        def hangs(): threading.Event().wait()

        @loopwatch.offload(to="thread", timeout=0.05)
        def spins():
            while True: pass

        async def main():
            for each in (hangs, spins):
                try: await each()
                except loopwatch.TaskTimeout as error: print(type(error).__name__)

        if __name__ == "__main__": asyncio.run(main())
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "TaskTimeout\nTaskTimeout\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_child(tmp_path: Path) -> None:
    """In a forked child the parent's backend is closed, and the default one is new."""
    done = script(
        tmp_path,
        """
        import asyncio, os, sys, warnings, loopwatch
        from loopwatch.workers.thread_backend import ThreadBackend
        from loopwatch.workers.options import CallOptions
        warnings.simplefilter("ignore", DeprecationWarning)

        own = ThreadBackend(1)

        @loopwatch.offload(to="thread")
        def double(value): return 2 * value

        async def main():
            print(await double(2), await own.submit(int, (), {}, CallOptions()), flush=True)

        async def child():
            print(await double(3), own.stats().running)
            try: own.submit(int, (), {}, CallOptions())
            except loopwatch.PoolClosed as error: print(error)
            await own.close()

        if __name__ == "__main__":
            asyncio.run(main())
            pid = os.fork()
            if not pid:
                asyncio.run(child())
                sys.exit(0)
            os.waitpid(pid, 0)
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 0\n6 0\nthreads is closed\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threads": 0}, "threads=0: must be a whole number of at least 1"),
        ({"threads": True}, "threads=True"),
        ({"max_queue": -1}, "max_queue=-1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    """Invalid arguments are refused."""
    with pytest.raises(ConfigError, match=words):
        ThreadBackend(**arguments)


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_on_two_loops(loop_kind: str, seed: int) -> None:
    """Two loops submit, cancel, time out and fail at random: every future ends, the stats add up, the threads end."""
    backend = ThreadBackend(3, max_queue=4, name=f"fuzzed-{seed}")
    run = runner(loop_kind)

    def wait(seconds: float) -> float:
        threading.Event().wait(seconds)
        return seconds

    async def awaits(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def client(number: int) -> int:
        chance = random.Random(100 * seed + number)
        functions: list[Callable[..., Any]] = [wait, awaits, float, _raise]
        calls: list[asyncio.Future[Any]] = []
        refused = 0
        for _ in range(150):
            function = chance.choice(functions)
            argument: Any = ValueError("fuzz") if function is _raise else chance.choice([0, 0.001, 0.004])
            options = CallOptions(
                timeout=chance.choice([None, 0.001, 5]),
                priority=chance.randrange(3),
                max_concurrency=chance.choice([None, 1, 2]),
                on_full=chance.choice(["wait", "raise"]),
            )
            try:
                calls.append(backend.submit(function, (argument,), {}, options))
            except QueueFull:
                refused += 1
            if calls and chance.random() < 0.2:
                chance.choice(calls).cancel()
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice([0, 0.001]))
            stats_add_up(backend.stats())
        await asyncio.wait(calls)
        for call in calls:
            if not call.cancelled():
                assert call.exception() is None or isinstance(call.exception(), ValueError | TaskTimeout)
        return refused

    with ThreadPoolExecutor(2) as executor:
        refused = sum(executor.map(lambda number: run(client(number)), range(2)))
    run(backend.close())
    stats = backend.stats()
    stats_add_up(stats)
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.submitted + refused <= 300
    run(ended(backend))

"""WorkerPool: any fault affects one call, is logged in one line, and leaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import itertools
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loopwatch.errors import NotPicklable, OffloadError, PoolClosed, TaskTimeout, WorkerCrashed
from loopwatch.events import PoolEvent
from loopwatch.workers import dispatcher, supervisor
from loopwatch.workers.connection import Connection
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.shared_buffer import SharedBuffer
from tests.conftest import Run, runner
from tests.workers.helpers import METHODS, ROOT, WAYS, Gate, hold, program, script, stats_add_up

pytestmark = pytest.mark.measures


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate for calls of :func:`hold`."""
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_complaints(capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is written to standard error, such as "exception was never retrieved"."""
    yield
    gc.collect()
    assert capfd.readouterr().err == ""


def connections(pool: WorkerPool) -> list[Connection]:
    """Return the pool's connections to its workers."""
    return [] if pool._dispatcher is None else pool._dispatcher.supervisor.connections


def pid_of(pool: WorkerPool) -> int:
    """Return the pid of the only worker."""
    (only,) = pool.stats().workers
    return only.pid


async def usable(pool: WorkerPool) -> None:
    """Check that the pool still works and that its stats add up."""
    assert await pool.run(abs, -1) == 1
    await pool.drain()
    stats_add_up(pool.stats())


async def recovered(pool: WorkerPool) -> None:
    """Wait until the pool is usable again; it refuses calls while it backs off."""
    while True:
        with contextlib.suppress(OffloadError):
            await pool.run(abs, 1)
            break
        await asyncio.sleep(0.01)
    await usable(pool)


def end_self(how: str) -> None:
    """End this process."""
    if how == "segv":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(7)


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_busy_worker_ends(run: Run, method: str) -> None:
    """A worker that ends during a call fails only that call, which says how; 5 ways, a new worker each time."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method) as pool:
            for how, code, signal_ in (("segv", -11, 11), ("kill", -9, 9), ("term", -15, 15), ("exit", 7, None)):
                await pool.ready()
                pid = pid_of(pool)
                with pytest.raises(WorkerCrashed) as caught:
                    await pool.run(end_self, how)
                assert (caught.value.pid, caught.value.exitcode, caught.value.signal) == (pid, code, signal_)
                assert "end_self" in str(caught.value) and "\n" not in str(caught.value)
            with pytest.raises(WorkerCrashed, match="exit code 70"):
                await pool.run(os.closerange, 3, 1000)
            await usable(pool)
            stats = pool.stats()
            assert (stats.crashed, stats.failed, stats.started) == (5, 5, 6)

    run(main())


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_idle_worker_ends(run: Run, method: str) -> None:
    """An idle worker that is killed is replaced without any effect on calls; SIGINT is ignored."""
    events: list[PoolEvent] = []

    async def main() -> None:
        pool = WorkerPool(1, start_method=method, on_event=events.append)
        async with pool:
            await pool.run(abs, 1)
            pid = pid_of(pool)
            os.kill(pid, signal.SIGINT)
            assert await pool.run(os.getpid) == pid
            for ending in (signal.SIGKILL, signal.SIGTERM):
                os.kill(pid_of(pool), ending)
                assert await pool.run(os.getpid) != pid
            await usable(pool)
            assert (pool.stats().failed, pool.stats().started) == (0, 3)

    run(main())
    assert [event.detail for event in events if event.kind == "crashed"] == ["signal 9", "signal 15"]


def test_one_of_many_dies(run: Run) -> None:
    """When a worker dies with 200 calls waiting or sent ahead, exactly the call it was running fails."""

    async def main() -> None:
        async with WorkerPool(2, prefetch=7) as pool:
            tasks = [asyncio.ensure_future(pool.run(abs, n)) for n in range(100)]
            tasks.append(asyncio.ensure_future(pool.run(end_self, "kill")))
            tasks += [asyncio.ensure_future(pool.run(abs, n)) for n in range(100, 200)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results.pop(100), WorkerCrashed)
            assert results == list(range(200))
            await usable(pool)

    run(main())


def test_all_workers_die(gate: Gate) -> None:
    """When all workers die at once, each fails its own call, and waiting calls run on new workers."""

    async def main() -> None:
        async with WorkerPool(2, prefetch=1) as pool:
            held = [asyncio.ensure_future(pool.run(hold, *gate.wait_args)) for _ in range(2)]
            await gate.entered(2)
            waiting = [asyncio.ensure_future(pool.run(abs, n)) for n in range(20)]
            await asyncio.sleep(0)
            for each in pool.stats().workers:
                os.kill(each.pid, signal.SIGKILL)
            assert await asyncio.gather(*waiting) == list(range(20))
            results = await asyncio.gather(*held, return_exceptions=True)
            assert [type(each) for each in results] == [WorkerCrashed] * 2
            await usable(pool)

    runner("asyncio")(main())


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_killed_while_large_data_is_transferred(run: Run, method: str) -> None:
    """Killed while receiving an argument, the call runs elsewhere; killed while sending a result, the call fails."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method) as pool:
            data = os.urandom(20_000_000)
            for turns in (1, 3, 10):
                os.kill(pid_of(pool), signal.SIGSTOP)  # it receives nothing
                task = asyncio.ensure_future(pool.run(bytes.count, data, b"a"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                os.kill(pid_of(pool), signal.SIGKILL)
                assert await task == data.count(b"a")
            assert pool.stats().failed == 0
            for turns in (1, 5, 20):
                task = asyncio.ensure_future(pool.run(bytes, 100_000_000))
                while not connections(pool) or connections(pool)[0]._receiver.target is None:
                    await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0)
                os.kill(pid_of(pool), signal.SIGKILL)
                with pytest.raises(WorkerCrashed):
                    await task
            assert len(await pool.run(bytes, 100_000_000)) == 100_000_000
            await usable(pool)

    run(main())


def test_argument_that_kills_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose worker dies three times before the call begins is not sent again."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            task = asyncio.ensure_future(pool.run(len, bytes(50_000_000)))
            for _ in range(3):
                while not connections(pool) or not connections(pool)[0].calls:
                    await asyncio.sleep(0)
                os.kill(pid_of(pool), signal.SIGKILL)
                victim = connections(pool)[0]
                while victim in connections(pool):
                    await asyncio.sleep(0)
            with pytest.raises(WorkerCrashed):
                await task
            await usable(pool)

    runner("asyncio")(main())


def spin_in_c() -> None:
    """Hold the GIL for good."""
    ctypes.PyDLL(None).sleep(1000)


def ignoring(signal_number: int) -> None:
    """Ignore a signal and spin."""
    signal.signal(signal_number, signal.SIG_IGN)
    while True:
        pass


def test_timeouts(run: Run, gate: Gate) -> None:
    """timeout counts run time only and ends calls that spin, hold the GIL or ignore SIGTERM, replacing the worker."""

    async def main() -> None:
        async with WorkerPool(1, prefetch=7) as pool:
            pids = set()
            for function, args in ((ignoring, (signal.SIGTERM,)), (spin_in_c, ()), (time.sleep, (1000,))):
                await pool.ready()
                pids.add(pid_of(pool))
                with pytest.raises(TaskTimeout, match=r"ran longer than 0.05 s; worker \d+ was killed") as caught:
                    await pool.options(timeout=0.05, retries=3).run(function, *args)
                assert isinstance(caught.value, TimeoutError)
                await usable(pool)
            assert len(pids) == 3
            # Calls that wait behind a long call do not lose time to it.
            held = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            await gate.entered()
            waiting = [asyncio.ensure_future(pool.options(timeout=0.2).run(abs, n)) for n in range(10)]
            await asyncio.sleep(0.3)
            gate.open()
            assert await asyncio.gather(*waiting) == list(range(10))
            await held
            # Nor do calls that ended in time while something else held the loop.
            ended = [asyncio.ensure_future(pool.options(timeout=0.2).run(abs, n)) for n in range(3)]
            for _ in range(3):
                await asyncio.sleep(0)
            time.sleep(0.5)
            assert await asyncio.gather(*ended) == [0, 1, 2]
            stats = pool.stats()
            assert (stats.timed_out, stats.crashed, stats.failed) == (3, 0, 3)

    run(main())


def test_cancelled_calls(run: Run, gate: Gate) -> None:
    """A call cancelled while waiting or sent ahead never runs; cancelled while running, its worker is replaced."""

    async def main() -> None:
        async with WorkerPool(1, prefetch=3) as pool:
            held = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            rest = [asyncio.ensure_future(pool.run(hold, *gate.wait_args, n)) for n in range(6)]
            await gate.entered()
            assert (pool.stats().running, pool.stats().queued) == (3, 4)
            for number in (0, 1, 3):  # two sent ahead, one waiting
                rest[number].cancel()
            while pool.stats().cancelled < 3:
                await asyncio.sleep(0)
            stats_add_up(pool.stats())
            pid = pid_of(pool)
            gate.open()
            await held
            await gate.entered()
            assert pid_of(pool) == pid
            rest[2].cancel()
            await gate.entered()
            gate.open(2)
            assert await asyncio.gather(*rest[4:]) == [4, 5]
            assert pid_of(pool) != pid
            results = await asyncio.gather(*rest[:4], return_exceptions=True)
            assert [type(each) for each in results] == [asyncio.CancelledError] * 4
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.run(time.sleep, 1000), 0.05)
            await usable(pool)
            assert (pool.stats().cancelled, pool.stats().failed) == (5, 0)

    run(main())


def test_function_that_cannot_be_imported() -> None:
    """Buffers sent along with a function that the worker cannot import are closed there."""
    made = types.FunctionType(end_self.__code__, {"__name__": "homeless"}, "made")
    made.__qualname__ = "made"
    homeless = types.ModuleType("homeless")
    homeless.made = made  # type: ignore[attr-defined]
    sys.modules["homeless"] = homeless

    async def main() -> None:
        async with WorkerPool(1) as pool:
            with SharedBuffer(10) as shared:
                before = await pool.run(os.listdir, "/proc/self/fd")
                for _ in range(5):
                    with pytest.raises(NotPicklable, match="No module named 'homeless'"):
                        await pool.run(made, shared)
                assert len(await pool.run(os.listdir, "/proc/self/fd")) == len(before)

    try:
        asyncio.run(main())
    finally:
        del sys.modules["homeless"]


def test_nothing_is_left_for_the_collector(gate: Gate) -> None:
    """However a call ends, its resources are freed at once, without waiting for the garbage collector."""
    kept: list[weakref.ref[Any]] = []

    def watched(value: Any) -> Any:
        kept.append(weakref.ref(value))
        return value

    async def ended(pool: WorkerPool, function: Any, *args: Any, **options: Any) -> None:
        with contextlib.suppress(Exception):
            future = watched(pool.submit(function, args, {}, CallOptions(**options)))
            try:
                await future
            finally:
                del future  # its traceback refers to this frame

    async def cancelled(pool: WorkerPool, *calls: tuple[Any, ...]) -> None:
        futures = [watched(pool.submit(function, args, {}, CallOptions())) for function, *args in calls]
        for _ in range(3):  # the preparation of a large one has begun
            await asyncio.sleep(0)
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)

    async def main() -> None:
        async with WorkerPool(1, prefetch=2) as pool:
            gc.disable()
            await ended(pool, abs, -1)
            await ended(pool, list, [1] * 5000)
            await ended(pool, raising, ValueError)
            await ended(pool, raising, watched(Unsendable()))
            await ended(pool, end_self, "exit")
            await ended(pool, hold, *gate.wait_args, timeout=0.01)
            await cancelled(pool, *[(hold, *gate.wait_args)] * 5)
            await cancelled(pool, (divmod, [[]] * 100_000, watched(Counter())))
            await pool.drain()
            for _ in range(3):  # callbacks of the loop
                await asyncio.sleep(0)
            assert [each() for each in kept] == [None] * 13

    try:
        asyncio.run(main())
    finally:
        gc.enable()


def append(path: str, value: int) -> int:
    """Add to a file."""
    with Path(path).open("a") as file:
        file.write(f"{value} ")
    return value


def test_withdrawn_and_cancelled(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls withdrawn from behind a long call and cancelled in the same turn, the remaining one runs once."""
    for module in (supervisor, dispatcher):
        monkeypatch.setattr(module, "STUCK", 1000)  # stuck calls are withdrawn by the test
    path = tmp_path / "ran"

    async def main() -> None:
        async with WorkerPool(2, min_workers=1, prefetch=7) as pool:
            found, options = pool._dispatcher, CallOptions()
            assert found is not None
            held = pool.submit(hold, gate.wait_args, {}, options)
            rest = [pool.submit(append, (str(path), n), {}, options) for n in range(6)]
            await gate.entered()
            assert (pool.stats().running, pool.stats().queued) == (7, 0)
            monkeypatch.setattr(supervisor, "STUCK", 0)
            found._take_back()
            for each in rest[:0:-1]:
                each.cancel()
            assert await rest[0] == 0
            gate.open()
            await held
            await usable(pool)
            assert pool.stats().cancelled == 5

    asyncio.run(main())
    assert path.read_text() == "0 "


def test_on_event_that_submits_and_cancels(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """An on_event callback may cancel the call that makes a worker busy, and submit other calls."""
    pool: WorkerPool
    waiting: list[asyncio.Future[Any]] = []
    more: list[asyncio.Future[Any]] = []

    def on_event(event: PoolEvent) -> None:
        if event.kind == "busy" and waiting:
            waiting.pop().cancel()
        if event.kind in ("busy", "recycled") and len(more) < 20:
            more.append(pool.submit(abs, (-1,), {}, CallOptions()))

    async def main() -> None:
        nonlocal pool
        async with WorkerPool(1, on_event=on_event, max_tasks_per_worker=2, prefetch=1) as pool:
            held = pool.submit(hold, gate.wait_args, {}, CallOptions())
            await gate.entered()
            cancelled = pool.submit(abs, (2,), {}, CallOptions(priority=1))
            waiting.append(cancelled)
            gate.open()
            await held
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await pool.drain()
            assert [each.result() for each in more] == [1] * 20
            stats = pool.stats()
            assert (stats.completed, stats.cancelled, stats.submitted) == (21, 1, 22)
            assert stats.recycled in (10, 11)  # two calls each, or one worker killed because of the cancelled call
            stats_add_up(stats)

    asyncio.run(main())
    assert caplog.records == []


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_nothing_can_be_sent(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A live worker that the system cannot send to is replaced; its call gets its result from another worker."""
    failed = 0

    class Full:
        """A socket whose sends fail for lack of memory."""

        def __init__(self, real: socket.socket) -> None:
            self.fileno, self.recv, self.recvmsg, self.recv_into = real.fileno, real.recv, real.recvmsg, real.recv_into

        def send(self, *_: Any) -> int:
            nonlocal failed
            failed += 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

        sendmsg = send

    async def main() -> None:
        async with WorkerPool(1) as pool:
            assert await pool.run(abs, -1) == 1
            pid = pid_of(pool)
            monkeypatch.setattr(connections(pool)[0], "_channel", Full(connections(pool)[0]._channel))
            assert await pool.run(len, b"x" * size) == size
            assert pid_of(pool) != pid
            await usable(pool)
            assert pool.stats().crashed == 0

    asyncio.run(main())
    assert failed == 1


def test_interrupted_between_results(caplog: pytest.LogCaptureFixture) -> None:
    """An exception raised by a program's log handler to end its loop costs nothing: the pool resumes with the loop."""

    def end(record: logging.LogRecord) -> bool:
        logger.removeFilter(end)
        raise SystemExit

    async def together(pool: WorkerPool) -> None:
        """Have the results of all calls handled in one turn."""
        calls.extend(pool.submit(logger.warning, ("said",), {}, CallOptions()) for _ in range(5))
        (connection,) = connections(pool)
        while connection.finished < 5:
            pass
        await asyncio.gather(*calls)

    async def go_on(pool: WorkerPool) -> None:
        assert await asyncio.gather(*calls) == [None] * 5
        await usable(pool)
        await pool.close()

    calls: list[asyncio.Future[Any]] = []
    logger = logging.getLogger("from-worker")
    logger.addFilter(end)
    with asyncio.Runner() as running:
        pool = WorkerPool(1, forward_logs=True, prefetch=5)
        running.run(pool.ready())
        with pytest.raises(SystemExit):
            running.run(together(pool))
        running.run(go_on(pool))
    assert [record.msg for record in caplog.records] == ["said"] * 4


def raising(kind: type[BaseException], *args: Any) -> None:
    """Raise."""
    raise kind(*args)


class Unsendable(Exception):
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("no way")


class Unreceivable(Exception):
    """Cannot be unpickled."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__("a text")


class Deceiver(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> Any:
        return dict, ()


class Fatal:
    """Exits the process that unpickles it, except the worker that made it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def raise_in_coroutine(kind: type[BaseException]) -> Any:
    """Return a coroutine that raises."""

    async def failing() -> None:
        await asyncio.sleep(0)
        raise kind()

    return failing()


def test_exceptions_of_calls(run: Run) -> None:
    """An exception that would end or confuse the parent, or cannot be pickled, is that call's OffloadError."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            pid = pid_of(pool)
            for function, args, words in (
                (sys.exit, (3,), r"the call ended with sys.exit\(3\)"),
                (raising, (KeyboardInterrupt,), "KeyboardInterrupt"),
                (raising, (StopIteration, 5), "StopIteration: 5"),
                (raising, (GeneratorExit,), "GeneratorExit"),
                (raising, (asyncio.CancelledError,), "CancelledError"),
                (raise_in_coroutine, (SystemExit,), "sys.exit"),
                (raise_in_coroutine, (asyncio.CancelledError,), "CancelledError"),
                (raising, (Unsendable, "x"), "Unsendable: x, which cannot be sent as it is: .*no way"),
                (raising, (Unreceivable, 1, 2), "Unreceivable: a text, which cannot be sent as it is: TypeError"),
                (raising, (Deceiver, "x"), "Deceiver: x, which cannot be sent as it is: .*dict"),
                (Fatal, (), "the result cannot be unpickled here: SystemExit: 3"),
                (list, ([Fatal] * 3000,), ""),
                (make_fatal, (3000,), "the result cannot be unpickled here: SystemExit: 3"),
            ):
                if words:
                    with pytest.raises(OffloadError, match=words) as caught:
                        await pool.run(function, *args)
                    assert type(caught.value) is OffloadError and caught.value.__cause__ is not None
                else:
                    await pool.run(function, *args)
            with pytest.raises(StopAsyncIteration):
                await pool.run(raising, StopAsyncIteration)
            with pytest.raises(NotPicklable, match=r"the result \(_thread.lock\) cannot be sent back"):
                await pool.run(threading.Lock)
            with pytest.raises(NotPicklable, match=r"the call could not be read in the worker: SystemExit: 3"):
                await pool.run(abs, Fatal())
            await usable(pool)
            assert pid_of(pool) == pid

    run(main())


def make_fatal(count: int) -> list[Fatal]:
    """Return a large result that cannot be unpickled."""
    return [Fatal() for _ in range(count)]


def test_arguments_that_cannot_be_sent() -> None:
    """The message names argument and type; nothing is leaked, and the queue slot is free again."""

    async def main() -> None:
        async with WorkerPool(1, max_queue=1) as pool:
            lock = threading.Lock()
            for args, kwargs, words in (
                ((1, lock), {}, r"argument 2 \(_thread.lock\) cannot be sent to a worker: cannot pickle"),
                ((), {"key": lock}, r"argument 'key' \(_thread.lock\) cannot"),
                (([lock] * 3000,), {}, r"argument 1 \(builtins.list\) cannot"),
                ((dict.fromkeys(range(3000), lock),), {}, r"argument 1 \(builtins.dict\) cannot"),
            ):
                with pytest.raises(NotPicklable, match=words):
                    await pool.run(dict, *args, **kwargs)
            with pytest.raises(NotPicklable, match="the function"):
                await pool.run(lock.acquire)
            assert pool.stats().submitted == 0
            await usable(pool)

    runner("asyncio")(main())


def fork_and_return() -> tuple[str, int]:
    """Fork; both processes return."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return ("parent" if pid else "child"), os.getpid()


def test_call_that_forks() -> None:
    """The child of a call that forks does not send a result in its place."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            for _ in range(3):
                assert await pool.run(fork_and_return) == ("parent", pid_of(pool))
            await usable(pool)

    runner("asyncio")(main())


def test_closing_while_busy(run: Run, gate: Gate) -> None:
    """close() waits for accepted calls; close(force=True) fails them with PoolClosed and kills the workers at once."""

    async def main() -> None:
        pool = WorkerPool(1, prefetch=2)
        tasks = [asyncio.ensure_future(pool.run(hold, *gate.wait_args, n)) for n in range(4)]
        await gate.entered()
        closing = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.open(4)
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3]
        await closing
        pool = WorkerPool(1, prefetch=2)
        tasks = [asyncio.ensure_future(pool.run(time.sleep, 1000)) for _ in range(4)]
        await pool.ready()
        waiting = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        await pool.close(force=True)
        await waiting
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [PoolClosed] * 4
        stats_add_up(pool.stats())
        with pytest.raises(PoolClosed):
            await pool.ready()

    run(main())


def test_closed_while_starting(run: Run) -> None:
    """A pool closed before its workers are ready leaks nothing, and refuses waiting calls."""

    async def main() -> None:
        for method in METHODS:
            pool = WorkerPool(2, start_method=method)
            task = asyncio.ensure_future(pool.run(abs, 1))
            await asyncio.sleep(0)
            await pool.close(force=True)
            with pytest.raises(PoolClosed):
                await task
            assert pool.stats().workers == ()

    run(main())


def test_dying_while_closing(gate: Gate) -> None:
    """A graceful close ends even if a worker dies meanwhile: waiting calls run on another worker."""

    async def main() -> None:
        pool = WorkerPool(1, prefetch=1)
        tasks = [asyncio.ensure_future(pool.run(hold, *gate.wait_args, n)) for n in range(2)]
        await gate.entered()
        closing = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        os.kill(pid_of(pool), signal.SIGKILL)
        await gate.entered()
        gate.open()
        assert await tasks[1] == 1
        await closing
        with pytest.raises(WorkerCrashed):
            await tasks[0]

    runner("asyncio")(main())


def test_retries(tmp_path: Path) -> None:
    """With retries=2 a call runs three times at most; without retries, once."""
    path = tmp_path / "runs"

    async def main() -> None:
        async with WorkerPool(1) as pool:
            with pytest.raises(WorkerCrashed):
                await pool.options(retries=2).run(note_and_die, str(path), 99)
            assert path.read_text() == "..."
            assert await pool.options(retries=2).run(note_and_die, str(path), 4) == "lived"
            assert path.read_text() == "....."
            with pytest.raises(WorkerCrashed):
                await pool.run(note_and_die, str(path), 99)
            assert path.read_text() == "......"
            assert pool.stats().retried == 3
            await usable(pool)

    runner("asyncio")(main())


def note_and_die(path: str, lives_after: int) -> str:
    """Die unless it has run often enough."""
    with Path(path).open("a+") as file:
        file.seek(0)
        runs = len(file.read())
        file.write(".")
    if runs < lives_after:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def take_memory(size: int) -> int:
    """Allocate memory and keep it for the life of the process."""
    KEPT.append(b"x" * size)
    return size


def take_memory_for_ever() -> None:
    """Allocate more and more memory, slowly."""
    while True:
        take_memory(10_000_000)
        time.sleep(0.01)


KEPT: list[bytes] = []


def test_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker beyond the limit is replaced between two calls; a call that takes twice as much is ended."""
    monkeypatch.setattr(supervisor, "MEMORY_EVERY", 0.02)

    async def main() -> None:
        async with WorkerPool(1, max_memory_per_worker=200_000_000) as pool:
            pid = pid_of(pool)
            assert await pool.run(take_memory, 1000) == 1000
            assert pid_of(pool) == pid
            assert await pool.run(take_memory, 250_000_000) == 250_000_000
            assert await pool.run(os.getpid) != pid
            assert pool.stats().recycled == 1
            with pytest.raises(WorkerCrashed, match="more than twice max_memory_per_worker=200,000,000") as caught:
                await pool.run(take_memory_for_ever)
            assert caught.value.oom_killed and "\n" not in str(caught.value)
            await usable(pool)

    runner("asyncio")(main())


# ----------------------------------------------------------------------------------------- starting that fails


def fail_to_start(path: str) -> None:
    """Fail as long as the file exists."""
    if Path(path).exists():
        raise ValueError("no database")


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_initializer_that_fails(run: Run, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call fails with the reason and the worker's traceback, few processes are started, and the pool recovers."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF", 0.03)
    path = tmp_path / "fails"
    path.touch()

    async def main() -> None:
        pool = WorkerPool(1, start_method=method, initializer=fail_to_start, initargs=(str(path),))
        with pytest.raises(OffloadError, match="could not get ready: ValueError: no database") as caught:
            async with pool:
                pass
        assert "fail_to_start" in str(caught.value.__cause__)
        pool = WorkerPool(1, start_method=method, initializer=fail_to_start, initargs=(str(path),))
        for _ in range(3):
            results = await asyncio.gather(*(pool.run(abs, 1) for _ in range(10)), return_exceptions=True)
            assert [str(each)[-37:] for each in results] == ["not get ready: ValueError: no database"[1:]] * 10
            with pytest.raises(OffloadError, match="no database"):
                await pool.ready()
        assert pool.stats().started <= 6
        path.unlink()
        await recovered(pool)
        await pool.close()

    run(main())


def test_no_hot_respawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts of workers that die as soon as they are ready back off."""
    pauses: list[float] = []
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF", 0.02)

    async def main() -> None:
        started = [asyncio.Event() for _ in range(5)]
        times: list[float] = []

        def on_event(event: PoolEvent) -> None:
            if event.kind == "started":
                times.append(time.monotonic())
            elif event.kind == "ready":
                assert event.pid is not None
                os.kill(event.pid, signal.SIGKILL)
                if len(times) <= 5:
                    started[len(times) - 1].set()

        pool = WorkerPool(1, on_event=on_event)
        task = asyncio.ensure_future(pool.ready())
        await started[4].wait()
        await pool.close(force=True)
        with contextlib.suppress(OffloadError):
            await task
        pauses.extend(b - a for a, b in itertools.pairwise(times))

    runner("asyncio")(main())
    assert pauses[1] >= 0.04 and pauses[2] >= 0.08 and pauses[3] >= 0.16


def test_killed_while_starting() -> None:
    """A worker killed while starting is replaced without any effect on calls; if it happens repeatedly, calls fail."""

    async def main(times: int) -> int:
        left = times

        def on_event(event: PoolEvent) -> None:
            nonlocal left
            if event.kind == "started" and left:
                left -= 1
                assert event.pid is not None
                os.kill(event.pid, signal.SIGKILL)

        pool = WorkerPool(1, on_event=on_event)
        try:
            return await pool.run(abs, -1)
        finally:
            await pool.close()

    assert runner("asyncio")(main(2)) == 1
    with pytest.raises(OffloadError, match="ended before it was ready: signal 9"):
        runner("asyncio")(main(3))


def test_worker_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that never becomes ready is killed after a while, and waiting calls fail with the reason."""
    monkeypatch.setattr(supervisor, "START_TIMEOUT", 0.2)

    async def main() -> None:
        pool = WorkerPool(1, initializer=time.sleep, initargs=(1000,))
        with pytest.raises(OffloadError, match=r"ended before it was ready: it was not ready after 0.2 s"):
            await pool.run(abs, 1)
        await pool.close()

    runner("asyncio")(main())


def test_fork_server_dies(run: Run, gate: Gate) -> None:
    """When the fork server dies its workers die too; the running call fails, the rest run once all are restarted."""

    async def main() -> None:
        async with WorkerPool(1, prefetch=1) as pool:
            for _ in range(2):
                held = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
                await gate.entered()
                waiting = [asyncio.ensure_future(pool.run(abs, n)) for n in range(5)]
                os.kill(psutil.Process(pid_of(pool)).ppid(), signal.SIGKILL)
                with pytest.raises(WorkerCrashed):
                    await held
                assert await asyncio.gather(*waiting) == list(range(5))
            await usable(pool)

    run(main())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_no_room_for_memory(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """When the system has no memory or descriptors left, calls fail with a one-line error, and the pool recovers."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF", 0.01)

    async def main() -> None:
        pool = WorkerPool(1)
        with monkeypatch.context() as patch:

            def refuse(*args: object) -> int:
                raise OSError(number, os.strerror(number))

            patch.setattr(os, "memfd_create", refuse)
            with pytest.raises(OffloadError) as caught:
                await pool.run(abs, 1)
            assert os.strerror(number) in str(caught.value) and "\n" not in str(caught.value)
        await recovered(pool)
        await pool.close()

    runner("asyncio")(main())


def make_buffers(count: int) -> list[SharedBuffer]:
    """Return shared memory."""
    return [SharedBuffer(8) for _ in range(count)]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="descriptors are passed on Linux only")
def test_no_descriptors_for_a_result() -> None:
    """A result whose descriptors do not fit in this process fails its call, and no other result is mixed up."""

    async def main() -> None:
        async with WorkerPool(1, prefetch=3) as pool:
            before = await pool.run(make_buffers, 3)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            used = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
            fill = [os.dup(0) for _ in range(used - lowest)]
            calls = [pool.submit(make_buffers, (count,), {}, CallOptions()) for count in (40, 1, 1)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
            try:
                with pytest.raises(WorkerCrashed, match="descriptors that it had sent were lost: too many are open"):
                    await calls[0]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for each in fill:
                    os.close(each)
            for each in calls[1:]:  # one of them may have been sent already
                with contextlib.suppress(OffloadError):
                    before += await each
            assert [len(each) for each in before] == [8] * len(before)
            await recovered(pool)
            for each in before:
                each.close()

    runner("asyncio")(main())


def test_module_that_cannot_be_preloaded() -> None:
    """A module that cannot be preloaded is left to the workers, which report it where it is used."""

    async def main() -> None:
        async with WorkerPool(1, preload=("no_such_module", "json")) as pool:
            await usable(pool)

    runner("asyncio")(main())


def test_no_descriptors_left(tmp_path: Path) -> None:
    """At RLIMIT_NOFILE starting fails with a one-line error, no call hangs, and the pool recovers later."""
    result = script(
        tmp_path,
        """
        import asyncio, os, resource
        from loopwatch import OffloadError, WorkerPool
        from loopwatch.workers import dispatcher
        from loopwatch.workers import supervisor
        supervisor.FIRST_BACKOFF = 0.01

        async def main():
            pool = WorkerPool(1, max_tasks_per_worker=1)
            print(await pool.run(abs, -1))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = max(map(int, os.listdir("/proc/self/fd")))
            for spare in range(1, 12):
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
                try:
                    await pool.run(abs, -1)
                except OffloadError as exc:
                    assert "Too many open files" in str(exc) and "\\n" not in str(exc), exc
                await asyncio.sleep(0.03)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while True:
                try:
                    print(await pool.run(abs, -2))
                    break
                except OffloadError:
                    await asyncio.sleep(0.01)
            await pool.close()

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert (result.stdout, result.stderr) == ("1\n2\n", "")


def test_no_processes_left(tmp_path: Path) -> None:
    """At RLIMIT_NPROC, which limits threads too, calls fail with a one-line error, and the pool can be closed."""
    result = script(
        tmp_path,
        """
        import asyncio, multiprocessing.spawn, os, resource, subprocess
        from loopwatch import OffloadError, WorkerPool
        from loopwatch.workers import dispatcher
        from loopwatch.workers import supervisor
        supervisor.FIRST_BACKOFF = 0.01

        async def main():
            if not os.geteuid():
                os.setuid(64321)  # the limit does not apply to root
            _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
            for method in ("forkserver", "spawn"):
                for spare in (0, 1):
                    while len(os.listdir("/proc/self/task")) > 1:
                        await asyncio.sleep(0.001)
                    resource.setrlimit(resource.RLIMIT_NPROC, (1 + spare, hard))
                    pool = WorkerPool(1, start_method=method)
                    try:
                        await pool.run(abs, -1)
                    except OffloadError as exc:
                        words = ("can't start new thread", "Resource temporarily unavailable")[spare]
                        print(words in str(exc), len(str(exc).splitlines()))
                    await pool.close()

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert (result.stdout, result.stderr) == ("True 1\n" * 4, "")


# ------------------------------------------------------------------------------------------- the end of the parent

PARENT = """
import asyncio, ctypes, json, os, signal, sys, time
from loopwatch import WorkerPool

def spin_in_c():
    ctypes.PyDLL(None).sleep(1000)

async def main(method, then):
    pool = WorkerPool(3, start_method=method)
    held = [asyncio.ensure_future(pool.run(each, 1000)) for each in (time.sleep,)]
    held.append(asyncio.ensure_future(pool.run(spin_in_c)))
    await pool.run(abs, 1)
    while len(pool.stats().workers) < 3 or {each.state for each in pool.stats().workers} - {"idle", "busy"}:
        await asyncio.sleep(0.001)
    idle = next(each.pid for each in pool.stats().workers if each.state == "idle")
    forked = 0
    if then == "fork":
        there, here = os.pipe()
        forked = os.fork()
        if not forked:
            os.close(1)
            os.write(here, b".")
            time.sleep(1000)
        os.read(there, 1)  # it has let go of what it has inherited
    if then != "exit":
        os.kill(idle, signal.SIGSTOP)
    print(json.dumps([[each.pid for each in pool.stats().workers], forked]), flush=True)
    if then == "exit":
        return
    await asyncio.sleep(1000)

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("then", ["kill", "fork"])
@pytest.mark.parametrize("method", METHODS)
def test_parent_is_killed(tmp_path: Path, method: str, then: str) -> None:
    """No worker outlives a killed parent, be it idle, busy, in C with the GIL or stopped, even if a fork lives on."""
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(path), method, then], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids, forked = json.loads(parent.stdout.readline())
        family = [psutil.Process(pid) for pid in pids]
        if method == "forkserver":
            family.append(psutil.Process(family[0].ppid()))
            assert family[-1].ppid() == parent.pid
        ends = [os.pidfd_open(each.pid) for each in family]
        parent.kill()
        parent.wait()
        killed = time.monotonic()
        # The kernel closed the lifelines, and sent SIGKILL with that, before wait() returned: a worker that is not gone
        # by now has the signal pending, and no processor yet to die on.
        assert [pid for pid in pids if not _is_gone_or_killed(pid)] == []
    try:
        took = _until_all_end(ends, killed)
        assert len(took) == len(family) == (4 if method == "forkserver" else 3)
        assert max(took) < 1.0
    finally:
        for each in ends:
            os.close(each)
        if forked:
            os.kill(forked, signal.SIGKILL)


def _is_gone_or_killed(pid: int) -> bool:
    """Whether a process has ended or has a fatal signal pending: proc_pid_status(5)."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return True
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return fields["State"].split()[0] in "ZX" or bool(pending >> (signal.SIGKILL - 1) & 1)


def _until_all_end(pidfds: list[int], since: float) -> list[float]:
    """Wait for processes to end; return after how many seconds each did."""
    poll, took = select.poll(), []
    for each in pidfds:
        poll.register(each, select.POLLIN)
    while len(took) < len(pidfds) and (ended := poll.poll(10_000)):
        for each, _ in ended:
            poll.unregister(each)
            took.append(time.monotonic() - since)
    return took


@pytest.mark.parametrize("method", METHODS)
def test_program_ends_with_open_pool(tmp_path: Path, method: str) -> None:
    """A program that ends with stuck calls and an open pool exits at once, silently, and leaves no process behind."""
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    result = program([str(path), method, "exit"])
    assert (result.returncode, result.stderr) == (0, "")
    pids, _ = json.loads(result.stdout)
    _, alive = psutil.wait_procs([each for each in map(_process, pids) if each is not None], timeout=5)
    assert alive == []


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def test_interrupt_from_the_terminal(tmp_path: Path) -> None:
    """Ctrl-C, which the whole process group receives, ends the parent's call; workers survive it."""
    result = script(
        tmp_path,
        """
        import asyncio, os, signal, time
        from loopwatch import WorkerPool

        async def main():
            os.setpgid(0, 0)
            caught = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, caught.set)
            for method in ("forkserver", "spawn"):
                pool = WorkerPool(1, start_method=method)
                task = asyncio.ensure_future(pool.run(time.sleep, 0.5))
                for _ in range(20):  # also while they are starting
                    os.killpg(0, signal.SIGINT)
                    await asyncio.sleep(0.01)
                await caught.wait()
                await task
                print(pool.stats().crashed, pool.stats().started)
                await pool.close()

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert (result.stdout, result.stderr) == ("0 1\n0 1\n", "")


def test_fork_of_the_parent(tmp_path: Path) -> None:
    """A forked child that exits does not affect the pool, and gets a clear error if it uses the pool."""
    result = script(
        tmp_path,
        """
        import asyncio, os, time
        from loopwatch import PoolClosed, WorkerPool

        async def main(method):
            async with WorkerPool(1, start_method=method) as pool:
                task = asyncio.ensure_future(pool.run(time.sleep, 0.2))
                await asyncio.sleep(0.05)
                child = os.fork()
                if not child:
                    try:
                        await pool.run(abs, 1)
                    except PoolClosed:
                        os._exit(5)
                    finally:
                        os._exit(1)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                await task
                print(await pool.run(abs, -1), pool.stats().crashed)

        if __name__ == "__main__":
            for method in ("forkserver", "spawn"):
                asyncio.run(main(method))
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert (result.stdout, result.stderr) == ("5\n1 0\n" * 2, "")


def test_much_output(tmp_path: Path) -> None:
    """A call may write 10 MB to standard output, and it goes where the parent's output goes."""
    result = script(
        tmp_path,
        """
        import asyncio, sys
        from loopwatch import WorkerPool

        def write():
            print("x" * 10_000_000)
            return len("done")

        async def main():
            async with WorkerPool(1) as pool:
                print(await pool.run(write), file=sys.stderr)

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert len(result.stdout) == 10_000_001 and result.stderr == "4\n"


def test_main_that_cannot_be_imported(tmp_path: Path) -> None:
    """If the program's main module fails in the worker, the call fails with the worker's traceback."""
    result = script(
        tmp_path,
        """
        import asyncio, sys
        if __name__ != "__main__":
            raise RuntimeError("not here")
        from loopwatch import OffloadError, WorkerPool

        async def main():
            pool = WorkerPool(1)
            try:
                await pool.run(abs, 1)
            except OffloadError as exc:
                print(exc)
                print("program.py" in str(exc.__cause__))
            await pool.close()

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert result.stdout.endswith("of pool could not get ready: RuntimeError: not here\nTrue\n")
    assert result.stderr == ""


def test_loop_is_stopped_without_close() -> None:
    """A loop stopped and closed under a running call leaves no warning, no process and no relevant pending future."""
    loop = asyncio.new_event_loop()
    pool = WorkerPool(1)

    async def start() -> None:
        await pool.ready()
        task = asyncio.ensure_future(pool.run(time.sleep, 1000))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop.run_until_complete(start())
    loop.close()
    with pytest.raises(PoolClosed, match="is closed"):
        runner("asyncio")(pool.run(abs, 1))


def test_abandoned_from_outside() -> None:
    """abandon() of a pool whose loop is not running releases everything, and the loop can go on."""
    loop = asyncio.new_event_loop()
    pool = WorkerPool(1)
    assert loop.run_until_complete(pool.run(abs, -1)) == 1
    stuck = loop.create_task(pool.run(time.sleep, 1000))
    loop.run_until_complete(asyncio.sleep(0))
    pool.abandon()
    with pytest.raises(PoolClosed):
        loop.run_until_complete(stuck)
    other = WorkerPool(1)
    assert loop.run_until_complete(other.run(abs, -2)) == 2
    loop.run_until_complete(other.close())
    loop.close()


def write_and_work(path: str, number: int, seconds: float) -> int:
    """Leave a trace, and take a while."""
    with Path(path).open("a") as file:
        file.write(f"{number} ")
    time.sleep(seconds)
    return number


@pytest.mark.long
def test_everything_at_once(run: Run, tmp_path: Path) -> None:
    """Under random kills, cancels and time-outs no call runs twice, hangs or is lost, and no results are swapped."""
    chance = random.Random(1)
    path = tmp_path / "traces"
    path.touch()  # on a busy machine every call may be cancelled before it begins

    async def main() -> None:
        async with WorkerPool(2, prefetch=7, max_tasks_per_worker=50) as pool:
            tasks = []
            for number in range(120):
                bound = pool.options(
                    timeout=0.05 if chance.random() < 0.03 else None,
                    priority=chance.randrange(3),
                    max_concurrency=chance.choice((None, 1, 2)),
                )
                seconds = chance.choice((0, 0, 0, 0, 0.002, 0.02 if chance.random() < 0.2 else 0))
                tasks.append(asyncio.ensure_future(bound.run(write_and_work, str(path), number, seconds)))
            while not all(task.done() for task in tasks):
                await asyncio.sleep(chance.random() * 0.02)
                stats_add_up(pool.stats())
                if chance.random() < 0.4:
                    chance.choice(tasks).cancel()
                ready = [each.pid for each in pool.stats().workers if each.state != "starting"]
                if chance.random() < 0.05 and ready:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(ready), signal.SIGKILL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for number, result in enumerate(results):
                assert result == number or isinstance(result, WorkerCrashed | TaskTimeout | asyncio.CancelledError)
            traces = Counter(path.read_text().split())
            assert set(traces.values()) <= {1}
            assert {str(each) for each in results if isinstance(each, int)} <= set(traces)
            await recovered(pool)

    run(main())


def test_pause_between_failed_starts_stays_a_number() -> None:
    """After thousands of failures in a row the pause is as long as after ten: five seconds."""
    made = supervisor.Supervisor.__new__(supervisor.Supervisor)
    made.failures = 5000
    made._back_off(0.0)
    assert 0 < made._retry_at - time.monotonic() <= supervisor.LONGEST_BACKOFF
    assert made.failures == 5001

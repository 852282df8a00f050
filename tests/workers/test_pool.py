"""WorkerPool in the absence of faults. Faults are in test_pool_faults.py."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch.errors import ConfigError, NotPicklable, PoolClosed, QueueFull
from loopwatch.events import PoolEvent
from loopwatch.workers import call, options, supervisor, worker
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.shared_buffer import SharedBuffer
from tests.conftest import Run, runner
from tests.offloading import offloaded
from tests.workers.helpers import METHODS, ROOT, Gate, hold, program, script, stats_add_up

USER: contextvars.ContextVar[str] = contextvars.ContextVar("user")


@pytest.fixture
def gate(tmp_path: Path) -> Any:
    """A gate for calls of :func:`hold`."""
    made = Gate(tmp_path)
    yield made
    made.close()


def note(path: str, word: str) -> None:
    """Append a word to a file."""
    with Path(path).open("a") as file:
        file.write(f"{word} ")


def kinds(*values: Any, **named: Any) -> list[str]:
    """Return the type name of each argument."""
    return [type(value).__name__ for value in (*values, *named.values())]


def same(*values: Any) -> bool:
    """Whether all arguments are one object."""
    return all(value is values[0] for value in values)


async def doubled(value: int) -> int:
    """Compute on a loop."""
    await asyncio.sleep(0)
    return 2 * value


@pytest.mark.parametrize("method", METHODS)
def test_runs_calls(run: Run, method: str) -> None:
    """Functions, methods, partials, classes and coroutine functions run in another process, however it is started."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method) as pool:
            assert await pool.run(os.getpid) not in (os.getpid(), None)
            assert await pool.run(math.factorial, 5) == 120
            assert await pool.run("a-b".split, "-") == ["a", "b"]
            assert await pool.run(functools.partial(int, base=2), "101") == 5
            assert await pool.run(collections.Counter, "aab") == {"a": 2, "b": 1}
            assert await pool.run(doubled, 4) == 8
            assert await pool.run(kinds, 1, b=2.0) == ["int", "float"]
            assert await asyncio.gather(*(pool.run(abs, -n) for n in range(300))) == list(range(300))

    run(main())


def test_arguments_and_results_are_preserved() -> None:
    """Arguments and results keep type, mutability and identity, large ones too, in both directions."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            for size in (0, 10, 100_000, 3_000_000):
                for kind in (bytes, bytearray):
                    value = kind(os.urandom(size))
                    back = await pool.run(calls_back, value)
                    assert back == value and type(back) is kind
                    assert await pool.run(same, value, value, value)
            changed = await pool.run(reversed_in_place, bytearray(b"ab" * 50_000))
            assert changed == b"ba" * 50_000
            rows = [{"id": n, "name": str(n)} for n in range(100_000)]
            assert await pool.run(calls_back, rows) == rows
            assert await pool.run(len, rows) == 100_000
            shared = ["x"]
            many: list[Any] = [shared] * 5000
            many[7] = many
            assert await pool.run(is_knot, many)
            back = await pool.run(calls_back, many)
            assert back[7] is back and back[0] is back[4999] and len(back) == 5000
            table: dict[Any, Any] = dict.fromkeys(range(5000), shared)
            table["self"] = table
            back = await pool.run(calls_back, table)
            assert back["self"] is back and back[0] is back[4999]
            assert await pool.run(is_tuple_in, tuple(range(5000)), [1, 2])
            assert await pool.run(same, many, many)
            assert await pool.run(kinds, many, tuple(many), key=table) == ["list", "tuple", "dict"]
            knot: Any = ([],) * 3000
            knot[0].append(knot)
            back = await pool.run(calls_back, knot)
            assert type(back) is tuple and back[0][0] is back
            stats = pool.stats()
            assert stats.failed == 0 and stats.completed == stats.submitted

    runner("asyncio")(main())


def test_decorated_functions_run_in_the_worker() -> None:
    """A function decorated with @offload runs undecorated in a worker; an unrelated ``inline`` is ignored."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            assert await pool.run(offloaded.pid) not in (os.getpid(), None)
            assert (await pool.run(offloaded.Shapes(3).area))[0] == 9
            assert await pool.run(has_inline, 1) == "called with 1"
            assert await pool.run(doubles, 1) == (1, 2)
        assert worker.undecorated(len) is len

    runner("asyncio")(main())


def has_inline(value: int) -> str:
    """A function with an unrelated attribute ``inline``."""
    return f"called with {value}"


has_inline.inline = True  # type: ignore[attr-defined]


def counted(function: Any) -> Any:
    """Wrap a decorated function, with all of its attributes."""

    @functools.wraps(function)
    async def wrapper(*args: Any) -> tuple[int, Any]:
        return 1, await function(*args)

    return wrapper


@counted
@loopwatch.offload
def doubles(value: int) -> int:
    """Compute."""
    return 2 * value


def test_timeout_does_not_count_the_transfer(run: Run) -> None:
    """``timeout`` does not count the time that a result needs to arrive."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            call = asyncio.ensure_future(pool.options(timeout=0.05).run(bytes, 50_000_000))
            while not (connections := pool._dispatcher.supervisor.connections) or not connections[0].calls:  # type: ignore[union-attr]
                await asyncio.sleep(0)
            while connections[0].finished != 1:  # the loop is held meanwhile
                time.sleep(0.001)
            time.sleep(0.1)
            assert len(await call) == 50_000_000
            stats = pool.stats()
            assert (stats.timed_out, stats.crashed, stats.started) == (0, 0, 1)

    run(main())


def calls_back(value: Any) -> Any:
    """Return the argument."""
    return value


def reversed_in_place(value: bytearray) -> bytearray:
    """Change the argument."""
    value.reverse()
    return value


def is_knot(many: list[Any]) -> bool:
    """Whether a list contains itself and one object otherwise."""
    return many[7] is many and many[0] is many[4999]


def is_tuple_in(items: tuple[int, ...], others: list[int]) -> bool:
    """Whether a large tuple arrived as one."""
    return type(items) is tuple and len(items) == 5000 and others == [1, 2]


def test_arrays() -> None:
    """Arrays are sent beside the pickle and are writable in the worker; an array passed twice arrives as one object."""
    numpy = pytest.importorskip("numpy")

    async def main() -> None:
        async with WorkerPool(1) as pool:
            array = numpy.arange(1_000_000, dtype="f8").reshape(1000, 1000)
            back = await pool.run(numpy.negative, array)
            assert (back == -array).all() and back.flags.writeable
            assert await pool.run(same, array, array)
            assert (await pool.run(calls_back, array[::2, ::3]) == array[::2, ::3]).all()
            assert await pool.run(filled_in_place, array) == 0.0
            assert array[1, 1] == 1001.0

    runner("asyncio")(main())


def filled_in_place(array: Any) -> float:
    """Write to the argument."""
    array.fill(0)
    return float(array.sum())


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="descriptors are passed on Linux only")
def test_shared_buffers(run: Run) -> None:
    """A SharedBuffer is written in place by the worker, comes back as the same object, and may be closed at once."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            with SharedBuffer(4096) as shared:
                assert await pool.run(write_to, shared, b"hello") is shared
                assert shared[:5] == b"hello"
                many = [pool.submit(write_to, (shared, b"%3d" % n), {}, options.CallOptions()) for n in range(50)]
                await asyncio.gather(*many)
            await asyncio.sleep(0)
            made = await pool.run(make_shared, b"made there")
            assert made[:10] == b"made there"
            made.close()
            given = SharedBuffer(8)
            large = [given] * 3000
            pending = pool.submit(total, (large,), {}, options.CallOptions())
            await asyncio.sleep(0)
            given.close()  # the pickled buffer has a descriptor of its own
            assert await pending == 3000 * 8
            too_many = [SharedBuffer(8) for _ in range(65)]
            with pytest.raises(NotPicklable, match="64 shared buffers"):
                await pool.run(len, too_many)
            for each in too_many:
                each.close()

    run(main())


def write_to(shared: SharedBuffer, data: bytes) -> SharedBuffer:
    """Write to shared memory and return it."""
    shared[: len(data)] = data
    return shared


def make_shared(data: bytes) -> SharedBuffer:
    """Return shared memory."""
    return write_to(SharedBuffer(4096), data)


def total(many: list[SharedBuffer]) -> int:
    """Return the bytes of all."""
    return sum(len(each) for each in many)


def test_context_variables_are_passed() -> None:
    """The requested context variables have their values in the call, and only there."""

    async def main() -> None:
        async with WorkerPool(1, context=(f"{__name__}:USER",)) as pool:
            assert await pool.run(user) == "guest"
            USER.set("ann")
            assert await pool.run(user) == "ann"
            assert await pool.run(user_later) == "ann"
            assert await contextvars.Context().run(asyncio.get_running_loop().create_task, pool.run(user)) == "guest"

    runner("asyncio")(main())


def user() -> str:
    """Return the context variable."""
    return USER.get("guest")


async def user_later() -> str:
    """Return the context variable, from a task."""
    return await asyncio.get_running_loop().create_task(asyncio.sleep(0, user()))


def test_logs_are_forwarded(caplog: pytest.LogCaptureFixture) -> None:
    """Records of a worker reach the parent's loggers with level, name, extra fields and traceback."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            await pool.run(log_things)

    with caplog.at_level("INFO"):
        runner("asyncio")(main())
    records = [record for record in caplog.records if record.name.startswith("there")]
    assert [(record.name, record.levelname, record.getMessage()) for record in records] == [
        ("there", "INFO", "it is 1"),
        ("there.below", "ERROR", "failed"),
    ]
    assert records[0].extra_field == [1, 2] and records[0].process != os.getpid()  # type: ignore[attr-defined]
    assert records[1].exc_text is not None and "ZeroDivisionError" in records[1].exc_text


def log_things() -> None:
    """Log with everything that a record can have, and from a finalizer while a record is sent."""
    logging.getLogger("there").info("it is %d", 1, extra={"extra_field": [1, 2]})
    logging.getLogger("there").debug("below the level")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger("there.below").exception("failed", extra={"odd": threading.Lock()})


def test_map() -> None:
    """Results come in order or as completed, few calls are in flight, and an early exit cancels the rest."""

    async def main() -> None:
        async with WorkerPool(2, max_queue=1) as pool:
            taken: list[int] = []

            def numbers() -> Any:
                for number in range(20):
                    taken.append(number)
                    yield number

            assert [value async for value in pool.map(abs, numbers(), in_flight=3)] == list(range(20))
            assert {value async for value in pool.map(abs, range(20), ordered=False)} == set(range(20))
            assert [value async for value in pool.map(pow, (1, 2, 3), (2, 2, 2))] == [1, 4, 9]
            assert [value async for value in pool.map(abs, ())] == []
            taken.clear()
            results = pool.map(abs, numbers(), in_flight=3)
            assert await anext(results) == 0
            assert len(taken) <= 4
            await results.aclose()  # type: ignore[attr-defined]
            for ordered in (True, False):
                with pytest.raises(ValueError, match=r"math domain error|positive"):
                    async for _ in pool.map(math.log, (1, 0, 1, 0), ordered=ordered):
                        pass
            with pytest.raises(ConfigError, match="in_flight=0"):
                await anext(pool.map(abs, (), in_flight=0))
            await pool.drain()
            stats_add_up(pool.stats())

    runner("asyncio")(main())


def test_priority(gate: Gate, tmp_path: Path) -> None:
    """Calls with a higher priority run first, equal ones in order of submission."""
    order = str(tmp_path / "order")

    async def main() -> None:
        async with WorkerPool(1, prefetch=1) as pool:
            first = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            await gate.entered()
            rest = [
                pool.options(priority=priority).run(note, order, word)
                for priority, word in ((0, "a"), (5, "b"), (-1, "c"), (5, "d"), (0, "e"))
            ]
            tasks = [asyncio.ensure_future(each) for each in rest]
            await asyncio.sleep(0)
            assert pool.stats().queued == 5
            gate.open()
            await asyncio.gather(first, *tasks)

    runner("asyncio")(main())
    assert Path(order).read_text() == "b d a e c "


def test_queue_full(run: Run, gate: Gate) -> None:
    """With max_queue=2 the third waiting call is refused, or waits for a slot, in order, and can be cancelled."""
    events: list[PoolEvent] = []

    async def main() -> None:
        async with WorkerPool(1, max_queue=2, prefetch=1, on_event=events.append) as pool:
            waits = pool.options(on_full="wait")
            tasks = [asyncio.ensure_future(pool.run(hold, *gate.wait_args, 0))]
            await gate.entered()
            tasks += [asyncio.ensure_future(pool.run(abs, n)) for n in (1, 2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="2 calls wait, max_queue=2"):
                await pool.run(abs, 3)
            assert [event.kind for event in events].count("queue_full") == 1
            waiting = [asyncio.ensure_future(waits.run(abs, n)) for n in range(4, 10)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            tasks[1].cancel()  # its slot goes to the next waiter
            await asyncio.sleep(0.01)
            assert pool.stats().queued == 2
            waiting[1].cancel()
            gate.open()
            assert await asyncio.gather(*waiting[2:]) == [6, 7, 8, 9]
            assert await tasks[2] == 2
            await pool.drain()
            stats = pool.stats()
            stats_add_up(stats)
            assert stats.queued == stats.running == 0
            # All slots are free again.
            assert await asyncio.gather(*(pool.run(abs, n) for n in (1, 2))) == [1, 2]

    run(main())


def test_max_concurrency(gate: Gate) -> None:
    """At most max_concurrency calls run; deferred ones run later, also after a crash, a cancel or a refusal."""

    async def main() -> None:
        async with WorkerPool(2, prefetch=1) as pool:
            one = pool.options(max_concurrency=1)
            tasks = [asyncio.ensure_future(one.run(hold, *gate.wait_args, n)) for n in range(4)]
            await gate.entered()
            assert await pool.run(abs, -1) == 1  # others are not delayed
            assert pool.stats().running == 1 and pool.stats().queued == 3
            tasks[1].cancel()
            os.kill(next(connection.pid for connection in pool.stats().workers if connection.calls), signal.SIGKILL)
            with pytest.raises(loopwatch.WorkerCrashed):
                await tasks[0]
            await gate.entered()
            tasks[2].cancel()
            await gate.entered()
            gate.open()
            assert await tasks[3] == 3
            await pool.drain()
            stats = pool.stats()
            stats_add_up(stats)
            assert (stats.completed, stats.failed, stats.cancelled) == (2, 1, 2)
            with pytest.raises(ConfigError, match="hashable"):
                await one.run(Unhashable())
            tasks = [asyncio.ensure_future(one.run(hold, *gate.wait_args, n)) for n in range(3)]
            await gate.entered()
            await pool.close(force=True)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in results] == [PoolClosed] * 3
            stats_add_up(pool.stats())

    runner("asyncio")(main())


class Unhashable:
    """A callable that is not hashable."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> None:
        """Do nothing."""


def test_recycling() -> None:
    """With max_tasks_per_worker=3 nine calls are run by three workers, and none is lost."""

    async def main() -> None:
        async with WorkerPool(1, max_tasks_per_worker=3) as pool:
            pids = await asyncio.gather(*(pool.run(os.getpid) for _ in range(9)))
            assert sorted(collections.Counter(pids).values()) == [3, 3, 3]
            stats = pool.stats()
            assert (stats.recycled, stats.completed, stats.crashed) == (3, 9, 0)

    runner("asyncio")(main())


def test_recycled_while_closing(gate: Gate) -> None:
    """A graceful close runs all accepted calls, even if workers are recycled meanwhile."""

    async def main() -> None:
        async with WorkerPool(1, max_tasks_per_worker=1) as pool:
            tasks = [asyncio.ensure_future(pool.run(hold, *gate.wait_args, n)) for n in range(3)]
            await gate.entered()
            closing = asyncio.ensure_future(pool.close())
            await asyncio.sleep(0)
            with pytest.raises(PoolClosed):
                await pool.run(abs, 1)
            gate.open(3)
            assert await asyncio.gather(*tasks) == [0, 1, 2]
            await closing

    runner("asyncio")(main())


def test_shrinks_and_grows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers beyond min_workers end when idle, a call starts them again, and an idle pool leaves no timer."""
    events: list[PoolEvent] = []

    async def main() -> None:
        stopped = asyncio.Event()

        def on_event(event: PoolEvent) -> None:
            events.append(event)
            if event.kind == "stopped":
                stopped.set()

        pool = WorkerPool(2, min_workers=0, idle_timeout=0.05, on_event=on_event)
        assert await pool.run(abs, -1) == 1
        await stopped.wait()
        assert pool.stats().workers == ()
        assert pool._dispatcher is not None and pool._dispatcher.supervisor._timers == {}
        assert await pool.run(abs, -2) == 2
        await pool.close()

    run(main())
    assert [event.kind for event in events] == [
        "started", "ready", "busy", "drained", "stopped", "started", "ready", "busy", "drained", "stopped",
    ]  # fmt: skip


def test_grows_with_demand(gate: Gate) -> None:
    """A call that would wait behind a long one gets a worker of its own, up to the limit."""

    async def main() -> None:
        async with WorkerPool(2, min_workers=1) as pool:
            held = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            await gate.entered()
            assert await pool.run(abs, -1) == 1
            assert len(pool.stats().workers) == 2
            gate.open()
            await held

    runner("asyncio")(main())


def test_no_short_call_waits_behind_a_long_one(gate: Gate) -> None:
    """Calls sent ahead move to another worker when the call before them takes long, and each runs once."""

    async def main() -> None:
        async with WorkerPool(2, prefetch=7) as pool:
            for _ in range(3):
                held = [asyncio.ensure_future(pool.run(hold, *gate.wait_args)) for _ in range(2)]
                short = [asyncio.ensure_future(pool.run(abs, -n)) for n in range(12)]
                await gate.entered(2)
                assert max(worker.calls for worker in pool.stats().workers) == 7
                gate.open()
                assert await asyncio.gather(*short) == list(range(12))  # while one call still runs
                gate.open()
                await asyncio.gather(*held)
            await pool.drain()
            stats = pool.stats()
            assert (stats.completed, stats.failed) == (3 * 14, 0)
            assert sum(worker.done for worker in stats.workers) == 3 * 14

    runner("asyncio")(main())


def test_initializer_and_environment() -> None:
    """initializer, warmup, environment and niceness take effect before the first call."""

    async def main() -> None:
        async with WorkerPool(
            1,
            initializer=set_variable,
            initargs=("POOL_A", "x" * 100_000),
            warmup=warm_up,
            env={"POOL_B": "b"},
            nice=3,
        ) as pool:
            assert await pool.run(os.getenv, "POOL_B") == "b"
            assert len(await pool.run(os.getenv, "POOL_A")) == 100_000
            assert await pool.run(os.getenv, "POOL_C") == "warm"
            assert await pool.run(os.nice, 0) - os.nice(0) == 3

    runner("asyncio")(main())


@pytest.mark.parametrize("method", METHODS)
def test_initializer_is_given_shared_memory(method: str) -> None:
    """A SharedBuffer, and large bytes beside it, reach the initializer of each worker."""
    with SharedBuffer(64) as shared:

        async def main() -> list[int]:
            async with WorkerPool(
                2, start_method=method, initializer=keep, initargs=(shared, bytes(1_000_000))
            ) as pool:
                while len([each for each in pool.stats().workers if each.state == "idle"]) < 2:
                    await asyncio.sleep(0.001)
                return await asyncio.gather(*(pool.run(add_to_kept, 5) for _ in range(10)))

        assert runner("asyncio")(main()) == [1_000_000] * 10
        assert shared.load(0) == 50


def keep(shared: SharedBuffer, data: bytes) -> None:
    """Keep the initializer's arguments."""
    globals()["_kept"] = shared, data


def add_to_kept(value: int) -> int:
    """Add to the kept shared memory; return the size of the bytes."""
    shared, data = globals()["_kept"]
    shared.add(0, value)
    return len(data)


def set_variable(name: str, value: str) -> None:
    """Set an environment variable."""
    os.environ[name] = value


def warm_up() -> None:
    """Leave a trace."""
    os.environ["POOL_C"] = "warm"


def test_stats_and_events(gate: Gate) -> None:
    """stats() accounts for every call at every moment; events come in order with pids."""
    events: list[PoolEvent] = []

    async def main() -> None:
        async with WorkerPool(1, name="figures", on_event=events.append, prefetch=1) as pool:
            task = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            await gate.entered()
            other = asyncio.ensure_future(pool.run(abs, 1))
            failing = asyncio.ensure_future(pool.run(int, "x"))
            await asyncio.sleep(0)
            stats = pool.stats()
            stats_add_up(stats)
            assert (stats.queued, stats.running, stats.submitted) == (2, 1, 3)
            gate.open()
            await asyncio.gather(task, other)
            with pytest.raises(ValueError, match="invalid literal") as caught:
                await failing
            assert "Traceback" in str(caught.value.__cause__) and "int" in str(caught.value.__cause__)
            stats = pool.stats()
            stats_add_up(stats)
            assert (stats.completed, stats.failed, stats.workers[0].done, stats.workers[0].state) == (2, 1, 3, "idle")
            assert stats.run is not None and stats.run.count == 3
            assert stats.wait is not None and 0 < stats.utilization <= 1
            assert stats.to_dict()["name"] == "figures"

    runner("asyncio")(main())
    assert [event.kind for event in events] == ["started", "ready", "busy", "busy", "busy", "drained", "stopped"]
    assert {event.pool for event in events} == {"figures"}
    assert len({event.pid for event in events if event.pid is not None}) == 1


def test_two_pools() -> None:
    """Two pools have workers of their own, and closing one early does not affect the other."""

    async def main() -> None:
        async with WorkerPool(1) as one:
            async with WorkerPool(1) as two:
                pids = await asyncio.gather(one.run(os.getpid), two.run(os.getpid))
                assert len(set(pids)) == 2
            assert await one.run(os.getpid) == pids[0]
            with pytest.raises(PoolClosed):
                await two.run(abs, 1)

    runner("asyncio")(main())


def test_closed_twice_and_unused(run: Run) -> None:
    """close() may be called twice, by two tasks at once, and on a pool that was never used."""

    async def main() -> None:
        pool = WorkerPool(1)
        await pool.close()
        with pytest.raises(PoolClosed):
            await pool.run(abs, 1)
        pool = WorkerPool(1)
        assert await pool.run(abs, -1) == 1
        await asyncio.gather(pool.close(), pool.close(force=True), pool.close())
        await pool.close()
        assert pool.closed and pool.stats().workers == ()

    run(main())


def test_another_loop() -> None:
    """A second loop is refused with a clear error, while the first loop lives and after."""
    pool = WorkerPool(1)

    async def first() -> None:
        assert await pool.run(abs, -1) == 1
        with pytest.raises(PoolClosed, match="belongs to another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(pool.run(abs, 1)))

    runner("asyncio")(first())
    with pytest.raises(PoolClosed, match="the loop of pool is closed"):
        runner("uvloop" if "uvloop" in sys.modules else "asyncio")(pool.run(abs, 1))
    assert pool.closed


def test_collected_without_close() -> None:
    """A pool whose loop is closed ends its workers when it is collected, without a warning."""

    async def main() -> None:
        await WorkerPool(1).run(abs, 1)

    runner("asyncio")(main())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": 0}, "workers=0: must be a whole number of at least 1"),
        ({"workers": True}, "workers=True"),
        ({"workers": "2"}, "workers='2'"),
        ({"workers": 1, "min_workers": 2}, "min_workers=2: must not be more than workers=1"),
        ({"min_workers": -1}, "min_workers=-1"),
        ({"idle_timeout": 0}, "idle_timeout=0: must be a number of seconds above 0"),
        ({"idle_timeout": math.nan}, "idle_timeout=nan"),
        ({"max_queue": 0}, "max_queue=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"max_tasks_per_worker": 1.5}, "max_tasks_per_worker=1.5"),
        ({"max_memory_per_worker": 0}, "max_memory_per_worker=0"),
        ({"start_method": "fork"}, "start_method='fork': must be 'forkserver' or 'spawn'"),
        ({"nice": 20}, "nice=20"),
        ({"nice": True}, "nice=True"),
        ({"env": {"a": 1}}, "env="),
        ({"env": 5}, "env=5: must be a mapping"),
        ({"initializer": 5}, "initializer=5: must be callable"),
        ({"initargs": 5}, "initargs=5: must be a tuple"),
        ({"preload": "numpy"}, "preload='numpy': must be a tuple"),
        ({"preload": (1,)}, "preload="),
        ({"context": "a:b"}, "context='a:b': must be a tuple"),
        ({"context": ("no_such_module:x",)}, "context='no_such_module:x'"),
        ({"context": (contextvars.ContextVar("hidden"),)}, "must be a ContextVar at the top of a module"),
        ({"name": ""}, "name=''"),
        ({"forward_logs": 1}, "forward_logs=1"),
        ({"on_event": "x"}, "on_event='x': must be callable"),
        ({"wokers": 2}, "wokers=2: unknown option; known are context, env"),
    ],
)
def test_bad_pool_options(values: dict[str, Any], words: str) -> None:
    """An invalid setting is refused in one line that names it."""
    with pytest.raises(ConfigError) as caught:
        WorkerPool(**values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "1"}, "timeout='1'"),
        ({"retries": -1}, "retries=-1"),
        ({"priority": 1.5}, "priority=1.5"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"on_full": "block"}, "on_full='block': must be 'raise' or 'wait'"),
        ({"time": 1}, "time=1: unknown option"),
    ],
)
def test_bad_call_options(values: dict[str, Any], words: str) -> None:
    """An invalid option is refused in one line that names it."""
    with pytest.raises(ConfigError) as caught:
        WorkerPool(1).options(**values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_not_callable() -> None:
    """An object that is not callable is refused at once."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            with pytest.raises(ConfigError, match="function=5: must be callable"):
                await pool.run(5)  # type: ignore[arg-type]

    runner("asyncio")(main())


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_a_script(tmp_path: Path, method: str) -> None:
    """Functions, classes and exceptions of a guarded script are found by its workers, and are returned."""
    result = script(
        tmp_path,
        f"""
        import asyncio
        from loopwatch import WorkerPool

        class Point:
            def __init__(self, x): self.x = x

        class Odd(Exception): pass

        def moved(point): return Point(point.x + 1)

        def failing(): raise Odd("really")

        async def main():
            async with WorkerPool(1, start_method={method!r}) as pool:
                point = await pool.run(moved, Point(1))
                print(type(point) is Point, point.x)
                try:
                    await pool.run(failing)
                except Odd as exc:
                    print("Odd", exc)

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert (result.stdout, result.stderr) == ("True 2\nOdd really\n", "")


TYPED_IN = """
import asyncio
from loopwatch import WorkerPool
class Odd(Exception): pass
class Point: pass
def double(x): return 2 * x
def point(): return Point()
def failing(): raise Odd("really")
async def main():
    async with WorkerPool(1) as pool:
        factor = 3
        print(await pool.run(double, 4), await pool.run(lambda x: x * factor, 5))
        print(sum(await pool.run(lambda items: [double(x) for x in items], list(range(5000)))))
        print(type(await pool.run(point)) is Point)
        try:
            await pool.run(failing)
        except Odd as exc:
            print("Odd", exc)
asyncio.run(main())
"""


@pytest.mark.parametrize("arguments", [["-c", TYPED_IN], ["-"]])
def test_functions_of_an_interactive_main(arguments: list[str]) -> None:
    """Functions given by -c or standard input have no module; they are sent by value, with cloudpickle."""
    pytest.importorskip("cloudpickle")
    result = program(arguments, stdin=TYPED_IN if arguments == ["-"] else None)
    assert (result.stdout, result.stderr) == ("8 15\n24995000\nTrue\nOdd really\n", "")


def test_functions_of_a_package_main(tmp_path: Path) -> None:
    """Functions of ``python -m package`` work although its ``__main__`` cannot be imported again."""
    pytest.importorskip("cloudpickle")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(TYPED_IN)
    command = [sys.executable, "-W", "error", "-m", "package"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("8 15\n24995000\nTrue\nOdd really\n", "")


def test_closures() -> None:
    """Lambdas and closures run where cloudpickle is installed."""
    pytest.importorskip("cloudpickle")

    async def main() -> None:
        factor = 3
        async with WorkerPool(1) as pool:
            assert await pool.run(lambda x: x * factor, 5) == 15

    runner("asyncio")(main())


def test_imports_little() -> None:
    """Importing the pool imports neither multiprocessing nor ctypes."""
    code = "import sys, loopwatch.workers.pool; print(sorted({'multiprocessing', 'ctypes'} & set(sys.modules)))"
    assert program(["-c", code]).stdout == "[]\n"


def test_unguarded_script(tmp_path: Path) -> None:
    """A script without the ``__main__`` guard gets one clear error, and few processes are started."""
    result = script(
        tmp_path,
        """
        import asyncio, loopwatch
        async def main():
            async with loopwatch.WorkerPool(1, on_event=lambda event: print(event.kind)) as pool:
                await pool.run(abs, -1)
        asyncio.run(main())
        """,
    )
    assert result.stdout == "started\nfailed\n"
    assert "put what starts it under  if __name__ == '__main__':" in result.stderr.splitlines()[-1]


def test_large_arguments_are_pickled_in_short_turns() -> None:
    """A large argument is pickled in several turns of the loop, none of which takes long."""
    turns: list[float] = []

    def steps() -> Any:
        for _ in range(10):
            time.sleep(call.TURN)
            yield
        return "done"

    assert runner("asyncio")(call.in_turns(steps(), turns.append)) == "done"
    assert len(turns) >= 10
    assert supervisor.exit_words(-9) == "signal 9" and supervisor.exit_words(3) == "exit code 3"

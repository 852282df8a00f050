"""Make, use and drop many watched objects of one kind and print what is left; run with and without the agent.

Usage: ``python let_go.py KIND COUNT AGENT ALIVE``. AGENT is "agent" or "plain"; ALIVE is how many objects may live
until the garbage collector runs, a number that the program waits for.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

PATIENCE = 20.0 if sys.argv[3:4] == ["agent"] else 1.0
"""Seconds to wait for objects held by a pool's threads, which end a little later."""


class Thing:
    """An argument or a result."""


class Odd(Exception):
    """An error of the program."""


def give(thing: object) -> object:
    return thing


def fail(_thing: object) -> None:
    raise Odd


def nothing() -> None:
    pass


class Inline(Executor):
    """An executor of the program's own."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc.with_traceback(None))
        return future


class Bound(Executor):
    """An executor whose methods are instance attributes, as those of a mock."""

    def __init__(self) -> None:
        me = weakref.ref(self)
        self.submit = lambda function, *args: Inline.submit(me(), function, *args)  # type: ignore[method-assign, arg-type]


def futures(executor: Executor) -> Iterator[object]:
    """Use an executor, and yield the objects involved."""
    thing = Thing()
    yield thing
    yield executor.submit(give, thing)
    asked = executor.submit(fail, thing)
    asked.exception()
    yield asked
    yield executor.submit(fail, thing)  # whose error is not retrieved
    last = executor.submit(give, 1)
    last.result()
    yield last
    yield executor


def threads() -> Iterator[object]:
    executor = ThreadPoolExecutor(2)
    yield from futures(executor)
    yield from list(executor._threads)
    yield executor._work_queue
    executor.shutdown()


def threads_that_are_dropped() -> Iterator[object]:
    executor = ThreadPoolExecutor(2)
    yield from futures(executor)
    yield from list(executor._threads)


def processes(method: str) -> Iterator[object]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as executor:
        yield from futures(executor)
        yield from list(executor._processes.values())
        yield executor._executor_manager_thread


def loky() -> Iterator[object]:
    import loky

    executor = loky.ProcessPoolExecutor(1)
    yield from futures(executor)
    yield from list(executor._processes.values())
    executor.shutdown()


def pool(made: Any) -> Iterator[object]:
    with made as pool:
        yield pool
        yield from list(pool._pool)
        yield pool._inqueue
        yield pool._cache
        thing = Thing()
        yield thing
        result = pool.apply_async(give, (thing,))
        yield result
        result.wait()
        mapped, iterated = pool.map_async(give, range(4)), pool.imap(give, [thing])
        yield mapped
        mapped.wait()  # a result still pending at the end is in a cycle with its pool
        yield iterated
        assert len(list(iterated)) == 1
        failed = pool.apply_async(fail, (thing,))
        failed.wait()
        yield failed
    try:
        pool.apply_async(give, (thing,))
    except ValueError:  # the pool is closed
        pass


def other() -> Iterator[object]:
    for kind in (Inline, Bound):
        executor = kind()
        if AGENT is not None:
            AGENT.watch_executor(executor)
        yield from futures(executor)


def default_executor(factory: Callable[[], Any]) -> Iterator[object]:
    found: list[object] = []

    async def main() -> None:
        loop, thing = asyncio.get_running_loop(), Thing()
        found.append(thing)
        await loop.run_in_executor(None, give, thing)
        await asyncio.to_thread(give, thing)
        try:
            await loop.run_in_executor(None, fail, thing)
        except Odd:
            pass
        found.append(getattr(loop, "_default_executor", thing))

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    yield from found


def popen() -> Iterator[object]:
    with subprocess.Popen(["/bin/true"], stdout=subprocess.PIPE) as process:
        yield process
        yield process.stdout
        process.communicate()


def process() -> Iterator[object]:
    process = multiprocessing.get_context("fork").Process(target=nothing)
    yield process
    process.start()
    process.join()


def asyncio_subprocess() -> Iterator[object]:
    found: list[object] = []

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/true", stdout=subprocess.PIPE)
        found.extend((process, process._transport))  # type: ignore[attr-defined]
        await process.communicate()

    asyncio.run(main())
    yield from found


def plain_threads() -> Iterator[object]:
    thread = threading.Thread(target=nothing)
    yield thread
    thread.start()
    thread.join()


def worker_pool() -> Iterator[object]:
    import loopwatch

    found: list[object] = []

    async def main() -> None:
        async with loopwatch.WorkerPool(1) as pool:
            found.append(pool)
            await pool.run(abs, -1)

    asyncio.run(main())
    yield from found


def uvloop() -> Any:
    import uvloop

    return uvloop.new_event_loop()


KINDS: dict[str, Callable[[], Iterator[object]]] = {
    "threads": threads,
    "threads that are dropped": threads_that_are_dropped,
    "loky": loky,
    "pool of threads": lambda: pool(ThreadPool(2)),
    "other": other,
    "default executor of asyncio": lambda: default_executor(asyncio.new_event_loop),
    "default executor of uvloop": lambda: default_executor(uvloop),
    "popen": popen,
    "process": process,
    "subprocess of asyncio": asyncio_subprocess,
    "plain threads": plain_threads,
    "worker pool": worker_pool,
}
for method in ("fork", "spawn", "forkserver"):
    KINDS[f"processes {method}"] = lambda method=method: processes(method)  # type: ignore[misc]
    KINDS[f"pool {method}"] = lambda method=method: pool(multiprocessing.get_context(method).Pool(2))  # type: ignore[misc]
AGENT: Any = None


def children() -> int:
    import psutil

    return len(psutil.Process().children())


def resources() -> dict[str, int]:
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "children": children(),
        "shared": sum(str(os.getpid()) in name for name in os.listdir("/dev/shm")),  # noqa: PTH208
        "threads": sum(not each.name.startswith("loopwatch") for each in threading.enumerate()),
    }


def alive(refs: list[weakref.ref[object]]) -> list[str]:
    return [type(thing).__name__ for ref in refs if (thing := ref()) is not None]


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)


def use(kind: str) -> list[weakref.ref[object]]:
    refs = [weakref.ref(thing) for thing in KINDS[kind]() if thing is not None]
    if AGENT is not None:
        AGENT.snapshot()
    return refs


def main(kind: str, count: int, may_be_alive: int) -> None:
    use(kind)  # starts fork servers and opens what is opened once
    gc.collect()
    until(lambda: resources()["threads"] == 1)
    before = resources()
    gc.disable()
    refs = [ref for _ in range(count) for ref in use(kind)]
    until(lambda: len(alive(refs)) <= may_be_alive)
    left = alive(refs)
    gc.enable()
    gc.collect()
    until(lambda: not alive(refs) and resources() == before)
    print(json.dumps([len(refs), len(left), sorted(set(left)), alive(refs), before, resources()]))


if __name__ == "__main__":
    multiprocessing.current_process()._config["semprefix"] = f"/mp{os.getpid()}"  # type: ignore[attr-defined]
    if sys.argv[3] == "agent":
        import loopwatch

        AGENT = loopwatch.install(log_level="CRITICAL", threshold=60)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[4]))
    if AGENT is not None:
        assert AGENT.snapshot().agent.faults == {}, AGENT.snapshot().agent.faults

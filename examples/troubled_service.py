"""A service with every kind of trouble that loopwatch reports, each switched on and off over HTTP.

    pip install 'loopwatch[prometheus]'
    LOOPWATCH_PROMETHEUS_PORT=9464 python troubled_service.py --port 8080 --on sleep,zombie
    curl 127.0.0.1:8080/                   # all troubles, and which are on
    curl -X POST 127.0.0.1:8080/on/hang
    curl -X POST 127.0.0.1:8080/off/zombie

The dashboards and alerts were tested with it. loopwatch is set up by its ``LOOPWATCH_*`` variables alone. Switching a
trouble off, or ending the service, also ends the processes that it made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import loopwatch

BLOCK = 0.08
"""Seconds for which one block holds the loop; LOOPWATCH_THRESHOLD should be below."""
PAUSE = 0.3
"""Seconds between two events of one trouble, so that others get their turn."""
HANG = float(os.environ.get("TROUBLE_HANG", "5"))
"""Seconds for which a hang lasts."""

Trouble = Callable[[], Coroutine[Any, Any, None]]
TROUBLES: dict[str, Trouble] = {}
"""By name; each runs as a task until it is cancelled."""


def trouble(function: Trouble) -> Trouble:
    """Register a trouble under its own name."""
    TROUBLES[function.__name__] = function
    return function


# -- what blocks the loop --------------------------------------------------------------------------------------------


def compute(seconds: float) -> int:
    """Run Python code for the given time."""
    count, ends = 0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        count += sum(range(50))
    return count


@trouble
async def sleep() -> None:
    """A library that sleeps."""
    while True:
        time.sleep(BLOCK)
        await asyncio.sleep(PAUSE)


@trouble
async def python() -> None:
    """Computes on the loop."""
    while True:
        compute(BLOCK)
        await asyncio.sleep(PAUSE)


@trouble
async def dump() -> None:
    """One call of C code that keeps the GIL."""
    rows = [{"id": number, "name": f"row {number}"} for number in range(60_000)]
    while True:
        json.dumps(rows)
        await asyncio.sleep(PAUSE)


@trouble
async def garbage() -> None:
    """A collection of all generations, with many objects."""
    kept = [[number] for number in range(600_000)]
    while kept:
        gc.collect()
        await asyncio.sleep(2 * PAUSE)


@trouble
async def storm() -> None:
    """One culprit that blocks all the time."""
    while True:
        thumbnail(BLOCK)
        await asyncio.sleep(BLOCK / 2)


def thumbnail(seconds: float) -> bytes:
    """The culprit of the storm."""
    pixels, ends = bytearray(1000), time.perf_counter() + seconds
    while time.perf_counter() < ends:
        for place in range(0, 1000, 20):
            pixels[place] ^= place % 256
    return bytes(pixels)


@trouble
async def culprits() -> None:
    """More culprits than the metrics distinguish."""
    source = "\n".join(
        f"def culprit_{number}(seconds):\n    ends = clock() + seconds\n    while clock() < ends: pass"
        for number in range(40)
    )
    made: dict[str, Callable[..., object]] = {"clock": time.perf_counter}
    exec(source, made)
    while True:
        for number in range(40):
            made[f"culprit_{number}"](BLOCK)
            await asyncio.sleep(BLOCK / 4)


@trouble
async def hang() -> None:
    """A dead-lock that ends after a while."""
    while True:
        threading.Event().wait(HANG)
        await asyncio.sleep(HANG)


@trouble
async def saturation() -> None:
    """No block, but no idle time either: many small steps."""
    while True:
        compute(0.002)
        await asyncio.sleep(0)


# -- troubles of pools and processes ---------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")


def wait(seconds: float) -> float:
    """Wait without using a processor."""
    time.sleep(seconds)
    return seconds


def die(code: int) -> None:
    """End the process it runs in."""
    os._exit(code)


def segfault() -> None:
    """End as a fault in native code does."""
    os.kill(os.getpid(), signal.SIGSEGV)


@contextlib.asynccontextmanager
async def processes(workers: int) -> AsyncIterator[ProcessPoolExecutor]:
    """A pool whose processes have started, and are killed at the end whatever they do."""
    pool = ProcessPoolExecutor(workers, mp_context=SPAWN)
    loop = asyncio.get_running_loop()
    pids: set[int] = set()
    try:
        while len(pids) < workers:
            found = await asyncio.gather(*(loop.run_in_executor(pool, os.getpid) for _ in range(workers)))
            pids |= set(found)
        yield pool
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pool.shutdown(wait=False, cancel_futures=True)


async def again_and_again(pool: Executor, pause: float, function: Callable[..., object], *arguments: object) -> None:
    """Submit a task every ``pause`` seconds, and ignore the results."""
    while True:
        pool.submit(function, *arguments)
        await asyncio.sleep(pause)


@trouble
async def default_executor() -> None:
    """More waiting calls than the default executor has threads."""
    loop = asyncio.get_running_loop()
    calls: set[Future[float] | asyncio.Future[float]] = set()
    while True:
        calls = {call for call in calls if not call.done()}
        calls |= {loop.run_in_executor(None, wait, PAUSE) for _ in range(80 - len(calls))}
        await asyncio.sleep(PAUSE / 3)


@trouble
async def threads_compute() -> None:
    """Processor work in threads."""
    with ThreadPoolExecutor(2, thread_name_prefix="computing") as pool:
        await again_and_again(pool, PAUSE, compute, BLOCK / 2)


@trouble
async def processes_wait() -> None:
    """Processes for calls that only wait."""
    async with processes(1) as pool:
        await again_and_again(pool, PAUSE / 2, wait, PAUSE / 3)


@trouble
async def starved() -> None:
    """Neighbours: processes that compute on the only processor that the loop may use (on Linux)."""
    usable = os.sched_getaffinity(0)
    async with processes(2) as neighbours:
        os.sched_setaffinity(0, {min(usable)})  # of this thread
        try:
            for _ in range(2):
                neighbours.submit(share_a_processor, min(usable))
            while True:
                compute(2 * BLOCK)
                await asyncio.sleep(PAUSE)
        finally:
            os.sched_setaffinity(0, usable)


def share_a_processor(processor: int) -> None:
    """Compute for an hour on one processor."""
    os.sched_setaffinity(0, {processor})
    compute(3600)


@trouble
async def pool_per_call() -> None:
    """A pool of threads for each call."""
    while True:
        with ThreadPoolExecutor(1) as pool:
            await asyncio.wrap_future(pool.submit(wait, 0.01))
        await asyncio.sleep(PAUSE)


@trouble
async def queue() -> None:
    """More tasks than get done."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="growing")
    try:
        await again_and_again(pool, PAUSE / 6, wait, PAUSE)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@trouble
async def errors() -> None:
    """Tasks that fail, and whose errors are never retrieved."""
    with ThreadPoolExecutor(1, thread_name_prefix="failing") as pool:
        await again_and_again(pool, PAUSE, int, "a number")


@trouble
async def zombie() -> None:
    """A process that has exited and is not waited for."""
    child = subprocess.Popen(["true"])
    try:
        await asyncio.Event().wait()
    finally:
        child.wait()


@trouble
async def orphan() -> None:
    """A worker that outlives its executor."""
    async with processes(1) as pool:
        pool.submit(wait, 3600)
        pool.shutdown(wait=False)
        await asyncio.Event().wait()


@trouble
async def hung_worker() -> None:
    """A task that waits for something that never comes."""
    async with processes(1) as pool:
        pool.submit(wait, 3600)
        await asyncio.Event().wait()


@trouble
async def crashes() -> None:
    """Tasks that kill their workers."""
    async with loopwatch.WorkerPool(1, name="crashing") as pool:
        while True:
            for task, arguments in ((die, (3,)), (segfault, ())):
                with contextlib.suppress(loopwatch.WorkerCrashed):
                    await pool.run(task, *arguments)
                await asyncio.sleep(PAUSE)


@trouble
async def broken_pool() -> None:
    """A pool of the standard library that is broken for good by one task."""
    async with processes(2) as pool:
        pool.submit(die, 7)
        await asyncio.Event().wait()


# -- offloaded calls, and the state of the agent ---------------------------------------------------------------------


@loopwatch.offload
def in_a_process(seconds: float) -> int:
    """Computes in a process, where it does not hold the loop."""
    return compute(seconds)


@loopwatch.offload(to="thread")
def in_a_thread(seconds: float) -> float:
    """Waits in a thread, where it does not hold the loop."""
    return wait(seconds)


@loopwatch.offload(to="auto")
def wherever(number: int) -> int:
    """So cheap that a trip would cost more."""
    return number + 1


@trouble
async def offloaded() -> None:
    """Not a trouble but its cure: calls that run off the loop."""
    while True:
        await asyncio.gather(in_a_process(BLOCK), in_a_thread(BLOCK), wherever(1))
        await asyncio.sleep(PAUSE / 2)


@trouble
async def paused() -> None:
    """An agent that is paused."""
    agent = loopwatch.current_agent()
    if agent is not None:
        agent.pause()
        try:
            await asyncio.Event().wait()
        finally:
            agent.resume()


@trouble
async def fault() -> None:
    """A callback that fails, which the agent counts as a fault."""
    agent = loopwatch.current_agent()
    if agent is not None:
        remove = agent.on_stall(_fail)
        try:
            await sleep()
        finally:
            remove()


def _fail(stall: loopwatch.Stall) -> None:
    raise RuntimeError(f"the notification of stall {stall.id} failed")


# -- the service -----------------------------------------------------------------------------------------------------


class Service:
    """Answers over HTTP, and keeps the tasks of the troubles that are on."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def switch_on(self, name: str) -> None:
        """Begin a trouble, if it is not on."""
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(TROUBLES[name](), name=name)

    async def switch_off(self, *names: str) -> None:
        """End troubles and wait for their clean-up."""
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End all of them."""
        await self.switch_off(*self._tasks)

    async def answer(self, method: str, path: str) -> tuple[int, object]:
        """Return status and body."""
        parts = path.strip("/").split("/")
        match method, parts:
            case "GET", [""]:
                return 200, {name: name in self._tasks for name in TROUBLES}
            case "GET", ["ping"]:
                return 200, {"pid": os.getpid()}
            case "POST", ["on", names] if set(names.split(",")) <= TROUBLES.keys():
                for name in names.split(","):
                    self.switch_on(name)
                return 200, sorted(self._tasks)
            case "POST", ["off", "all"]:
                await self.close()
                return 200, []
            case "POST", ["off", names] if set(names.split(",")) <= TROUBLES.keys():
                await self.switch_off(*names.split(","))
                return 200, sorted(self._tasks)
        return 404, {"on, off": [*TROUBLES, "all"]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            status, body = await self.answer(method, path)
            data = json.dumps(body).encode()
            head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + data)
            await writer.drain()
        writer.close()


async def bystander() -> None:
    """A task that waits whenever the loop is held."""
    while True:
        await asyncio.sleep(0.02)


async def main(port: int, names: list[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    service = Service()
    others = [asyncio.create_task(bystander()) for _ in range(20)]
    server = await asyncio.start_server(service.serve, "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    for name in names:
        service.switch_on(name)
    await ended.wait()
    server.close()
    await service.close()
    for task in others:
        task.cancel()


def loop_factory(on_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory, None for asyncio's default loop."""
    if not on_uvloop:
        return None
    import uvloop

    return uvloop.new_event_loop


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop")
    parser.add_argument("--on", default="", metavar="NAMES", help=f"from the start: {', '.join(TROUBLES)}")
    parsed = parser.parse_args()
    parsed.on = [name for name in parsed.on.split(",") if name]
    unknown = set(parsed.on) - TROUBLES.keys()
    if unknown:
        parser.error(f"--on: no trouble is called {', '.join(sorted(unknown))}; there are {', '.join(TROUBLES)}")
    return parsed


if __name__ == "__main__":
    given = arguments()
    loopwatch.install()
    with asyncio.Runner(loop_factory=loop_factory(given.uvloop)) as runner:
        runner.run(main(given.port, given.on))

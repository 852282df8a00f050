"""Prints how fast WorkerPool is and what it costs the loop, beside ProcessPoolExecutor in the same process.

Blocks of calls alternate between the two, so that the machine's noise meets both; ratios are medians of ratios within
a round. Lag is that of a 1 ms ticker on the same loop: the median over the rounds of each block's maximum.

    python benchmarks/pool.py                  # all rows
    python benchmarks/pool.py --rounds 5 --only no-op,dicts
    python benchmarks/pool.py endurance        # 100,000 calls, a worker killed every second
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import loopwatch

WORKERS = 2
MEGABYTE = 1_000_000


def nothing() -> None:
    """Do nothing: the trip is what is measured."""


def same(value: Any) -> Any:
    return value


def array(size: int) -> Any:
    import numpy

    return numpy.ones(size // 8)


def dicts(count: int) -> list[dict[str, Any]]:
    return [{"number": number, "text": str(number)} for number in range(count)]


def square(value: int) -> int:
    time.sleep(0.0005)
    return value * value


@dataclass
class Found:
    """Seconds of each block, and the longest lag in it, by contestant."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    lags: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float, lag: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        self.lags.setdefault(name, []).append(lag)

    def ratio(self, name: str, to: str) -> float:
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def lag(self, name: str) -> float:
        return statistics.median(self.lags[name])


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Measure how late a 1 ms ticker is meanwhile; the list holds the longest, s."""
    longest = [0.0]

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest[0] = max(longest[0], time.perf_counter() - began - 0.001)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest[0] = 0.0
    try:
        yield longest
    finally:
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker


Run = Callable[..., Awaitable[Any]]


async def one_by_one(run: Run, count: int, function: Any, *args: Any) -> float:
    """Return the median seconds of one call."""
    each = []
    for _ in range(count):
        began = time.perf_counter()
        await run(function, *args)
        each.append(time.perf_counter() - began)
    return statistics.median(each)


async def at_once(run: Run, count: int) -> float:
    """Return the seconds of one of ``count`` calls that are under way together."""
    began = time.perf_counter()
    await asyncio.gather(*(run(nothing) for _ in range(count)))
    return (time.perf_counter() - began) / count


def rows() -> dict[str, tuple[str, Callable[[Run], Awaitable[float]], str]]:
    """Return (what, block, allowed ratio) by name."""
    data, large = os.urandom(MEGABYTE), os.urandom(50 * MEGABYTE)
    found: dict[str, tuple[str, Callable[[Run], Awaitable[float]], str]] = {
        "no-op": ("no-op round trip, p50", lambda run: one_by_one(run, 300, nothing), "0.28"),
        "in-flight": ("1000 in flight, each", lambda run: at_once(run, 1000), "0.25"),
        "1MB": ("1 MB there and back", lambda run: one_by_one(run, 20, same, data), "0.12"),
        "50MB": ("50 MB of bytes there and back", lambda run: one_by_one(run, 1, same, large), "0.25"),
    }
    with contextlib.suppress(ImportError):
        import numpy

        values = numpy.ones(50 * MEGABYTE // 8)
        found["array"] = ("50 MB array there and back", lambda run: one_by_one(run, 1, same, values), "0.30")
    found["dicts"] = ("100,000 dicts back", lambda run: one_by_one(run, 1, dicts, 100_000), "lag 25 ms")
    many = dicts(100_000)
    found["dicts-there"] = ("100,000 dicts there", lambda run: one_by_one(run, 1, len, many), "-")
    return found


async def compare(rounds: int, only: list[str]) -> None:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("forkserver")) as executor:
        async with loopwatch.WorkerPool(workers=WORKERS) as pool:
            contestants: dict[str, Run] = {
                "executor": lambda function, *args: loop.run_in_executor(executor, function, *args),
                "again": lambda function, *args: loop.run_in_executor(executor, function, *args),
                "pool": pool.run,
            }
            print("| what | executor | A/A | WorkerPool | allowed | lag: executor, ms | WorkerPool, ms |")
            print("| --- | --- | --- | --- | --- | --- | --- |")
            for name, (what, block, allowed) in rows().items():
                if only and name not in only:
                    continue
                found = Found()
                for run in contestants.values():
                    await block(run)
                for number in range(rounds):
                    for contestant in contestants if number % 2 == 0 else reversed(contestants):
                        async with lag() as longest:
                            seconds = await block(contestants[contestant])
                        found.add(contestant, seconds, longest[0])
                middle = statistics.median(found.seconds["executor"])
                print(
                    f"| {what} | {middle * 1e3:.3f} ms | {found.ratio('again', 'executor'):.2f} "
                    f"| {found.ratio('pool', 'executor'):.2f} | {allowed} "
                    f"| {found.lag('executor') * 1e3:.1f} | {found.lag('pool') * 1e3:.1f} |",
                    flush=True,
                )
            memory = [f"{each.memory / MEGABYTE:.0f}" for each in pool.stats().workers]
            before, cpu = pool.stats(), time.process_time()
            await asyncio.sleep(3)
            print(
                f"\nWorkers use {', '.join(memory)} MB. Idle for 3 s the parent used {time.process_time() - cpu:.4f} s."
            )
            assert pool.stats().submitted == before.submitted


async def endurance(calls: int) -> None:
    """Run many calls while a worker is killed every second: none is lost, none is run twice."""
    lost = done = 0
    parent = Path("/proc/self/statm")
    memory = int(parent.read_text().split()[1])
    async with loopwatch.WorkerPool(workers=4) as pool:

        async def kill() -> None:
            while True:
                await asyncio.sleep(1)
                os.kill(pool.stats().workers[0].pid, signal.SIGKILL)

        async def one(value: int) -> bool:
            try:
                return await pool.run(square, value) == value * value
            except loopwatch.WorkerCrashed:
                return False

        killer = asyncio.create_task(kill())
        for start in range(0, calls, 1000):
            results = await asyncio.gather(*(one(value) for value in range(start, min(start + 1000, calls))))
            done += sum(results)
            lost += len(results) - sum(results)
        killer.cancel()
        stats = pool.stats()
    grown = (int(parent.read_text().split()[1]) - memory) * 4096 / MEGABYTE
    print(f"{calls:,} calls: {done:,} returned, {lost} died with their worker ({stats.crashed} counted), "
          f"{stats.started} workers were started; the parent grew by {grown:.0f} MB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["compare", "endurance"], default="compare")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--calls", type=int, default=100_000)
    options = parser.parse_args()
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} processors\n", flush=True)
    asyncio.run(compare(options.rounds, options.only) if options.part == "compare" else endurance(options.calls))


if __name__ == "__main__":
    main()

"""Recursive Fibonacci: on the event loop, by @offload, and by the map of a worker pool.

    pip install loopwatch
    python fibonacci.py          # eight times fib(30)
    python fibonacci.py 32 20    # twenty times fib(32)

All three ways return the same. The first holds the loop all the while: no other request is served. The other two leave
it free, and use every processor.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from heartbeat import Heartbeat

import loopwatch


def fib(n: int) -> int:
    """Return the n-th Fibonacci number, in the slowest way there is."""
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@loopwatch.offload
def fibonacci(n: int) -> int:
    """Run in a worker process. The recursion is that of the plain function: only the outermost call makes the trip."""
    return fib(n)


async def inline(numbers: list[int]) -> list[int]:
    """Call it directly, on the loop."""
    return [fib(n) for n in numbers]


async def offloaded(numbers: list[int]) -> list[int]:
    """Await it, all at once."""
    return await asyncio.gather(*(fibonacci(n) for n in numbers))


async def pool_map(numbers: list[int]) -> list[int]:
    """Map over the list in a separate pool, a few calls at a time."""
    async with loopwatch.WorkerPool() as pool:
        return [result async for result in pool.map(fib, numbers)]


Way = Callable[[list[int]], Awaitable[list[int]]]
WAYS: dict[str, Way] = {"inline": inline, "@offload": offloaded, "pool.map": pool_map}


async def measure(way: Way, numbers: list[int]) -> tuple[list[int], float, float]:
    """Return the results, the seconds that they took, and the longest time that the loop was held."""
    async with Heartbeat() as heart:
        began = time.perf_counter()
        results = await way(numbers)
        seconds = time.perf_counter() - began
    return results, seconds, heart.longest


async def main(n: int = 30, times: int = 8) -> None:
    """Print one line for each way."""
    await fibonacci(1)  # the workers start with the first call
    print("| way | total, s | longest block, ms | sum of results |")
    print("| --- | --- | --- | --- |")
    for name, way in WAYS.items():
        results, seconds, longest = await measure(way, [n] * times)
        print(f"| {name} | {seconds:.2f} | {longest * 1e3:.1f} | {sum(results)} |", flush=True)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*arguments))

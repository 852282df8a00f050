"""A model that is expensive to load: once per worker, by the initializer of a pool, and not with every call.

    pip install loopwatch
    python model_per_worker.py           # 2000 predictions by 2 workers
    python model_per_worker.py 100 4     # 100 predictions by 4 workers

The model stands for weights that are read from a disk. It lives in a global of the worker: only the small argument and
the small result travel.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from typing import NamedTuple

from heartbeat import Heartbeat

import loopwatch

SIZE = 1_000_000
MODEL: list[int] = []
"""The smallest prime factor of each number; empty until it is loaded."""
LOADS = 0
"""How often this process has loaded it."""


class Prediction(NamedTuple):
    """The prime factors of a number, the process that found them, and how often it has loaded the model."""

    factors: list[int]
    pid: int
    loads: int


def load_model() -> None:
    """Take about as long as reading some weights does."""
    global MODEL, LOADS
    MODEL = list(range(SIZE))
    for prime in range(2, int(SIZE**0.5) + 1):
        if MODEL[prime] == prime:
            for multiple in range(prime * prime, SIZE, prime):
                MODEL[multiple] = min(MODEL[multiple], prime)
    LOADS += 1


def predict(number: int) -> Prediction:
    """Factorize with the loaded model."""
    factors = []
    while number > 1:
        factors.append(MODEL[number])
        number //= MODEL[number]
    return Prediction(factors, os.getpid(), LOADS)


def load_and_predict(number: int) -> Prediction:
    """The way without an initializer: load, then predict."""
    load_model()
    return predict(number)


async def load_once(numbers: list[int], workers: int) -> tuple[list[Prediction], float, float]:
    """Return the predictions, the seconds of each, and the longest time that the loop was held."""
    async with loopwatch.WorkerPool(workers, initializer=load_model) as pool, Heartbeat() as heart:
        began = time.perf_counter()
        found = [each async for each in pool.map(predict, numbers, in_flight=8 * workers)]
        seconds = (time.perf_counter() - began) / len(numbers)
    return found, seconds, heart.longest


async def load_each_time(numbers: list[int], workers: int) -> tuple[list[Prediction], float, float]:
    """The same, where each call loads the model."""
    async with loopwatch.WorkerPool(workers) as pool, Heartbeat() as heart:
        began = time.perf_counter()
        found = [each async for each in pool.map(load_and_predict, numbers)]
        seconds = (time.perf_counter() - began) / len(numbers)
    return found, seconds, heart.longest


async def main(count: int = 2000, workers: int = 2) -> None:
    """Print one line for each way; four calls are enough to see what loading each time costs."""
    numbers = [SIZE - 1 - number for number in range(count)]
    print("| way | calls | loads by worker | each call, ms | longest block, ms |")
    print("| --- | --- | --- | --- | --- |")
    for name, way, these in (
        ("once per worker", load_once, numbers),
        ("with each call", load_each_time, numbers[:4]),
    ):
        found, seconds, longest = await way(these, workers)
        loads = Counter({each.pid: each.loads for each in found})
        counts = " + ".join(str(loads[pid]) for pid in sorted(loads))
        print(f"| {name} | {len(these)} | {counts} | {seconds * 1e3:.3f} | {longest * 1e3:.1f} |", flush=True)
    print(f"\n{numbers[0]} = {' * '.join(map(str, found[0].factors))}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))

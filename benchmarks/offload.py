"""Prints the tables of the examples of offloading: medians over rounds, in which the ways take turns.

The programs are those of examples/. The order within a round is reversed every other round, so that the machine's noise
affects all ways. The load on APIs comes from another process at a fixed rate.

    python benchmarks/offload.py                          # all tables
    python benchmarks/offload.py --quick                  # one round of small ones
    python benchmarks/offload.py images service           # also fibonacci, model, shared, bridge
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))  # workers are given it too

ROUNDS = 5
Measurements = dict[str, list[tuple[float | None, ...]]]
"""The measurements of each way, one tuple for each round."""


def turns(ways: Any, rounds: int) -> Iterator[tuple[int, Any]]:
    """Go through the ways, forwards and backwards in turn, with the number of the round."""
    for number in range(rounds):
        for way in list(ways) if number % 2 == 0 else reversed(list(ways)):
            yield number, way


def table(headings: str, found: Measurements, formats: str) -> None:
    """Print the medians: a row for each way, a column for each measurement."""
    print(f"| {' | '.join(headings.split(', '))} |\n|{' --- |' * len(headings.split(', '))}")
    for way, rounds in found.items():
        cells = []
        for values, form in zip(zip(*rounds, strict=True), formats.split(), strict=True):
            known = [value for value in values if value is not None]
            cells.append(format(statistics.median(known), form) if known else "-")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


async def fibonacci(rounds: int, quick: bool) -> None:
    import fibonacci as example

    n, times = (25, 8) if quick else (30, 16)
    found: Measurements = {way: [] for way in example.WAYS}
    await example.fibonacci(1)
    for _, way in turns(example.WAYS, rounds):
        results, seconds, longest = await example.measure(example.WAYS[way], [n] * times)
        assert len(results) == times and len(set(results)) == 1
        found[way].append((seconds, longest * 1e3))
    print(f"\nfib({n}), {times} times")
    table("way, total (s), longest block (ms)", found, ".2f .1f")


async def images(rounds: int, quick: bool) -> None:
    import resize_images as example
    from load import quantile

    count = 8 if quick else 100
    pictures = example.make_images(count)
    first = '@offload(to="auto"), first time'
    found: Measurements = {way: [] for way in ("inline", "@offload", first, '@offload(to="auto")')}
    digests = set()
    await example.resize_elsewhere(pictures[0])
    async with example.api() as url:
        for _, way in turns(example.WAYS, rounds):
            measured = await example.measure(example.WAYS[way], pictures, url)
            digests.add(measured.digest)
            api = (quantile(measured.answers, share) * 1e3 for share in (0.5, 0.99))
            row = first if "auto" in way and not found[first] else way
            found[row].append((measured.total, measured.longest * 1e3, *api))
    assert len(digests) == 1
    print(f"\n{count} JPEGs of 3000 x 2000, {sum(map(len, pictures)) / count / 1e6:.1f} MB each, made 300 x 200")
    found = {way: rows for way, rows in found.items() if rows}
    table("way, total (s), longest block (ms), API p50 (ms), API p99 (ms)", found, ".2f .1f .1f .1f")
    print(example.resize_anywhere.explain())


async def model(rounds: int, quick: bool) -> None:
    import model_per_worker as example

    numbers = [example.SIZE - 1 - number for number in range(200 if quick else 5000)]
    ways = {"once per worker": (example.load_once, numbers), "with each call": (example.load_each_time, numbers[:4])}
    found: Measurements = {way: [] for way in ways}
    for _, name in turns(ways, rounds):
        way, these = ways[name]
        predictions, seconds, longest = await way(these, 2)
        loads = {each.pid: each.loads for each in predictions}
        found[name].append((len(these), sum(loads.values()), seconds * 1e3, longest * 1e3))
    print("\nA model that takes half a second to load, 2 workers")
    table("loaded, calls, loads, each call (ms), longest block (ms)", found, ".0f .0f .3f .1f")


async def shared(rounds: int, quick: bool) -> None:
    import numpy
    import shared_buffer as example

    height, width = (400, 600) if quick else (4000, 6000)
    image = numpy.random.default_rng(1).integers(0, 256, (height, width, 3), "u1")
    bands = [(height * number // 8, height * (number + 1) // 8) for number in range(8)]
    ways = {"SharedBuffer": example.share, "passed there and back": example.send}
    found: Measurements = {way: [] for way in ways}
    for number, name in turns(ways, 1 + rounds):
        result, seconds, longest = await ways[name](image, bands)
        assert numpy.array_equal(result, 255 - image)
        if number > 0:  # the first has the workers import numpy
            found[name].append((seconds * 1e3, longest * 1e3))
    print(f"\nA negative of {height} x {width} pixels, {image.nbytes / 1e6:.1f} MB, in {len(bands)} bands")
    table("way, total (ms), longest block (ms)", found, ".1f .1f")


async def service(rounds: int, quick: bool) -> None:
    import compare_service as example
    from load import quantile

    seconds = 5 if quick else 25
    found: Measurements = {way: [] for way in example.WAYS}
    for _, way in turns(example.WAYS, min(rounds, 3)):
        measured = await example.measure(example.WAYS[way], seconds)
        times = [quantile(each, share) * 1e3 for each in (measured.pings, measured.pages) for share in (0.5, 0.99)]
        lag = [measured.lag and measured.lag[name] * 1e3 for name in ("p50", "p90", "p99", "max")]
        found[way].append((*times, *lag, measured.stalls))
    print(f"\nA FastAPI service under {example.PINGS} pings and {example.PAGES} pages a second, {seconds} seconds")
    headings = "service, /ping p50 (ms), p99, /page p50 (ms), p99, loop lag p50 (ms), p90, p99, max, stalls by render"
    table(headings, found, ".1f .1f .1f .1f .1f .1f .1f .1f .0f")


async def bridge(rounds: int, quick: bool) -> None:
    from loopwatch.offloading.bridge import Bridged, wait

    steps = 2_000 if quick else 50_000

    async def steps_only() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)

    async def awaits() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)

    def waits() -> None:
        for _ in range(steps):
            wait(asyncio.sleep(0))

    async def calls() -> None:
        waits()

    ways: dict[str, Callable[[], Any]] = {
        "a plain task": steps_only,
        "again": awaits,
        "a bridged task": lambda: Bridged(steps_only()),
        "a bridged task whose plain function waits": lambda: Bridged(calls()),
    }
    found: Measurements = {way: [] for way in ways}
    for _, way in turns(ways, rounds):
        began = time.perf_counter()
        await asyncio.create_task(ways[way]())
        found[way].append(((time.perf_counter() - began) / steps * 1e6,))
    print(f"\nThe cost of a step of a task, {steps} in a row")
    table("task, each (us)", found, ".2f")


PARTS: dict[str, Callable[[int, bool], Coroutine[Any, Any, None]]] = {
    "images": images,
    "fibonacci": fibonacci,
    "model": model,
    "shared": shared,
    "service": service,
    "bridge": bridge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="one round of small ones")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part}: must be one of {', '.join(PARTS)}")
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} processors", flush=True)
    for part in options.parts or PARTS:
        asyncio.run(PARTS[part](1 if options.quick else options.rounds, options.quick))


if __name__ == "__main__":
    main()

"""One image in memory shared by all workers: each inverts its rows in place, and no pixels are sent.

    pip install loopwatch numpy
    python shared_buffer.py              # 4000 x 6000 pixels, 72 MB, in 8 bands
    python shared_buffer.py 400 600 4    # 400 x 600 pixels, in 4 bands

Beside it the same by passing each band to a worker and taking it back. Both do the same to the pixels.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from heartbeat import Heartbeat

import loopwatch

try:
    import numpy
except ImportError:
    sys.exit("shared_buffer.py needs numpy: pip install numpy")

Array = Any


def invert(pixels: Array) -> None:
    """Make a negative of it, in place."""
    numpy.subtract(255, pixels, out=pixels)


@loopwatch.offload
def invert_shared(shared: loopwatch.SharedBuffer, shape: tuple[int, ...], first: int, end: int) -> None:
    """Invert some rows of the image in ``shared``, which has arrived as a handle, not as a copy."""
    invert(shared.array("u1", shape)[first:end])


@loopwatch.offload
def invert_passed(rows: Array) -> Array:
    """Invert rows that were sent here, and send them back."""
    invert(rows)
    return rows


async def share(image: Array, bands: list[tuple[int, int]]) -> tuple[Array, float, float]:
    """Return the result, the seconds, and the longest time that the loop was held."""
    shared = loopwatch.SharedBuffer(image.nbytes)
    pixels = shared.array("u1", image.shape)
    pixels[:] = image  # a real program would read the file into it
    async with Heartbeat() as heart:
        began = time.perf_counter()
        await asyncio.gather(*(invert_shared(shared, image.shape, first, end) for first, end in bands))
        seconds = time.perf_counter() - began
    return pixels, seconds, heart.longest


async def send(image: Array, bands: list[tuple[int, int]]) -> tuple[Array, float, float]:
    """The same by passing the rows back and forth."""
    result = image.copy()
    async with Heartbeat() as heart:
        began = time.perf_counter()
        inverted = await asyncio.gather(*(invert_passed(image[first:end]) for first, end in bands))
        for (first, end), rows in zip(bands, inverted, strict=True):
            result[first:end] = rows
        seconds = time.perf_counter() - began
    return result, seconds, heart.longest


async def main(height: int = 4000, width: int = 6000, count: int = 8) -> None:
    """Print one line for each way."""
    image = numpy.random.default_rng(1).integers(0, 256, (height, width, 3), "u1")
    bands = [(height * number // count, height * (number + 1) // count) for number in range(count)]
    await asyncio.gather(*(invert_passed(image[:1]) for _ in range(8)))  # the workers start, and import numpy
    print(f"{height} x {width} pixels, {image.nbytes / 1e6:.1f} MB, {count} bands\n")
    print("| way | total, ms | longest block, ms | sum of pixels |")
    print("| --- | --- | --- | --- |")
    for name, way in (("SharedBuffer", share), ("passed there and back", send)):
        result, seconds, longest = await way(image, bands)
        print(f"| {name} | {seconds * 1e3:.1f} | {longest * 1e3:.1f} | {int(result.sum())} |", flush=True)
    inline = image.copy()
    invert(inline)
    print(f"\ninline the sum is {int(inline.sum())}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))

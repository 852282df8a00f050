"""100 large images made small: on the event loop, by @offload, by @offload(to="auto"); an HTTP API answers meanwhile.

    pip install loopwatch pillow aiohttp
    python resize_images.py              # 100 images of 3000 x 2000
    python resize_images.py 6 600 400    # 6 images of 600 x 400

The API runs on the same loop, and another process (load.py) requests it 20 times a second: its response times are those
that users would notice.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from heartbeat import Heartbeat
from load import quantile, under_load

import loopwatch

try:
    from aiohttp import web
    from PIL import Image
except ImportError as missing:
    sys.exit(f"resize_images.py needs {missing.name}: pip install pillow aiohttp")

RATE = 20


def make_images(count: int, width: int = 3000, height: int = 2000) -> list[bytes]:
    """Return JPEGs: clouds of noise, which compress about as well as a photograph; four different ones in turn."""
    found = []
    for spread in (40, 60, 80, 100):
        image, file = Image.effect_noise((width // 4, height // 4), spread), io.BytesIO()
        image.resize((width, height)).convert("RGB").save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return [found[number % len(found)] for number in range(count)]


def resize(data: bytes) -> bytes:
    """Return a JPEG a tenth as wide and high."""
    image, file = Image.open(io.BytesIO(data)), io.BytesIO()
    image.resize((image.width // 10, image.height // 10), Image.Resampling.LANCZOS).save(file, "JPEG")
    return file.getvalue()


@loopwatch.offload
def resize_elsewhere(data: bytes) -> bytes:
    """The same in a worker process."""
    return resize(data)


@loopwatch.offload(to="auto")
def resize_anywhere(data: bytes) -> bytes:
    """The same at the destination that measurements show to be best."""
    return resize(data)


async def inline(images: list[bytes]) -> list[bytes]:
    """Call it directly, on the loop."""
    return [resize(image) for image in images]


async def offloaded(images: list[bytes]) -> list[bytes]:
    """Await it, all at once."""
    return await asyncio.gather(*map(resize_elsewhere, images))


async def auto(images: list[bytes]) -> list[bytes]:
    """Await it, all at once."""
    return await asyncio.gather(*map(resize_anywhere, images))


Way = Callable[[list[bytes]], Awaitable[list[bytes]]]
WAYS: dict[str, Way] = {"inline": inline, "@offload": offloaded, '@offload(to="auto")': auto}


@dataclass
class Measured:
    """Total seconds, the longest block of the loop, the response times of the API, a digest of the results."""

    total: float
    longest: float
    answers: list[float]
    digest: str


@asynccontextmanager
async def api() -> AsyncIterator[str]:
    """Serve a light API on this loop; gives its URL."""

    async def hello(_request: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def measure(way: Way, images: list[bytes], url: str) -> Measured:
    """Resize the images while the API is asked."""
    async with under_load({url: RATE}) as answers:
        async with Heartbeat() as heart:
            began = time.perf_counter()
            results = await way(images)
            total = time.perf_counter() - began
        await asyncio.sleep(0.1)  # the last requests are answered
    digest = hashlib.sha256(b"".join(results)).hexdigest()[:8]
    return Measured(total, heart.longest, answers[url], digest)


async def main(count: int = 100, width: int = 3000, height: int = 2000) -> None:
    """Print one line for each way, and where "auto" went."""
    images = make_images(count, width, height)
    print(f"{count} images of {width} x {height}, {sum(map(len, images)) / count / 1e6:.1f} MB each\n")
    await resize_elsewhere(images[0])  # the workers start with the first call
    print("| way | total, s | longest block, ms | API p50, ms | API p99, ms | results |")
    print("| --- | --- | --- | --- | --- | --- |")
    async with api() as url:
        for name, way in WAYS.items():
            found = await measure(way, images, url)
            p50, p99 = (quantile(found.answers, share) * 1e3 for share in (0.5, 0.99))
            print(
                f"| {name} | {found.total:.2f} | {found.longest * 1e3:.1f} | {p50:.1f} | {p99:.1f} | {found.digest} |",
                flush=True,
            )
    print(f"\n{resize_anywhere.explain()}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))

"""A thumbnail is made on the loop.

---
kind = "image processing"
after = "habit: Image.resize in upload handlers"
culprit = ["thumbnail"]
causes = ["native"]
remedy = ["thread", "process", "offload"]
needs = ["PIL"]
"""

from __future__ import annotations

import asyncio

import _truth
from PIL import Image

PHOTO = Image.new("RGB", (9000, 7000), "red")


async def thumbnail() -> Image.Image:
    return PHOTO.resize((3000, 2500), Image.Resampling.LANCZOS)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await thumbnail()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

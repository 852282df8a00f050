"""A named pipe is opened that nobody writes yet.

---
kind = "file API"
after = "habit: open() of device and pipe files in handlers"
culprit = ["read_sensor"]
causes = ["io"]
remedy = ["thread", "aiofiles"]
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import _truth

os.mkfifo("sensor")


async def read_sensor() -> str:
    with Path("sensor").open() as pipe:
        return pipe.read()


async def main() -> None:
    await asyncio.sleep(0.3)
    threading.Timer(0.4, lambda: Path("sensor").open("w").close()).start()
    with _truth.truth():
        await read_sensor()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

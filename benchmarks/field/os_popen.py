"""The output of a command is read through os.popen.

---
kind = "subprocess"
after = "habit: os.popen in health endpoints"
culprit = ["uptime"]
causes = ["io"]
remedy = ["create_subprocess"]
"""

from __future__ import annotations

import asyncio
import os

import _truth


async def uptime() -> str:
    with os.popen("sleep 0.4; echo up") as pipe:
        return pipe.read()


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await uptime()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

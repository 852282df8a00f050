"""A library runs a coroutine inside the running loop, and that one blocks.

---
kind = "nest_asyncio"
after = "habit: nest_asyncio in notebooks and agents"
culprit = ["fetch"]
causes = ["sleep"]
remedy = ["asyncio.sleep"]
needs = ["nest_asyncio"]
loops = ["asyncio"]
"""

from __future__ import annotations

import asyncio
import time

import _truth
import nest_asyncio


async def fetch() -> None:
    await asyncio.sleep(0.2)
    with _truth.truth():
        time.sleep(0.35)


def tool() -> None:
    asyncio.get_event_loop().run_until_complete(fetch())


async def main() -> None:
    nest_asyncio.apply()
    await asyncio.sleep(0.3)
    tool()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

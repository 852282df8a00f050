"""async for over an asynchronous generator that never suspends.

---
kind = "awaits that never give the loop back"
after = "websockets#865 and alike, with a generator"
culprit = ["consume"]
causes = ["python"]
remedy = ["sleep(0)"]
never = ["rows() to", "thread"]
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import _truth


async def rows() -> AsyncIterator[int]:
    for n in range(1_500_000):
        yield n


async def consume() -> int:
    total = 0
    async for row in rows():
        total += row
    return total


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await consume()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

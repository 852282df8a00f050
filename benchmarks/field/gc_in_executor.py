"""A cleanup in an executor's thread collects garbage.

---
kind = "garbage collection in another thread"
after = "reports of gc.collect() against memory growth"
culprit = ["compact"]
causes = ["gc"]
remedy = ["gc.", "collect"]
"""

from __future__ import annotations

import asyncio
import gc

import _truth

HEAP = [[[n]] for n in range(2_500_000)]


def compact() -> None:
    gc.collect()


async def main() -> None:
    ticking = asyncio.create_task(_truth.ticker(), name="ticker")
    await asyncio.sleep(0.3)
    await asyncio.to_thread(compact)
    await asyncio.sleep(0.4)
    ticking.cancel()


if __name__ == "__main__":
    _truth.run(main())

"""A coroutine waits for multiprocessing.Pool.map.

---
kind = "process pool, blocking form"
after = "habit: Pool.map in async services"
culprit = ["resize_all"]
causes = ["lock"]
remedy = ["to_thread", "map_async", "apply_async", "run_in_executor"]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time

import _truth


async def resize_all(pool: multiprocessing.pool.Pool) -> None:
    pool.map(time.sleep, [0.4, 0.4])


async def main() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(abs, [1, 2])
        await asyncio.sleep(0.3)
        with _truth.truth():
            await resize_all(pool)
        await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

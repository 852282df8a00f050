"""Large arguments are pickled for a process pool.

---
kind = "payload of a process pool"
after = "reports of ProcessPoolExecutor that slows the loop"
culprit = ["score"]
causes = ["gil", "native_gil"]
remedy = ["less", "smaller", "SharedBuffer", "shared memory", "send"]
never = ["Run it in a ProcessPool", "ProcessPoolExecutor instead"]
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import _truth

BASKETS = [{"id": n, "items": [n, n + 1]} for n in range(400_000)]


async def score(pool: ProcessPoolExecutor) -> int:
    return await asyncio.get_running_loop().run_in_executor(pool, len, BASKETS)


async def main() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, len, [])
        ticking = asyncio.create_task(_truth.ticker(), name="ticker")
        await asyncio.sleep(0.3)
        await score(pool)
        await asyncio.sleep(0.4)
        ticking.cancel()


if __name__ == "__main__":
    _truth.run(main())

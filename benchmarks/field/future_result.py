"""A coroutine waits for a Future of concurrent.futures.

---
kind = "blocking wait for an executor"
after = "habit: executor.submit(...).result() in coroutines"
culprit = ["convert"]
causes = ["lock"]
remedy = ["wrap_future", "run_in_executor"]
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import _truth

executor = ThreadPoolExecutor(1)


async def convert() -> None:
    executor.submit(time.sleep, 0.4).result()


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await convert()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

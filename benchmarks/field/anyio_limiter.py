"""A CapacityLimiter of anyio is full.

---
kind = "starved limiter"
after = "reports of sync endpoints that use up 40 threads (Starlette, anyio)"
culprit = ["thumbnail"]
finding = ["waiting"]
remedy = ["limit", "token", "thread"]
needs = ["anyio"]
"""

from __future__ import annotations

import asyncio
import time

import _truth
import anyio
import anyio.to_thread


def thumbnail() -> None:
    time.sleep(1.2)


async def main() -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 2
    calls = [asyncio.create_task(anyio.to_thread.run_sync(thumbnail)) for _ in range(22)]
    await asyncio.sleep(10)
    _truth.findings()
    await asyncio.gather(*calls)


if __name__ == "__main__":
    _truth.run(main())

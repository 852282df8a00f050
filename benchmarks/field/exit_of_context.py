"""The __exit__ of a synchronous context manager sleeps.

---
kind = "place without await"
after = "habit: rate limiters as context managers"
culprit = ["Limit.__exit__"]
causes = ["sleep"]
remedy = ["__aexit__", "async with", "asynchronous context", "coroutine", "thread"]
never = ["with await asyncio.sleep"]
"""

from __future__ import annotations

import asyncio
import time

import _truth


class Limit:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        time.sleep(0.4)


async def call() -> None:
    with Limit():
        await asyncio.sleep(0)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await call()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

"""A coroutine waits for a threading.Lock that a thread holds.

---
kind = "lock"
after = "habit: locks of sync code shared with the loop"
culprit = ["charge"]
causes = ["lock"]
remedy = ["asyncio.Lock", "to_thread"]
"""

from __future__ import annotations

import asyncio
import threading
import time

import _truth

account = threading.Lock()


def audit() -> None:
    with account:
        time.sleep(0.6)


async def charge() -> None:
    with account:
        pass


async def main() -> None:
    await asyncio.sleep(0.3)
    auditing = asyncio.create_task(asyncio.to_thread(audit))
    await asyncio.sleep(0.1)
    with _truth.truth():
        await charge()
    await auditing
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

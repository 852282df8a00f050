"""User code in a greenlet of its own waits.

---
kind = "greenlet"
after = "habit: gevent-style helpers beside asyncio"
culprit = ["poll"]
causes = ["sleep"]
remedy = ["asyncio.sleep", "to_thread", "thread"]
needs = ["greenlet"]
"""

from __future__ import annotations

import asyncio
import time

import _truth
import greenlet


def poll() -> None:
    time.sleep(0.4)


async def bridge() -> None:
    greenlet.greenlet(poll).switch()


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await bridge()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

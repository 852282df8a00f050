"""asyncio.run does not end, as a job of the default executor goes on.

---
kind = "asyncio.run that does not end"
after = "reports of programs that hang at exit (asyncio.to_thread)"
culprit = ["poll_device"]
finding = ["poll_device"]
remedy = ["thread", "daemon", "time-out", "timeout", "cancel", "event", "end", "stop"]
"""

from __future__ import annotations

import asyncio
import threading
import time

import _truth


def poll_device() -> None:
    time.sleep(5)


async def main() -> None:
    polling = asyncio.create_task(asyncio.to_thread(poll_device))
    await asyncio.sleep(0.5)
    polling.cancel()


if __name__ == "__main__":
    threading.Timer(4, _truth.findings).start()
    _truth.run(main())

"""The loop's default executor is full of slow scans.

---
kind = "starved executor"
after = "cpython#112169 and alike, with set_default_executor"
culprit = ["scan_disk"]
finding = ["executor"]
remedy = ["executor of", "own executor", "larger", "max_workers", "more threads", "timeout", "time-out"]
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import _truth


def scan_disk() -> None:
    time.sleep(1.2)


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    scans = [loop.run_in_executor(None, scan_disk) for _ in range(22)]
    await asyncio.sleep(10)
    _truth.findings()
    await asyncio.gather(*scans)


if __name__ == "__main__":
    _truth.run(main())

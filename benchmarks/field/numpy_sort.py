"""A coroutine sorts a large array.

---
kind = "numpy"
after = "habit: numerical code in handlers"
culprit = ["percentiles"]
causes = ["native"]
remedy = ["to_thread", "thread"]
never = ["ProcessPool"]
needs = ["numpy"]
"""

from __future__ import annotations

import asyncio

import _truth
import numpy as np

DATA = np.random.default_rng(1).random(6_000_000)


async def percentiles() -> np.ndarray:
    return np.sort(DATA, kind="heapsort")


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await percentiles()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

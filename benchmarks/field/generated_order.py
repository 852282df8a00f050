"""Objects with generated comparisons are sorted.

---
kind = "generated code without a source line"
after = "habit: dataclass(order=True) in priority lists"
culprit = ["rank"]
causes = ["python", "native_gil"]
remedy = ["process", "offload", "thread"]
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import _truth


@dataclass(order=True)
class Bid:
    price: int
    at: int


BIDS = [Bid(n * 7919 % 100_003, n) for n in range(60_000)]


async def rank() -> list[Bid]:
    return sorted(BIDS)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await rank()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

"""A sort whose key function is the user's.

---
kind = "C code that calls a short user function often"
after = "habit: sorted(key=...) over all stations"
culprit = ["nearest"]
causes = ["python", "native_gil"]
remedy = ["process", "offload", "thread"]
never = ["distance() to"]
"""

from __future__ import annotations

import asyncio

import _truth

STATIONS = [(n * 7919 % 100_003, n * 104_729 % 99_991) for n in range(1_500_000)]


def distance(at: tuple[int, int]) -> int:
    return at[0] * at[0] + at[1] * at[1]


async def nearest() -> tuple[int, int]:
    return min(STATIONS, key=distance)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await nearest()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

"""A large package is imported by the first request.

---
kind = "import on the loop"
after = "habit: lazy imports in handlers"
culprit = ["solve"]
causes = ["python", "io", "native_gil", "native"]
remedy = ["import"]
needs = ["sympy"]
"""

from __future__ import annotations

import asyncio

import _truth


async def solve() -> str:
    import sympy

    return sympy.__version__


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await solve()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

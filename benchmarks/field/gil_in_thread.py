"""A thread parses a large document and keeps the GIL.

---
kind = "GIL hog in to_thread"
after = "habit: to_thread(json.loads, ...) as a cure"
culprit = ["parse"]
causes = ["gil"]
remedy = ["process"]
"""

from __future__ import annotations

import asyncio
import json

import _truth

TEXT = json.dumps([{"id": n, "name": f"n{n}"} for n in range(700_000)])


def parse() -> object:
    return json.loads(TEXT)


async def main() -> None:
    ticking = asyncio.create_task(_truth.ticker(), name="ticker")
    await asyncio.sleep(0.3)
    await asyncio.to_thread(parse)
    await asyncio.sleep(0.4)
    ticking.cancel()


if __name__ == "__main__":
    _truth.run(main())

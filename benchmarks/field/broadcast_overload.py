"""One message wakes thousands of clients in one pass.

---
kind = "overload"
after = "reports of broadcast storms in chat servers"
culprit = ["deliver", ""]
causes = ["overload"]
remedy = ["batch", "fewer", "spread", "bound", "limit"]
never = ["to a process"]
"""

from __future__ import annotations

import asyncio
import json

import _truth


async def deliver(go: asyncio.Event, n: int) -> str:
    await go.wait()
    return json.dumps({"to": n, "text": "x" * 2000})


async def main() -> None:
    go = asyncio.Event()
    tasks = [asyncio.create_task(deliver(go, n)) for n in range(40_000)]
    together = asyncio.gather(*tasks)
    await asyncio.sleep(1)
    ticking = asyncio.create_task(_truth.ticker(), name="ticker")
    await asyncio.sleep(0.3)
    go.set()
    await together
    await asyncio.sleep(0.4)
    ticking.cancel()


if __name__ == "__main__":
    _truth.run(main())

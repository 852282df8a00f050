"""A logging handler sends each record over HTTP.

---
kind = "logging that writes"
after = "reports of log shippers that block the loop"
culprit = ["order"]
causes = ["io"]
remedy = ["QueueHandler"]
"""

from __future__ import annotations

import asyncio
import logging
from logging.handlers import HTTPHandler

import _truth

log = logging.getLogger("shop")
log.addHandler(HTTPHandler(f"127.0.0.1:{_truth.slow_http()}", "/log"))


async def order() -> None:
    log.error("no stock")


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await order()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

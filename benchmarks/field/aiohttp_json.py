"""An aiohttp handler sends a large document with web.json_response.

---
kind = "json behind aiohttp"
after = "habit: web.json_response of large lists"
culprit = ["listing"]
causes = ["native_gil", "python"]
remedy = ["fewer", "page", "pagin", "stream", "smaller", "thread", "process", "orjson"]
needs = ["aiohttp"]
blocks = 2
"""

from __future__ import annotations

import _truth
from aiohttp import web

ROWS = [{"id": n, "name": f"n{n}", "tags": ["a", "b"]} for n in range(300_000)]


async def listing(request: web.Request) -> web.Response:
    return web.json_response(ROWS)


async def main() -> None:
    app = web.Application()
    app.router.add_get("/listing", listing)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await _truth.asked(runner.addresses[0][1], ["/listing"])
    await runner.cleanup()


if __name__ == "__main__":
    _truth.run(main())

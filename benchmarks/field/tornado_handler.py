"""A Tornado handler asks another service with requests.

---
kind = "HTTP client without asyncio, behind Tornado"
after = "habit: requests in a coroutine of RequestHandler"
culprit = ["Report.get"]
causes = ["io"]
remedy = ["httpx", "aiohttp", "AsyncHTTPClient"]
needs = ["tornado", "requests"]
loops = ["asyncio"]
blocks = 2
"""

from __future__ import annotations

import _truth
import requests
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

port = _truth.slow_http()


class Report(RequestHandler):
    async def get(self) -> None:
        self.write(requests.get(f"http://127.0.0.1:{port}/rates").text)


async def main() -> None:
    server = HTTPServer(Application([("/report", Report)]))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    await _truth.asked(sockets[0].getsockname()[1], ["/report"])
    server.stop()


if __name__ == "__main__":
    _truth.run(main())

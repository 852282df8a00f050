"""What the programs of this folder share: a loop of the wanted kind, the truth, slow servers, findings."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

LATE = 0.08
"""Seconds from which a late tick of :func:`ticker` is a block."""


def report(kind: str, **values: Any) -> None:
    """Print one record for field.py, which reads the standard error of the program."""
    print(f"FIELD {json.dumps({'kind': kind, **values})}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def truth() -> Iterator[None]:
    """Measure a block from inside its callback."""
    wall, start = time.time(), time.monotonic()
    try:
        yield
    finally:
        report("truth", begin=wall, seconds=time.monotonic() - start)


async def ticker() -> None:
    """Measure blocks from outside, where the program has no code around them: late ticks of a timer."""
    while True:
        wall, start = time.time(), time.monotonic()
        await asyncio.sleep(0.01)
        late = time.monotonic() - start - 0.01
        if late >= LATE:
            report("truth", begin=wall + 0.01, seconds=late)


def findings() -> None:
    """Report what the agent found about executors and processes until now."""
    from loopwatch import current_agent

    agent = current_agent()
    for finding in agent.snapshot().findings if agent is not None else ():
        report("finding", text=finding.text, remedy=finding.remedy)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the loop that the command line names."""
    if "uvloop" in sys.argv[1:]:
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a loop of the wanted kind."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main)


class _Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        time.sleep(0.4)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815 - the name that http.server asks for

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def slow_http() -> int:
    """Start an HTTP server that answers after 0.4 seconds; return its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def slow_tcp(answer: bytes) -> int:
    """Start a server that answers each message after 0.4 seconds; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536):
                time.sleep(0.4)
                connection.sendall(answer)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def serve(app: Any, paths: list[str]) -> None:
    """Serve an ASGI application with uvicorn, ask for the paths from a thread, twice each, and end."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    import uvicorn

    async def main() -> None:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        served = asyncio.create_task(server.serve([listener]))
        await asyncio.sleep(0.5)
        await asked(port, paths)
        server.should_exit = True
        await served

    run(main())


async def asked(port: int, paths: list[str]) -> None:
    """Ask for the paths from a thread, twice each, while a ticker measures."""
    ticking = asyncio.create_task(ticker(), name="ticker")

    def ask() -> None:
        for path in 2 * paths:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                answer.read()
            time.sleep(0.4)

    await asyncio.sleep(0.3)
    await asyncio.to_thread(ask)
    ticking.cancel()

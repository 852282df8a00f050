"""The ASGI middleware under real servers and frameworks: routes by their templates, never paths or queries."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch import Cause, ConfigError, Stall
from loopwatch.testing import RecordingSink

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from fastapi import APIRouter, FastAPI  # noqa: E402 - after the check that it is there
from loopwatch.integrations.asgi import LoopwatchMiddleware, route_labels  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Mount, Route, WebSocketRoute  # noqa: E402
from starlette.websockets import WebSocket  # noqa: E402

pytestmark = pytest.mark.measures

SECRET = "s3cret"
SETTINGS: dict[str, Any] = {"threshold": 0.05, "log_level": "DEBUG", "cpu_budget": 1.0}


def block() -> None:
    time.sleep(0.15)


async def starlette_endpoint(request: Request) -> PlainTextResponse:
    block()
    return PlainTextResponse("done")


async def websocket_endpoint(websocket: WebSocket) -> None:
    await websocket.accept()
    block()
    await websocket.close()


def starlette_app() -> Starlette:
    inner = [Route("/items/{item}", starlette_endpoint), WebSocketRoute("/live/{room}", websocket_endpoint)]
    return Starlette(routes=[Route("/report/{id}", starlette_endpoint), Mount("/shop/{tenant}", routes=inner)])


def fastapi_app() -> FastAPI:
    app, router, sub = FastAPI(), APIRouter(), FastAPI()

    @app.get("/report/{id}")
    @router.post("/orders/{order}")
    @sub.get("/deep/{leaf}")
    async def handler() -> str:
        block()
        return "done"

    app.include_router(router, prefix="/v1/{tenant}")
    app.include_router(router, prefix="/v2")
    outer = APIRouter(prefix="/outer")
    outer.include_router(router, prefix="/inner")
    sub.include_router(outer)
    app.mount("/sub", sub)
    return app


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[Callable[..., int]]:
    """Serve ``app`` in a thread, on a free port; yields a function that sends a request and returns its status."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", **options))
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)  # the server does not signal that it has started
    port = server.servers[0].sockets[0].getsockname()[1]

    def request(path: str, method: str = "GET") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path)
        status = connection.getresponse().status
        connection.close()
        return status

    try:
        yield request
    finally:
        server.should_exit = True
        thread.join(20)


def blocks(sink: RecordingSink, count: int) -> list[Stall]:
    """Return the stalls made by the requests; a busy machine may add others."""
    wanted = count
    while True:
        recorded = sink.wait(wanted)
        found = [stall for stall in recorded if stall.culprit is not None and stall.culprit.function == "block"]
        if len(found) >= count:
            return found
        wanted = len(recorded) + 1


def blocked(sink: RecordingSink) -> Stall:
    """Return the stall made by the request, and check that no stall holds anything of path and query."""
    (stall,) = blocks(sink, 1)
    assert stall.cause is Cause.SLEEP
    for recorded in sink.stalls:
        assert SECRET not in json.dumps(recorded.to_dict())
    return stall


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("make", "method", "path", "route"),
    [
        (starlette_app, "GET", "/report/{}", "/report/{id}"),
        (starlette_app, "GET", "/shop/{}/items/7", "/shop/{tenant}/items/{item}"),
        (fastapi_app, "GET", "/report/{}", "/report/{id}"),
        (fastapi_app, "POST", "/v1/{}/orders/3", "/v1/{tenant}/orders/{order}"),
        (fastapi_app, "POST", "/v2/orders/{}", "/v2/orders/{order}"),
        (fastapi_app, "GET", "/sub/deep/{}", "/sub/deep/{leaf}"),
        (fastapi_app, "POST", "/sub/outer/inner/orders/{}", "/sub/outer/inner/orders/{order}"),
    ],
)
def test_route_is_named_by_its_template(
    sink: RecordingSink, *, loop: str, make: Callable[[], Any], method: str, path: str, route: str
) -> None:
    """Under uvicorn on either loop, a stall names method and template, mounts and prefixes included."""
    app = make()
    app.add_middleware(LoopwatchMiddleware, on_stall=sink, **SETTINGS)
    with served(app, loop=loop) as request:
        assert request(f"{path.format(SECRET)}?token={SECRET}", method) == 200
        stall = blocked(sink)
    endpoint = stall.context["code.function.name"].removeprefix(f"{__name__}.")
    assert endpoint == ("starlette_endpoint" if make is starlette_app else "fastapi_app.<locals>.handler")
    assert stall.context | {"code.function.name": ""} == {
        "http.request.method": method, "http.route": route, "code.function.name": "",
    }  # fmt: skip
    assert stall.loop == "server"
    assert 0.15 - stall.uncertainty - 0.005 <= stall.duration <= 0.5  # with the delay of a busy machine


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("make", [starlette_app, fastapi_app])
def test_threshold_of_a_route(sink: RecordingSink, *, loop: str, make: Callable[[], Any]) -> None:
    """A route's own threshold decides: above the block of 0.15 seconds there is no stall, below it there is one."""
    app = make()
    settings = SETTINGS | {"threshold": 0.1, "thresholds": {"GET /report/*": 5.0}}
    app.add_middleware(LoopwatchMiddleware, on_stall=sink, **settings)
    with served(app, loop=loop) as request:
        assert request(f"/report/{SECRET}") == 200
        agent = loopwatch.current_agent()
        assert agent is not None
        assert agent.flush(5.0)
        assert [stall for stall in sink.stalls if stall.culprit is not None] == []
        agent.configure(threshold=5.0, thresholds={"/report/{id}": 0.1})
        assert request(f"/report/{SECRET}") == 200
        assert blocked(sink).evidence.threshold == 0.1


@pytest.mark.parametrize("lifespan", ["on", "off"])
def test_agent_starts_with_the_lifespan_or_the_first_request(sink: RecordingSink, lifespan: str) -> None:
    """With a lifespan the agent runs before the first request, without one from the first request on."""
    app = starlette_app()
    app.add_middleware(LoopwatchMiddleware, on_stall=sink, **SETTINGS)
    with served(app, lifespan=lifespan) as request:
        assert (loopwatch.current_agent() is not None) == (lifespan == "on")
        request(f"/report/{SECRET}")
        request(f"/report/{SECRET}")
        assert loopwatch.current_agent() is not None
        stalls = blocks(sink, 2)
    assert [stall.context["http.route"] for stall in stalls] == ["/report/{id}"] * 2


def test_plain_application_without_routes(sink: RecordingSink) -> None:
    """An application without routes is watched all the same; its stalls have a method and no route."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        block()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with served(LoopwatchMiddleware(app, on_stall=sink, **SETTINGS)) as request:
        assert request(f"/{SECRET}?q={SECRET}", "DELETE") == 204
        stall = blocked(sink)
    assert stall.context == {"http.request.method": "DELETE"}


def test_request_that_no_route_serves(sink: RecordingSink) -> None:
    """A request that ends with 404 has no route."""

    class Slow:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                block()
            await self.app(scope, receive, send)

    app = starlette_app()
    app.add_middleware(Slow)
    app.add_middleware(LoopwatchMiddleware, on_stall=sink, **SETTINGS)
    with served(app) as request:
        assert request(f"/no/such/{SECRET}") == 404
        stall = blocked(sink)
    assert stall.context == {"http.request.method": "GET"}


async def connect(app: Any, path: str) -> list[MutableMapping[str, Any]]:
    """Open a websocket to ``app`` as a server does."""
    sent: list[MutableMapping[str, Any]] = []
    scope = {
        "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": f"t={SECRET}".encode(),
        "headers": [], "subprotocols": [], "root_path": "",
    }  # fmt: skip

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def test_websocket(sink: RecordingSink) -> None:
    """A stall in a websocket's endpoint names its template, and WEBSOCKET in place of a method."""
    app = starlette_app()
    app.add_middleware(LoopwatchMiddleware, on_stall=sink, **SETTINGS)

    async def main() -> None:
        await asyncio.sleep(0.06)
        sent = await asyncio.create_task(connect(app, f"/shop/{SECRET}/live/{SECRET}"))
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
        await asyncio.sleep(0.06)

    asyncio.run(main())
    assert blocked(sink).context == {
        "http.request.method": "WEBSOCKET",
        "http.route": "/shop/{tenant}/live/{room}",
        "code.function.name": f"{__name__}.websocket_endpoint",
    }


def test_outside_a_request_there_are_no_labels() -> None:
    """Outside of a request there is neither method nor route."""
    assert route_labels() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 0}, "threshold=0: must be"), ({"treshold": 1}, "unknown setting 'treshold'")],
)
def test_bad_setting_is_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    """An invalid setting fails where the application is built, before any request."""
    with pytest.raises(ConfigError, match=message):
        LoopwatchMiddleware(starlette_app(), **settings)
    assert loopwatch.current_agent() is None


APP = """
    import os, time
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from loopwatch.integrations.asgi import LoopwatchMiddleware

    async def report(request):
        time.sleep(0.2)
        return PlainTextResponse(str(os.getpid()))

    app = Starlette(routes=[Route("/report/{id}", report)])
    app.add_middleware(LoopwatchMiddleware, threshold=0.05, journal=JOURNAL)
"""


def test_each_worker_of_uvicorn_is_watched(tmp_path: Path) -> None:
    """Under uvicorn --workers 2 each worker writes its own journal, with a stall that names the route."""
    (tmp_path / "served_app.py").write_text(f"JOURNAL = {str(tmp_path / 'stalls.jsonl')!r}\n" + textwrap.dedent(APP))
    command = [sys.executable, "-m", "uvicorn", "served_app:app", "--workers", "2", "--port", "0", "--app-dir"]
    server = subprocess.Popen([*command, str(tmp_path)], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert server.stderr is not None
    try:
        started = next(found for line in server.stderr if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
        drain = threading.Thread(target=server.stderr.read)
        drain.start()
        pids = served_by_all(int(started[1]), workers=2)
        for pid in pids:
            journal = tmp_path / f"stalls.{pid}.jsonl"
            assert json.loads(written(journal, "http.route"))["context"]["http.route"] == "/report/{id}"
            assert SECRET not in journal.read_text()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        drain.join()
        server.stderr.close()
    assert not any(_alive(pid) for pid in pids)


def served_by_all(port: int, workers: int) -> set[int]:
    """Send requests in parallel until each worker has answered one; return the workers' process ids."""
    pids: set[int] = set()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.suppress(OSError):
            connection.request("GET", f"/report/{SECRET}?token={SECRET}")
            pids.add(int(connection.getresponse().read()))
        connection.close()

    deadline = time.monotonic() + 30
    while len(pids) < workers and time.monotonic() < deadline:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(pids) == workers
    return pids


def written(path: Path, text: str) -> str:
    """Return the first line of the file that contains ``text``, as soon as it is there."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        found = next((line for line in lines if text in line), "")
        if found.endswith("\n"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {text} in {path}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

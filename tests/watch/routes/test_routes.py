"""Stalls inside a request name route, method and endpoint, with no middleware, under real servers and frameworks."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from functools import partial, wraps
from typing import Any

import pytest

import loopwatch
from loopwatch import Stall
from loopwatch.agent import Agent
from loopwatch.testing import RecordingSink

pytestmark = [pytest.mark.measures, pytest.mark.filterwarnings("ignore::DeprecationWarning:litestar")]

SECRET = "s3cret"
HERE = __name__
METHOD, ROUTE, ENDPOINT = "http.request.method", "http.route", "code.function.name"


def block() -> None:
    time.sleep(0.15)


@pytest.fixture
def agent(sink: RecordingSink) -> Iterator[Agent]:
    """The installed agent, without a middleware: threshold 0.05 seconds."""
    yield loopwatch.install(threshold=0.05, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    loopwatch.uninstall()


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[Callable[..., int]]:
    """Serve ``app`` with uvicorn in a thread, on a free port; yields a function that sends a request."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", **options))
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)  # the server does not signal that it has started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield lambda path, method="GET": requested(port, path, method)
    finally:
        server.should_exit = True
        thread.join(20)


def requested(port: int, path: str, method: str) -> int:
    """Send a request and return its status, once the whole answer was read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body=b"x" if method == "POST" else None)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


async def connected(app: Any, scope: dict[str, Any], *received: dict[str, Any]) -> list[Any]:
    """Serve one connection with the bare ASGI application, and return what it sent."""
    queue, sent = list(received), list[Any]()

    async def receive() -> MutableMapping[str, Any]:
        if not queue:
            await asyncio.Event().wait()
        return queue.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    whole = {
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http", "query_string": b"",
        "root_path": "", "headers": [(b"host", b"shop")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "subprotocols": [], "extensions": {}, "state": {}, "raw_path": scope["path"].encode(), **scope,
    }  # fmt: skip
    await asyncio.create_task(app(whole, receive, send))
    return sent


def websocket(path: str) -> tuple[dict[str, Any], ...]:
    """Return scope and messages of a websocket whose client sends one text and goes."""
    return (
        {"type": "websocket", "path": path, "scheme": "ws"},
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "hello"},
        {"type": "websocket.disconnect", "code": 1000},
    )


def blocked(sink: RecordingSink) -> Stall:
    """Return the stall made by :func:`block`, and check that no stall holds anything of path and query."""
    wanted = 1
    while True:
        recorded = sink.wait(wanted)
        found = [stall for stall in recorded if stall.culprit is not None and stall.culprit.function == "block"]
        if found:
            break
        wanted = len(recorded) + 1
    assert SECRET not in json.dumps([stall.to_dict() for stall in recorded])
    (stall,) = found
    assert 0.15 - stall.uncertainty - 0.005 <= stall.duration <= 0.5  # with the delay of a busy machine
    return stall


def label(method: str, route: str, endpoint: str) -> dict[str, str]:
    return {METHOD: method, ROUTE: route, ENDPOINT: f"{HERE}.{endpoint}"}


# -- Starlette and FastAPI ------------------------------------------------------------------------------------------


def starlette_app() -> Any:
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Mount, Route, WebSocketRoute

    async def show(request: Any) -> Any:
        block()
        return PlainTextResponse("done")

    class Orders(HTTPEndpoint):
        async def post(self, request: Any) -> Any:
            block()
            return PlainTextResponse("done")

    class Live(WebSocketEndpoint):
        async def on_receive(self, websocket: Any, data: Any) -> None:
            block()
            await websocket.close()

    async def room(websocket: Any) -> None:
        await websocket.accept()
        block()
        await websocket.close()

    async def later(request: Any) -> Any:
        async def tidy() -> None:
            block()

        return PlainTextResponse("done", background=BackgroundTask(tidy))

    async def stream(request: Any) -> Any:
        async def parts() -> AsyncIterator[str]:
            yield "one"
            await asyncio.sleep(0)
            block()
            yield "two"

        return StreamingResponse(parts())

    async def passed_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    async def after(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        block()
        return response

    async def quick(request: Any) -> Any:
        return PlainTextResponse("done")

    wraps = [Middleware(BaseHTTPMiddleware, dispatch=passed_on)]
    inner = [Route("/items/{item}", show), WebSocketRoute("/live/{room}", room), Route("/stream", stream)]
    inside = Starlette(routes=inner, middleware=wraps)
    return Starlette(
        routes=[
            Route("/report/{id:int}", show),
            Route("/orders/{order}", Orders),
            Route("/later", later),
            Route("/stream/{id}", stream),
            WebSocketRoute("/class/{room}", Live),
            Mount("/shop/{tenant}", routes=inner),
            Mount("/wrapped/{tenant}", app=inside),
            Mount("/late", app=Starlette(
                routes=[Route("/{x}", quick)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=after)])
            ),
        ]
    )  # fmt: skip


def fastapi_app() -> Any:
    fastapi = pytest.importorskip("fastapi")
    import pydantic

    app, router, sub = fastapi.FastAPI(), fastapi.APIRouter(), fastapi.FastAPI()

    def decorated(function: Any) -> Any:
        @wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return wrapper

    class Encoded(pydantic.BaseModel):
        name: str = "x"

        @pydantic.field_serializer("name")
        def encode(self, name: str) -> str:
            block()
            return name

    @app.get("/report/{id}")
    @router.post("/orders/{order}")
    @sub.get("/deep/{leaf}")
    @decorated
    async def handler() -> str:
        block()
        return "done"

    @app.get("/sync/{id}", response_model=Encoded)
    def in_thread(id: str) -> Any:
        return Encoded()

    async def with_argument(tenant: str) -> str:
        block()
        return tenant

    app.get("/partial", response_model=None)(partial(with_argument, "acme"))
    app.include_router(router, prefix="/v1/{tenant}")
    app.include_router(router, prefix="/v2")
    outer = fastapi.APIRouter(prefix="/outer")
    outer.include_router(router, prefix="/inner")
    sub.include_router(outer)
    app.mount("/sub", sub)
    return app


STARLETTE = "starlette_app.<locals>."
FASTAPI = "fastapi_app.<locals>."


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("make", "method", "path", "route", "endpoint"),
    [
        (starlette_app, "GET", "/report/7", "/report/{id:int}", STARLETTE + "show"),
        (starlette_app, "POST", "/orders/{}", "/orders/{order}", STARLETTE + "Orders.post"),
        (starlette_app, "GET", "/later", "/later", STARLETTE + "later"),
        (starlette_app, "GET", "/stream/{}", "/stream/{id}", STARLETTE + "stream"),
        (starlette_app, "GET", "/shop/{}/items/7", "/shop/{tenant}/items/{item}", STARLETTE + "show"),
        (starlette_app, "GET", "/wrapped/{}/items/7", "/wrapped/{tenant}/items/{item}", STARLETTE + "show"),
        (starlette_app, "GET", "/wrapped/{}/stream", "/wrapped/{tenant}/stream", STARLETTE + "stream"),
        (starlette_app, "GET", "/late/{}", "/late/{x}", STARLETTE + "quick"),
        (fastapi_app, "GET", "/report/{}", "/report/{id}", FASTAPI + "handler"),
        (fastapi_app, "POST", "/v1/{}/orders/3", "/v1/{tenant}/orders/{order}", FASTAPI + "handler"),
        (fastapi_app, "POST", "/v2/orders/{}", "/v2/orders/{order}", FASTAPI + "handler"),
        (fastapi_app, "GET", "/sub/deep/{}", "/sub/deep/{leaf}", FASTAPI + "handler"),
        (fastapi_app, "POST", "/sub/outer/inner/orders/{}", "/sub/outer/inner/orders/{order}", FASTAPI + "handler"),
        (fastapi_app, "GET", "/sync/{}", "/sync/{id}", FASTAPI + "in_thread"),
        (fastapi_app, "GET", "/partial", "/partial", FASTAPI + "with_argument"),
    ],
)
def test_starlette_and_fastapi(
    agent: Agent, sink: RecordingSink, *, loop: str, make: Any, method: str, path: str, route: str, endpoint: str
) -> None:
    """Template with mounts and inclusions, method and endpoint: also below BaseHTTPMiddleware, while a response is
    streamed, in a background task, and while the result of an endpoint that ran in a thread is encoded."""
    with served(make(), loop=loop) as request:
        assert request(f"{path.format(SECRET)}?token={SECRET}", method) == 200
        assert blocked(sink).context == label(method, route, endpoint)


@pytest.mark.parametrize(
    ("path", "route", "endpoint"),
    [
        (f"/shop/{SECRET}/live/{SECRET}", "/shop/{tenant}/live/{room}", "room"),
        (f"/class/{SECRET}", "/class/{room}", "Live.on_receive"),
    ],
)
def test_websockets_of_starlette(
    agent: Agent, sink: RecordingSink, run: Any, *, path: str, route: str, endpoint: str
) -> None:
    """A websocket has WEBSOCKET in place of a method, and its template and endpoint like a request."""
    run(connected(starlette_app(), *websocket(path)))
    assert blocked(sink).context == label("WEBSOCKET", route, STARLETTE + endpoint)


def test_task_of_its_own_is_outside_the_request(agent: Agent, sink: RecordingSink) -> None:
    """A task that an endpoint creates may outlive the request: its stalls have no route, and name the task."""
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    tasks = []

    async def job() -> None:
        block()

    async def start(request: Any) -> Any:
        tasks.append(asyncio.create_task(job()))
        return PlainTextResponse("done")

    with served(Starlette(routes=[Route("/start", start)])) as request:
        assert request("/start") == 200
        stall = blocked(sink)
    assert stall.context == {}
    assert stall.coroutine is not None
    assert stall.coroutine.endswith("job")


def test_before_it_is_routed_a_request_has_its_method_only(agent: Agent, sink: RecordingSink) -> None:
    """Where no route fits, or middleware blocks before the router, only the method is known, and no word but the
    known ones gets to be a value."""
    starlette = pytest.importorskip("starlette.applications")

    class Slow:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                block()
            await self.app(scope, receive, send)

    app = starlette.Starlette()
    app.add_middleware(Slow)
    with served(app) as request:
        assert request("/nothing", "PURGE") == 404
        assert blocked(sink).context == {METHOD: "_OTHER"}


def test_setting_switches_it_off(sink: RecordingSink) -> None:
    """With ``routes=False`` nothing of a request is read; it can be switched on again at run time."""
    agent = loopwatch.install(threshold=0.05, on_stall=sink, log_level="DEBUG", cpu_budget=1.0, routes=False)
    with served(starlette_app()) as request:
        request("/report/7")
        assert blocked(sink).context == {}
        agent.configure(routes=True)
        sink.stalls.clear()
        request("/report/7")
        assert blocked(sink).context == label("GET", "/report/{id:int}", STARLETTE + "show")


def test_labels_of_the_program_take_precedence(sink: RecordingSink) -> None:
    """A label source of the program with the same key replaces the label; the others stay."""
    loopwatch.install(threshold=0.05, on_stall=sink, log_level="DEBUG", context=(lambda: {ROUTE: "mine"},))
    with served(starlette_app()) as request:
        request("/report/7")
        assert blocked(sink).context == label("GET", "mine", STARLETTE + "show")


# -- the other frameworks ---------------------------------------------------------------------------------------------


def litestar_app() -> Any:
    litestar = pytest.importorskip("litestar")

    @litestar.get("/report/{number:int}")
    async def report(number: int) -> str:
        block()
        return "done"

    @litestar.get("/sync/{name:str}", sync_to_thread=False)
    def sync(name: str) -> str:
        block()
        return "done"

    class Orders(litestar.Controller):  # type: ignore[misc, name-defined]
        path = "/orders"

        @litestar.post("/{order:str}")  # type: ignore[untyped-decorator]
        async def create(self, order: str) -> str:
            block()
            return "done"

    @litestar.websocket("/live/{room:str}")
    async def live(socket: litestar.WebSocket, room: str) -> None:  # type: ignore[name-defined]
        await socket.accept()
        block()
        await socket.close()

    for handler in (report, sync, live, Orders.create):
        handler.fn.__annotations__ = {
            name: {"int": int, "str": str, "None": type(None), "litestar.WebSocket": litestar.WebSocket}[kind]
            for name, kind in handler.fn.__annotations__.items()
        }
    inner = litestar.Router("/v1", route_handlers=[Orders])
    return litestar.Litestar([report, sync, live, inner], openapi_config=None, logging_config=None)


def quart_app() -> Any:
    quart = pytest.importorskip("quart")
    from quart.views import MethodView

    app, shop = quart.Quart(__name__), quart.Blueprint("shop", __name__, url_prefix="/shop/<tenant>")

    @app.get("/report/<int:number>")
    async def report(number: int) -> str:
        block()
        return "done"

    @shop.post("/orders/<order>")
    async def create(tenant: str, order: str) -> str:
        block()
        return "done"

    class Items(MethodView):
        async def get(self, item: str) -> str:
            block()
            return "done"

    @app.websocket("/live/<room>")
    async def live(room: str) -> None:
        await quart.websocket.accept()
        block()

    app.add_url_rule("/items/<item>", view_func=Items.as_view("items"))
    app.register_blueprint(shop)
    return app


def django_app() -> Any:
    django = pytest.importorskip("django")
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import include, path, re_path
    from django.views import View

    async def report(request: Any, number: int) -> Any:
        block()
        return HttpResponse("done")

    class Items(View):
        async def get(self, request: Any, item: str) -> Any:
            block()
            return HttpResponse("done")

    async def stream(request: Any) -> Any:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            block()
            yield b"two"

        return StreamingHttpResponse(parts())

    urls: Any = types.ModuleType("django_urls")
    urls.urlpatterns = [
        path("report/<int:number>/", report),
        path("shop/<tenant>/", include([path("items/<item>/", lambda request, tenant, item: report(request, 1))])),
        path("items/<item>/", Items.as_view()),
        path("stream/", stream),
        re_path(r"^old/(?P<number>\d+)/$", report),
    ]
    sys.modules["django_urls"] = urls
    if not settings.configured:
        settings.configure(
            ROOT_URLCONF="django_urls", ALLOWED_HOSTS=["*"], SECRET_KEY=SECRET, LOGGING_CONFIG=None,
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        )  # fmt: skip
        django.setup()
    return get_asgi_application()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("make", "method", "path", "route", "endpoint"),
    [
        (litestar_app, "GET", "/report/7", "/report/{number}", "report"),
        (litestar_app, "GET", "/sync/{}", "/sync/{name}", "sync"),
        (litestar_app, "POST", "/v1/orders/{}", "/v1/orders/{order}", "Orders.create"),
        (quart_app, "GET", "/report/7", "/report/<int:number>", "report"),
        (quart_app, "POST", "/shop/{}/orders/7", "/shop/<tenant>/orders/<order>", "create"),
        (quart_app, "GET", "/items/{}", "/items/<item>", "Items.get"),
        (django_app, "GET", "/report/7/", "/report/<int:number>/", "report"),
        (django_app, "GET", "/items/{}/", "/items/<item>/", "Items.get"),
        (django_app, "GET", "/stream/", "/stream/", "stream"),
        (django_app, "GET", "/old/7/", r"^old/(?P<number>\d+)/$", "report"),
    ],
)
def test_litestar_quart_and_django(
    agent: Agent, sink: RecordingSink, *, loop: str, make: Any, method: str, path: str, route: str, endpoint: str
) -> None:
    """Template, method and endpoint as the framework has them; controllers, blueprints and views with their class."""
    with served(make(), loop=loop, lifespan="off") as request:
        assert request(f"{path.format(SECRET)}?token={SECRET}", method) in (200, 201)
        found = blocked(sink).context
    assert found == label(method, route, f"{make.__name__}.<locals>.{endpoint}")


@pytest.mark.parametrize(("make", "route"), [(litestar_app, "/live/{room}"), (quart_app, "/live/<room>")])
def test_websockets_of_litestar_and_quart(agent: Agent, sink: RecordingSink, run: Any, make: Any, route: str) -> None:
    """A websocket has WEBSOCKET in place of a method, and its template and endpoint like a request."""
    run(connected(make(), *websocket(f"/live/{SECRET}")))
    assert blocked(sink).context == label("WEBSOCKET", route, f"{make.__name__}.<locals>.live")


@pytest.mark.parametrize(
    ("path", "route", "endpoint"),
    [
        ("/report/{}", "/report/{number}", "report"),
        ("/shop/v1/items/{}", "/shop/v1/items/{item}", "Items.get"),
        ("/live/{}", "/live/{room}", "live"),
    ],
)
def test_aiohttp(agent: Agent, sink: RecordingSink, run: Any, *, path: str, route: str, endpoint: str) -> None:
    """The canonical path of the resource, in sub-applications with their prefix; class-based views by their method."""
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    async def report(request: web.Request) -> web.Response:
        block()
        return web.Response(text="done")

    class Items(web.View):
        async def get(self) -> web.Response:
            block()
            return web.Response(text="done")

    async def live(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        block()
        await socket.close()
        return socket

    async def main() -> None:
        app, shop = web.Application(), web.Application()
        app.router.add_get("/report/{number}", report)
        app.router.add_get("/live/{room}", live)
        shop.router.add_view("/items/{item}", Items)
        app.add_subapp("/shop/v1", shop)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            if endpoint == "live":
                await (await client.ws_connect(path.format(SECRET))).close()
            else:
                async with client.get(f"{path.format(SECRET)}?token={SECRET}") as response:
                    assert await response.text() == "done"
        await runner.cleanup()

    run(main())
    assert blocked(sink).context == label("GET", route, f"test_aiohttp.<locals>.{endpoint}")

"""A plain ASGI middleware: starts the agent in each worker's lifespan and names the route in stalls.

.. code-block:: python

    from fastapi import FastAPI
    from loopwatch.integrations.asgi import LoopwatchMiddleware

    app = FastAPI()
    app.add_middleware(LoopwatchMiddleware, threshold=0.1)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import loopwatch

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_request: ContextVar[tuple[Scope, object]] = ContextVar("loopwatch_asgi_request")
"""The scope of the request served in this context, and the application that received it."""


class LoopwatchMiddleware:
    """Watches the event loop of each worker that serves ``app``.

    The agent is installed when the server starts the application (lifespan), or with the first request where the
    server has no lifespan, so that it runs in every worker process and on the loop that serves. Stalls carry
    ``http.route`` (the route's template such as ``/report/{id}``, never the path or the query) and
    ``http.request.method``. Functions of ``transparent_offload`` are offloaded within requests only.

    Args:
        app: the ASGI application.
        **settings: fields of :class:`loopwatch.Config`, as for :func:`loopwatch.install`.

    Raises:
        ConfigError: a setting that is unknown or not allowed; at construction.
    """

    def __init__(self, app: App, **settings: Any) -> None:
        loopwatch.Config.of(settings)
        self.app = app
        self._settings = settings
        self._agent: loopwatch.Agent | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or the lifespan."""
        if self._agent is None:
            self._agent = loopwatch.install(**self._settings)
            self._agent.add_context(route_labels)
            await _next_callback()
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        token = _request.set((scope, scope.get("app", self.app)))
        try:
            await self._agent.bridge(self.app(scope, receive, send))
        finally:
            _request.reset(token)


def route_labels() -> Mapping[str, str]:
    """Return ``http.route`` and ``http.request.method`` of the request in the current context, as far as known."""
    request = _request.get(None)
    if request is None:
        return {}
    scope, app = request
    labels = {"http.request.method": str(scope.get("method", "WEBSOCKET"))}
    template = route_template(scope, app)
    return {**labels, "http.route": template} if template is not None else labels


def route_template(scope: Scope, app: object) -> str | None:
    """Return the template of the route that serves ``scope``, None if it is not known (yet).

    Frameworks leave it in the scope in ways of their own: FastAPI as ``scope["route"]``, Starlette as
    ``scope["endpoint"]``. It is looked up among the routes of ``app``, so that the templates of mounts around it are
    part of it; the path of the request is never used.
    """
    route, endpoint = scope.get("route"), scope.get("endpoint")
    if route is None and endpoint is None:
        return None

    # FastAPI, where it keeps included routers as branches: the route as it is under their prefixes.
    fastapi = scope.get("fastapi")
    effective = _path(fastapi.get("effective_route_context")) if isinstance(fastapi, Mapping) else ""

    def serves(candidate: object, inclusion: str | None) -> bool:
        if inclusion is not None and effective and inclusion + _path(candidate) != effective:
            return False  # the same route, but of another inclusion of its router
        return candidate is route if route is not None else getattr(candidate, "endpoint", None) is endpoint

    return _find(serves, getattr(app, "routes", None) or ()) or effective or _path(route) or None


def _find(
    serves: Callable[[object, str | None], bool],
    routes: Any,
    prefix: str = "",
    inclusion: str | None = None,
    depth: int = 10,
) -> str | None:
    """Return the whole template of the route that ``serves``: ``prefix`` of mounts, ``inclusion`` of routers."""
    for route in routes:
        path = prefix + (inclusion or "") + _path(route)
        if serves(route, inclusion):
            return path
        router = getattr(route, "original_router", None)
        inner = getattr(route if router is None else router, "routes", None)
        if not inner or not depth:
            continue
        if router is None:
            found = _find(serves, inner, path, None, depth - 1)
        else:
            added = getattr(getattr(route, "include_context", None), "prefix", "")
            found = _find(serves, inner, prefix, (inclusion or "") + added, depth - 1)
        if found is not None:
            return found
    return None


def _path(route: object) -> str:
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else ""


async def _next_callback() -> None:
    """Yield to the loop, so that the next block is not in the same callback as the installation."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # a loop that is not asyncio's
        return
    await asyncio.sleep(0)

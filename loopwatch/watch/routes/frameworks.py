"""One reader for each framework: from the objects of its frame to the route. Reads the framework's attributes only.

Names missing in another version leave the route unknown; what fails is counted as a fault of the part ``route``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loopwatch.watch.routes.endpoint import endpoint_of
from loopwatch.watch.routes.route import WEBSOCKET, Route
from loopwatch.watch.routes.starlette import route_template

Reader = Callable[..., Route | None]


def starlette(app: Any, scope: Mapping[str, Any]) -> Route | None:
    """Read the outermost application or router, and the ASGI scope; also for FastAPI."""
    if scope.get("type") not in ("http", "websocket"):
        return None
    method = _method_of(scope)
    return Route(method, route_template(scope, app), endpoint_of(scope.get("endpoint"), method))


def litestar(scope: Mapping[str, Any]) -> Route | None:
    """Read the ASGI scope."""
    if scope.get("type") not in ("http", "websocket"):
        return None
    method, handler = _method_of(scope), scope.get("route_handler")
    if handler is None:
        return Route(method, None, None)
    template = scope.get("path_template")
    if template is None:  # before 2.14
        paths = getattr(handler, "paths", ())
        template = next(iter(paths)) if len(paths) == 1 else None
    return Route(method, template, endpoint_of(getattr(handler, "fn", None), method))


def aiohttp(request: Any) -> Route | None:
    """Read a request of ``aiohttp.web``."""
    method, match = request.method, getattr(request, "_match_info", None)
    resource = getattr(getattr(match, "route", None), "resource", None)
    if match is None or resource is None:  # not yet, or no route fits
        return Route(method, None, None)
    return Route(method, resource.canonical, endpoint_of(match.handler, method))


def quart(connection: Any, request: Any) -> Route | None:
    """Read the connection of the ASGI server, and its request or websocket."""
    method, rule = _method_of(connection.scope), request.url_rule
    if rule is None:
        return Route(method, None, None)
    return Route(method, rule.rule, endpoint_of(connection.app.view_functions.get(rule.endpoint), method))


def django(request: Any) -> Route | None:
    """Read a request of Django's ASGI handler; the path() or re_path() that fits, with those that include it."""
    method, match = request.method, request.resolver_match
    if match is None:
        return Route(method, None, None)
    template = match.route if match.route.startswith(("/", "^")) else f"/{match.route}"
    return Route(method, template, endpoint_of(match.func, method))


def _method_of(scope: Mapping[str, Any]) -> str:
    return str(scope.get("method", WEBSOCKET))


READERS: Mapping[str, Reader] = {
    "starlette": starlette, "litestar": litestar, "aiohttp": aiohttp, "quart": quart, "django": django,
}  # fmt: skip
"""By :attr:`loopwatch.watch.routes.finder.Request.framework`."""

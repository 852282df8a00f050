"""The record of what a request was routed to, and the labels that it gives a stall. Pure."""

from __future__ import annotations

from typing import NamedTuple

from loopwatch.core.text import printable
from loopwatch.events import Frame

METHOD, ROUTE, ENDPOINT = "http.request.method", "http.route", "code.function.name"
"""Labels, named as OpenTelemetry's semantic conventions name them."""

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
WEBSOCKET = "WEBSOCKET"
"""In place of the method of a connection that has none."""


class Route(NamedTuple):
    """What a request was routed to.

    Attributes:
        method: of the request, as the client sent it; :data:`WEBSOCKET` for a connection without one.
        template: of the route, such as ``/items/{item_id}``; None if it is not known, or not yet.
        endpoint: the program's function, at its first line; None if it is not known.
    """

    method: str
    template: str | None
    endpoint: Frame | None


def labels(route: Route) -> dict[str, str]:
    """Return the printable labels of a stall within ``route``.

    Example:
        >>> labels(Route("GET", "/items/{item_id}", Frame("show", "shop.items", "/srv/shop/items.py", 7)))
        {'http.request.method': 'GET', 'http.route': '/items/{item_id}', 'code.function.name': 'shop.items.show'}
    """
    # Clients can send any word as a method: as in the conventions, it does not become a value of its own.
    found = {METHOD: route.method if route.method in _METHODS or route.method == WEBSOCKET else "_OTHER"}
    if route.template is not None:
        found[ROUTE] = printable(route.template)
    if route.endpoint is not None:
        found[ENDPOINT] = printable(f"{route.endpoint.module}.{route.endpoint.function}")
    return found

"""What a request was routed to. Pure data."""

from __future__ import annotations

from typing import NamedTuple

from loopwatch.events import Frame

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

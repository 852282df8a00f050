"""The habits of the demo's service, and the observations of client and agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from loopwatch.demo import app
from loopwatch.events import AgentStats, Cause, Stall

EXPORT = "/export"
"""Template of the route that needs a disk."""
THRESHOLD = 0.1
"""Threshold of the agent in the service, seconds."""
HEALTH_EVERY = 0.02
"""Seconds between two requests to /health, each on its own connection: a slow response delays no other."""


@dataclass(frozen=True, slots=True)
class Habit:
    """A way to block a loop, with its true culprit and cause.

    Attributes:
        method, template: the route, as the service labels it.
        path: path of the request.
        culprit: qualified name of the blocking function.
        cause: why the loop is blocked.
    """

    method: str
    template: str
    path: str
    culprit: str
    cause: Cause

    @property
    def route(self) -> str:
        """Method and template."""
        return f"{self.method} {self.template}"


def _habit(method: str, template: str, culprit: Callable[..., object], cause: Cause) -> Habit:
    return Habit(method, template, template.replace("{id}", "2026-07"), culprit.__qualname__, cause)


HABITS = (
    _habit("GET", "/report/{id}", app.build_report, Cause.NATIVE_GIL),
    _habit("GET", "/thumbnail", app.shrink_image, Cause.PYTHON),
    _habit("POST", "/login", app.hash_password, Cause.NATIVE),
    _habit("GET", "/search", app.is_plain_search, Cause.NATIVE_GIL),
    _habit("GET", "/legacy", app.ask_old_inventory, Cause.SLEEP),
    _habit("GET", "/stock", app.ask_supplier, Cause.IO),
    _habit("POST", EXPORT, app.export_orders, Cause.IO),
    _habit("GET", "/lock", app.PriceList.price_of, Cause.LOCK),
    _habit("POST", "/fanout", app.notify_subscriber, Cause.OVERLOAD),
)
"""The blocking habits of the demo's service."""


@dataclass(slots=True)
class Seen:
    """Observations of the client and the agent; times in seconds since the epoch.

    Attributes:
        health: (time of request, seconds until the response) for each request to /health.
        slow: (time of request, time of response) for each slow request, by habit.
        failed: error, by route.
        stalls: stalls that the agent reported.
        agent: statistics of the agent at the end.
        began, ended: begin and end of the load.
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    slow: dict[Habit, list[tuple[float, float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    agent: AgentStats | None = None
    began: float = 0.0
    ended: float = 0.0

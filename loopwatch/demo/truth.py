"""What the demo's service does wrong, and what client and agent saw of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from loopwatch.demo import app
from loopwatch.events import AgentStats, Cause, Stall

EXPORT = "/export"
"""Template of the route that needs a disk."""
THRESHOLD = 0.1
"""s, of the agent in the service."""
HEALTH_EVERY = 0.02
"""s between two questions to /health: each on a connection of its own, so that a slow answer holds back no other."""


@dataclass(frozen=True, slots=True)
class Habit:
    """A way to block a loop, and the truth about it.

    Attributes:
        method, template: the route, as the service labels it.
        path: what is asked for.
        culprit: qualified name of the function that does it.
        cause: why the loop cannot go on meanwhile.
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
"""What the demo's service does wrong."""


@dataclass(slots=True)
class Seen:
    """What the client and the agent saw; times in seconds since the epoch.

    Attributes:
        health: (when asked, s until the answer) for each question to /health.
        slow: (when asked, when answered) for each slow request, by habit.
        failed: what went wrong, by route.
        stalls: what the agent told.
        agent: what the agent says of itself at the end.
        began, ended: of the load.
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    slow: dict[Habit, list[tuple[float, float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    agent: AgentStats | None = None
    began: float = 0.0
    ended: float = 0.0

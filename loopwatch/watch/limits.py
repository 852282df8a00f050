"""Thresholds by route or task: which limit a block is judged by. Pure.

The watcher looks for blocks by the lowest limit there is. Once a block is over, and its callback is known, it is judged
by that callback's limit, before anything counts it: so it counts in full or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from loopwatch.config import Config
from loopwatch.watch.observation import Caller
from loopwatch.watch.routes.route import METHOD, ROUTE

ROUTES = (ROUTE, "route")
"""Labels that hold the template of a route."""
METHODS = (METHOD, "method")
"""Labels that hold the method of a request."""


def lowest(config: Config) -> float:
    """Return the lowest limit in seconds, from which on a block is looked at.

    Example:
        >>> lowest(Config(threshold=0.1, thresholds={"GET /health": 0.02, "batch-*": 2.0}))
        0.02
    """
    return min((config.threshold, *(seconds for _, seconds in pairs(config))))


def pairs(config: Config) -> tuple[tuple[str, float], ...]:
    """Return the patterns and their limits in seconds, in order."""
    given = config.thresholds
    return given if isinstance(given, tuple) else tuple(given.items())


def limit_of(config: Config, caller: Caller) -> float:
    """Return the limit in seconds for blocks of ``caller``: of the first pattern that matches, else ``threshold``.

    Example:
        >>> config = Config(threshold=0.1, thresholds={"GET /report/*": 0.5, "batch-*": 2.0})
        >>> limit_of(config, Caller("Task-3", "handle", {"http.route": "/report/{id}", "http.request.method": "GET"}))
        0.5
        >>> limit_of(config, Caller("batch-7", "import_rows")), limit_of(config, Caller(None, None))
        (2.0, 0.1)
    """
    if not config.thresholds:
        return config.threshold
    from fnmatch import fnmatchcase  # loaded by the check of the setting

    names = tuple(_names(caller))
    for pattern, seconds in pairs(config):
        if any(fnmatchcase(name, pattern) for name in names):
            return seconds
    return config.threshold


def _names(caller: Caller) -> Iterator[str]:
    """Yield the names that patterns are compared with: ``GET /route``, ``/route``, of the task, of its coroutine."""
    labels = caller.context
    route = next((labels[key] for key in ROUTES if key in labels), None)
    if route is not None:
        method = next((labels[key] for key in METHODS if key in labels), None)
        if method is not None:
            yield f"{method} {route}"
        yield route
    if caller.task is not None:
        yield caller.task
    if caller.coroutine is not None:
        yield caller.coroutine

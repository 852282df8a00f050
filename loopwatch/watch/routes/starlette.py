"""The template of a request's route in Starlette and FastAPI, with the prefixes of mounts and included routers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAX_DEPTH = 10
"""Levels of mounts and routers that are searched."""


def route_template(scope: Mapping[str, Any], app: object) -> str | None:
    """Return the template of the route that serves ``scope``, None if it is not known (yet).

    It is looked up among the routes of ``app``, the outermost application, so that the templates of mounts around it
    are part of it; the path of the request is never used.
    """
    route, endpoint = scope.get("route"), scope.get("endpoint")
    if route is None and endpoint is None:
        return None

    # FastAPI, where it keeps included routers as branches: the route as it is under their prefixes.
    fastapi = scope.get("fastapi")
    effective = path_of(fastapi.get("effective_route_context")) if isinstance(fastapi, Mapping) else ""

    def serves(candidate: object, inclusion: str | None) -> bool:
        if inclusion is not None and effective and inclusion + path_of(candidate) != effective:
            return False  # the same route, but of another inclusion of its router
        return candidate is route if route is not None else getattr(candidate, "endpoint", None) is endpoint

    return _find(serves, getattr(app, "routes", None) or ()) or effective or path_of(route) or None


def path_of(route: object) -> str:
    """Return the template of one route, "" if it has none."""
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else ""


def _find(
    serves: Callable[[object, str | None], bool],
    routes: Any,
    prefix: str = "",
    inclusion: str | None = None,
    depth: int = MAX_DEPTH,
) -> str | None:
    """Return the whole template of the route that ``serves``: ``prefix`` of mounts, ``inclusion`` of routers."""
    for route in routes:
        path = prefix + (inclusion or "") + path_of(route)
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

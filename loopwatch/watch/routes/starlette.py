"""The template of a request's route in Starlette and FastAPI, with the prefixes of mounts and included routers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

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

    found = list(_find(serves, getattr(app, "routes", None) or ()))
    if len(found) > 1:  # the same route in several mounts
        mounted = str(scope.get("root_path", "")).removeprefix(str(scope.get("app_root_path", "")))
        found = [each for each in found if _fits(each.mounts, mounted)] or found
    return (found[0].template if found else effective or path_of(route)) or None


def path_of(route: object) -> str:
    """Return the template of one route, "" if it has none."""
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else ""


class _Found(NamedTuple):
    mounts: str
    template: str


def _find(
    serves: Callable[[object, str | None], bool],
    routes: Any,
    mounts: str = "",
    inclusion: str | None = None,
    depth: int = MAX_DEPTH,
) -> Iterator[_Found]:
    """Yield the whole templates of the routes that ``serves``.

    Args:
        serves: whether a route, with the prefix of its inclusion, is the one.
        routes: that are searched, and those inside of them.
        mounts: template of the mounts around them.
        inclusion: prefix of the included routers around them, within the innermost mount; None outside of any.
        depth: levels that are left.
    """
    for route in routes:
        path = mounts + (inclusion or "") + path_of(route)
        if serves(route, inclusion):
            yield _Found(mounts, path)
            continue
        router = getattr(route, "original_router", None)
        inner = getattr(route if router is None else router, "routes", None)
        if not inner or not depth:
            continue
        if router is None:
            yield from _find(serves, inner, path, None, depth - 1)
        else:
            added = getattr(getattr(route, "include_context", None), "prefix", "")
            yield from _find(serves, inner, mounts, (inclusion or "") + added, depth - 1)


def _fits(template: str, path: str) -> bool:
    """Whether the template of mounts fits the part of the path that they matched."""
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        one == other or one.startswith("{") for one, other in zip(wanted, given, strict=True)
    )

"""Finds the requests that a thread was serving: frames of known frameworks on its stack, and what they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from types import CoroutineType, FrameType
from typing import Any, NamedTuple

from loopwatch.core.frames import module_of
from loopwatch.core.patches import loaded
from loopwatch.watch.routes.frame_locals import variables
from loopwatch.watch.routes.route import Route

PART = "route"
"""Name under which faults are counted."""

MAX_PARENTS = 10
"""Tasks above the running one whose frames are searched."""
MAX_AWAITS = 200
"""Coroutines that await each other, of one such task."""


class Request(NamedTuple):
    """A request as found: objects of the framework, to be read and dropped soon.

    Attributes:
        framework: name of its reader.
        values: what the reader takes.
    """

    framework: str
    values: tuple[Any, ...]


class _Known(NamedTuple):
    framework: str
    names: tuple[str, ...]


_STARLETTE = _Known("starlette", ("self", "scope"))
_DJANGO = _Known("django", ("request",))
_FRAMES = {
    ("starlette.applications", "Starlette.__call__"): _STARLETTE,  # FastAPI too
    ("starlette.routing", "Router.__call__"): _STARLETTE,  # below a middleware that has a task of its own
    ("litestar.app", "Litestar.__call__"): _Known("litestar", ("scope",)),
    ("aiohttp.web_protocol", "RequestHandler._handle_request"): _Known("aiohttp", ("request",)),
    ("quart.asgi", "ASGIHTTPConnection.handle_request"): _Known("quart", ("self", "request")),
    ("quart.asgi", "ASGIWebsocketConnection.handle_websocket"): _Known("quart", ("self", "websocket")),
    ("django.core.handlers.asgi", "ASGIHandler.handle"): _DJANGO,  # sends the response, too
    ("django.core.handlers.asgi", "ASGIHandler.handle.<locals>.process_request"): _DJANGO,  # 4.2 to 5.2: in a task
    ("django.core.handlers.base", "BaseHandler.get_response_async"): _DJANGO,
    ("django.core.handlers.base", "BaseHandler._get_response_async"): _DJANGO,  # below a synchronous middleware
}
"""Frames of requests, by module and qualified name, and the variables that are read. All of them await a coroutine."""

_NAMES = frozenset(name.rpartition(".")[2] for _, name in _FRAMES)


def see(frame: FrameType, callee: FrameType | None, found: list[Request]) -> None:
    """Add the request that ``frame`` serves to ``found``, in place of one of the same framework further in.

    The outermost application knows the whole template, with the prefixes of what is mounted in it.

    Args:
        frame: any frame; called from the innermost one outwards.
        callee: the frame above it on the stack.
        found: of the frames before.
    """
    code = frame.f_code
    if code.co_name not in _NAMES:
        return
    known = _FRAMES.get((module_of(frame), code.co_qualname))
    values = None if known is None else variables(frame, callee, known.names)
    if known is not None and values is not None and any(value is not None for value in values):
        found[:] = [request for request in found if request.framework != known.framework]
        found.append(Request(known.framework, values))


def see_parents(task: Any, found: list[Request]) -> None:
    """Add the requests of the tasks that wait for ``task``, as far as anyio knows them.

    Starlette's streaming responses and its ``BaseHTTPMiddleware`` serve a request in tasks of their own.
    """
    states = getattr(loaded("anyio._backends._asyncio"), "_task_states", None)
    for _ in range(MAX_PARENTS):
        if states is None or task is None:
            return
        scope = getattr(states.get(task), "cancel_scope", None)
        while scope is not None and scope._host_task is task:
            scope = scope._parent_scope
        task = getattr(scope, "_host_task", None)
        if task is not None:
            _see_suspended(task.get_coro(), found)


def _see_suspended(coroutine: Any, found: list[Request]) -> None:
    """Add the requests of a suspended coroutine and those that it awaits, which are its stack."""
    frames: list[FrameType] = []
    for _ in range(MAX_AWAITS):
        if type(coroutine) is not CoroutineType:
            break
        if coroutine.cr_frame is not None:
            frames.append(coroutine.cr_frame)
        coroutine = coroutine.cr_await
    callee = None
    for frame in reversed(frames):
        see(frame, callee, found)
        callee = frame


def resolve(found: Iterable[Request]) -> Route | None:
    """Return the route of the innermost request whose route is known, else what is known; None for no request."""
    from loopwatch.watch.routes.frameworks import READERS

    best: Route | None = None
    for request in found:
        route = READERS[request.framework](*request.values)
        if route is not None and (best is None or (best.template is None and route.template is not None)):
            best = route
    return best

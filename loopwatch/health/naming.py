"""Display names of pools, tasks and exceptions, and the code location where a pool was created."""

from __future__ import annotations

import functools
import sys
from collections.abc import Container, Sequence
from contextvars import Context
from itertools import count
from types import BuiltinMethodType, FrameType, MethodType
from typing import Any, NamedTuple

from loopwatch.core.text import MAX_PATH, printable

LONGEST = 100
"""Characters of a name."""


def task_name(function: Any, arguments: Sequence[Any] = ()) -> str:
    """Return the name of the function that a task runs, ``module:qualname``; never its arguments.

    Wrappers are unwrapped: those that pools add for ``map``, the ``run`` of a context, by which
    :func:`asyncio.to_thread` and Quart call, and the methods of :data:`_METHODS`.

    Args:
        function: what the pool calls.
        arguments: positional ones of that call.

    Example:
        >>> import contextvars, functools, os
        >>> task_name(functools.partial(contextvars.copy_context().run, os.path.join, "a"))
        'posixpath:join'
        >>> task_name(contextvars.copy_context().run, (os.path.join, "a"))
        'posixpath:join'
    """
    for _ in range(MOST_WRAPPERS):
        if isinstance(function, functools.partial):
            function, arguments = function.func, (*function.args, *arguments)
        inner = _wrapped(function, arguments)
        if inner is not None:
            function, *arguments = inner
        elif not isinstance(function, functools.partial):
            break
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        function = type(function)
        name = function.__qualname__
    module = getattr(function, "__module__", None)
    return printable(f"{module}:{name}" if isinstance(module, str) else name, LONGEST)


MOST_WRAPPERS = 8
"""Most wrappers that are unwrapped: a name is read in a thread that polls all pools."""
_AROUND = ("_process_chunk", "_process_chunk_with_context")
"""Functions whose first argument is called."""
_METHODS = {"asgiref.sync": "func"}
"""Modules of classes whose methods call what an attribute of the object holds: ``sync_to_async``, used by Django."""


def _wrapped(function: Any, arguments: Sequence[Any]) -> Sequence[Any] | None:
    """Return the call that ``function`` makes, with its positional arguments; None if it is no known wrapper."""
    if type(function) is BuiltinMethodType and type(function.__self__) is Context:  # its ``run``
        return arguments or None
    if type(function) is MethodType:
        held = _METHODS.get(getattr(function.__func__, "__module__", ""))
        inner = None if held is None else getattr(function.__self__, held, None)
        return None if inner is None else (inner,)
    is_around = arguments and getattr(function, "__name__", None) in _AROUND
    return arguments if is_around else None


def error_name(error: BaseException) -> str:
    """Return the type of an exception, as in the attribute ``error.type``.

    Example:
        >>> import json
        >>> error_name(ValueError()), error_name(json.JSONDecodeError("", "", 0))
        ('ValueError', 'json.decoder.JSONDecodeError')
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return printable(name, LONGEST)


def pool_name(kind: str, place: str, taken: Container[str], given: str = "") -> str:
    """Return a name that is unique in this process and the same in every run of the program.

    Args:
        kind: class of the pool.
        place: where it was created, ``file:line in function``.
        taken: names of other pools.
        given: name that the program gave it.

    Example:
        >>> pool_name("ThreadPoolExecutor", "/srv/app.py:12 in main", {"ThreadPoolExecutor at app.py:12"})
        'ThreadPoolExecutor at app.py:12 #2'
    """
    *folders, where = place.partition(" in ")[0].replace("\\", "/").split("/")
    if where.startswith("__init__.py") and folders:
        where = f"{folders[-1]}/{where}"
    name = printable(given or (f"{kind} at {where}" if where else kind), LONGEST)
    return next(free for n in count(1) if (free := name if n == 1 else f"{name} #{n}") not in taken)


MOST = 60
"""Most frames examined."""

_MACHINERY = (
    "asyncio", "concurrent", "contextlib", "functools", "joblib", "loky", "loopwatch", "multiprocessing", "os",
    "subprocess", "threading", "uvloop", "wrapt", "weakref",
)  # fmt: skip
"""Modules that create pools and processes on behalf of others."""
_POOLS = (
    "concurrent.futures.process", "multiprocessing.pool", "multiprocessing.resource_tracker",
    "multiprocessing.forkserver", "loky", "joblib.externals.loky", "loopwatch.workers",
)  # fmt: skip
"""Those whose pools manage the processes they create."""
_SHOWN = ("loopwatch.demo.app",)
_ASIDE = ("opentelemetry.sdk",)
"""Libraries whose short-lived pools are not watched: one for each set of resource attributes."""


class Origin(NamedTuple):
    """Where a pool or process was created.

    Attributes:
        place: ``file:line in function``; empty if no frame is the program's.
        pool: module of the pool that created it, None if the program did.
        aside: whether it is not to be watched.
    """

    place: str
    pool: str | None
    aside: bool = False


def origin(skip: int = 1) -> Origin:
    """Return the place in the program from which the caller is called.

    Args:
        skip: frames to skip, this function's first.
    """
    frame: FrameType | None = sys._getframe(skip)
    pool = None
    for _ in range(MOST):
        if frame is None:
            break
        module = frame.f_globals.get("__name__")
        module = module if isinstance(module, str) else ""
        if pool is None and _within(module, _POOLS):
            pool = module
        if not _within(module, _MACHINERY) or _within(module, _SHOWN):
            code = frame.f_code
            place = f"{printable(code.co_filename, MAX_PATH)}:{frame.f_lineno} in {printable(code.co_qualname)}"
            return Origin(place, pool, _within(module, _ASIDE))
        frame = frame.f_back
    return Origin("", pool)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)

"""What pools, their tasks and the errors of those are called."""

from __future__ import annotations

import functools
from collections.abc import Container
from itertools import count
from typing import Any

from loopwatch.core.text import printable

LONGEST = 100
"""Characters of a name."""


def task_name(function: Any) -> str:
    """Return the name of the function that a task runs, ``module:qualname``; never its arguments.

    What pools put around it for ``map`` is looked through.

    Example:
        >>> import functools, os
        >>> task_name(functools.partial(os.path.join, "a"))
        'posixpath:join'
    """
    for _ in range(8):
        if not isinstance(function, functools.partial):
            break
        inner = function.args[0] if function.func.__name__ in _AROUND and function.args else function.func
        function = inner
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        function = type(function)
        name = function.__qualname__
    module = getattr(function, "__module__", None)
    return printable(f"{module}:{name}" if isinstance(module, str) else name, LONGEST)


_AROUND = ("_process_chunk", "_process_chunk_with_context")


def error_name(error: BaseException) -> str:
    """Return the type of an exception, as the attribute ``error.type`` has it.

    Example:
        >>> import json
        >>> error_name(ValueError()), error_name(json.JSONDecodeError("", "", 0))
        ('ValueError', 'json.decoder.JSONDecodeError')
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return printable(name, LONGEST)


def pool_name(kind: str, place: str, taken: Container[str], given: str = "") -> str:
    """Return a name that no other pool has, the same whenever the program runs.

    Args:
        kind: what it is, its class.
        place: where it was made, ``file:line in function``.
        taken: names of others.
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

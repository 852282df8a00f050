"""What belongs to one event loop or one thread, and is of no use elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

MOST_LOOKED_AT = 1000
"""Objects inside the arguments of a call that are looked at for what belongs to an event loop."""
_ATOMS = (int, float, complex, bool, str, bytes, type(None), type(...))
CODE = (ModuleType, FunctionType, BuiltinFunctionType, type)
"""Of these nothing is changed by a call: the same object is found elsewhere by its name."""
FIXED = (*_ATOMS, *CODE, frozenset)
"""Of these neither."""
_OF_LOOPS = ("asyncio", "_asyncio", "uvloop")
_OF_A_THREAD = {("sqlite3", "Connection"), ("sqlite3", "Cursor"), ("_thread", "_local")}
"""Classes by (module, name): sqlite3 refuses other threads, and a ``threading.local`` is another one there."""

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def of_a_loop(call: Call) -> str:
    """Return the kind of an object among the arguments of a call that is of no use elsewhere; "" if there is none.

    Those are objects of asyncio, some of which pickle, as useless copies, and what belongs to one thread. Nothing of
    the program's is run for it: a proxy may raise when it is asked for its class.
    """
    args, kwargs = call
    todo: list[Any] = [*args, *kwargs.values()]
    seen: set[int] = set()
    for _ in range(MOST_LOOKED_AT):
        if not todo:
            break
        item = todo.pop()
        kind = type(item)
        if issubclass(kind, FIXED) or id(item) in seen:
            continue
        seen.add(id(item))
        if kind_elsewhere := of_no_use_elsewhere(item):
            return kind_elsewhere
        inner = item if kind in (list, tuple, set) else item.values() if kind is dict else _own_of(item)
        todo.extend(itertools.islice(inner, MOST_LOOKED_AT))
    return ""


def of_no_use_elsewhere(item: Any) -> str:
    """Return the kind of ``item`` if it belongs to an event loop or to one thread, else "".

    Example:
        >>> import asyncio
        >>> of_no_use_elsewhere(asyncio.Lock()), of_no_use_elsewhere([])
        ('asyncio.locks.Lock', '')
    """
    kind = type(item)
    if is_of_a_loop(item) or any((each.__module__, each.__name__) in _OF_A_THREAD for each in type.mro(kind)):
        return f"{kind.__module__}.{kind.__qualname__}"
    return ""


def _own_of(item: Any) -> Iterable[Any]:
    try:
        own = object.__getattribute__(item, "__dict__")
    except Exception:  # noqa: BLE001 - a property of the program's
        return ()
    return own.values() if type(own) is dict else ()


def is_of_a_loop(item: Any) -> bool:
    kind = type(item)
    return kind.__module__.partition(".")[0] in _OF_LOOPS and not issubclass(kind, BaseException)

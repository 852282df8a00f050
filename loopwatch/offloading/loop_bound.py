"""Detects objects bound to one event loop or thread, which cannot be offloaded; lists the names a function uses."""

from __future__ import annotations

import dis
import itertools
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

MOST_LOOKED_AT = 1000
"""Objects inside the arguments of a call that are inspected at most."""
_ATOMS = (int, float, complex, bool, str, bytes, type(None), type(...))
CODE = (ModuleType, FunctionType, BuiltinFunctionType, type)
"""Types that a call does not change: another process finds the same object by its name."""
FIXED = (*_ATOMS, *CODE, frozenset)
"""All types that a call does not change."""
_OF_LOOPS = ("asyncio", "_asyncio", "uvloop")
_OF_A_THREAD = {("sqlite3", "Connection"), ("sqlite3", "Cursor"), ("_thread", "_local")}
"""Classes by (module, name): sqlite3 refuses other threads, and a ``threading.local`` differs in each."""

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def of_a_loop(call: Call) -> str:
    """Return the type of an argument of a call that is bound to a loop or thread, "" if there is none.

    Bound are objects of asyncio, some of which pickle, as useless copies, and objects of one thread. No code of the
    program runs: a proxy may raise when asked for its class.
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
    """Return the type of ``item`` if it is bound to an event loop or to one thread, else "".

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
    except Exception:  # noqa: BLE001 - a property of the program
        return ()
    return own.values() if type(own) is dict else ()


def is_of_a_loop(item: Any) -> bool:
    """Return whether ``item`` is an object of asyncio or uvloop; their exceptions are not bound.

    Example:
        >>> import asyncio
        >>> is_of_a_loop(asyncio.Event()), is_of_a_loop(TimeoutError())
        (True, False)
    """
    kind = type(item)
    return kind.__module__.partition(".")[0] in _OF_LOOPS and not issubclass(kind, BaseException)


class Names(NamedTuple):
    """Names in the code of a function, and of the functions of its module that it calls.

    Attributes:
        read, assigned: names of globals.
        attributes: names of attributes, of any object.
    """

    read: set[str]
    assigned: set[str]
    attributes: set[str]


def calls_itself(code: CodeType, names: Mapping[str, Any]) -> bool:
    """Whether a function refers to itself by name, or a method to its own name on the same object."""
    own, first, todo = code.co_name, code.co_varnames[: min(code.co_argcount, 1)], [code]
    is_global = getattr(names.get(own), "__code__", None) is code
    while todo:
        each = todo.pop()
        before: tuple[Any, ...] = ()
        for instruction in dis.get_instructions(each):
            name, opname = instruction.argval, instruction.opname
            if name == own and opname == "LOAD_GLOBAL" and is_global:
                return True
            if name == own and opname in ("LOAD_ATTR", "LOAD_METHOD") and before == first != ():
                return True
            # The object is loaded right before; Python 3.13 may combine that with another instruction.
            loads = opname.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_FAST_LOAD_FAST"))
            before = () if not loads else name[-1:] if isinstance(name, tuple) else (name,)
        todo.extend(const for const in each.co_consts if isinstance(const, CodeType))
    return False


def names_of(code: CodeType, names: Mapping[str, Any]) -> Names:
    """Return the names in ``code``; ``names`` are the globals of its module."""
    found = Names(set(), set(), set())
    todo, seen = [code], set()
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        for instruction in dis.get_instructions(each):
            name = str(instruction.argval)
            if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                found.assigned.add(name)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                found.attributes.add(name)
            elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found.read.add(name)
                called = names.get(name)
                if isinstance(called, FunctionType) and called.__globals__ is names:
                    todo.append(called.__code__)
        todo.extend(const for const in each.co_consts if isinstance(const, CodeType))
    return found

"""What the code of a function names, as far as it can be read without running it."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple


class Names(NamedTuple):
    """Names in the code of a function, and of the functions of its module that it calls.

    Attributes:
        read, assigned: of globals.
        attributes: of anything.
    """

    read: set[str]
    assigned: set[str]
    attributes: set[str]


def calls_itself(code: CodeType, names: Mapping[str, Any]) -> bool:
    """Whether a function names itself, or a method what has its name of the same object."""
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
            # The object is put on the stack right before; Python 3.13 may do that together with something else.
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

"""Checks whether a plain function may suspend its task: not while one of its callers holds a lock.

A suspended holder of a ``threading.Lock`` dead-locks the loop for good as soon as another task wants the lock, and an
``RLock`` lets the other task in. The interpreter does not record which frame holds a lock, so the callers are
inspected: the exception table of a function says which ``with`` blocks it is in, the source names their context
managers. In a function that calls ``acquire()``, the state of the acquired object is read.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ast
import dis
import itertools
import linecache
import re
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

MOST_FRAMES = 500
MOST_LINES = 20
"""Lines of source read at most to understand one ``with``."""
_LOCKISH = re.compile(r"lock|mutex|semaphore|acquire", re.IGNORECASE)
_UNKNOWN: Any = object()
_IN_WITH = (dis.opmap["PUSH_EXC_INFO"], dis.opmap["WITH_EXCEPT_START"])
"""First instructions of the handler of a ``with``; that of an ``async with`` awaits next."""
_LOADS = {dis.opmap["LOAD_ATTR"]: int(sys.version_info >= (3, 12)), dis.opmap.get("LOAD_METHOD", -1): 0}
"""Instructions that load an attribute, and how many low bits of their argument do not belong to the name's index."""
_AWAITS = dis.opmap["GET_AWAITABLE"]


class _Entry(NamedTuple):
    """An entry of an exception table: its range of the code, its handler, and whether that is of a ``with``."""

    begin: int
    end: int
    handler: int
    of_with: bool


class _Named(NamedTuple):
    """An expression that may be a lock, with its source text."""

    expression: ast.expr
    text: str


def why_not_here(frame: FrameType | None) -> str:
    """Return why a call made in ``frame`` must not suspend its task, "" if no reason is found.

    Args:
        frame: of the caller; it and its callers are inspected, up to the frame that began the step of the coroutine.
    """
    handlers = _signal_handlers()
    for _ in range(MOST_FRAMES):
        if frame is None:
            return ""
        code, module = frame.f_code, frame.f_globals.get("__name__")
        if code.co_name == "__del__" or (module == "weakref" and code.co_qualname == "finalize.__call__"):
            return f"{code.co_qualname}() may run in the midst of anything"
        if code in handlers:
            return f"{code.co_qualname}() handles a signal, in the midst of anything"
        if module == "importlib._bootstrap":
            return "a module is being imported, and its lock is held"
        found = _held(frame)
        if found:
            return f"{code.co_qualname}() {found}"
        frame = frame.f_back
    return f"it is called more than {MOST_FRAMES} frames deep"


def _signal_handlers() -> set[CodeType]:
    if threading.current_thread() is not threading.main_thread():
        return set()
    # Not signal.getsignal(), which looks up an enum member for each.
    handlers = (_signal.getsignal(number) for number in range(1, _signal.NSIG))
    codes = (getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers if handler)
    return {code for code in codes if isinstance(code, CodeType)}


def _held(frame: FrameType) -> str:
    code = frame.f_code
    entered = _entered(code, frame.f_lasti) if _with_table(code) else ()
    if entered is None:
        names = (*code.co_names, *code.co_varnames, *code.co_freevars)
        lockish = next((name for name in names if _LOCKISH.search(name)), "")
        return lockish and f"may hold a lock ({lockish}), its source cannot be read"
    for each in entered:
        if _is_lock(frame, each):
            return f"holds {each.text}"
    for each in _acquired(code) if "acquire" in code.co_names else ():
        if _is_locked(_value(frame, each.expression)):
            return f"holds {each.text}"
    return ""


@lru_cache(maxsize=4096)
def _with_table(code: CodeType) -> tuple[_Entry, ...]:
    """Return the exception table of a function that has a ``with``, else an empty one."""
    instructions = code.co_code
    if _IN_WITH[1] not in instructions[::2]:
        return ()
    entries = []
    numbers = _numbers(code.co_exceptiontable)
    for begin, length, handler, _ in zip(*[numbers] * 4, strict=False):
        first = tuple(instructions[2 * handler : 2 * handler + 6 : 2])
        of_with = first[:2] == _IN_WITH and first[2:] != (_AWAITS,)
        entries.append(_Entry(2 * begin, 2 * (begin + length), 2 * handler, of_with))
    return tuple(entries) if any(entry.of_with for entry in entries) else ()


def _numbers(table: bytes) -> Iterator[int]:
    """Yield the numbers of an exception table, 6 bits per byte: see InternalDocs/exception_handling.md of CPython."""
    number = 0
    for byte in table:
        number = number << 6 | byte & 63
        if not byte & 64:
            yield number
            number = 0


@lru_cache(maxsize=4096)
def _entered(code: CodeType, at: int) -> tuple[_Named, ...] | None:
    """Return the context managers of each ``with`` around an instruction; None if their source cannot be read."""
    table, found = _with_table(code), []
    for _ in range(len(table)):  # the handler of an inner block lies within the outer one
        entry = next((each for each in table if each.begin <= at < each.end), None)
        if entry is None or entry.handler == at:
            break
        if entry.of_with:
            begin = min(each.begin for each in table if each.handler == entry.handler)
            named = _named_at(code, begin - 2)
            if not named:
                return None
            found += named
        at = entry.handler
    return tuple(found)


def _named_at(code: CodeType, offset: int) -> list[_Named]:
    """Return the context managers that the instruction before a ``with`` block enters."""
    text = _text_at(code, next(itertools.islice(code.co_positions(), offset // 2, None), None))
    if not text:
        return []
    if re.match(r"with\b", text):  # Python 3.11 gives the position of the whole statement, with all context managers
        lines = text.splitlines(keepends=True)
        tries = ("".join(lines[:number]) + end for number in range(1, len(lines) + 1) for end in ("", "\n pass"))
        statement = next(filter(None, map(_parsed, tries)), None)
        nodes = [item.context_expr for item in statement.items] if isinstance(statement, ast.With) else []
    else:
        statement = _parsed(f"({text})")
        nodes = [statement.value] if isinstance(statement, ast.Expr) else []
    return [_Named(node, ast.unparse(node)) for node in nodes]


@lru_cache(maxsize=512)
def _acquired(code: CodeType) -> tuple[_Named, ...]:
    """Return the expressions whose ``acquire`` a function calls."""
    found = []
    positions = list(code.co_positions())
    for offset in _loads_of(code, code.co_names.index("acquire")):
        statement = _parsed(f"({_text_at(code, positions[offset // 2])})")
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Attribute):
            node = statement.value.value
            found.append(_Named(node, ast.unparse(node)))
    return tuple(found)


def _loads_of(code: CodeType, index: int) -> Iterator[int]:
    """Yield the offsets of the instructions that load an attribute; :mod:`dis` takes 50 times as long."""
    argument, instructions = 0, code.co_code
    for offset in range(0, len(instructions), 2):
        operation, argument = instructions[offset], argument << 8 | instructions[offset + 1]
        if operation == dis.EXTENDED_ARG:
            continue
        if operation in _LOADS and argument >> _LOADS[operation] == index:
            yield offset
        argument = 0


def _text_at(code: CodeType, position: tuple[int | None, ...] | None) -> str:
    """Return the source at a position (columns in bytes), at most MOST_LINES lines; "" if there is none."""
    line, last, begin, end = position or (None,) * 4
    if line is None or last is None or begin is None or end is None:
        return ""
    last_read = min(last, line + MOST_LINES - 1)
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(line, last_read + 1)]
    if last == last_read:
        lines[-1] = lines[-1][:end]
    lines[0] = lines[0][begin:]
    return b"".join(lines).decode(errors="replace")


def _parsed(text: str) -> ast.stmt | None:
    try:
        return ast.parse(text).body[0]
    except (SyntaxError, ValueError, IndexError):
        return None


def _is_lock(frame: FrameType, named: _Named) -> bool:
    value = _value(frame, named.expression)
    if value is _UNKNOWN:
        return _LOCKISH.search(named.text) is not None
    names = {*_own_of(value)}.union(*map(vars, type.mro(type(value))))  # a Condition has them as attributes of its own
    return names >= {"acquire", "release"}


def _is_locked(value: Any, *, deep: bool = True) -> bool:
    kind = type(value)
    if kind is type(threading.RLock()):
        return bool(value._is_owned())
    if kind is type(threading.Lock()):
        return bool(value.locked())
    if issubclass(kind, threading.Semaphore):
        return bool(value._value == 0)
    # An object that wraps a lock: a Condition, a handler of logging.
    return deep and any(_is_locked(each, deep=False) for each in list(_own_of(value).values()))


def _own_of(value: Any) -> dict[str, Any]:
    try:
        own = object.__getattribute__(value, "__dict__")
    except Exception:  # noqa: BLE001 - a property of the program
        return {}
    return own if type(own) is dict else {}


def _value(frame: FrameType, expression: ast.expr) -> Any:
    """Return the value of a dotted name in ``frame``, without running code of the program."""
    if isinstance(expression, ast.Name):
        for names in (frame.f_locals, frame.f_globals):
            if expression.id in names:
                return names[expression.id]
        return _UNKNOWN
    if not isinstance(expression, ast.Attribute):
        return _UNKNOWN
    owner = _value(frame, expression.value)
    if owner is _UNKNOWN:
        return _UNKNOWN
    return _attribute(owner, expression.attr)


def _attribute(owner: Any, name: str) -> Any:
    kind = type(owner)
    own = _own_of(owner)
    if name in own:
        return own[name]
    for each in () if issubclass(kind, ModuleType) else type.mro(owner if issubclass(kind, type) else kind):
        found = vars(each).get(name, _UNKNOWN)
        if isinstance(found, MemberDescriptorType):  # a slot
            try:
                return found.__get__(owner)
            except AttributeError:
                return _UNKNOWN
        if found is not _UNKNOWN:
            return _UNKNOWN if hasattr(type(found), "__get__") else found
    return _UNKNOWN

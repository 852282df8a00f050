"""Whether a plain function may be suspended where it is called: not while its callers hold a lock.

A suspended holder of a ``threading.Lock`` dead-locks the loop for good as soon as another task wants it, and an
``RLock`` lets the other task in. The interpreter does not tell who holds a lock, so the source of the callers is read:
a call inside ``with lock:``, or in a function that has called ``lock.acquire()`` on what is locked now.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

MOST_FRAMES = 500
_LOCKISH = re.compile(r"lock|mutex|semaphore|acquire", re.IGNORECASE)
_UNKNOWN: Any = object()
_Position = tuple[int, int]


class _Region(NamedTuple):
    """A part of a function, first and last (line, byte column), in which what ``expression`` stands for is held."""

    begin: _Position
    end: _Position
    expression: ast.expr
    text: str


class _Holds(NamedTuple):
    """What a function may hold: ``with`` blocks, and receivers of ``acquire``."""

    blocks: tuple[_Region, ...]
    acquired: tuple[_Region, ...]


def why_not_here(frame: FrameType | None) -> str:
    """Return why a call made in ``frame`` must not be suspended, "" if nothing that can be seen is against it.

    Args:
        frame: of the caller; it and all below it are looked at, up to the one that began the step of the coroutine.
    """
    for _ in range(MOST_FRAMES):
        if frame is None:
            return ""
        code = frame.f_code
        if code.co_name == "__del__":
            return f"{code.co_qualname}() may run in the midst of anything"
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return "a module is being imported, and its lock is held"
        holds = _holds_of(code)
        if holds is not None:
            found = _held(frame, holds)
            if found:
                return f"{code.co_qualname}() holds {found}"
        frame = frame.f_back
    return f"it is called more than {MOST_FRAMES} frames deep"


def _held(frame: FrameType, holds: _Holds) -> str:
    here: _Position | None = None
    for block in holds.blocks:
        here = here or _position(frame)
        if block.begin <= here <= block.end and _is_lock(frame, block):
            return block.text
    for call in holds.acquired:
        if _is_locked(_value(frame, call.expression)):
            return call.text
    return ""


def _position(frame: FrameType) -> _Position:
    positions = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), None)
    if positions is None or positions[0] is None:
        return frame.f_lineno or 0, 0
    return positions[0], positions[2] or 0


def _is_lock(frame: FrameType, block: _Region) -> bool:
    value = _value(frame, block.expression)
    if value is _UNKNOWN:
        return _LOCKISH.search(block.text) is not None
    own = getattr(value, "__dict__", {})  # where a Condition has them
    return all(hasattr(type(value), name) or name in own for name in ("acquire", "release"))


def _is_locked(value: Any) -> bool:
    if isinstance(value, type(threading.RLock())):
        return bool(value._is_owned())  # type: ignore[attr-defined]
    if isinstance(value, threading.Condition):
        return _is_locked(value._lock)  # type: ignore[attr-defined]
    return isinstance(value, type(threading.Lock())) and value.locked()


def _value(frame: FrameType, expression: ast.expr) -> Any:
    """Return what a dotted name stands for in ``frame``; nothing of the program's is run for it."""
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
    try:
        own = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        own = {}
    if name in own:
        return own[name]
    for each in () if isinstance(owner, ModuleType) else type.mro(owner if isinstance(owner, type) else type(owner)):
        found = vars(each).get(name, _UNKNOWN)
        if isinstance(found, MemberDescriptorType):  # of __slots__
            try:
                return found.__get__(owner)
            except AttributeError:
                return _UNKNOWN
        if found is not _UNKNOWN:
            return _UNKNOWN if hasattr(type(found), "__get__") else found
    return _UNKNOWN


@lru_cache(maxsize=512)
def _holds_of(code: CodeType) -> _Holds | None:
    """Return what a function may hold; None for nothing, or if there is no source."""
    if not {"acquire", "__enter__"} & set(code.co_names) and not _has_with(code):
        return None
    tree = _parsed(code)
    if tree is None:
        return None
    blocks, acquired = [], []
    for node in _own(tree):
        if isinstance(node, ast.With):
            last = node.body[-1]
            for item in node.items:
                begin = (node.body[0].lineno, node.body[0].col_offset)
                end = (last.end_lineno or last.lineno, last.end_col_offset or 0)
                blocks.append(_Region(begin, end, item.context_expr, ast.unparse(item.context_expr)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "acquire":
            receiver = node.func.value
            acquired.append(_Region((0, 0), (0, 0), receiver, ast.unparse(receiver)))
    return _Holds(tuple(blocks), tuple(acquired)) if blocks or acquired else None


def _has_with(code: CodeType) -> bool:
    import dis

    return any(each.opname == "WITH_EXCEPT_START" for each in dis.get_instructions(code))


def _parsed(code: CodeType) -> ast.AST | None:
    """Return the syntax tree of a function, with the positions that it has in its file."""
    lines = [each for positions in code.co_positions() for each in positions[:2] if each is not None]
    first, last = code.co_firstlineno, max(lines, default=code.co_firstlineno)
    source = [linecache.getline(code.co_filename, number) for number in range(first, last + 1)]
    if not source or not source[0]:
        return None
    indented = source[0][:1].isspace()
    try:
        tree = ast.parse(("if True:\n" if indented else "") + "".join(source))
    except (SyntaxError, ValueError):
        return None
    return ast.increment_lineno(tree, first - 1 - indented)


def _own(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of the functions in it."""
    inside = False
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if inside:
                continue
            inside = True
        yield node
        todo.extend(ast.iter_child_nodes(node))

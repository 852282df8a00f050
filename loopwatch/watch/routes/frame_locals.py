"""Reads variables of another thread's frame, so that neither the frame nor its objects notice.

Since 3.13 ``f_locals`` is a view of the frame (PEP 667). Before, it is a dict that the frame keeps until it ends, and
that each reading fills (``PyFrame_FastToLocalsWithError`` in CPython's Objects/frameobject.c): it would keep what the
function deletes, so all but the arguments are dropped from it again. A trace or profile function in Python writes that
dict back when it returns (``call_trampoline`` in Python/sysmodule.c), which would undo an assignment or delete a
variable. It can only do so for the frame that it was called for, which then does not stand in an ``await`` of a
coroutine: only frames that do are read.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

_IS_VIEW = sys.version_info >= (3, 13)


def variables(frame: FrameType, callee: FrameType | None, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    """Return the variables ``names`` of ``frame``, None for each that is unset; None where they cannot be read safely.

    Args:
        frame: of a function, which runs in another thread or is suspended.
        callee: the frame above it on the stack.
        names: variables, best arguments: their values live as long as the frame.
    """
    if callee is None or not callee.f_code.co_flags & inspect.CO_COROUTINE:
        return None
    if not _IS_VIEW and frame.f_trace is not None:
        return None  # a debugger works with the dict, such as ``pdb`` at a breakpoint further in
    values = frame.f_locals
    found = tuple(values.get(name) for name in names)
    if not _IS_VIEW:
        code = frame.f_code
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        for name in [name for name in values if name not in arguments]:
            values.pop(name, None)
    return found

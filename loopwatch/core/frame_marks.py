"""Marks a frame so that the same call is recognised again, invisibly to the program and to debuggers.

``f_trace_lines`` is the only frame attribute that any code can set and that ends with the call; but a debugger that
begins to trace a frame with ``f_trace_lines = False`` does not stop at its lines. It is one byte of the frame object,
which the interpreter only compares with 0 (``PyFrameObject`` in CPython's Include/internal/pycore_frame.h,
``trace_line`` in Python/legacy_tracing.c): the mark is a 2 in place of the 1.
"""

from __future__ import annotations

import functools
import sys
from types import FrameType

_TRUE, _MARKED = 1, 2


def mark(frame: FrameType) -> bool | None:
    """Mark the call of ``frame``; return whether it was marked before, None where it cannot be marked.

    The caller must hold a reference to ``frame`` meanwhile.

    Example:
        >>> frame = sys._getframe()
        >>> mark(frame), mark(frame), frame.f_trace_lines
        (False, True, True)
    """
    offset = _offset()
    if offset is None:
        return None
    import ctypes

    byte = ctypes.c_ubyte.from_address(id(frame) + offset)
    if byte.value != _TRUE:
        return True if byte.value == _MARKED else None  # a debugger has switched off the tracing of lines
    byte.value = _MARKED
    return False


@functools.lru_cache(maxsize=1)
def _offset() -> int | None:
    """Return the offset of that byte in a frame object, found with this call's frame; None where it cannot be found."""
    try:
        import ctypes
    except ImportError:  # an interpreter built without it
        return None
    frame, size = sys._getframe(), FrameType.__basicsize__
    frame.f_trace_lines = True
    on = ctypes.string_at(id(frame), size)
    frame.f_trace_lines = False
    off = ctypes.string_at(id(frame), size)
    frame.f_trace_lines = True
    found = [place for place in range(size) if (on[place], off[place]) == (1, 0)]
    return found[0] if len(found) == 1 else None

"""Marks the frame of a call so that the same call is known again, where neither program nor debugger sees it.

The one attribute of a frame that anybody can set and that goes away with the call is ``f_trace_lines``; but a debugger
that begins to trace a frame with ``f_trace_lines = False`` does not stop at its lines. It is one byte of the frame
object, of which the interpreter only asks whether it is 0 (``PyFrameObject`` in CPython's
Include/internal/pycore_frame.h, ``trace_line`` in Python/legacy_tracing.c): the mark is a 2 in place of the 1.
"""

from __future__ import annotations

import functools
import sys
from types import FrameType

_TRUE, _MARKED = 1, 2


def mark(frame: FrameType) -> bool:
    """Mark the call of ``frame``, which must be held meanwhile; return whether it was not marked before.

    False too where the frame cannot be marked.

    Example:
        >>> frame = sys._getframe()
        >>> mark(frame), mark(frame), frame.f_trace_lines
        (True, False, True)
    """
    offset = _offset()
    if offset is None:
        return False
    import ctypes

    byte = ctypes.c_ubyte.from_address(id(frame) + offset)
    if byte.value != _TRUE:  # marked, or somebody has switched it off
        return False
    byte.value = _MARKED
    return True


@functools.lru_cache(maxsize=1)
def _offset() -> int | None:
    """Return where in a frame object that byte lies, as a frame of our own shows; None where it cannot be found."""
    try:
        import ctypes
    except ImportError:  # an interpreter that was built without it
        return None
    frame, size = sys._getframe(), FrameType.__basicsize__
    frame.f_trace_lines = True
    on = ctypes.string_at(id(frame), size)
    frame.f_trace_lines = False
    off = ctypes.string_at(id(frame), size)
    frame.f_trace_lines = True
    found = [place for place in range(size) if (on[place], off[place]) == (1, 0)]
    return found[0] if len(found) == 1 else None

"""The frames of other threads, where they may be read."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

_PYTHON: tuple[int, int] = sys.version_info[:2]
_read = sys._current_frames


def _interpreters() -> Any:
    """Return the interpreter's module about sub-interpreters, None where there is none or none is needed."""
    if _PYTHON < (3, 12):
        return None  # one GIL and one allocator for all
    try:
        # As the statement does: programs replace importlib.import_module by a function that raises on a loop.
        return __import__("_interpreters" if _PYTHON >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        return None


_known = _interpreters()
_MAIN = 0


def are_readable() -> bool:
    """Return whether frames of other threads may be read: not beside a sub-interpreter that has a GIL of its own.

    ``sys._current_frames`` goes through the threads of all interpreters and makes frame objects for them without their
    GIL and with the wrong allocator: ``free(): invalid pointer`` in 3.12 and 3.13 (``_PyThread_CurrentFrames`` in
    CPython's Python/pystate.c).
    """
    if _known is None:
        return True
    found = _known.list_all()
    if len(found) == 1:
        return True
    if _PYTHON < (3, 13):
        return False  # of which kind they are cannot be found out
    try:
        return all(_known.get_config(number).gil != "own" for number, _ in found if number != _MAIN)
    except Exception:  # noqa: BLE001 - InterpreterNotFoundError: one has just ended, or is not complete yet
        return False


def current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of every thread, drop it as soon as it is read; nothing where they are not readable.

    Example:
        >>> import threading
        >>> threading.get_ident() in current_frames()
        True
    """
    return _read() if are_readable() else {}

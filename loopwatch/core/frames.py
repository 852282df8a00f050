"""Reads the frames of other threads, where that is safe."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

_PYTHON: tuple[int, int] = sys.version_info[:2]
_read = sys._current_frames


def _interpreters() -> Any:
    """Return the interpreter's module for sub-interpreters, None where it does not exist or is not needed."""
    if _PYTHON < (3, 12):
        return None  # one GIL and one allocator for all interpreters
    try:
        # As the import statement does: programs make importlib.import_module raise on a loop's thread.
        return __import__("_interpreters" if _PYTHON >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        return None


_known = _interpreters()
_MAIN = 0


def are_readable() -> bool:
    """Return whether frames of other threads may be read: not beside a sub-interpreter with its own GIL.

    ``sys._current_frames`` walks the threads of all interpreters and creates frame objects for them without their GIL
    and with the wrong allocator: ``free(): invalid pointer`` in 3.12 and 3.13 (``_PyThread_CurrentFrames`` in CPython's
    Python/pystate.c).
    """
    if _known is None:
        return True
    found = _known.list_all()
    if len(found) == 1:
        return True
    if _PYTHON < (3, 13):
        return False  # their kind is unknown
    try:
        return all(_known.get_config(number).gil != "own" for number, _ in found if number != _MAIN)
    except Exception:  # noqa: BLE001 - InterpreterNotFoundError: one has just ended, or is being created
        return False


def module_of(frame: FrameType) -> str:
    """Return the name of the module that a frame's function was written in, "" if it has none.

    Bypasses overrides in subclasses of dict or str: no code of the program runs.
    """
    name: object = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else ""


def current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of every thread, empty where they are not readable; drop it once it is read.

    Example:
        >>> import threading
        >>> threading.get_ident() in current_frames()
        True
    """
    return _read() if are_readable() else {}

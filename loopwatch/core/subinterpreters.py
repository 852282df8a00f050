"""Detects sub-interpreters, which are not watched.

The interpreter ends the process if threads are left at the end of a sub-interpreter (``Py_EndInterpreter`` in CPython's
Python/pylifecycle.c); isolated ones allow no daemon threads (PEP 684), and not all imported modules support them.
"""

from __future__ import annotations

import sys


def in_subinterpreter() -> bool:
    """Return whether the calling thread runs in another interpreter than the main one.

    Example:
        >>> in_subinterpreter()
        False
    """
    if sys.version_info >= (3, 12):
        from _thread import _is_main_interpreter  # type: ignore[attr-defined]

        return not _is_main_interpreter()
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]
    except ImportError:  # an interpreter built without them
        return False
    return bool(interpreters.get_current() != interpreters.get_main())

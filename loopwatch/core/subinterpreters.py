"""Whether this code runs in a sub-interpreter, which is not watched.

The interpreter ends the process if threads are left at the end of a sub-interpreter (``Py_EndInterpreter`` in CPython's
Python/pylifecycle.c); isolated ones allow no daemon threads (PEP 684), and not all that is imported supports them.
"""

from __future__ import annotations

import sys


def in_subinterpreter() -> bool:
    """Return whether the calling thread runs in an interpreter other than the process's first.

    Example:
        >>> in_subinterpreter()
        False
    """
    if sys.version_info >= (3, 12):
        from _thread import _is_main_interpreter  # type: ignore[attr-defined]

        return not _is_main_interpreter()
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]
    except ImportError:  # an interpreter that was built without them
        return False
    return bool(interpreters.get_current() != interpreters.get_main())

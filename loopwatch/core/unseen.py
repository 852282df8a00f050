"""Hides wrappers from warnings and log records, so that they name the program's line and never one of the agent.

``warnings`` and ``logging`` skip the frames of the import system when they count ``stacklevel``. They recognise them by
file names that contain ``importlib`` and ``_bootstrap``: ``is_internal_filename`` in CPython's Python/_warnings.c,
``_is_internal_frame`` in Lib/warnings.py and in Lib/logging.
"""

from __future__ import annotations

import functools
from types import CodeType, FunctionType

TYPE_CHECKING = False  # recognised by type checkers; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

UNSEEN = " (skipped like importlib._bootstrap)>"
"""Suffix of the file names in the code of wrappers; see :func:`unseen_file`."""


def unseen(function: T) -> T:
    """Hide the frames of a wrapper, and return it.

    For a class this applies to the methods it defines; an object that is no function, method or class is returned
    unchanged.

    Example:
        >>> @unseen
        ... def wrapper(original): return original()
        >>> wrapper.__code__.co_filename.endswith(UNSEEN)
        True
    """
    for part in list(vars(function).values()) if isinstance(function, type) else [function]:
        plain = getattr(part, "__func__", part)
        if type(plain) is FunctionType:
            plain.__code__ = unseen_code(plain.__code__)
    return function


def unseen_file(file: str) -> str:
    """Return the file name for the code of wrappers in ``file``.

    It begins with "<", as for any code that has no file: otherwise reports of coverage would fail to find the file.
    """
    return f"<{file}{UNSEEN}"


def unseen_code(code: CodeType) -> CodeType:
    """Return ``code`` with the file name of a wrapper."""
    return code if code.co_filename.endswith(UNSEEN) else _renamed(code, unseen_file(code.co_filename))


@functools.lru_cache(maxsize=256)  # wrappers of one definition share their code and its specialization
def _renamed(code: CodeType, file: str) -> CodeType:
    return code.replace(co_filename=file)  # equal code may come from two files

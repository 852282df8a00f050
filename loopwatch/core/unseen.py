"""Wrappers that warnings and log records pass over, so that they name the program's line and never one of ours.

``warnings`` and ``logging`` do not count the frames of the import system among those that ``stacklevel`` goes up by.
They know them by the names of their files, which contain ``importlib`` and ``_bootstrap``: ``is_internal_filename`` in
CPython's Python/_warnings.c, ``_is_internal_frame`` in Lib/warnings.py and in Lib/logging.
"""

from __future__ import annotations

import functools
from types import CodeType, FunctionType

TYPE_CHECKING = False  # as type checkers know it; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

UNSEEN = " (skipped like importlib._bootstrap)>"
"""What the names of files end with in the code of wrappers; see :func:`unseen_file`."""


def unseen(function: T) -> T:
    """Have the frames of a wrapper passed over, and return it.

    Of a class these are the methods that it defines; what is neither function, method nor class stays as it is.

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
    """Return the name of ``file`` in the code of wrappers.

    With "<" at its beginning, as of any code that has no file: the reports of coverage would fail for want of it.
    """
    return f"<{file}{UNSEEN}"


def unseen_code(code: CodeType) -> CodeType:
    """Return ``code`` as that of a wrapper."""
    return code if code.co_filename.endswith(UNSEEN) else _renamed(code, unseen_file(code.co_filename))


@functools.lru_cache(maxsize=256)  # the wrappers of one definition share their code, and what it has learned of types
def _renamed(code: CodeType, file: str) -> CodeType:
    return code.replace(co_filename=file)  # equal code may come from two files

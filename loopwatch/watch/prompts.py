"""Recognizes code typed at an interactive prompt (a notebook cell), which blocks its loop on purpose. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from loopwatch.watch.stacks import RawFrame

REASON = "code typed at a prompt"

_TYPED = ("<stdin>", "<console>", "<python-input-", "<ipython-input-")
"""Prefixes of the file names that prompts give to typed code: Lib/code.py, Lib/_pyrepl/console.py, IPython."""
_COROUTINE = 0x80
"""``CO_COROUTINE`` (Include/cpython/code.h)."""
_SHELL = ("IPython.core.interactiveshell", "run_code")
"""Module and function that run a cell; the cell's file may have any name (ipykernel's is a temporary file)."""


def is_typed(frames: Sequence[RawFrame]) -> bool:
    """Whether ``frames``, innermost first, run code typed at a prompt.

    A cell that awaits is a coroutine like any other, and its blocks are reported: it was written for a running loop.
    """
    return any(_is_cell(inner, outer) for inner, outer in pairwise((*frames, None)) if inner is not None)


def _is_cell(frame: RawFrame, outer: RawFrame | None) -> bool:
    code = frame.code
    if code.co_name != "<module>" or code.co_flags & _COROUTINE:
        return False
    if code.co_filename.startswith(_TYPED):
        return True
    return outer is not None and (outer.module, outer.code.co_name) == _SHELL

"""Where a pool or a process was made: the innermost line of the program, and whether a known pool made it."""

from __future__ import annotations

import sys
from types import FrameType
from typing import NamedTuple

from loopwatch.core.text import MAX_PATH, printable

MOST = 60
"""Frames looked at."""

_MACHINERY = (
    "asyncio", "concurrent", "contextlib", "functools", "joblib", "loky", "loopwatch", "multiprocessing", "os",
    "subprocess", "threading", "uvloop", "wrapt", "weakref",
)  # fmt: skip
"""Modules that make pools and processes for others."""
_POOLS = (
    "concurrent.futures.process", "multiprocessing.pool", "multiprocessing.resource_tracker",
    "multiprocessing.forkserver", "loky", "joblib.externals.loky", "loopwatch.workers",
)  # fmt: skip
"""Those of them that look after what they have made."""
_SHOWN = ("loopwatch.demo.app",)
_ASIDE = ("opentelemetry.sdk",)
"""Libraries that make pools for a moment, which are nobody's business: for each set of attributes of a process."""


class Origin(NamedTuple):
    """Where something was made.

    Attributes:
        place: ``file:line in function``; empty where no frame is the program's.
        pool: module of the pool that made it, None if the program itself did.
        aside: whether it is of no interest.
    """

    place: str
    pool: str | None
    aside: bool = False


def origin(skip: int = 1) -> Origin:
    """Return where the caller is being called from.

    Args:
        skip: frames to leave out, the caller's own first.
    """
    frame: FrameType | None = sys._getframe(skip)
    pool = None
    for _ in range(MOST):
        if frame is None:
            break
        module = frame.f_globals.get("__name__")
        module = module if isinstance(module, str) else ""
        if pool is None and _within(module, _POOLS):
            pool = module
        if not _within(module, _MACHINERY) or _within(module, _SHOWN):
            code = frame.f_code
            place = f"{printable(code.co_filename, MAX_PATH)}:{frame.f_lineno} in {printable(code.co_qualname)}"
            return Origin(place, pool, _within(module, _ASIDE))
        frame = frame.f_back
    return Origin("", pool)


def place_of_interest() -> str | None:
    """Return where the program is making a pool, None for one that is nobody's business."""
    found = origin(2)
    return None if found.aside else found.place


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)

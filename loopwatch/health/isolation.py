"""Excludes single objects of the program on which the instrumentation failed, so that all others stay watched."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from loopwatch.core.faults import Faults

MOST = 1000
"""Most objects remembered; beyond that the oldest is forgotten, and may fail once more."""


class Isolation:
    """Objects on which the instrumentation failed, such as a mock in place of an executor; held weakly.

    Args:
        faults: counts each of them once.
        part: name under which they are counted.

    Example:
        >>> class Odd: pass
        >>> isolation, odd = Isolation(Faults(), "executor"), Odd()
        >>> isolation.add(odd, ValueError())
        True
        >>> isolation.has(odd), isolation.has(Odd())
        (True, False)
    """

    def __init__(self, faults: Faults, part: str) -> None:
        self._faults, self._part = faults, part
        self._failed: dict[int, weakref.ref[Any] | None] = {}

    def has(self, thing: object) -> bool:
        """Whether ``thing`` is excluded."""
        failed = self._failed
        if not failed or id(thing) not in failed:
            return False
        ref = failed.get(id(thing))
        return ref is None or ref() is thing

    def add(self, thing: object, exc: BaseException) -> bool:
        """Exclude ``thing`` from now on; return False if it already was."""
        if self.has(thing):
            return False
        failed, key = self._failed, id(thing)
        if len(failed) >= MOST:
            failed.pop(next(iter(failed)), None)
        try:
            failed[key] = weakref.ref(thing, functools.partial(_forget, failed, key))
        except TypeError:  # it does not support weak references
            failed[key] = None
        self._faults.add_one(self._part, exc)
        return True


def _forget(failed: dict[int, weakref.ref[Any] | None], key: int, ref: weakref.ref[Any]) -> None:
    """Forget a collected object, whose id may be reused."""
    if failed.get(key) is ref:
        failed.pop(key, None)

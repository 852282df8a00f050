"""Notices that a thread of the agent was kept from running in the midst of its work, mostly for want of the GIL."""

from __future__ import annotations

from collections.abc import Callable

from loopwatch.core.originals import time


class Lapse:
    """The time that one thread was last seen running. Not thread-safe: each thread has its own.

    Args:
        came_late: called with the seconds for which the thread did not run, if they are at least ``least``.
        least: seconds, more than a step of the thread's work takes.

    Example:
        >>> lapses = []
        >>> lapse = Lapse(lapses.append, least=0.0)
        >>> lapse.begin()
        >>> lapse.goes_on()
        >>> len(lapses)
        1
    """

    __slots__ = ("_came_late", "_last", "_least")

    def __init__(self, came_late: Callable[[float], object], least: float) -> None:
        self._came_late, self._least = came_late, least
        self._last = 0.0

    def begin(self, at: float | None = None) -> None:
        """Begin a piece of work, which was due ``at`` (``time.monotonic`` seconds, default now)."""
        self._last = time.monotonic() if at is None else at

    def goes_on(self) -> None:
        """Check how long the last step took: call it after steps that may release the GIL."""
        before, self._last = self._last, time.monotonic()
        if self._last - before >= self._least:
            self._came_late(self._last - before)

"""Notices that a thread of the agent was kept from running in the midst of its work, mostly for want of the GIL."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from loopwatch.core.originals import time
from loopwatch.system.threads import Scheduled, scheduled

SPARE_RUNS = 2
"""Runs beyond one each switch interval that prove nothing: at the begin and at the end of a wait."""
PUT_OFF = 3.0
"""Longest time in seconds for which the watcher puts off its work while calls that keep the GIL follow each other."""


class Waited(NamedTuple):
    """What a thread of the agent went through between two readings of the scheduler's account.

    Attributes:
        run_queue: seconds that it waited for a processor, None if unknown.
        runs: how many times it was given one, None if unknown.
        cpu: seconds that it ran.
    """

    run_queue: float | None = None
    runs: int | None = None
    cpu: float = 0.0

    def for_gil(self, late: float) -> float | None:
        """Return how many of ``late`` seconds it waited for the GIL, at most; None if it mostly waited for a processor.

        A thread that waits for the GIL is given a processor once each switch interval (``take_gil`` in CPython's
        Python/ceval_gil.c), unless a quota holds back all of its process.
        """
        interval, starved = sys.getswitchinterval(), self.run_queue or 0.0
        waited = max(late - starved - self.cpu, 0.0)
        if starved > max(waited, interval / 2) and waited < 3 * interval:
            return None  # it may have got the GIL at once, or not
        return waited if self.runs is None else min(waited, self.runs * interval)

    def for_gil_each(self, late: float) -> float | None:
        """Return how long one wait for the GIL was, where :meth:`for_gil` may be the sum of several.

        A thread keeps the GIL for a switch interval when others want it: so long has it computed between two waits. It
        is also given a processor each time that the GIL is released, and may find that another thread was faster: each
        holder kept it for a switch interval at most, as others wanted it.
        """
        waited, interval = self.for_gil(late), sys.getswitchinterval()
        if waited is None:
            return None
        vain = 0 if self.runs is None else max(self.runs - int(late / interval) - SPARE_RUNS, 0)
        return max(waited / (1 + int(self.cpu / interval) + vain), min(waited, interval) if vain else 0.0)

    @classmethod
    def between(cls, before: Scheduled | None, after: Scheduled | None) -> Waited:
        """Return the difference of two readings."""
        if before is None or after is None:
            return cls()
        return cls(
            max(after.run_queue - before.run_queue, 0.0),
            max(after.runs - before.runs, 0),
            max(after.cpu - before.cpu, 0.0),
        )


Glimpsed = TypeVar("Glimpsed")


class Lapse(Generic[Glimpsed]):
    """The time at which one thread was last seen running. Each thread has its own.

    Args:
        glimpse: called at once when the thread has not run for at least ``least`` seconds.
        came_late: called then with the result of ``glimpse``, the seconds, and what the thread waited for.
        least: seconds from which on a step may have waited for the GIL; what else it did is in what it ``waited``.

    Example:
        >>> lapses = []
        >>> lapse = Lapse(tuple, lambda glimpsed, late, waited: lapses.append(late), least=0.0)
        >>> lapse.begin()
        >>> lapse.goes_on()
        >>> len(lapses)
        1
    """

    __slots__ = ("_before", "_came_late", "_glimpse", "_last", "_least")

    def __init__(
        self, glimpse: Callable[[], Glimpsed], came_late: Callable[[Glimpsed, float, Waited], object], least: float
    ) -> None:
        self._glimpse, self._came_late, self._least = glimpse, came_late, least
        self._last = 0.0
        self._before: Scheduled | None = None

    def begin(self, at: float | None = None, known: Scheduled | None = None) -> None:
        """Begin a piece of work.

        Args:
            at: when it was due (``time.monotonic`` seconds); None: now, and the scheduler's account is read.
            known: a recent account of the thread, read before it was due.
        """
        if at is None:
            known = scheduled(threading.get_native_id())
        self._before = known or self._before
        self._last = time.monotonic() if at is None else at

    def goes_on(self) -> None:
        """Check how long the last step took: call it after steps that may release the GIL."""
        before, self._last = self._last, time.monotonic()
        late = self._last - before
        if late >= self._least:
            glimpsed = self._glimpse()
            known, self._before = self._before, scheduled(threading.get_native_id())
            self._came_late(glimpsed, late, Waited.between(known, self._before))

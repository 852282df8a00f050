"""Task statistics of one pool: counts by outcome, wait and run times, worker utilization."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from typing import NamedTuple

from loopwatch.core.histogram import Histogram

TOGETHER = 512
"""Finished tasks after which they are counted in one batch, unless a reader does so earlier."""
MOST_TYPES = 32
"""Most exception types distinguished; further ones are counted as :data:`OTHER`."""
OTHER = "other"
PERIOD = 1.0
"""Shortest window of utilization, seconds."""


class Outcome(NamedTuple):
    """One finished task; times in seconds, None if unknown.

    Attributes:
        wait: time it waited for a worker.
        run: time it ran in the worker.
        error: type of the exception that it raised, None if it succeeded.
        cpu: CPU time that it used.
    """

    wait: float | None
    run: float | None
    error: str | None = None
    cpu: float | None = None


class TaskStats:
    """Task counters and histograms. Workers only append to :attr:`latest`; readers call :meth:`fold` to count them.

    Example:
        >>> stats = TaskStats()
        >>> stats.add(Outcome(0.1, 0.5))
        >>> stats.add(Outcome(0.1, 0.5, "builtins.ValueError"))
        >>> stats.fold()
        >>> stats.completed, dict(stats.failures), stats.busy
        (1, {'builtins.ValueError': 1}, 1.0)
    """

    def __init__(self) -> None:
        self.latest: deque[tuple[float | None, float | None, str | None, float | None]] = deque()
        """Finished tasks not counted yet, with the fields of :class:`Outcome`; appending is atomic."""
        self.completed = self.cancelled = 0
        self.failures: Counter[str] = Counter()
        self.waits, self.runs = Histogram(), Histogram()
        self.busy = 0.0
        """Run time of finished tasks, seconds."""
        self.cpu: float | None = None
        """CPU seconds of finished tasks, None if unknown."""
        self.ref = weakref.ref(self)
        """A weak reference to this object, kept here as the garbage collector clears weak references within cycles."""
        self.neglected: Counter[str] = Counter()
        """Number of lost errors (of failed tasks, never retrieved) by type."""
        self._neglected: deque[str] = deque()
        self._sorting = threading.Lock()  # never waited for
        self._lock = threading.RLock()  # a signal handler or finalizer of the program may re-enter

    def add(self, outcome: Outcome) -> None:
        """Add a finished task."""
        self.latest.append(outcome)
        if len(self.latest) >= TOGETHER:
            self.fold(wait=False)

    def neglect(self, error: str) -> None:
        """Add a lost error; safe to call from a finalizer.

        Example:
            >>> stats = TaskStats()
            >>> stats.neglect("ValueError")
            >>> stats.fold()
            >>> dict(stats.neglected)
            {'ValueError': 1}
        """
        self._neglected.append(error)
        if len(self._neglected) >= TOGETHER:
            self._sort_neglected()

    def _sort_neglected(self) -> None:
        if not self._sorting.acquire(blocking=False):  # in progress in another thread, or interrupted in this one
            return
        try:
            while self._neglected:
                _count(self.neglected, self._neglected.popleft())
        finally:
            self._sorting.release()

    def fold(self, *, wait: bool = True) -> None:
        """Count the tasks and errors added since the last call.

        Args:
            wait: wait for another thread that is doing it; if False, return and leave it to that thread.
        """
        if not self._lock.acquire(blocking=wait):
            return
        try:
            self._sort_neglected()
            latest = self.latest
            outcomes = [latest.popleft() for _ in range(len(latest))]
            errors = [error for _, _, error, _ in outcomes if error is not None]
            runs = [run for _, run, _, _ in outcomes if run is not None]
            cpus = [cpu for _, _, _, cpu in outcomes if cpu is not None]
            self.waits.record_all([wait for wait, _, _, _ in outcomes if wait is not None])
            self.runs.record_all(runs)
            self.busy += sum(runs)
            if cpus:
                self.cpu = (self.cpu or 0.0) + sum(cpus)
            self.completed += len(outcomes) - len(errors)
            for error in errors:
                _count(self.failures, error)
        finally:
            self._lock.release()

    @property
    def failed(self) -> int:
        """Number of tasks that raised."""
        return sum(self.failures.values())


def _count(by_type: Counter[str], error: str) -> None:
    by_type[error if error in by_type or len(by_type) < MOST_TYPES else OTHER] += 1


class Window:
    """Utilization of workers: the share of their time spent running tasks, over the last second or longer.

    Example:
        >>> window = Window()
        >>> window.share(now=0.0, busy=0.0, workers=2), window.share(now=2.0, busy=1.0, workers=2)
        (0.0, 0.25)
    """

    def __init__(self) -> None:
        self._mark: tuple[float, float, float] | None = None
        self._before: tuple[float, float, float] | None = None
        self._last = 0.0
        self._alive = 0.0

    def share(self, now: float, busy: float, workers: int) -> float:
        """Add a reading and return the utilization, 0 to 1.

        Args:
            now: monotonic seconds.
            busy: seconds that tasks have run so far, including current ones.
            workers: number of workers alive.
        """
        if self._mark is None:
            self._mark = self._before = (now, busy, 0.0)
            self._last = now
            return 0.0
        self._alive += max(now - self._last, 0.0) * workers
        self._last = now
        here = (now, busy, self._alive)
        if now - self._mark[0] >= PERIOD:
            self._before, self._mark = self._mark, here
        since = self._before if self._before is not None else self._mark
        alive = here[2] - since[2]
        return min(max(busy - since[1], 0.0) / alive, 1.0) if alive > 0 else 0.0

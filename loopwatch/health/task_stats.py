"""Task statistics of one pool: counts by outcome, wait and run times, the share of time workers were busy."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from typing import NamedTuple

from loopwatch.core.histogram import Histogram

TOGETHER = 512
"""Tasks after which they are counted together, unless somebody asks before."""
MOST_TYPES = 32
"""Types of exceptions told apart; further ones are told as :data:`OTHER`."""
OTHER = "other"
PERIOD = 1.0
"""s that utilization is about, at least."""


class Outcome(NamedTuple):
    """One task that is over; s, None where that is not known.

    Attributes:
        wait: for a worker.
        run: in it.
        error: type of the exception that it raised.
        cpu: processor time that it used.
    """

    wait: float | None
    run: float | None
    error: str | None = None
    cpu: float | None = None


class TaskStats:
    """Counts tasks. Workers only append to :attr:`latest`; whoever asks puts them together.

    Example:
        >>> tally = Tally()
        >>> tally.add(Outcome(0.1, 0.5))
        >>> tally.add(Outcome(0.1, 0.5, "builtins.ValueError"))
        >>> tally.fold()
        >>> tally.completed, dict(tally.failures), tally.busy
        (1, {'builtins.ValueError': 1}, 1.0)
    """

    def __init__(self) -> None:
        self.latest: deque[tuple[float | None, float | None, str | None, float | None]] = deque()
        """What is not counted yet, as :class:`Outcome` has it; to append is atomic."""
        self.completed = self.cancelled = 0
        self.failures: Counter[str] = Counter()
        self.waits, self.runs = Histogram(), Histogram()
        self.busy = 0.0
        """s that tasks which are over have run."""
        self.cpu: float | None = None
        """s of processor time that they used, None as far as that is not known."""
        self.ref = weakref.ref(self)
        """Kept here, as the garbage collector clears weak references that it finds in cycles."""
        self.neglected: Counter[str] = Counter()
        """Failed tasks whose error nobody has asked for and nobody can any more, by type."""
        self._neglected: deque[str] = deque()
        self._sorting = threading.Lock()  # never waited for
        self._lock = threading.RLock()  # a signal handler or a finalizer of the program may come in between

    def add(self, outcome: Outcome) -> None:
        """Note a task that is over."""
        self.latest.append(outcome)
        if len(self.latest) >= TOGETHER:
            self.fold(wait=False)

    def neglect(self, error: str) -> None:
        """Note a failed task whose error nobody can ask for any more; may be called from a finalizer.

        Example:
            >>> tally = Tally()
            >>> tally.neglect("ValueError")
            >>> tally.fold()
            >>> dict(tally.neglected)
            {'ValueError': 1}
        """
        self._neglected.append(error)
        if len(self._neglected) >= TOGETHER:
            self._sort_neglected()

    def _sort_neglected(self) -> None:
        if not self._sorting.acquire(blocking=False):  # another thread does it, or this one was interrupted at it
            return
        try:
            while self._neglected:
                _count(self.neglected, self._neglected.popleft())
        finally:
            self._sorting.release()

    def fold(self, *, wait: bool = True) -> None:
        """Count what is not counted yet.

        Args:
            wait: for another thread that does it; else leave it to that one.
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
        """How many tasks raised."""
        return sum(self.failures.values())


def _count(by_type: Counter[str], error: str) -> None:
    by_type[error if error in by_type or len(by_type) < MOST_TYPES else OTHER] += 1


class Window:
    """Share of the workers' time in which they ran tasks, over the last second or longer.

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
        """Take a reading and return the share, 0 to 1.

        Args:
            now: monotonic s.
            busy: s that tasks have run so far, those that run now included.
            workers: that are alive.
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

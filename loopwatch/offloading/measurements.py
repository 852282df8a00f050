"""Measurements of one offloadable function: run times of its latest calls, and the cost of a trip to a process."""

from __future__ import annotations

import threading
from collections import deque

from loopwatch.offloading.policy import BUDGET, ENOUGH, Measured

KEPT = 50
"""Latest calls whose run times are kept."""
TRIPS = 5
"""Trips to a process needed to know the cost of one."""


class Measurements:
    """Measurements of the latest calls of one function; thread-safe.

    Attributes:
        is_slow: whether exact measurement is cheap beside the run time of the last call, or that is not known yet.

    Example:
        >>> known = Measurements()
        >>> known.add(0.2, 0.2)
        >>> known.measured(keeps_gil=None, bound="").run
        0.2
    """

    def __init__(self) -> None:
        self.is_slow = True
        self._lock = threading.Lock()
        self._runs: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._trips: deque[float] = deque(maxlen=TRIPS)

    def add(self, run: float, cpu: float) -> None:
        """Add a call that ran for ``run`` seconds and used ``cpu`` seconds of processor time."""
        with self._lock:
            self._runs.append((run, cpu))
            self.is_slow = run >= BUDGET / 2 or len(self._runs) < ENOUGH

    def add_trip(self, seconds: float) -> None:
        """Add the seconds of one round trip to a process, without the run time."""
        self._trips.append(seconds)

    def assume(self, calls: int, run: float, cpu: float) -> None:
        """Start with ``calls`` calls of equal length, as the watcher saw them; arguments as of :meth:`add`."""
        with self._lock:
            self._runs.extend([(run, cpu)] * min(calls, KEPT))

    def measured(self, *, keeps_gil: bool | None, bound: str) -> Measured | None:
        """Return the input of a decision, None before the first call; arguments as of :class:`Measured`."""
        with self._lock:
            slow = sorted(self._runs)[-max(len(self._runs) // 10, 1) :]
        if not slow:
            return None
        run = sum(each for each, _ in slow) / len(slow)
        cpu = sum(each for _, each in slow) / len(slow)
        return Measured(
            calls=len(self._runs),
            run=run,
            cpu_share=min(cpu / run, 1.0) if run > 0 else 1.0,
            # The shortest trip: others had to wait, the first ones for a worker to start.
            trip=min(self._trips) if len(self._trips) == TRIPS else None,
            keeps_gil=keeps_gil,
            bound=bound,
        )

    @property
    def median(self) -> float | None:
        """The median run time, seconds; None before the first call."""
        runs = sorted(run for run, _ in self._runs)
        return runs[len(runs) // 2] if runs else None

    def after_fork_in_child(self) -> None:
        """Renew the lock, which a thread of the parent may have held."""
        self._lock = threading.Lock()

"""Collects the lag of all loops for the journal: a histogram for each loop's name and span of time. Pure.

The first spans last a minute, later ones up to ten, and at most :data:`MAX_LOOPS` names are kept apart, so that lag
takes some ten megabytes of a journal a year. ``loopwatch report --suggest-threshold`` reads it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from loopwatch.core.histogram import Histogram
from loopwatch.events import LagRecord
from loopwatch.watch.observation import LoopReading

FIRST, LONGEST = 60.0, 600.0
"""Seconds of the first span, and of the longest; each is twice as long as the one before it."""
MAX_LOOPS, OTHER = 8, "other"
"""Names of loops kept apart, and the name for all further ones."""


class LagLog:
    """Collects lag; its owner keeps other threads out.

    Args:
        now: ``time.monotonic`` seconds.

    Attributes:
        due: when the current span is over, ``time.monotonic`` seconds.
    """

    def __init__(self, now: float) -> None:
        self._span = FIRST
        self.due = now + FIRST
        self._known: dict[Hashable, LoopReading] = {}
        self._pending: dict[str, tuple[Histogram, float]] = {}
        self._observed = 0.0

    @property
    def is_worth_a_file(self) -> bool:
        """Whether a minute has been observed: a process that ends earlier, without a stall, leaves no journal."""
        return self._observed >= FIRST

    def add(self, readings: Iterable[LoopReading], *, is_last: bool = False) -> None:
        """Add the lag of loops since they were last added; ``is_last``: they are no longer watched."""
        for reading in readings:
            before = self._known.pop(reading.key, None)
            if not is_last:
                self._known[reading.key] = reading
            lags = reading.lags if before is None else reading.lags.since(before.lags)
            seconds = max(reading.watched_for - (0.0 if before is None else before.watched_for), 0.0)
            name = reading.stats.name
            if name not in self._pending and len(self._pending) >= MAX_LOOPS:
                name = OTHER
            total, so_far = self._pending.get(name, (Histogram(), 0.0))
            total.add(lags)
            self._pending[name] = (total, so_far + seconds)
            self._observed += seconds

    def take(self, now: float, at: float, pid: int, threshold: float) -> list[LagRecord]:
        """Return the records of the span that ends ``now``, and begin the next.

        Args:
            now: ``time.monotonic`` seconds.
            at: seconds since the epoch.
            pid: of this process.
            threshold: the setting, in seconds.
        """
        pending, self._pending = self._pending, {}
        self._span = min(2 * self._span, LONGEST)
        self.due = now + self._span
        return [
            LagRecord(name, pid, at - seconds, seconds, threshold, _rounded(lags))
            for name, (lags, seconds) in pending.items()
            if lags.count
        ]


def _rounded(lags: Histogram) -> tuple[tuple[float, int], ...]:
    return tuple((float(f"{late:.3g}"), count) for late, count in lags.items())

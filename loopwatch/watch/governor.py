"""Keeps the agent within its processor budget by stretching its intervals. Pure: time is an argument."""

from __future__ import annotations

STRETCH_MOST = 16.0
PERIOD = 5.0
"""Seconds between two decisions."""


class Governor:
    """Decides from the agent's processor time how far its intervals are stretched.

    Args:
        budget: share of one core.

    Example:
        >>> governor = Governor(0.01)
        >>> governor.update(now=0.0, cpu=0.0), governor.update(now=5.0, cpu=0.2)
        (1.0, 2.0)
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.stretch = 1.0
        self.share = 0.0
        self._last: tuple[float, float] | None = None

    def update(self, now: float, cpu: float) -> float:
        """Take a reading and return the factor for all intervals, 1 or more.

        Args:
            now: a monotonic clock, seconds.
            cpu: processor seconds the agent has used so far.
        """
        if self._last is None:
            self._last = (now, cpu)
            return self.stretch
        then, used = self._last
        if now - then < PERIOD:
            return self.stretch
        self._last = (now, cpu)
        self.share = (cpu - used) / (now - then)
        if self.share > self.budget:
            self.stretch = min(self.stretch * 2, STRETCH_MOST)
        elif self.share < self.budget / 2:  # twice the rate would still be within it
            self.stretch = max(self.stretch / 2, 1.0)
        return self.stretch

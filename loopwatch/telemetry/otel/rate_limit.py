"""A rate limit per minute for spans, events and log records of stalls; counts those it suppresses."""

from __future__ import annotations

import threading
from collections.abc import Callable

from loopwatch.core.originals import time

MINUTE = 60.0


class Allowance:
    """A bucket of ``a_minute`` tokens that is refilled evenly; thread-safe.

    Args:
        a_minute: tokens at first and at most, and how many are added within a minute.
        clock: monotonic seconds.

    Attributes:
        held_back: tokens refused since the beginning.

    Example:
        >>> allowance = Allowance(2, clock=lambda: 0.0)
        >>> [allowance.take() for _ in range(3)], allowance.held_back, allowance.held_lately(), allowance.held_lately()
        ([True, True, False], 1, 1, 0)
    """

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_minute = a_minute
        self._clock = clock
        self._left = float(a_minute)
        self._at = clock()
        self._told = 0
        self._lock = threading.Lock()
        self.held_back = 0

    def take(self, wanted: int = 1) -> bool:
        """Take ``wanted`` tokens; if there are not as many, count them as held back and return False."""
        with self._lock:
            now = self._clock()
            self._left = min(self._left + (now - self._at) * self._a_minute / MINUTE, float(self._a_minute))
            self._at = now
            if self._left < wanted:
                self.held_back += wanted
                return False
            self._left -= wanted
            return True

    def held_lately(self) -> int:
        """Return how many were held back since the last call."""
        with self._lock:
            lately, self._told = self.held_back - self._told, self.held_back
            return lately

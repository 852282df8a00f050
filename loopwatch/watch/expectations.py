"""Expected blocks of a loop: the time spans in which they are expected, and their counts. Pure: time is an argument.

An expected block is counted and journaled. It is not logged as a stall, not flagged, not in any metric of stalls, and
nobody is called back. Whoever expects blocks of a loop adds an :class:`Expectation` to those of the loop.
"""

from __future__ import annotations

from loopwatch.core.dataclasses import replace
from loopwatch.events import ExpectedBlocks, Stall

MOST = 16
"""Expectations kept of one loop, the latest ones."""


class Expectation:
    """A span of time in which blocks of one loop are expected.

    Args:
        reason: why, for people: ``start-up of uvicorn``.
        loop: name of the loop.
        begin, until: ``time.monotonic`` seconds.

    Attributes:
        counted: the blocks so far; replaced as a whole by the one thread that counts, so any thread may read it.

    Example:
        >>> start = Expectation("start-up of uvicorn", "main", begin=10.0, until=30.0)
        >>> start.covers(9.5, 12.0), start.covers(8.0, 9.0), start.covers(29.0, 35.0)
        (True, False, False)
    """

    __slots__ = ("_begin", "counted", "reason", "until")

    def __init__(self, reason: str, loop: str, begin: float, until: float) -> None:
        self.reason, self._begin, self.until = reason, begin, until
        self.counted = ExpectedBlocks(reason, loop)

    def end(self, now: float) -> None:
        """Expect nothing that comes after ``now``."""
        self.until = min(self.until, now)

    def covers(self, start: float, end: float) -> bool:
        """Whether a block that is over is expected: it reached into the span, and most of it lies before its end.

        The bounds of a block are those of a whole pass of the loop, or are known to some milliseconds only: a pass in
        which the span ends counts as what it mostly was.
        """
        return end > self._begin and (start + end) / 2 < self.until

    def covers_now(self, now: float) -> bool:
        """Whether a block that still goes on is expected by now."""
        return self._begin <= now < self.until

    def count(self, stall: Stall) -> None:
        """Count an expected block that is over."""
        before = self.counted
        is_longest = stall.duration > before.longest
        self.counted = replace(
            before,
            blocks=before.blocks + 1,
            blocked=before.blocked + stall.duration,
            longest=max(stall.duration, before.longest),
            culprit=stall.culprit if is_longest else before.culprit,
            cause=stall.cause if is_longest else before.cause,
        )


class Expectations:
    """Those of one loop. Any thread may ask, the loop's own thread adds."""

    def __init__(self) -> None:
        self._known: tuple[Expectation, ...] = ()
        self._always: dict[str, Expectation] = {}

    def always(self, reason: str, loop: str) -> Expectation:
        """Return the account of blocks that are expected for what runs in them, whenever that is.

        Example:
            >>> expectations = Expectations()
            >>> expectations.always("typed code", "main") is expectations.always("typed code", "main")
            True
        """
        known = self._always.get(reason)
        if known is None:
            known = Expectation(reason, loop, float("-inf"), float("inf"))
            self._always = {**self._always, reason: known}  # replaced, so that any thread may read it
        return known

    def add(self, expectation: Expectation) -> None:
        """Expect blocks from now on."""
        self._known = (*self._known, expectation)[-MOST:]

    def of(self, start: float, end: float) -> Expectation | None:
        """Return what a block that is over was expected by, None if it was not."""
        return next((each for each in self._known if each.covers(start, end)), None)

    def at(self, now: float) -> Expectation | None:
        """Return what a block that still goes on is expected by, None if it is not, or not any more."""
        return next((each for each in self._known if each.covers_now(now)), None)

    def stats(self) -> tuple[ExpectedBlocks, ...]:
        """Return the accounts of those that have covered a block, oldest first."""
        return tuple(each.counted for each in (*self._known, *self._always.values()) if each.counted.blocks)

"""Expected blocks of a loop: the time spans in which they are expected, and their counts. Pure: time is an argument.

An expected block is counted and journaled. It is not logged as a stall, not flagged, not in any stall metric, and not
passed to callbacks. To expect blocks of a loop, add an :class:`Expectation` to the loop's :class:`Expectations`.
"""

from __future__ import annotations

from loopwatch.core.dataclasses import replace
from loopwatch.events import ExpectedBlocks, Stall

MOST = 16
"""Expectations kept for one loop, the latest ones."""
MOST_REASONS, OTHERS = 64, "others"
"""Reasons without time limits that are counted apart for one loop, and the reason of all further ones."""


class Expectation:
    """A span of time in which blocks of one loop are expected.

    Args:
        reason: why, human-readable: ``start-up of uvicorn``.
        loop: name of the loop.
        begin, until: ``time.monotonic`` seconds.

    Attributes:
        counted: totals of the blocks so far; only one thread replaces it, as a whole, so any thread may read it.

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
        """End the span at ``now``, unless it ends earlier."""
        self.until = min(self.until, now)

    def covers(self, start: float, end: float) -> bool:
        """Whether a finished block is expected: it reached into the span, and most of it lies before the span's end.

        The bounds of a block are those of a whole pass of the loop, or known only to some milliseconds: a pass in
        which the span ends is judged by its larger part.
        """
        return end > self._begin and (start + end) / 2 < self.until

    def covers_now(self, now: float) -> bool:
        """Whether an ongoing block is expected at ``now``."""
        return self._begin <= now < self.until

    def count(self, stall: Stall) -> None:
        """Count a finished expected block."""
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
    """The expectations of one loop. Any thread may read them, the loop's own thread adds."""

    def __init__(self) -> None:
        self._known: tuple[Expectation, ...] = ()
        self._always: dict[str, Expectation] = {}

    def always(self, reason: str, loop: str) -> Expectation:
        """Return the expectation, without time limits, for blocks that are expected because of the code they run.

        Example:
            >>> expectations = Expectations()
            >>> expectations.always("typed code", "main") is expectations.always("typed code", "main")
            True
        """
        known = self._always.get(reason)
        if known is None and len(self._always) >= MOST_REASONS and reason != OTHERS:
            return self.always(OTHERS, loop)
        if known is None:
            known = Expectation(reason, loop, float("-inf"), float("inf"))
            self._always = {**self._always, reason: known}  # replaced, so that any thread may read it
        return known

    def add(self, expectation: Expectation) -> None:
        """Add ``expectation``; beyond :data:`MOST`, the oldest is dropped."""
        self._known = (*self._known, expectation)[-MOST:]

    def of(self, start: float, end: float) -> Expectation | None:
        """Return the expectation that covers a finished block, None if there is none."""
        return next((each for each in self._known if each.covers(start, end)), None)

    def at(self, now: float) -> Expectation | None:
        """Return the expectation that covers an ongoing block at ``now``, None if there is none."""
        return next((each for each in self._known if each.covers_now(now)), None)

    def stats(self) -> tuple[ExpectedBlocks, ...]:
        """Return the totals of the expectations that have covered a block, oldest first."""
        return tuple(each.counted for each in (*self._known, *self._always.values()) if each.counted.blocks)

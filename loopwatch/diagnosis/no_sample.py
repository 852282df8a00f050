"""Says of a block without a sample what held the loop right before it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from loopwatch.core.dataclasses import replace
from loopwatch.core.text import MAX_LINE, printable
from loopwatch.events import Stall

SOON = 0.1
"""Seconds between the end of one block and the begin of the next, within which they belong to one row."""


def with_neighbour(stall: Stall, earlier: Iterable[Stall]) -> Stall:
    """Return ``stall``; if no stack of it was seen, its advice names the code of the block right before it.

    The name is no culprit: another function may have held the loop this time.

    Args:
        stall: the stall.
        earlier: stalls of the process, the latest first.

    Example:
        >>> from loopwatch.events import Cause, Evidence, Frame
        >>> parse = Frame("parse", "app", "/app.py", 7)
        >>> seen = Stall("a", "main", 10.0, 0.2, Cause.NATIVE_GIL, Evidence(0.2), culprit=parse)
        >>> missed = Stall("b", "main", 10.25, 0.2, Cause.UNKNOWN, Evidence(0.2), remedy="Time its parts.")
        >>> with_neighbour(missed, [seen]).remedy
        'Time its parts. No stack of it was seen; right before it, parse (/app.py:7) held the loop.'
    """
    if stall.culprit is not None or stall.leaf is not None or stall.was_in is not None or stall.evidence.samples:
        return stall
    before = next((each for each in earlier if each.loop == stall.loop), None)
    if before is None or before.culprit is None or before.pid != stall.pid:
        return stall
    if not -SOON <= stall.started_at - (before.started_at + before.duration) <= SOON:
        return stall
    said = f"No stack of it was seen; right before it, {before.culprit} held the loop."
    return replace(stall, remedy=printable(f"{stall.remedy} {said}".strip(), MAX_LINE))

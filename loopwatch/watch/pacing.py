"""Decides when the watcher looks at a loop next. Pure: a view of the loop in, a moment out.

A look costs the loop the GIL for a moment, so there are as few as find every block in time: one within each threshold
where the start of a block is known exactly, more while a loop is blocked, few while it is quiet.
"""

from __future__ import annotations

from typing import NamedTuple

SHORTEST_TICK, LONGEST_TICK = 0.005, 0.25
"""Seconds between two looks at a loop that is not blocked."""
INVITED = 0.4
"""Share of a tick by which a look may come earlier or later, so that it comes with a heartbeat of the loop."""
EXACT_TICK = 0.9
"""Thresholds between two looks at a busy loop whose blocks have a known start."""
QUIET_TICK = 2.0
"""Thresholds between two looks at a loop that is quiet."""
SHORTEST_GAP, LONGEST_GAP = 0.01, 0.1
"""Seconds between two samples of a blocked loop; a quarter of the block's age between these bounds."""
MANY_SAMPLES = 100
"""Samples of one block from which on they are taken less often."""


class View(NamedTuple):
    """What is known of a loop when its next look is planned.

    Attributes:
        now: ``time.monotonic`` seconds, as all moments here.
        rests: it waits for events, as it did at the last look, which was a moment ago.
        since: when what holds it began, infinity while it waits.
        samples: samples of that so far.
        is_active: it does something worth mentioning.
        is_quiet: it makes next to no passes.
        is_exact: the start of a block is known exactly, by timestamps in the loop itself.
        is_traced: somebody waits to be told of a block while it lasts.
        beat_due: when the next heartbeat is due.
        last_beat: when the last one was.
        beat_interval: seconds between two heartbeats.
    """

    now: float
    rests: bool
    since: float
    samples: int
    is_active: bool
    is_quiet: bool
    is_exact: bool
    is_traced: bool
    beat_due: float
    last_beat: float
    beat_interval: float


class Look(NamedTuple):
    """The next look at a loop.

    Attributes:
        at: when.
        invite: the heartbeat wakes the watcher at its first beat after this moment; None: it need not.
        keeps: whether the heartbeat goes on as it was asked before, whatever ``invite`` is.
    """

    at: float
    invite: float | None = None
    keeps: bool = False


def next_look(view: View, threshold: float, stretch: float) -> Look:
    """Return when to look at a loop next.

    Args:
        view: what is known of it.
        threshold: seconds from which on a block is a stall.
        stretch: factor by which the watcher works less than it would like, 1 or more.
    """
    now, age = view.now, view.now - view.since
    if view.rests:
        return Look(now + tick_of(QUIET_TICK * threshold, stretch), keeps=True)
    if age >= threshold / 2:
        return Look(now + _gap(age, view.samples, stretch), keeps=True)
    if view.is_active and age < threshold / 4 and not view.is_exact and now < view.beat_due <= now + threshold:
        # Rather with a beat, where it need not wait for the GIL, and then seldom: if a beat between two looks is
        # missing, that tells how long the loop has been held.
        tick = tick_of(threshold, stretch)
        invite = view.last_beat + (1 - INVITED) * tick
        beat = max(view.beat_due, invite) + view.beat_interval
        patience = 1.0 if view.is_traced else 1 + INVITED
        return Look(max(min(beat, view.last_beat + patience * tick), now + SHORTEST_GAP), invite)
    if view.is_active:
        tick = tick_of(threshold * EXACT_TICK if view.is_exact else threshold / 2, stretch)
    else:
        tick = tick_of(threshold * (QUIET_TICK if view.is_quiet else 1), stretch)
    return Look(now + tick if age < 0 else min(now + tick, max(view.since + threshold / 2, now + SHORTEST_GAP)))


def tick_of(seconds: float, stretch: float) -> float:
    """Return the time between two looks that takes the place of ``seconds``, within bounds.

    The cost lies in the samples: the first look at a block is stretched only in an emergency.
    """
    return min(max(seconds, SHORTEST_TICK), LONGEST_TICK) * max(stretch / 4, 1.0)


def _gap(age: float, samples: int, stretch: float) -> float:
    """Return the time until the next sample of a block that has lasted for ``age`` seconds."""
    gap = min(max(age / 4, SHORTEST_GAP), LONGEST_GAP)
    if samples >= MANY_SAMPLES:
        gap = max(gap, age / 50)
    # Not beyond the longest tick: where only these looks tell that it is over, it must not be told much later.
    return min(gap * stretch, max(gap, LONGEST_TICK))

"""Schedules the watcher's next tick for a loop. Pure: a view of the loop in, a time out.

The long sleep while every loop is quiet, and being woken from it, are in ``Watcher._next`` and ``Watcher._turn``.

A tick costs the loop the GIL for a moment, so there are only as many as find every block in time: one within each
threshold where the start of a block is known exactly, more while a loop is blocked, few while it is quiet.
"""

from __future__ import annotations

from typing import NamedTuple

SHORTEST_TICK, LONGEST_TICK = 0.005, 0.25
"""Bounds of the seconds between two ticks for a loop that is not blocked."""
INVITED = 0.4
"""Share of the interval by which a tick may come earlier or later, so that it coincides with a heartbeat."""
WITHIN_TICK = 0.9
"""Thresholds between two ticks such that no block can begin and end between them."""
QUIET_TICK = 2.0
"""Thresholds between two ticks for a quiet loop whose blocks are recorded in the loop itself."""
SHORTEST_GAP, LONGEST_GAP = 0.01, 0.1
"""Seconds between two samples of a blocked loop; a quarter of the block's age between these bounds."""
MOST_STRETCHED = 2.0
"""Most that the time between two ticks is stretched for a loop that is not blocked."""
MANY_SAMPLES = 100
"""Number of samples of one block from which on they are taken less often."""


class View(NamedTuple):
    """The state of a loop from which its next tick is scheduled.

    Attributes:
        now: ``time.monotonic`` seconds, as all times here.
        rests: whether it waits for events, as it did at the last tick, a moment ago.
        since: start of its busy span, infinity while it waits.
        samples: samples of that span so far.
        is_active: whether it does notable work.
        is_quiet: whether it makes next to no passes.
        is_exact: whether the start of a block is known exactly, by timestamps in the loop itself.
        is_traced: whether tracing is in use: waiters' spans are annotated while a block lasts.
        was_kept: whether a call has kept the GIL until this tick: the next one may follow without a pause.
        was_blocked: whether it was blocked lately.
        beat_due: when the next heartbeat is due.
        last_beat: when the last heartbeat ran.
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
    was_kept: bool
    was_blocked: bool
    beat_due: float
    last_beat: float
    beat_interval: float


class Look(NamedTuple):
    """The next tick for a loop.

    Attributes:
        at: when.
        invite: the first heartbeat after this time wakes the watcher; None: it need not.
        keeps: whether the heartbeat keeps its previous invitation if ``invite`` is None.
    """

    at: float
    invite: float | None = None
    keeps: bool = False


def next_look(view: View, threshold: float, stretch: float) -> Look:
    """Return the next tick for a loop.

    Args:
        view: state of the loop.
        threshold: seconds from which on a block is a stall.
        stretch: factor by which the watcher's intervals are stretched, 1 or more; of no effect on the ticks of a loop
            that was blocked lately, each of which may find the next block.
    """
    now, age = view.now, view.now - view.since
    if age >= threshold / 2 and not view.rests:
        return Look(now + _gap(age, view.samples, threshold, stretch), keeps=True)
    stretch = 1.0 if view.was_blocked else stretch
    quiet_tick = QUIET_TICK if view.is_exact else WITHIN_TICK
    if view.rests:
        return Look(now + tick_of(quiet_tick * threshold, stretch), keeps=True)
    if view.was_kept and not view.is_exact:
        # Its passes are kept apart by requests for the GIL: each is granted at the end of a call.
        return Look(now + SHORTEST_GAP)
    if view.is_active and age < threshold / 4 and not view.is_exact and now < view.beat_due <= now + threshold:
        # Prefer a tick with a heartbeat, where the watcher need not wait for the GIL, and then seldom: a heartbeat
        # missing between two ticks shows how long the loop has been blocked.
        tick = tick_of(threshold, stretch)
        invite = view.last_beat + (1 - INVITED) * tick
        beat = max(view.beat_due, invite) + view.beat_interval
        patience = 1.0 if view.is_traced else 1 + INVITED
        return Look(max(min(beat, view.last_beat + patience * tick), now + SHORTEST_GAP), invite)
    if view.is_active:
        tick = tick_of(threshold * WITHIN_TICK if view.is_exact else threshold / 2, stretch)
    else:
        tick = tick_of(threshold * (quiet_tick if view.is_quiet else WITHIN_TICK), stretch)
    return Look(now + tick if age < 0 else min(now + tick, max(view.since + threshold / 2, now + SHORTEST_GAP)))


def tick_of(seconds: float, stretch: float) -> float:
    """Return the time between two ticks for a wanted time of ``seconds``, within bounds and stretched.

    The cost lies in the samples: the first tick of a block is stretched only in an emergency, and not so far that a
    block of a few thresholds could lie between two ticks, unseen.
    """
    return min(max(seconds, SHORTEST_TICK), LONGEST_TICK) * min(max(stretch / 4, 1.0), MOST_STRETCHED)


def _gap(age: float, samples: int, threshold: float, stretch: float) -> float:
    """Return the time until the next sample of a block that has lasted for ``age`` seconds; the first is in time."""
    gap = min(max(age / 4, SHORTEST_GAP), LONGEST_GAP)
    if samples >= MANY_SAMPLES:
        gap = max(gap, age / 50)
    # The next block may follow without a pause, and needs a sample as well.
    most = min(max(WITHIN_TICK * threshold, SHORTEST_TICK), LONGEST_TICK)
    return min(gap * stretch, max(gap, most)) if samples else gap

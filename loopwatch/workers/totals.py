"""Process-wide totals of call time by destination (inline, thread, process, backend). They only grow.

Each pool, thread backend and function writes its own; the totals of a collected owner stay in the sum.
"""

from __future__ import annotations

import os
import threading
import weakref

from loopwatch.core.process_state import one
from loopwatch.events import DESTINATIONS, PlaceStats

_MANY = 64
"""Number of open totals above which those of collected owners are folded."""


class CallTotals:
    """Call time totals of one pool, thread backend or function, in seconds; written by one thread at a time.

    Attributes:
        place: the destination, one of :data:`loopwatch.events.DESTINATIONS`.
        calls: calls submitted directly, not through a known function.
        run: how long calls ran.
        trip: their overhead on top of that.
        held: part of the overhead in which pickling and unpickling blocked their loop.
        is_over: whether the owner was collected and writes no more.
    """

    __slots__ = ("calls", "held", "is_over", "place", "run", "trip")

    def __init__(self, place: str) -> None:
        self.place = place
        self.calls = 0
        self.run = self.trip = self.held = 0.0
        self.is_over = False

    def add(self, other: CallTotals) -> None:
        """Add the totals of another owner."""
        self.calls += other.calls
        self.run += other.run
        self.trip += other.trip
        self.held += other.held


class _Totals:
    """Call time totals of this process.

    Attributes:
        lock: held while sums are computed.
        open: totals of live owners, and of collected ones until :meth:`fold`.
        past: folded totals of collected owners, by destination.
        saved: seconds of blocking that loops were spared so far, by destination; must not fall.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: list[CallTotals] = []
        self.past = {place: CallTotals(place) for place in DESTINATIONS}
        self.saved = dict.fromkeys(DESTINATIONS, 0.0)

    def fold(self) -> None:
        """Fold the totals of collected owners into ``past``; call it with the lock held."""
        for spent in [each for each in self.open if each.is_over]:
            self.past[spent.place].add(spent)
            self.open.remove(spent)

    def after_fork_in_child(self) -> None:
        """Reset to zero: the parent's totals are not the child's."""
        self.lock = threading.Lock()
        for spent in (*self.open, *self.past.values()):
            spent.calls, spent.run, spent.trip, spent.held = 0, 0.0, 0.0, 0.0
        self.saved.update(dict.fromkeys(DESTINATIONS, 0.0))


_totals = one(_Totals)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_totals.after_fork_in_child)


def totals_of(owner: object, place: str) -> CallTotals:
    """Return new totals for ``owner`` to write to for as long as it lives."""
    spent = CallTotals(place)
    # Runs in the thread that collects the owner, which may hold the lock: so it only sets a flag.
    weakref.finalize(owner, setattr, spent, "is_over", True).atexit = False
    if len(_totals.open) > _MANY:
        with _totals.lock:
            _totals.fold()
    _totals.open.append(spent)
    return spent


def places() -> tuple[PlaceStats, ...]:
    """Return the sums by destination, without empty ones."""
    with _totals.lock:
        _totals.fold()
        found = []
        for place in DESTINATIONS:
            total = CallTotals(place)
            for spent in (_totals.past[place], *(each for each in _totals.open if each.place == place)):
                total.add(spent)
            if place != "inline":
                # Pickling time is known before the run time of the call: the difference may fall for a while.
                _totals.saved[place] = max(_totals.saved[place], total.run - total.held)
            if total.run or total.trip or total.calls:
                found.append(
                    PlaceStats(place, total.calls, total.run, total.trip, total.held, _totals.saved[place]),
                )
        return tuple(found)

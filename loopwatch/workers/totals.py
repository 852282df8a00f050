"""Process-wide totals of the time that calls took, by place (inline, thread, process, backend). They only grow.

Each pool, set of threads and function writes its own; what one that is gone has written stays in the sum.
"""

from __future__ import annotations

import os
import threading
import weakref

from loopwatch.core.process_state import one
from loopwatch.events import PlaceStats

PLACES = ("inline", "thread", "process", "backend")
"""Where calls run; what is neither a thread nor a process of this machine is a backend."""
_MANY = 64
"""Writers after which those that are gone are looked for."""


class CallTotals:
    """What one pool, set of threads or function has spent, in s; written by one thread at a time.

    Attributes:
        place: one of :data:`PLACES`.
        calls: calls that it was given directly, by no function that is known.
        run: how long calls ran.
        trip: what they took on top of that.
        held: part of it in which their loop was held, by pickling and unpickling.
        is_over: whether nobody writes any more.
    """

    __slots__ = ("calls", "held", "is_over", "place", "run", "trip")

    def __init__(self, place: str) -> None:
        self.place = place
        self.calls = 0
        self.run = self.trip = self.held = 0.0
        self.is_over = False

    def add(self, other: CallTotals) -> None:
        """Add what another has spent."""
        self.calls += other.calls
        self.run += other.run
        self.trip += other.trip
        self.held += other.held


class _Totals:
    """What all calls of this process took.

    Attributes:
        lock: held while sums are made.
        open: of those who still call.
        past: of those who are gone, by place.
        saved: seconds that loops were spared so far, by place; must not fall.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: list[CallTotals] = []
        self.past = {place: CallTotals(place) for place in PLACES}
        self.saved = dict.fromkeys(PLACES, 0.0)

    def fold(self) -> None:
        """Keep the sum of those who are gone instead of them; with the lock."""
        for spent in [each for each in self.open if each.is_over]:
            self.past[spent.place].add(spent)
            self.open.remove(spent)

    def after_fork_in_child(self) -> None:
        """Begin anew: what the parent has spent is the parent's."""
        self.lock = threading.Lock()
        for spent in (*self.open, *self.past.values()):
            spent.calls, spent.run, spent.trip, spent.held = 0, 0.0, 0.0, 0.0
        self.saved.update(dict.fromkeys(PLACES, 0.0))


_totals = one(_Totals)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_totals.after_fork_in_child)


def totals_of(owner: object, place: str) -> CallTotals:
    """Return where ``owner`` writes, for as long as it lives."""
    spent = CallTotals(place)
    # Runs in whichever thread collects it, which may have the lock: it only leaves word.
    weakref.finalize(owner, setattr, spent, "is_over", True).atexit = False
    if len(_totals.open) > _MANY:
        with _totals.lock:
            _totals.fold()
    _totals.open.append(spent)
    return spent


def places() -> tuple[PlaceStats, ...]:
    """Return the sums by place, those without any left out."""
    with _totals.lock:
        _totals.fold()
        found = []
        for place in PLACES:
            total = CallTotals(place)
            for spent in (_totals.past[place], *(each for each in _totals.open if each.place == place)):
                total.add(spent)
            if place != "inline":
                # What pickling took is known before how long the call ran: the difference may fall for a while.
                _totals.saved[place] = max(_totals.saved[place], total.run - total.held)
            if total.run or total.trip or total.calls:
                found.append(
                    PlaceStats(place, total.calls, total.run, total.trip, total.held, _totals.saved[place]),
                )
        return tuple(found)

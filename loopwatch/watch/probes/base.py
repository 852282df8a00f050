"""The ``Probe`` protocol that each kind of loop implements, and its records. Times are ``time.monotonic`` seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from loopwatch.core.dataclasses import dataclass

IDLE = float("inf")
"""``busy_since`` of a loop that is waiting for events: its age is negative whatever the time is."""


LET_IN = 1e-4
"""s for which a busy loop releases the GIL, so that the watcher can have it.

A loop that never waits gives up the GIL in each poll, one of uvloop between two callbacks, but only for a microsecond.
A thread that waits for the GIL is woken each time, comes too late, and begins anew to wait for the switch interval,
after which it could demand the GIL (``take_gil`` in CPython's Python/ceval_gil.c): it may take a second to get it, and
until then each release pays for a wake-up.
"""


Taker = Callable[[float, float, float, Iterable[Any]], None]
"""Takes a block's key, start and end, and the handles of those who waited; on the loop's thread, never raises."""


Failed = Callable[[BaseException], object]
"""Takes an exception of ours that was caught on the loop's thread, of which the loop must not learn; never raises."""


class Counters(NamedTuple):
    """Totals since the probe was attached: seconds and counts; None where they cannot be known."""

    busy: float | None
    idle: float | None
    passes: int | None
    callbacks: int | None


@dataclass(slots=True)
class Block:
    """One span in which a loop did not get on, now over.

    Attributes:
        key: ``busy_since`` under which the watcher saw it.
        start, end: bounds of the span.
        uncertainty: seconds by which the bounds may be off.
        shared: whether one callback's share of the span may be smaller than the span (a pass of asyncio).
        asleep: the loop was not inside a callback but could not wake up in time.
        victims: how many waited at its end, None if unknown.
        window: span over which the clocks below were read: the block and a little before it.
        cpu, process_cpu: processor seconds of the loop's thread and of the process within ``window``.
    """

    key: float
    start: float
    end: float
    uncertainty: float = 0.0
    shared: bool = False
    asleep: bool = False
    victims: int | None = None
    window: float | None = None
    cpu: float | None = None
    process_cpu: float | None = None


class Probe(Protocol):
    """One loop as seen from the watcher's thread; every method is cheap and never waits."""

    kind: str
    handles: bool
    """Whether the loop runs asyncio's handles: many share a pass, and each is seen in the frames of the thread."""

    def on_beat(self, due: float, now: float) -> None:
        """Take note of a beat of the heartbeat: when it was due, and when it came; on the loop's thread."""

    def busy_since(self, now: float, late: float = 0.0, overdue: float = 0.0) -> float:
        """Return the start of what holds the loop now, :data:`IDLE` while it waits for events.

        Args:
            now: ``time.monotonic`` seconds.
            late: s for which the watcher wanted to look and could not.
            overdue: s for which the loop has owed a beat of the heartbeat.
        """

    def at_rest(self) -> bool:
        """Whether the loop waits and next to nothing happened since the last look; cheaper than a look.

        False also where that cannot be told: then :meth:`busy_since` must be asked.
        """

    def held_up(self, now: float, seconds: float) -> None:
        """Take note that some thread had kept the GIL for at least ``seconds`` when the watcher could look, ``now``."""

    def finished(self) -> list[Block]:
        """Return the blocks that ended since the last call, and forget them."""

    def counters(self, now: float) -> Counters:
        """Return the totals."""

    def cut(self, now: float) -> None:
        """End what holds the loop at this instant, as if it went idle; called on the loop's thread."""

    def expect(self, when: float) -> None:
        """Take note of when the watcher will look next."""

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        """Call ``alarm`` once, as soon as the loop has something to do; return False if that cannot be had."""

    def on_end(self, taker: Taker | None) -> None:
        """Give ``taker`` those who waited, at the end of each block, if the loop's thread knows them; None: nobody."""

    def started(self, key: float) -> float:
        """Return the start of what holds the loop, under whose key :meth:`busy_since` told it."""

    def set_limit(self, limit: float) -> None:
        """Report blocks of at least ``limit`` seconds; infinity reports none."""

    def running(self, running: bool) -> None:
        """Take note that the loop starts or stops running; called on the loop's thread."""

    def detach(self) -> None:
        """Leave the loop as it was; a second call does nothing."""

    def abandon(self) -> None:
        """As :meth:`detach`, in a forked child, where a lock may be held by a thread that does not exist."""


Loop = Any
"""An event loop: anything with ``call_later``, ``call_soon_threadsafe``, ``time`` and ``is_closed``."""

"""The ``Probe`` protocol that each kind of loop implements, and its records. Times are ``time.monotonic`` seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from loopwatch.core.dataclasses import dataclass

IDLE = float("inf")
"""``busy_since`` of a loop that waits for events: the age of its busy span is negative at any time."""


LET_IN = 1e-4
"""Seconds for which a busy loop releases the GIL, so that the watcher can acquire it.

A loop that never waits releases the GIL in each poll (a uvloop loop between two callbacks), but only for a microsecond.
A thread that waits for the GIL is woken each time, comes too late, and starts its wait for the switch interval anew,
after which it could demand the GIL (``take_gil`` in CPython's Python/ceval_gil.c): it may take a second to get it, and
until then each release costs a wake-up.
"""


Taker = Callable[[float, float, float, Iterable[Any]], None]
"""Receives a block's key, start and end, and the waiting handles; on the loop's thread, never raises."""


Failed = Callable[[BaseException], object]
"""Receives an exception of the agent caught on the loop's thread, which must not reach the loop; never raises."""


class Counters(NamedTuple):
    """Totals since the probe was attached: seconds and counts; None where unknown."""

    busy: float | None
    idle: float | None
    passes: int | None
    callbacks: int | None


@dataclass(slots=True)
class Block:
    """One finished span in which a loop made no progress.

    Attributes:
        key: ``busy_since`` under which the watcher saw it.
        start, end: bounds of the span.
        uncertainty: seconds by which the bounds may be off.
        shared: whether one callback may account for a part of the span only (a pass of asyncio).
        asleep: whether the loop was not inside a callback but could not wake up in time.
        victims: number of waiters at its end, None if unknown.
        polls_since: when the poll began in which an ``asleep`` block lies, None if unknown: code that runs within the
            poll may have begun earlier than the block, while nothing was due.
        window: seconds over which the clocks below were read: the block and a little before it.
        cpu, process_cpu: processor seconds of the loop's thread and of the process within ``window``.
    """

    key: float
    start: float
    end: float
    uncertainty: float = 0.0
    shared: bool = False
    asleep: bool = False
    victims: int | None = None
    polls_since: float | None = None
    window: float | None = None
    cpu: float | None = None
    process_cpu: float | None = None


class Traits(NamedTuple):
    """What can be relied on where a loop of this kind is read.

    Attributes:
        shares_passes: many callbacks run in one pass, so a block may be several of them.
        shows_handles: the thread's frames contain the running ``asyncio.Handle``.
        ends_first: the end of a block is noticed on the loop's thread before any of its waiters runs.
        dates_passes: each pass is dated exactly, as long as the loop polls with the selector that it was found with.
    """

    shares_passes: bool = False
    shows_handles: bool = False
    ends_first: bool = False
    dates_passes: bool = False


class Probe(Protocol):
    """Reads one loop from the watcher's thread; every method is cheap and never waits."""

    kind: str
    traits: Traits

    def on_beat(self, due: float, now: float) -> None:
        """Record a heartbeat: when it was ``due``, and when it ran, ``now``; on the loop's thread."""

    def busy_since(
        self, now: float, late: float = 0.0, overdue: float = 0.0, kept: float = 0.0, mark: Any = None
    ) -> float:
        """Return the start of the loop's current busy span, :data:`IDLE` while it waits for events.

        Args:
            now: ``time.monotonic`` seconds.
            late: seconds for which the watcher was kept from reading.
            overdue: seconds for which a heartbeat is overdue.
            kept: seconds before now in which one call kept the GIL, so that no pass can have ended.
            mark: of :meth:`mark`, for the busy span of a moment ago; None: that of now.
        """

    def mark(self) -> Any:
        """Return the loop's state right now, for :meth:`busy_since` a moment later: all that must be read at once."""

    def at_rest(self) -> bool:
        """Whether the loop waits and next to nothing happened since the last tick; cheaper than :meth:`busy_since`.

        False also where that is unknown: then :meth:`busy_since` must be called.
        """

    def held_up(self, now: float, seconds: float) -> None:
        """Record that some thread had kept the GIL for at least ``seconds`` when the watcher could run, ``now``."""

    def finished(self) -> list[Block]:
        """Return the blocks that ended since the last call, and drop them."""

    def counters(self, now: float) -> Counters:
        """Return the totals."""

    def cut(self, now: float) -> None:
        """End the current busy span now, as if the loop went idle; called on the loop's thread."""

    def expect(self, when: float) -> None:
        """Record when the watcher's next tick is due."""

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        """Call ``alarm`` once, as soon as the loop has work to do; return False if the caller cannot rely on it."""

    def on_end(self, taker: Taker | None) -> None:
        """Set the callback that receives the waiting handles when a block ends, where known; None removes it."""

    def started(self, key: float) -> float:
        """Return the start of the busy span that :meth:`busy_since` returned as ``key``."""

    def set_limit(self, limit: float) -> None:
        """Report blocks of at least ``limit`` seconds; infinity reports none."""

    def running(self, running: bool) -> None:
        """Record that the loop starts or stops running; called on the loop's thread."""

    def detach(self) -> None:
        """Leave the loop as it was; a second call does nothing."""

    def abandon(self) -> None:
        """Like :meth:`detach`, in a forked child, where a lock may be held by a thread that does not exist."""


Loop = Any
"""An event loop: anything with ``call_later``, ``call_soon_threadsafe``, ``time`` and ``is_closed``."""

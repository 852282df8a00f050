"""Reads a selector loop of asyncio by timing its ``selector.select``, replaced on the instance; touches nothing else.

A pass of the loop (``BaseEventLoop._run_once``) lies between one ``select`` and the next, so its length is exact. The
running callback is not recorded on the loop: the watcher reads it from the frames of ``Handle._run`` and ``_run_once``
while it blocks (see :mod:`loopwatch.watch.stacks`), which costs the loop nothing.

Every pass costs one clock, one comparison and two stores in local cells (two clocks where the loop really waits).
Everything else lies behind that comparison, and happens at most every 10 ms and after a long pass.
"""

from __future__ import annotations

import math
import select
import selectors
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NamedTuple, Self

from loopwatch.core.originals import release_gil, time
from loopwatch.core.patches import Patch, PatchSet
from loopwatch.core.signals import raised_by_handler
from loopwatch.core.unseen import unseen
from loopwatch.watch.probes.base import IDLE, LET_IN, Block, Counters, Failed, Loop, Taker, Traits

MARK_EVERY = 0.01
"""Seconds: clocks are read at most this often, so a block's processor time is known to this precision."""

POLL_GRACE = 0.005
"""Longest wait in seconds for the first poll after a block, which returns at once if anything waited."""

EXPECTED = 2e-4
"""Seconds after the time of an announced tick at which the watcher surely waits for the GIL."""
MAX_LET_IN = 20
"""Releases of the GIL for one announced tick; after that many without a tick, the loop makes no more."""

MAX_COUNTED = 10_000
"""Waiting timers are counted up to this number."""

MAX_FAILURES = 10
"""Failures of one loop's probe after which it records nothing more."""

OVERSLEPT = 0.02
"""Seconds after its time from which on a poll that has not returned counts as blocked: by code that a signal handler
runs within it, or for want of the GIL or of a processor."""

MAX_HANDED = 200
"""Ready handles handed over at the end of a block."""

Select = Callable[[float | None], Any]


class Pace(NamedTuple):
    """Counts of a timed ``select``.

    Attributes:
        since: start of the pass, :data:`IDLE` in a poll that waits.
        passes: passes so far.
        idle: seconds that polls have waited so far.
        due: when the poll that waits has to return for the next timer; :data:`IDLE` if there is none, and in a pass.
    """

    since: float
    passes: int
    idle: float
    due: float = IDLE


class Timed(NamedTuple):
    """A timed ``select`` and the functions that access its closure.

    Attributes:
        select: the replacement.
        pace: returns the counts.
        begin: sets the start of the pass.
        look_at: sets the time from which the next call takes the slow path.
        look_by: the same, if it is earlier than the time set before.
    """

    select: Select
    pace: Callable[[], Pace]
    begin: Callable[[float], None]
    look_at: Callable[[float], None]
    look_by: Callable[[float], None]


class Cell:
    """The slow path of a timed ``select``, taken rarely, and its state; on the loop's thread.

    Args:
        loop: the loop.
        limit: seconds, passes at least this long are kept.
        real_time: whether its timers are due by ``time.monotonic``.

    Attributes:
        report: receives exceptions caught here.
    """

    def __init__(self, loop: Loop, limit: float, *, real_time: bool = True) -> None:
        self.limit, self._real_time = limit, real_time
        self._failures = 0
        self.report: Failed
        self.blocks: deque[Block] = deque(maxlen=1000)
        self.awaiting_events: Block | None = None
        self.alarm: Callable[[], None] | None = None
        self.taker: Taker | None = None
        self.latest: Block | None = None
        self.timed: Timed
        self.visit = IDLE
        self._let_in = 0
        self._loop = weakref.ref(loop)
        self._ready = getattr(loop, "_ready", ())
        self._mark = (0.0, 0.0, 0.0, 0.0)

    def take_mark(self, now: float, idle: float) -> float:
        """Read the clocks from which a block's processor time is computed; return when to do so again."""
        self._mark = (now, idle, time.thread_time(), time.process_time())
        # A pass of at least the limit ends after this time, wherever after the mark it began.
        due = now + min(MARK_EVERY, self.limit)
        return min(due, max(self.visit, now + LET_IN))

    def expect(self, when: float) -> None:
        """Record that the watcher's next tick is due at ``when``."""
        self.visit, self._let_in = when + EXPECTED, 0

    def let_in(self) -> None:
        """Release the GIL for the watcher, which is waiting for it."""
        self._let_in += 1
        if self._let_in >= MAX_LET_IN:
            self.visit = IDLE
        release_gil(LET_IN)

    def failed(self, exc: Exception) -> None:
        """Count a failure of the slow path; after :data:`MAX_FAILURES`, record nothing more.

        Raises:
            Exception: ``exc``, if a signal handler of the program has raised it.
        """
        if raised_by_handler(exc):
            raise exc
        self.latest = self.awaiting_events = self.alarm = None
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self.limit = self.visit = IDLE
        self.report(exc)

    def end_pass(self, now: float, pace: Pace) -> None:
        """Record a long pass, with values that only this thread can read cheaply, at this moment."""
        since = pace.since
        due = self._due(now)
        block = Block(since, since, now, shared=True, victims=len(self._ready) + len(due))
        self._read_clocks(block, now, pace.idle)
        self._hand_over(block, due)
        self.awaiting_events = block
        self.blocks.append(block)

    def look_again(self) -> None:
        """Hand over the handles that the pass after a block, with its timers and events, has made ready."""
        block, self.latest = self.latest, None
        if block is not None and self.taker is not None:
            self.taker(block.key, block.start, block.end, self._first_ready())

    def _hand_over(self, block: Block, due: list[Any]) -> None:
        """Hand over the handles that waited for ``block``; the next ``select`` calls :meth:`look_again`."""
        if self.taker is not None:
            self.latest = block
            self.taker(block.key, block.start, block.end, [*self._first_ready(), *due])

    def _first_ready(self) -> list[Any]:
        """Return the handles that run next, while other threads may be adding to them."""
        return [self._ready[index] for index in range(min(len(self._ready), MAX_HANDED))]

    def polled(self, events: Any) -> None:
        """Count the events of the first poll after a long pass, which had to wait for that pass."""
        block, self.awaiting_events = self.awaiting_events, None
        if block is not None:
            block.victims = (block.victims or 0) + len(events)

    def end_sleep(self, timeout: float | None, start: float, end: float, events: int, idle: float) -> None:
        """Record a poll that returned much later than it had to."""
        due = start + max(timeout, 0.0) if timeout is not None else end
        if end - due < self.limit:
            return
        # It may have been due earlier, by an event: at any time since ``start``.
        early = due - start if events else 0.0
        timers = self._due(end)
        block = Block(due, due, end, uncertainty=early, asleep=True, victims=events + len(timers))
        block.polls_since = start
        self._read_clocks(block, end, idle - (end - due))  # it was not meant to be idle from ``due`` on
        self._hand_over(block, timers)
        self.blocks.append(block)

    def _read_clocks(self, block: Block, now: float, idle: float) -> None:
        """Set the block's processor time, counted since the last mark, at most 10 ms of work before the block."""
        marked, idle_then, cpu, process_cpu = self._mark
        block.window = max((now - marked) - (idle - idle_then), block.end - block.start)
        block.cpu = time.thread_time() - cpu
        block.process_cpu = time.process_time() - process_cpu

    def _due(self, now: float) -> list[Any]:
        """Return the due timers, walking only that part of the heap."""
        heap = getattr(self._loop(), "_scheduled", ()) if self._real_time else ()
        due: list[Any] = []
        todo = [0]
        while todo and len(due) < MAX_COUNTED:
            index = todo.pop()
            timer = heap[index] if index < len(heap) else None
            if timer is not None and timer._when <= now:
                if not timer._cancelled:
                    due.append(timer)
                todo += (2 * index + 1, 2 * index + 2)
        return due


class Epoll(NamedTuple):
    """Parts of the standard library's ``EpollSelector``, enough to select in fewer instructions than it does.

    Attributes:
        poll: of the ``select.epoll`` object: (timeout in seconds, most events) to [(descriptor, event mask)].
        keys: the registered keys, by descriptor.
    """

    poll: Callable[[float, int], list[tuple[int, int]]]
    keys: Mapping[int, selectors.SelectorKey]

    @classmethod
    def of(cls, selector: Any) -> Self | None:
        """Return the parts of ``selector``; None for any other selector, a subclass, or a patched one."""
        stock = getattr(selectors, "EpollSelector", None)
        if type(selector) is not stock or "select" in vars(selector):
            return None
        found = vars(stock).get("select")
        # By type(): a wrapper may claim the class of the object it wraps, and have its attributes.
        if type(found) is not FunctionType or found.__code__.co_filename != selectors.__file__:
            return None
        return cls(selector._selector.poll, selector._fd_to_key)

    @unseen
    def select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Behave as ``EpollSelector.select`` does."""
        # epoll_wait(2) counts in milliseconds: rounded up, so as not to wake too early.
        timeout = -1 if timeout is None else max(math.ceil(timeout * 1e3) * 1e-3, 0)
        try:
            return self.decode(self.poll(timeout, len(self.keys) or 1))
        except InterruptedError:
            return []

    def decode(self, found: list[tuple[int, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """Turn the result of ``poll`` into the result of a selector."""
        ready = []
        for descriptor, event in found:
            key = self.keys.get(descriptor)
            if key is not None:
                # An error or a hang-up wakes both reader and writer, so that each of them finds out.
                write = selectors.EVENT_WRITE if event & ~select.EPOLLIN else 0
                read = selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
                ready.append((key, (write | read) & key.events))
        return ready


def timed_select(  # noqa: C901, PLR0915 - closure cells of one function are the cheapest storage
    cell: Cell, original: Select, epoll: Epoll | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Timed:
    """Return a ``select`` that behaves as ``original`` and records when the loop waits and when it works.

    Args:
        cell: the slow path.
        original: the selector's own ``select``.
        epoll: parts of an epoll selector; used instead of ``original``, which makes up for the cost of the timing.
        clock: monotonic seconds.
    """
    since, passes, idle, due = IDLE, 0, 0.0, 0.0
    wanted: float | None = None  # seconds, of the last poll that waited
    chosen: Select = original if epoll is None else epoll.select

    @unseen
    def timed(timeout: float | None = None) -> Any:
        nonlocal since, passes
        now = clock()
        if now >= due:
            return closely(timeout, now)
        passes += 1
        if timeout == 0:
            since = now  # this poll does not wait: it belongs to the pass
            return chosen(timeout)
        return wait(timeout, now)

    @unseen
    def timed_epoll(timeout: float | None = None) -> Any:  # the same, with one call less for a poll that does not wait
        nonlocal since, passes
        now = clock()
        if now >= due:
            return closely(timeout, now)
        passes += 1
        if timeout == 0:
            since = now
            found = poll(0, len(keys) or 1)
            return decode(found) if found else []
        return wait(timeout, now)

    @unseen
    def wait(timeout: float | None, start: float) -> Any:
        nonlocal since, idle, wanted
        wanted = timeout
        since = -start
        events = chosen(timeout)
        end = clock()
        idle += end - start
        since = end
        if end >= due:
            woken(timeout, start, end, events)
        return events

    @unseen
    def closely(timeout: float | None, now: float) -> Any:
        nonlocal since, passes, due
        try:
            if since > 0 and now - since >= cell.limit:
                cell.end_pass(now, pace())
            elif cell.latest is not None:
                cell.look_again()
            due = cell.take_mark(now, idle)
            if timeout == 0 and now >= cell.visit:
                cell.let_in()
        except Exception as exc:  # noqa: BLE001 - the boundary between the loop and its timing
            due = now + MARK_EVERY
            cell.failed(exc)
        passes += 1
        if timeout == 0:
            since = now
            events = chosen(timeout)
        else:
            events = wait(timeout, now)
        try:
            cell.polled(events)
            if cell.latest is not None:
                due = 0.0
        except Exception as exc:  # noqa: BLE001 - the same boundary
            cell.failed(exc)
        return events

    def woken(timeout: float | None, start: float, end: float, events: Any) -> None:
        nonlocal due
        try:
            alarm, cell.alarm = cell.alarm, None
            if alarm is not None:
                alarm()
            if end - start >= cell.limit:
                cell.end_sleep(timeout, start, end, len(events), idle)
                if cell.latest is not None:
                    due = 0.0
        except Exception as exc:  # noqa: BLE001 - the same boundary
            cell.failed(exc)

    def pace() -> Pace:
        begun = since
        if begun < 0:  # waiting since then
            return Pace(IDLE, passes, idle + clock() + begun, IDLE if wanted is None else max(wanted, 0.0) - begun)
        return Pace(begun, passes, idle)

    def begin(now: float) -> None:
        nonlocal since
        since = now

    def look_at(when: float) -> None:
        nonlocal due
        due = when

    def look_by(when: float) -> None:
        nonlocal due
        due = min(due, when)

    if epoll is None:
        return Timed(timed, pace, begin, look_at, look_by)
    poll, keys, decode = epoll.poll, epoll.keys, epoll.decode
    return Timed(timed_epoll, pace, begin, look_at, look_by)


class AsyncioProbe:
    """The probe of one selector loop: blocks are long passes and late polls, timed exactly.

    Args:
        loop: a loop with ``_selector`` (:class:`asyncio.SelectorEventLoop` and its subclasses).
        limit: seconds, blocks at least this long are reported.
        patches: holds the replacement of ``select``.
        failed: called with each exception caught on the loop's thread; the loop goes on.
        real_time: whether the timers of the loop are due by ``time.monotonic``.

    Raises:
        AttributeError, TypeError: the loop has no selector, or one whose ``select`` cannot be replaced.
    """

    kind = "asyncio"
    traits = Traits(shares_passes=True, shows_handles=True, ends_first=True, dates_passes=True)

    def __init__(self, loop: Loop, limit: float, patches: PatchSet, failed: Failed, *, real_time: bool = True) -> None:
        self._patches = patches
        self._ran = 0.0
        self._started: float | None = None

        def make(original: Select, patch: Patch) -> Select:
            cell: Cell = patch.state
            cell.timed = timed_select(cell, original, Epoll.of(loop._selector))
            return cell.timed.select

        self._patch = patches.replace(loop._selector, "select", make, Cell(loop, limit, real_time=real_time))
        self._cell: Cell = self._patch.state  # perhaps that of an earlier probe
        self._cell.report = failed
        self._timed = self._cell.timed
        self.set_limit(limit)

    def on_beat(self, due: float, now: float) -> None:
        """Do nothing: passes and polls are timed exactly."""

    def at_rest(self) -> bool:
        """Return False: not tracked; a quiet loop wakes the watcher instead, see :meth:`wake_when_busy`."""
        return False

    def busy_since(
        self, now: float, late: float = 0.0, overdue: float = 0.0, kept: float = 0.0, mark: Any = None
    ) -> float:
        """Return the start of the current pass, or the time at which the poll was to return if that is over, both
        exact; else :data:`IDLE`."""
        return self.mark() if mark is None else float(mark)

    def mark(self) -> float:
        """Return the same."""
        pace: Pace = self._timed.pace()
        return pace.due if pace.due < time.monotonic() - OVERSLEPT else pace.since

    def held_up(self, now: float, seconds: float) -> None:
        """Do nothing: passes and polls are timed exactly."""

    def finished(self) -> list[Block]:
        """Return the finished blocks, each once the first poll after it has counted the events that waited."""
        cell = self._cell
        done = []
        while cell.blocks:
            block = cell.blocks[0]
            if block is cell.awaiting_events and time.monotonic() - block.end < POLL_GRACE:
                break  # the first poll after it, which counts the events that waited, is not over yet
            done.append(cell.blocks.popleft())
        return done

    def counters(self, now: float) -> Counters:
        """Return the totals of the timed ``select``; callbacks are not counted."""
        ran = self._ran + (now - self._started if self._started is not None else 0.0)
        pace = self._timed.pace()
        return Counters(max(ran - pace.idle, 0.0), pace.idle, pace.passes, None)

    def cut(self, now: float) -> None:
        """End the current pass now, and begin another."""
        pace = self._timed.pace()
        if pace.since == IDLE:
            return
        if now - pace.since >= self._cell.limit:
            self._cell.end_pass(now, pace)
            self._cell.awaiting_events = None  # no poll follows
        self._timed.look_at(self._cell.take_mark(now, pace.idle))
        self._timed.begin(now)

    def expect(self, when: float) -> None:
        """Release the GIL from ``when`` on in polls that do not wait, so that the watcher can tick."""
        self._cell.expect(when)
        self._timed.look_by(self._cell.visit)

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        """Call ``alarm`` when the current poll returns; return False if the loop has just become busy."""
        self._cell.alarm = alarm
        self._timed.look_at(0.0)  # or a wake-up within the next 10 ms would go unnoticed
        return self.mark() == IDLE

    def on_end(self, taker: Taker | None) -> None:
        """Set the callback for ready handles and due timers at the end of a block, and again one pass later."""
        self._cell.taker = taker

    def started(self, key: float) -> float:
        """Return ``key``, which is the exact start."""
        return key

    def set_limit(self, limit: float) -> None:
        """Report passes and late polls of at least ``limit`` seconds; the next ``select`` takes the slow path."""
        self._cell.limit = limit
        self._timed.look_at(0.0)

    def running(self, running: bool) -> None:
        """Begin a pass when the loop starts, end it when the loop stops."""
        now = time.monotonic()
        if running:
            self._started = now
            self._timed.begin(now)
            self._timed.look_at(self._cell.take_mark(now, self._timed.pace().idle))
        elif self._started is not None:
            self.cut(now)
            self._timed.begin(IDLE)
            self._ran += now - self._started
            self._started = None

    def detach(self) -> None:
        """Put the original ``select`` back; a timed one still in use records nothing more."""
        self._patches.undo(self._patch)
        self._timed.begin(IDLE)
        self._cell.limit = self._cell.visit = IDLE
        self._cell.taker = None
        self._timed.look_at(IDLE)

    def abandon(self) -> None:
        """Do the same as :meth:`detach`."""
        self.detach()

"""Reads a selector loop of asyncio: its ``selector.select`` is timed, on the instance, and nothing else is touched.

A pass of the loop (``BaseEventLoop._run_once``) lies between one ``select`` and the next, so its length is exact. Which
callback runs is not noted on the loop: the watcher reads it from the frames of ``Handle._run`` and ``_run_once`` while
it blocks (see :mod:`loopwatch.watch.stacks`), which costs the loop nothing.

What is done in every pass is one clock, one comparison and two stores in local cells (two clocks where the loop really
waits). Everything else hides behind that comparison, and happens at most every 10 ms and after a long pass.
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
from loopwatch.watch.probes.base import IDLE, LET_IN, Block, Counters, Failed, Loop, Taker

MARK_EVERY = 0.01
"""s: clocks are read at most this often, so that a block's processor time is known to this."""

POLL_GRACE = 0.005
"""s: the first poll after a block returns at once if anything waited; it is not waited for longer than this."""

EXPECTED = 2e-4
"""s after the time for which it was announced that the watcher surely waits."""
MAX_LET_IN = 20
"""Times that the watcher is let in without being seen; then it is not waited for any more."""

MAX_COUNTED = 10_000
"""Waiting timers are counted up to this number."""

MAX_FAILURES = 10
"""Failures of one loop's probe after which it takes no more notes."""

MAX_HANDED = 200
"""Ready handles that are handed over at the end of a block."""

Select = Callable[[float | None], Any]


class Pace(NamedTuple):
    """What a timed ``select`` has counted: start of the pass (:data:`IDLE` in the poll), passes, idle seconds."""

    since: float
    passes: int
    idle: float


class Timed(NamedTuple):
    """A timed ``select`` and the ways to reach what it keeps.

    Attributes:
        select: the replacement.
        pace: returns what was counted.
        begin: sets the start of the pass.
        look_at: sets the time from which the next call looks closer.
        look_by: the same, if it is earlier than what is set.
    """

    select: Select
    pace: Callable[[], Pace]
    begin: Callable[[float], None]
    look_at: Callable[[float], None]
    look_by: Callable[[float], None]


class Cell:
    """What happens behind a timed ``select``, rarely; on the loop's thread.

    Args:
        loop: whose it is.
        limit: s, passes at least this long are kept.
        real_time: whether its timers are due by ``time.monotonic``.

    Attributes:
        report: takes what went wrong here.
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
        """Read the clocks that later tell how much processor time a block took; return when to do so again."""
        self._mark = (now, idle, time.thread_time(), time.process_time())
        # A pass of at least the limit ends behind this, wherever after the mark it began.
        due = now + min(MARK_EVERY, self.limit)
        return min(due, max(self.visit, now + LET_IN))

    def expect(self, when: float) -> None:
        """The watcher will want to look at ``when``."""
        self.visit, self._let_in = when + EXPECTED, 0

    def let_in(self) -> None:
        """The watcher is waiting for the GIL: let it have it."""
        self._let_in += 1
        if self._let_in >= MAX_LET_IN:
            self.visit = IDLE
        release_gil(LET_IN)

    def failed(self, exc: Exception) -> None:
        """Count a failure of what was done here; after too many, nothing is done any more.

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
        """Keep a long pass, with what only this thread can know cheaply, at this moment."""
        since = pace.since
        due = self._due(now)
        block = Block(since, since, now, shared=True, victims=len(self._ready) + len(due))
        self._read_clocks(block, now, pace.idle)
        self._hand_over(block, due)
        self.awaiting_events = block
        self.blocks.append(block)

    def look_again(self) -> None:
        """Hand over those whom the pass after a block, with its timers and events, has made ready."""
        block, self.latest = self.latest, None
        if block is not None and self.taker is not None:
            self.taker(block.key, block.start, block.end, self._first_ready())

    def _hand_over(self, block: Block, due: list[Any]) -> None:
        """Have those told who waited for ``block``; the next call of ``select`` looks again."""
        if self.taker is not None:
            self.latest = block
            self.taker(block.key, block.start, block.end, [*self._first_ready(), *due])

    def _first_ready(self) -> list[Any]:
        """Return the handles that run next; other threads may be adding to them."""
        return [self._ready[index] for index in range(min(len(self._ready), MAX_HANDED))]

    def polled(self, events: Any) -> None:
        """The first poll after a long pass is over: its events had to wait for that pass."""
        block, self.awaiting_events = self.awaiting_events, None
        if block is not None:
            block.victims = (block.victims or 0) + len(events)

    def end_sleep(self, timeout: float | None, start: float, end: float, events: int, idle: float) -> None:
        """Keep a poll that returned much later than it had to."""
        due = start + max(timeout, 0.0) if timeout is not None else end
        if end - due < self.limit:
            return
        # It may have been due earlier, by an event: at any time since ``start``.
        early = due - start if events else 0.0
        timers = self._due(end)
        block = Block(due, due, end, uncertainty=early, asleep=True, victims=events + len(timers))
        self._read_clocks(block, end, idle - (end - due))  # it was not meant to be idle from ``due`` on
        self._hand_over(block, timers)
        self.blocks.append(block)

    def _read_clocks(self, block: Block, now: float, idle: float) -> None:
        """Note what was used of the processor since the last mark, which lies at most 10 ms of work before."""
        marked, idle_then, cpu, process_cpu = self._mark
        block.window = max((now - marked) - (idle - idle_then), block.end - block.start)
        block.cpu = time.thread_time() - cpu
        block.process_cpu = time.process_time() - process_cpu

    def _due(self, now: float) -> list[Any]:
        """Return the timers that are due, walking only that part of the heap."""
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
    """What lies behind the standard library's ``EpollSelector``: enough to select in fewer instructions than it does.

    Attributes:
        poll: of the ``select.epoll`` object: (timeout in s, most events) to [(descriptor, event mask)].
        keys: what is registered, by descriptor.
    """

    poll: Callable[[float, int], list[tuple[int, int]]]
    keys: Mapping[int, selectors.SelectorKey]

    @classmethod
    def of(cls, selector: Any) -> Self | None:
        """Return that of ``selector``; None for any other selector, a subclass, or one that somebody has patched."""
        stock = getattr(selectors, "EpollSelector", None)
        if type(selector) is not stock or "select" in vars(selector):
            return None
        found = vars(stock).get("select")
        # By type(): a wrapper may claim to be what it wraps, and have its attributes.
        if type(found) is not FunctionType or found.__code__.co_filename != selectors.__file__:
            return None
        return cls(selector._selector.poll, selector._fd_to_key)

    @unseen
    def select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Do what ``EpollSelector.select`` does."""
        # epoll_wait(2) counts in milliseconds: rounded up, so as not to wake too early.
        timeout = -1 if timeout is None else max(math.ceil(timeout * 1e3) * 1e-3, 0)
        try:
            return self.decode(self.poll(timeout, len(self.keys) or 1))
        except InterruptedError:
            return []

    def decode(self, found: list[tuple[int, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """Turn what ``poll`` has found into what a selector returns."""
        ready = []
        for descriptor, event in found:
            key = self.keys.get(descriptor)
            if key is not None:
                # An error or a hang-up wakes both sides, so that each of them finds out.
                write = selectors.EVENT_WRITE if event & ~select.EPOLLIN else 0
                read = selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
                ready.append((key, (write | read) & key.events))
        return ready


def timed_select(  # noqa: C901, PLR0915 - one function makes closure cells of its variables, the cheapest there are
    cell: Cell, original: Select, epoll: Epoll | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Timed:
    """Return a ``select`` that does what ``original`` does and notes when the loop waits and when it works.

    Args:
        cell: takes what is noted.
        original: the selector's own ``select``.
        epoll: what lies behind it, if it is known; then it is used instead, which pays for the notes.
        clock: monotonic seconds.
    """
    since, passes, idle, due = IDLE, 0, 0.0, 0.0
    chosen: Select = original if epoll is None else epoll.select

    @unseen
    def timed(timeout: float | None = None) -> Any:
        nonlocal since, passes
        now = clock()
        if now >= due:
            return closely(timeout, now)
        passes += 1
        if timeout == 0:
            since = now  # such a poll does not wait: it belongs to the pass
            return chosen(timeout)
        return wait(timeout, now)

    @unseen
    def timed_epoll(timeout: float | None = None) -> Any:  # the same, without a call more for a poll that does not wait
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
        nonlocal since, idle
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
        except Exception as exc:  # noqa: BLE001 - the seam between the loop and what is noted of it
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
        except Exception as exc:  # noqa: BLE001 - the same seam
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
        except Exception as exc:  # noqa: BLE001 - the same seam
            cell.failed(exc)

    def pace() -> Pace:
        if since < 0:  # it waits, since then
            return Pace(IDLE, passes, idle + clock() + since)
        return Pace(since, passes, idle)

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
    """The probe of one selector loop.

    Args:
        loop: a loop with ``_selector`` (:class:`asyncio.SelectorEventLoop` and what derives from it).
        limit: s, blocks at least this long are reported.
        patches: where the replacement of ``select`` is kept.
        failed: called with what went wrong on the loop's thread; the loop goes on.
        real_time: whether the timers of the loop are due by ``time.monotonic``.

    Raises:
        AttributeError, TypeError: the loop has no selector, or one whose ``select`` cannot be replaced.
    """

    kind = "asyncio"
    handles = True

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
        """Nothing: passes and polls are timed exactly."""

    def at_rest(self) -> bool:
        return False

    def busy_since(self, now: float, late: float = 0.0, overdue: float = 0.0) -> float:
        since: float = self._timed.pace().since
        return since

    def held_up(self, now: float, seconds: float) -> None:
        """Nothing: passes and polls are timed exactly."""

    def finished(self) -> list[Block]:
        cell = self._cell
        done = []
        while cell.blocks:
            block = cell.blocks[0]
            if block is cell.awaiting_events and time.monotonic() - block.end < POLL_GRACE:
                break  # the first poll after it, which counts the events that waited, is not over yet
            done.append(cell.blocks.popleft())
        return done

    def counters(self, now: float) -> Counters:
        ran = self._ran + (now - self._started if self._started is not None else 0.0)
        pace = self._timed.pace()
        return Counters(max(ran - pace.idle, 0.0), pace.idle, pace.passes, None)

    def cut(self, now: float) -> None:
        pace = self._timed.pace()
        if pace.since == IDLE:
            return
        if now - pace.since >= self._cell.limit:
            self._cell.end_pass(now, pace)
            self._cell.awaiting_events = None  # no poll follows
        self._timed.look_at(self._cell.take_mark(now, pace.idle))
        self._timed.begin(now)

    def expect(self, when: float) -> None:
        self._cell.expect(when)
        self._timed.look_by(self._cell.visit)

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        self._cell.alarm = alarm
        self._timed.look_at(0.0)  # or a wake-up within the next 10 ms would not be looked at
        waits: bool = self._timed.pace().since == IDLE
        return waits  # else it has just become busy

    def on_end(self, taker: Taker | None) -> None:
        self._cell.taker = taker

    def started(self, key: float) -> float:
        return key

    def set_limit(self, limit: float) -> None:
        self._cell.limit = limit
        self._timed.look_at(0.0)

    def running(self, running: bool) -> None:
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
        self._patches.undo(self._patch)
        self._timed.begin(IDLE)
        self._cell.limit = self._cell.visit = IDLE
        self._cell.taker = None
        self._timed.look_at(IDLE)

    def abandon(self) -> None:
        self.detach()

"""Reads a loop of uvloop through libuv's own counters, from the watcher's thread: no work on the loop at all.

uvloop's extension module exports libuv's functions. Two of them may be called from any thread (libuv
``src/uv-common.c``, ``src/unix/core.c``): ``uv_metrics_idle_time`` (nanoseconds in the poll, the present poll included,
so that it moves while the loop waits) and ``uv_metrics_info`` (passes of the loop and events, plain counters). The loop
is blocked while neither idle time nor passes move.

A loop that was closed must never be read: its memory is gone. ``uvloop.Loop.close`` is therefore wrapped (see
:mod:`loopwatch.watch.discovery`): it detaches the probe first. Each call into libuv is made with the lock that
``detach`` takes, and with a pointer that was looked at right before it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from loopwatch.core.originals import time
from loopwatch.core.patches import loaded
from loopwatch.watch.probes.base import IDLE, Block, Counters, Loop, Taker

_UV_METRICS_IDLE_TIME = 1
"""``uv_loop_option`` in libuv's ``uv.h``."""

POLL_GRACE = 0.005
"""s: the first poll after a block counts what waited; it is not waited for longer than this."""


TIMER_GRAIN = 0.002
"""s: libuv's timers count whole milliseconds, from the beginning of a pass."""

CERTAIN = 0.4
"""Share of the limit that one pass must certainly have taken, or passes of a healthy loop would add up to a block."""

JUST_NOW = 0.002
"""s: totals that were read so lately are not read again."""

RESTFUL = 0.01
"""s that a loop at rest worked at most since the last look."""

LEAST_ORDINARY, ORDINARY = 0.01, 0.9
"""s between two readings, and share of the limit that the loop was busy, that tell how busy it usually is."""

MOST_USUAL = 0.9
"""Share above which a loop is as good as always busy."""


class _Metrics(ctypes.Structure):
    _fields_ = (
        ("loop_count", ctypes.c_uint64),
        ("events", ctypes.c_uint64),
        ("events_waiting", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 13),
    )


class _Libuv:
    """libuv as the imported uvloop carries it.

    ``PyDLL`` keeps the GIL during a call, so that no loop can be closed while one is being read.

    Raises:
        AttributeError, OSError: uvloop does not export what is needed.
    """

    def __init__(self, extension: Any) -> None:
        library = ctypes.PyDLL(extension.__file__)
        self._capsule_of = extension.libuv_get_loop_t_ptr
        self._pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        self._pointer_of.restype = ctypes.c_void_p
        self._pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
        self._configure = library.uv_loop_configure
        self._configure.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.idle_time = library.uv_metrics_idle_time
        self.idle_time.restype = ctypes.c_uint64
        self.idle_time.argtypes = [ctypes.c_void_p]
        self.info = library.uv_metrics_info
        self.info.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def open(self, loop: Loop) -> int:
        """Have libuv measure the idle time of ``loop`` and return the loop's address."""
        pointer = self._pointer_of(self._capsule_of(loop), None)
        if self._configure(pointer, _UV_METRICS_IDLE_TIME):
            raise OSError("libuv refused to measure the idle time")
        return int(pointer)


class Reading(NamedTuple):
    """libuv's counters at one moment: ``time.monotonic`` seconds, idle seconds, whether it polls, totals."""

    at: float
    idle: float
    polling: bool
    passes: int
    events: int
    waiting: int

    def moved_since(self, earlier: Reading) -> bool:
        return self.passes != earlier.passes or self.idle != earlier.idle


class _Suspect:
    """What may become a block: the loop was found busy, and has not moved since.

    Args:
        before: the reading before.
        first: the reading that found it.
        late: s for which the watcher had wanted to read and could not.
        overdue: s for which the loop had owed a beat, as it does from the pass on that holds it, or longer.
        alive: when the last beat came: what holds the loop began after it.
        told: whether what was busy between the two was reported as another block already.

    Attributes:
        early, late: bounds of its start.
        since: where in between it is looked for: a pass takes the mean of those that were, unless nobody could look.
        exact: whether ``early`` is its start: the loop made at most one pass since the reading before.
        least: s that one pass took at least: the mean of those since the reading before, or as long as a beat is due.
        held: s before ``late`` in which no pass can have ended, as some thread kept the GIL.
        first: the reading that found it.
    """

    __slots__ = ("_slack", "early", "exact", "first", "held", "late", "least", "since")

    def __init__(
        self,
        before: Reading,
        first: Reading,
        late: float = 0.0,
        overdue: float = 0.0,
        alive: float = 0.0,
        *,
        told: bool = False,
    ) -> None:
        busy = max((first.at - before.at) - (first.idle - before.idle), 0.0)
        # libuv counts a pass when it begins: one to leave the poll it was in, one to get here.
        passes = first.passes - before.passes
        # If the loop worked, waited and worked since the reading before, only the last part is what holds it now.
        waited_between = not before.polling and first.idle > before.idle
        earliest = min(max(first.at - busy, alive), first.at)
        self.early = first.at if told else earliest
        self.late = first.at
        self.exact = passes <= 2 and not waited_between and not told
        self.least = min(max(busy / max(passes, 1), overdue - TIMER_GRAIN), first.at - self.early)
        self.held = 0.0
        self.first = first
        self._slack = 0.0 if self.exact else first.at - earliest
        self.since = self.early if self.exact else max(self.early, first.at - max(self.least, late))

    @property
    def doubt(self) -> float:
        """Seconds by which it may be shorter, or where another block was told before it, longer."""
        return max(self._slack - self.held, 0.0)


class _Between:
    """What lies between two readings, of which the second found the loop waiting: perhaps a block, over by now.

    Attributes:
        before, after: the readings.
        wall, waited, busy: s between them, and how much of it the loop waited and worked.
        mean: s that a pass took on average; one of them took that long or longer.
        room: s between two signs of life at most: no pass took longer.
        held: s that some thread kept the GIL at least, so that no pass could end.
    """

    __slots__ = ("after", "before", "busy", "held", "mean", "room", "waited", "wall")

    def __init__(self, before: Reading, after: Reading, beats: Sequence[tuple[float, float]] = ()) -> None:
        self.before, self.after = before, after
        self.wall = after.at - before.at
        self.waited = after.idle - before.idle
        self.busy = max(self.wall - self.waited, 0.0)
        self.mean = self.busy / max(after.passes - before.passes, 1)
        signs = [before.at, *(came for _, came in beats if before.at < came < after.at), after.at]
        self.room = max(later - sign for sign, later in pairwise(signs))
        self.held = 0.0

    def beyond(self, usual: float) -> float:
        """Return the s of one block, if the loop was busy for the ``usual`` share of the rest of the time."""
        usual = min(usual, MOST_USUAL)
        return (self.busy - usual * self.wall) / (1 - usual)


class UvloopProbe:
    """The probe of one uvloop.Loop.

    Args:
        loop: the loop, open.
        limit: s, blocks at least this long are reported.

    Raises:
        AttributeError, OSError: libuv's counters cannot be reached; use the heartbeat.
    """

    kind = "uvloop"
    handles = False

    def __init__(self, loop: Loop, limit: float) -> None:
        self._libuv = _Libuv(loaded("uvloop.loop"))
        self._metrics = _Metrics()
        self._lock = threading.RLock()
        self._pointer: int | None = self._libuv.open(loop)
        self._loop = weakref.ref(loop)
        self._limit = limit
        self._blocks: deque[Block] = deque(maxlen=1000)
        self._between: _Between | None = None
        self._usual = 0.0
        self._beats: deque[tuple[float, float]] = deque(maxlen=32)
        self._suspect: _Suspect | None = None
        self._history: deque[Reading] = deque(maxlen=32)
        self._awaiting: tuple[Block, int, int] | None = None
        self._reported_to = 0.0
        self._last_beat = 0.0
        self._late_beat: tuple[float, float] | None = None
        self._taker: Taker | None = None
        self._ran = 0.0
        self._started: float | None = None
        self._attached = self._newest = self._last = self._read(time.monotonic()) or Reading(
            time.monotonic(), 0.0, False, 0, 0, 0
        )

    def _read(self, now: float) -> Reading | None:
        with self._lock:
            loop = self._loop()
            if loop is None or loop.is_closed():  # somebody has put the stock close() back
                self._pointer = None
            libuv, metrics = self._libuv, self._metrics
            reference = ctypes.byref(metrics)
            # Between two calls a signal handler or finalizer in this thread, which the lock lets in, may close it.
            if (pointer := self._pointer) is None:
                return None
            idle = libuv.idle_time(pointer)
            if (pointer := self._pointer) is None:
                return None
            libuv.info(pointer, reference)
            if (pointer := self._pointer) is None:
                return None
            # Idle time includes the poll under way: if it moves between two calls, the loop is in its poll.
            later = libuv.idle_time(pointer)
            return Reading(now, later / 1e9, later != idle, metrics.loop_count, metrics.events, metrics.events_waiting)

    def at_rest(self) -> bool:
        with self._lock:
            reading = self._read(time.monotonic()) if self._started is not None else None
            before = self._last
            if reading is None or self._suspect is not None or not reading.polling:
                return False
            if self._blocks or self._late_beat is not None:
                return False  # to be handed on
            if (reading.at - before.at) - (reading.idle - before.idle) > RESTFUL:
                return False
            self._last = reading
            self._history.append(reading)
            return True

    def busy_since(self, now: float, late: float = 0.0, overdue: float = 0.0) -> float:
        with self._lock:
            return self._busy_since(late, overdue)

    def _busy_since(self, late: float, overdue: float) -> float:
        # Now, and not the time of the tick: files may have been read since.
        reading = self._read(time.monotonic()) if self._started is not None else None
        if reading is None:
            return IDLE
        before, self._last = self._last, reading
        if reading.moved_since(before):
            self._history.append(reading)
        suspect, told = self._suspect, False
        if suspect is None and reading.polling:
            self._between = between = _Between(before, reading, list(self._beats))
            if between.wall > LEAST_ORDINARY and between.busy < ORDINARY * self._limit:
                self._usual = between.busy / between.wall
        elif suspect is not None and (reading.polling or reading.moved_since(before)):
            told = self._close(suspect, before, reading)
            self._suspect = suspect = None
        if reading.polling:
            return IDLE
        if suspect is None:
            # What lies before this reading is part of the block that has just been told, or it would be told twice.
            self._suspect = suspect = _Suspect(before, reading, late, overdue, self._last_beat, told=told)
        return suspect.since

    def held_up(self, now: float, seconds: float) -> None:
        with self._lock:
            suspect, between = self._suspect, self._between
            if suspect is not None and suspect.late >= now:
                suspect.held = min(max(seconds, 0.0), suspect.late - suspect.early)
            elif between is not None and between.after.at >= now:
                between.held = min(max(seconds, 0.0), between.room)

    def _look_back(self, between: _Between) -> None:
        """Report a block that began and ended between two readings, in which the watcher could not look either."""
        before, after = between.before, between.after
        beyond = between.beyond(self._usual)
        if between.held >= CERTAIN * self._limit and beyond >= CERTAIN * self._limit:
            # The watcher looks as soon as it can: what of the wait lay behind the block is next to nothing.
            certain = max(between.held, between.mean)
            end, length = after.at, min(max(beyond, certain), between.busy, between.room)
            doubt = max(between.busy - length, length - certain)
        elif between.mean >= self._limit:
            # How much of the wait lay before it is not known; how long it was is.
            end, length, doubt = after.at - between.waited / 2, between.busy, between.busy - between.mean
        else:
            return
        if length < self._limit:
            return
        block = Block(end - length, end - length, end, doubt)
        self._awaiting = (block, before.waiting, after.passes)
        self._report(block)

    def _close(self, suspect: _Suspect, before: Reading, after: Reading) -> bool:
        """Report ``suspect``, which ended between two readings, if it was a block; return whether it was."""
        idle = after.idle - before.idle
        # What it has polled since, it polled after the block had ended.
        end = after.at - idle
        gap = 0.0 if after.polling and after.passes - before.passes <= 2 else max(after.at - idle - before.at, 0.0)
        # What is certain must carry most of it, or the passes of a healthy, busy loop would add up to a block.
        end = max(end, before.at)
        # While a beat is due no pass begins.
        owed = max((min(came, end) - max(due, suspect.early) for due, came in list(self._beats)), default=0.0)
        certain = max(before.at - suspect.late, suspect.least, suspect.held, owed)
        doubt = suspect.doubt + gap
        if end - suspect.early < self._limit or (doubt > 0 and certain < CERTAIN * self._limit):
            return False
        block = Block(suspect.since, suspect.early, end, doubt)
        self._awaiting = (block, suspect.first.waiting, after.passes)
        self._report(block)
        return True

    def _report(self, block: Block) -> None:
        self._blocks.append(block)
        self._reported_to = block.end

    def on_beat(self, due: float, now: float) -> None:
        """Take a late beat as the sign of what the counters do not show; on the loop's thread.

        A loop that overslept in its poll (stopped process, no processor, GIL taken) was idle for libuv, and a block
        whose bounds were too uncertain for the counters alone is confirmed by a beat that had to wait for it.
        """
        last_beat, self._last_beat = self._last_beat, now
        self._beats.append((due, now))
        if now - due < self._limit:
            return
        with self._lock:
            overslept = self._take_late_beat(due, now, last_beat)
        if overslept is not None and self._taker is not None:
            self._taker(overslept.key, overslept.start, overslept.end, ())

    def _take_late_beat(self, due: float, now: float, last_beat: float) -> Block | None:
        """Return the block that a beat which was ``due`` has shown ``now``, if the loop overslept; keep it, else."""
        reading = self._read(now)
        if reading is None or self._reported_to > due:
            return None
        before = next((item for item in reversed(self._history) if item.at <= due), self._last)
        busy = (reading.at - before.at) - (reading.idle - before.idle)
        if busy >= (now - due) / 2:
            self._late_beat = (due, now)
            return None
        # It may have begun before the beat was due: at any time since there was a sign of life.
        alive = min(max(before.at, last_beat), due)
        doubt = (due - alive) / 2
        block = Block(due - doubt, due - doubt, now, uncertainty=doubt, asleep=True)
        self._report(block)
        return block

    def finished(self) -> list[Block]:
        with self._lock:
            between, self._between = self._between, None
            if between is not None and between.after.at > self._reported_to:
                self._look_back(between)
            if self._late_beat is not None and self._suspect is None:
                (due, now), self._late_beat = self._late_beat, None
                if self._reported_to <= due:
                    self._report(Block(due, due, now, uncertainty=now - due))
            if self._awaiting is not None and not self._count_victims(*self._awaiting):
                return []
            self._awaiting = None
            return [self._blocks.popleft() for _ in range(len(self._blocks))]

    def _count_victims(self, block: Block, waiting: int, passes: int) -> bool:
        """Count the events that the first poll after ``block`` found waiting; return False if it is not over yet."""
        now = time.monotonic()
        reading = self._read(now)
        if reading is None:
            return True
        if not reading.polling and reading.passes <= passes and now - block.end < POLL_GRACE:
            return False
        block.victims = reading.waiting - waiting
        return True

    def counters(self, now: float) -> Counters:
        ran = self._ran + (now - self._started if self._started is not None else 0.0)
        # Fresh: between two ticks of the watcher the heartbeat asks how busy the loop was.
        last = self._last
        fresh = self._read(time.monotonic()) if self._started is not None and now - last.at >= JUST_NOW else last
        self._newest = fresh or max(self._newest, self._last)
        last, first = self._newest, self._attached
        idle = last.idle - first.idle
        if self._started is not None:
            # The idle time is of the last reading; so is the end of the span it belongs to.
            ran -= max(now - last.at, 0.0)
        return Counters(max(ran - idle, 0.0), idle, last.passes - first.passes, last.events - first.events)

    def cut(self, now: float) -> None:
        with self._lock:
            suspect, before = self._suspect, self._last
            reading = self._read(now)
            if reading is None or self._started is None:
                return
            # Between the end of the block and here lie a few passes at most: to stop a loop takes three.
            went_on = reading.idle - before.idle > 1e-4 or reading.passes - before.passes > 4
            if suspect is not None and went_on:
                self._close(suspect, before, reading)
            else:
                suspect = suspect or _Suspect(before, reading)
                certain = max(now - suspect.late, suspect.held)
                if now - suspect.early >= self._limit and (suspect.exact or certain >= CERTAIN * self._limit):
                    self._report(Block(suspect.since, suspect.early, now, suspect.doubt))
            self._last, self._suspect = reading, None
            self._awaiting = None  # no poll follows that would count what waited

    def expect(self, when: float) -> None:
        """Nothing: the heartbeat lets the watcher in."""

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        return False

    def on_end(self, taker: Taker | None) -> None:
        self._taker = taker  # told without handles, and only where a beat shows on the loop's thread that it overslept

    def started(self, key: float) -> float:
        with self._lock:
            suspect = self._suspect
            return suspect.early if suspect is not None and suspect.since == key else key

    def set_limit(self, limit: float) -> None:
        with self._lock:
            self._limit = limit
            self._between = None  # it lies before

    def running(self, running: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if running:
                if self._started is not None:  # the end of a run that had begun before the agent was there is not seen
                    self._ran += now - self._started
                self._suspect = self._between = None
                self._last = self._read(now) or self._last
                self._history.clear()
                self._history.append(self._last)
                self._started = now
            elif self._started is not None:
                self.cut(now)
                self._ran += now - self._started
                self._started = None

    def detach(self) -> None:
        self._taker = None
        with self._lock:
            self._pointer = None

    def abandon(self) -> None:
        self._lock = threading.RLock()
        self._pointer = self._taker = None

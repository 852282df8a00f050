"""Reads a uvloop loop through libuv's own counters, from the watcher's thread: no work on the loop at all.

uvloop's extension module exports libuv's functions. Two of them may be called from any thread (libuv
``src/uv-common.c``, ``src/unix/core.c``): ``uv_metrics_idle_time`` (nanoseconds in the poll, the current poll included,
so that it moves while the loop waits) and ``uv_metrics_info`` (passes of the loop and events, plain counters). The loop
is blocked while neither idle time nor passes move. ``uv_now`` only reads a field: when the loop last took the time.

A signal, such as that of each child process that ends, interrupts a poll, and libuv forgets how long that poll had
waited (``uv__io_poll`` in ``src/unix/linux.c`` sets the entry time anew). The total then falls back behind what was
read during the poll, which tells such a loss from a block; it stays hidden where the next poll has waited for longer.

A closed loop must never be read: its memory is freed. ``uvloop.Loop.close`` is therefore wrapped (see
:mod:`loopwatch.watch.discovery`): it detaches the probe first. Each call into libuv is made with the lock that
``detach`` takes, and with a pointer checked right before it.
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
from loopwatch.system.threads import thread_cpu
from loopwatch.watch.probes.base import IDLE, Block, Counters, Loop, Taker, Traits

_UV_METRICS_IDLE_TIME = 1
"""``uv_loop_option`` in libuv's ``uv.h``."""

POLL_GRACE = 0.005
"""Longest wait in seconds for the first poll after a block, which counts the events that waited."""


TIMER_GRAIN = 0.002
"""Seconds: libuv's timers count whole milliseconds, from the beginning of a pass."""

CERTAIN = 0.4
"""Share of the limit that one pass must certainly have taken; else passes of a healthy loop would add up to a block."""

JUST_KEPT = 0.02
"""Seconds after a reading that had to wait for the GIL, within which another one is still at the end of that call."""

MOST_AROUND = 1.3
"""Longest time between two heartbeats, in lengths of a block, of which the processor time is that of the block."""

JUST_NOW = 0.002
"""Seconds: totals read more recently than this are not read again."""

RESTFUL = 0.01
"""Seconds that a loop at rest worked at most since the last tick."""

COMPUTED = 0.25
"""Share of the time in which a loop seems to have worked that it must have computed where a poll may be interrupted."""

LEAST_ORDINARY, ORDINARY = 0.01, 0.9
"""Least seconds between two readings, and most busy time as a share of the limit, that show the usual load."""

MOST_USUAL = 0.9
"""Upper bound of the usual load: a loop above it is as good as always busy."""


class _Metrics(ctypes.Structure):
    _fields_ = (
        ("loop_count", ctypes.c_uint64),
        ("events", ctypes.c_uint64),
        ("events_waiting", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 13),
    )


class _Libuv:
    """The functions of libuv, as the imported uvloop exports them.

    ``PyDLL`` keeps the GIL during a call, so that no loop can be closed while one is being read.

    Raises:
        AttributeError, OSError: uvloop does not export these functions.
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
        self.now = library.uv_now
        self.now.restype = ctypes.c_uint64
        self.now.argtypes = [ctypes.c_void_p]
        self.info = library.uv_metrics_info
        self.info.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def open(self, loop: Loop) -> int:
        """Make libuv measure the idle time of ``loop``; return the loop's address."""
        pointer = self._pointer_of(self._capsule_of(loop), None)
        if self._configure(pointer, _UV_METRICS_IDLE_TIME):
            raise OSError("libuv refused to measure the idle time")
        return int(pointer)


class _Clocks(NamedTuple):
    """Processor seconds of the loop's thread and of the process at one heartbeat, at ``time.monotonic`` seconds."""

    at: float
    cpu: float
    process_cpu: float


class Reading(NamedTuple):
    """libuv's counters at one moment.

    Attributes:
        at: when (``time.monotonic`` seconds).
        idle: seconds that the loop has waited in its poll, without what libuv forgot of interrupted polls; never less
            than in an earlier reading.
        polling: whether it polls.
        passes, events, waiting: totals: passes, events, and events that were waiting when their pass began.
        took_time: when the loop last took the time: after a poll, or later in the pass, for a timer.
        interrupted: number of polls so far that are known to be interrupted.
        cpu: processor seconds of the loop's thread, None if unknown.
    """

    at: float
    idle: float
    polling: bool
    passes: int
    events: int
    waiting: int
    took_time: float = 0.0
    interrupted: int = 0
    cpu: float | None = None

    def moved_since(self, earlier: Reading) -> bool:
        """Return whether the loop began a pass or waited since ``earlier``."""
        return self.passes != earlier.passes or self.idle != earlier.idle or self.interrupted != earlier.interrupted


class _Suspect:
    """A possible block: the loop was found busy, and has not moved since.

    Args:
        before: the previous reading.
        first: the reading that found it.
        late: seconds for which the watcher was kept from reading.
        overdue: seconds for which a heartbeat was overdue, as it is from the blocking pass on, or longer.
        alive: when the last heartbeat ran: the busy span began after it.
        kept: seconds before ``first`` in which no pass can have ended, as some thread kept the GIL.
        after: earliest start, as another block was reported that ended between the two readings; None if there is none.

    Attributes:
        early, late: bounds of its start.
        since: assumed start, as long before ``late`` as a mean pass lasts, or as the watcher was kept from reading.
        exact: whether ``early`` is its start: the loop made at most one pass since the previous reading.
        least: least seconds of one pass: the mean since the previous reading, or the time a heartbeat is overdue.
        held: seconds before ``late`` in which no pass can have ended, as some thread kept the GIL.
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
        kept: float = 0.0,
        after: float | None = None,
    ) -> None:
        busy = max((first.at - before.at) - (first.idle - before.idle), 0.0)
        # libuv counts a pass when it begins: one to leave the poll it was in, one to get here.
        passes = first.passes - before.passes
        # If the loop worked, waited and worked since the previous reading, only the last part is the busy span.
        waited_between = not before.polling and first.idle > before.idle
        # Of an interrupted poll nothing is known but its end.
        resumed = first.took_time - TIMER_GRAIN if first.interrupted != before.interrupted else 0.0
        earliest = min(max(first.at - busy, alive, resumed), first.at)
        self.early = earliest if after is None else min(max(after, earliest), first.at)
        self.late = first.at
        self.exact = passes <= 2 and not waited_between and after is None
        mean = busy / max(passes, 1) if after is None else 0.0
        self.least = min(max(mean, overdue - TIMER_GRAIN), first.at - self.early)
        self.held = min(kept, first.at - self.early)
        self.first = first
        self._slack = 0.0 if self.exact else first.at - earliest
        self.since = self.early if self.exact else max(self.early, first.at - max(self.least, late))

    @property
    def doubt(self) -> float:
        """Seconds by which it may be shorter or, where another block was reported before it, longer."""
        return max(self._slack - self.held, 0.0)


class _Between:
    """The time between two readings, the second of which found the loop waiting: perhaps with a block, over by now.

    Attributes:
        before, after: the readings.
        wall, waited, busy: seconds between them, and seconds of that in which the loop waited and worked.
        mean: mean seconds of a pass; one of them took that long or longer.
        room: most seconds between two signs of life: no pass took longer.
        held: least seconds for which some thread kept the GIL, so that no pass could end.
        is_certain: whether it cannot be the waiting of an interrupted poll that is taken for work.
    """

    __slots__ = ("after", "before", "busy", "held", "is_certain", "mean", "room", "waited", "wall")

    def __init__(self, before: Reading, after: Reading, beats: Sequence[tuple[float, float]] = ()) -> None:
        self.before, self.after = before, after
        self.wall = after.at - before.at
        self.waited = after.idle - before.idle
        self.busy = max(self.wall - self.waited, 0.0)
        self.mean = self.busy / max(after.passes - before.passes, 1)
        signs = [before.at, *(came for _, came in beats if before.at < came < after.at), after.at]
        self.room = max(later - sign for sign, later in pairwise(signs))
        self.held = 0.0
        # The current poll began at the time last taken, or later; before it, the total must have passed what was read.
        settled = after.idle - (after.at - after.took_time)
        was_interrupted = after.interrupted != before.interrupted or settled <= before.idle + TIMER_GRAIN
        computed = (after.cpu or 0.0) - (before.cpu or 0.0) if before.cpu is not None else 0.0
        self.is_certain = not was_interrupted or computed >= COMPUTED * self.busy

    def beyond(self, usual: float) -> float:
        """Return the seconds of one block, if the loop was busy for the ``usual`` share of the rest of the time."""
        usual = min(usual, MOST_USUAL)
        return (self.busy - usual * self.wall) / (1 - usual)


class UvloopProbe:
    """The probe of one ``uvloop.Loop``: blocks are computed from two readings of libuv's counters, with bounds.

    Args:
        loop: the loop, open.
        limit: seconds, blocks at least this long are reported.

    Raises:
        AttributeError, OSError: libuv's counters cannot be reached; use the heartbeat.
    """

    kind = "uvloop"
    traits = Traits()

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
        self._clocks: deque[_Clocks] = deque(maxlen=32)
        self._kept_at = 0.0  # the last reading that had to wait for the GIL
        self._native_id: int | None = None
        self._raw_idle = self._forgotten = self._interrupted = 0
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
            if loop is None or loop.is_closed():  # the program has put the original close() back
                self._pointer = None
            libuv, metrics = self._libuv, self._metrics
            reference = ctypes.byref(metrics)
            # Between two calls a signal handler or finalizer in this thread, admitted by the RLock, may close it.
            if (pointer := self._pointer) is None:
                return None
            idle = libuv.idle_time(pointer)
            if (pointer := self._pointer) is None:
                return None
            libuv.info(pointer, reference)
            if (pointer := self._pointer) is None:
                return None
            # Idle time includes the current poll: if it moves between two calls, the loop is in its poll.
            later = libuv.idle_time(pointer)
            if (pointer := self._pointer) is None:
                return None
            took_time = libuv.now(pointer) / 1e3
            for earlier, total in ((self._raw_idle, idle), (idle, later)):
                if total < earlier:
                    self._forgotten += earlier - total
                    self._interrupted += 1
            self._raw_idle = later
            return Reading(
                now, (later + self._forgotten) / 1e9, later != idle, metrics.loop_count, metrics.events,
                metrics.events_waiting, took_time, self._interrupted,
                None if self._native_id is None else thread_cpu(self._native_id),
            )  # fmt: skip

    def at_rest(self) -> bool:
        """Whether one reading finds the loop polling, with no block to report and next to no work since the last."""
        with self._lock:
            reading = self._read(time.monotonic()) if self._started is not None else None
            before = self._last
            if reading is None or self._suspect is not None or not reading.polling:
                return False
            if self._blocks or self._late_beat is not None:
                return False  # to be passed on
            if (reading.at - before.at) - (reading.idle - before.idle) > RESTFUL:
                return False
            self._last = reading
            self._history.append(reading)
            return True

    def busy_since(
        self, now: float, late: float = 0.0, overdue: float = 0.0, kept: float = 0.0, mark: Any = None
    ) -> float:
        """Return the assumed start of the busy span, by the counters' movement since the last reading."""
        with self._lock:
            return self._busy_since(late, overdue, kept, mark)

    def mark(self) -> Reading | None:
        """Return a reading of the counters."""
        return self._read(time.monotonic()) if self._started is not None else None

    def _busy_since(
        self, late: float, overdue: float, kept: float, mark: Reading | None, *, ends: bool = False
    ) -> float:
        if mark is not None and mark.polling and self._suspect is None:
            return IDLE  # the next reading tells whether there was a block
        if mark is not None and mark.at < self._last.at:
            return self._span_at(mark.at)
        # Now, and not the time of the tick: files may have been read since.
        reading = mark if mark is not None else self.mark()
        if self._started is None or reading is None:
            return IDLE
        before, self._last = self._last, reading
        if reading.moved_since(before):
            self._history.append(reading)
        suspect, reported = self._suspect, False
        if suspect is None and reading.polling:
            self._between = between = _Between(before, reading, list(self._beats))
            if between.wall > LEAST_ORDINARY and between.busy < ORDINARY * self._limit and between.is_certain:
                self._usual = between.busy / between.wall
        elif suspect is not None and (reading.polling or reading.moved_since(before)):
            reported = self._close(suspect, before, reading, kept, ends=ends)
            self._suspect = suspect = None
        if kept > 0 or reading.moved_since(before):
            self._kept_at = reading.at if kept > 0 else 0.0
        if reading.polling:
            return IDLE
        if suspect is None:
            # The time up to the end of the block just reported is not part of this one, or it would be reported twice.
            after = self._reported_to + reading.idle - before.idle if reported else None
            self._suspect = suspect = _Suspect(before, reading, late, overdue, self._last_beat, kept=kept, after=after)
        return suspect.since

    def _span_at(self, at: float) -> float:
        """Return the key of the busy span that contains a moment before the last reading."""
        if self._suspect is not None and self._suspect.early <= at:
            return self._suspect.since
        return next((block.key for block in reversed(self._blocks) if block.start <= at <= block.end), IDLE)

    def held_up(self, now: float, seconds: float) -> None:
        """Record the ``seconds`` in which no pass can have ended: they make a block's length more certain."""
        with self._lock:
            suspect, between = self._suspect, self._between
            if suspect is not None and suspect.late >= now:
                suspect.held = min(max(seconds, 0.0), suspect.late - suspect.early)
            elif between is not None and between.after.at >= now:
                between.held = min(max(seconds, 0.0), between.room)

    def _look_back(self, between: _Between) -> None:
        """Report a block that began and ended between two readings, while the watcher could not read either."""
        before, after = between.before, between.after
        beyond = between.beyond(self._usual)
        if between.held >= CERTAIN * self._limit and beyond >= CERTAIN * self._limit:
            # The watcher reads as soon as it can: next to none of the loop's waiting lay after the block.
            certain = max(between.held, between.mean)
            end, length = after.at, min(max(beyond, certain), between.busy, between.room)
            doubt = max(between.busy - length, length - certain)
        elif between.mean >= self._limit and between.is_certain:
            # How much of the loop's waiting lay before the block is unknown; the block's length is known.
            end, length, doubt = after.at - between.waited / 2, between.busy, between.busy - between.mean
        else:
            return
        if length < self._limit:
            return
        block = Block(end - length, end - length, end, doubt)
        self._awaiting = (block, before.waiting, after.passes)
        self._report(block)

    def _close(
        self, suspect: _Suspect, before: Reading, after: Reading, kept: float = 0.0, *, ends: bool = False
    ) -> bool:
        """Report ``suspect``, which ended between two readings, if it was a block; return whether it was.

        Args:
            suspect: the block.
            before, after: the readings.
            kept: seconds before ``after`` in which no pass can have ended.
            ends: whether it is known to have ended right before ``after``.
        """
        idle = after.idle - before.idle
        # The idle time since then came after the block, and so did the call that kept the GIL.
        latest = max(after.at - idle - (0.0 if after.polling else kept), before.at)
        gap = 0.0 if after.polling and after.passes - before.passes <= 2 else latest - before.at
        if ends:
            end, gap = latest, 0.0
        elif before.at == self._last_beat:  # it ran right after the call
            end, gap = before.at, 0.0
        else:
            # A reading that had to wait for the GIL is one at the end of a call, and mostly of its pass.
            end = before.at if before.at - self._kept_at <= JUST_KEPT and not after.polling else latest
        # Enough of it must be certain, or the passes of a healthy, busy loop would add up to a block.
        # While a heartbeat is due no pass begins.
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
        length = block.end - block.start
        near = (MOST_AROUND - 1) / 2 * length
        clocks = list(self._clocks)  # the loop's thread may be adding to it
        before = next((each for each in reversed(clocks) if each.at <= block.start + near), None)
        after = next((each for each in clocks if each.at >= block.end - near), None)
        if before is not None and after is not None and after.at - before.at <= MOST_AROUND * length:
            block.window = after.at - before.at
            block.cpu, block.process_cpu = after.cpu - before.cpu, after.process_cpu - before.process_cpu
        self._blocks.append(block)
        self._reported_to = block.end

    def on_beat(self, due: float, now: float) -> None:
        """Take a late heartbeat as the sign of a block that the counters do not show; on the loop's thread.

        A loop that overslept in its poll (stopped process, no processor, GIL taken) was idle for libuv, and a block
        whose bounds were too uncertain by the counters alone is confirmed by a heartbeat that had to wait for it.
        """
        last_beat, late = self._last_beat, now - due
        self._beats.append((due, now))
        self._clocks.append(_Clocks(now, time.thread_time(), time.process_time()))
        if late < CERTAIN * self._limit:
            self._last_beat = now
            return
        with self._lock:
            # A call has just ended; by the time that the watcher gets the GIL and reads, the next one may have begun.
            if self._started is not None and (reading := self._read(now)) is not None:
                # No pass began while it was due: if the last reading is from that time, it was in the pass that ended.
                is_same = self._suspect is not None and self._last.at >= due
                self._busy_since(late, 0.0, 0.0 if is_same else late, reading, ends=is_same)
            self._last_beat = now
            overslept = self._take_late_beat(due, now, last_beat) if late >= self._limit else None
        if overslept is not None and self._taker is not None:
            self._taker(overslept.key, overslept.start, overslept.end, ())

    def _take_late_beat(self, due: float, now: float, last_beat: float) -> Block | None:
        """Return the block shown by a late heartbeat, if the loop overslept; else keep it for :meth:`finished`."""
        reading = self._read(now)
        if reading is None or self._reported_to > due:
            return None
        before = next((item for item in reversed(self._history) if item.at <= due), self._last)
        busy = (reading.at - before.at) - (reading.idle - before.idle)
        if busy >= (now - due) / 2:
            self._late_beat = (due, now)
            return None
        # It may have begun before the heartbeat was due: at any time since the last sign of life.
        alive = min(max(before.at, last_beat), due)
        doubt = (due - alive) / 2
        block = Block(due - doubt, due - doubt, now, uncertainty=doubt, asleep=True)
        self._report(block)
        return block

    def finished(self) -> list[Block]:
        """Return the finished blocks, once the first poll after the latest has counted the events that waited."""
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
        """Return libuv's totals; events are counted as callbacks."""
        ran = self._ran + (now - self._started if self._started is not None else 0.0)
        # A fresh reading: between two ticks of the watcher the heartbeat computes the loop's utilization.
        last = self._last
        fresh = self._read(time.monotonic()) if self._started is not None and now - last.at >= JUST_NOW else last
        self._newest = fresh or max(self._newest, self._last)
        last, first = self._newest, self._attached
        idle = last.idle - first.idle
        if self._started is not None:
            # Idle time is known up to the last reading: the running time must end there, too.
            ran -= max(now - last.at, 0.0)
        return Counters(max(ran - idle, 0.0), idle, last.passes - first.passes, last.events - first.events)

    def cut(self, now: float) -> None:
        """End the busy span with a reading, and report it if it was a block."""
        with self._lock:
            suspect, before = self._suspect, self._last
            reading = self._read(now)
            if reading is None or self._started is None:
                return
            # Between the end of the block and here lie a few passes at most: stopping a loop takes three.
            went_on = reading.idle - before.idle > 1e-4 or reading.passes - before.passes > 4
            if suspect is not None and went_on:
                self._close(suspect, before, reading)
            else:
                suspect = suspect or _Suspect(before, reading)
                certain = max(now - suspect.late, suspect.held)
                if now - suspect.early >= self._limit and (suspect.exact or certain >= CERTAIN * self._limit):
                    self._report(Block(suspect.since, suspect.early, now, suspect.doubt))
            self._last, self._suspect = reading, None
            self._awaiting = None  # no poll follows that would count the events that waited

    def expect(self, when: float) -> None:
        """Do nothing: the heartbeat releases the GIL for the watcher."""

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        """Return False: libuv's counters can only be polled."""
        return False

    def on_end(self, taker: Taker | None) -> None:
        """Set the callback for blocks in which the loop overslept, by a late heartbeat; it gets no handles."""
        self._taker = taker

    def started(self, key: float) -> float:
        """Return the earliest possible start of the busy span under ``key``."""
        with self._lock:
            suspect = self._suspect
            return suspect.early if suspect is not None and suspect.since == key else key

    def set_limit(self, limit: float) -> None:
        """Report blocks of at least ``limit`` seconds, from the next reading on."""
        with self._lock:
            self._limit = limit
            self._between = None  # it lies before the change

    def running(self, running: bool) -> None:
        """Begin with a fresh reading when the loop starts; end the busy span when it stops."""
        now = time.monotonic()
        with self._lock:
            if running:
                if self._started is not None:  # the end of a run begun before the agent's start is not seen
                    self._ran += now - self._started
                self._suspect = self._between = None
                self._native_id = threading.get_native_id()
                self._last = self._read(now) or self._last
                self._history.clear()
                self._history.append(self._last)
                self._started = now
            elif self._started is not None:
                self.cut(now)
                self._ran += now - self._started
                self._started = None

    def detach(self) -> None:
        """Drop the loop's address: it is not read after this has returned."""
        self._taker = None
        with self._lock:
            self._pointer = None

    def abandon(self) -> None:
        """Drop the loop's address, with a new lock."""
        self._lock = threading.RLock()
        self._pointer = self._taker = None

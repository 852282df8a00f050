"""The heartbeat: a timer on the loop that records its own lag. Works on any loop.

Where no better probe is available it also finds blocks: then its interval bounds the precision.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from collections import deque
from collections.abc import Callable
from types import CodeType
from typing import Any

from loopwatch.core.histogram import Histogram
from loopwatch.core.originals import release_gil, time
from loopwatch.core.signals import raised_by_handler
from loopwatch.watch.probes.base import IDLE, LET_IN, Block, Counters, Failed, Loop, Taker, Traits

LONGEST = 1.0
"""Seconds between two heartbeats of an idle loop."""

MOST_DOUBLED = 3
"""Doublings of the time for which a heartbeat releases the GIL, while the watcher does not tick."""

MAX_FAILURES = 10
"""Failures of one loop's heartbeat after which it stops."""

REMEMBERED = 64
"""Heartbeats whose due times are kept."""

IDLE_SHARE = 0.05
"""A loop busy for a smaller share of the time than this counts as idle."""


class Heartbeat:
    """Runs a repeated timer on one loop and records the lag of each heartbeat.

    Args:
        loop: any event loop.
        interval: seconds between two heartbeats while the loop is busy.
        utilization: returns the share of time the loop was busy since the last call, None if unknown; then the
            interval never stretches.
        on_beat: called on the loop's thread with (due, now) of each heartbeat, in ``time.monotonic`` seconds.
        failed: receives exceptions raised in a heartbeat, which do not reach the loop.
    """

    def __init__(
        self,
        loop: Loop,
        interval: float,
        utilization: Callable[[], float | None],
        on_beat: Callable[[float, float], None],
        failed: Failed,
    ) -> None:
        self._loop = weakref.ref(loop)
        self._interval = interval
        self._current = interval
        self._utilization = utilization
        self._on_beat = on_beat
        self._failed, self._failures = failed, 0
        # An empty context: the caller's would keep the program's objects alive.
        self._options = {"context": contextvars.Context()} if isinstance(loop, asyncio.AbstractEventLoop) else {}
        self._stopped = False
        self._window = Histogram()
        self._dues: deque[float] = deque(maxlen=REMEMBERED)
        self.due = float("inf")
        self.last = self.before_last = time.monotonic()
        self._invited = IDLE
        self._doubled = 0
        self._wake: Callable[[], None] | None = None
        self.base: tuple[int, CodeType] | None = None
        """(id, code) of the innermost frame below the loop's callbacks; the frame lives as long as the loop runs."""

    def start(self, *, in_callback: bool = False) -> None:
        """Start the heartbeat; on the loop's thread.

        Args:
            in_callback: the loop is running a callback. That may be in a signal handler of the program, in the middle
                of asyncio's ``heapq.heappush``, which compares timers in Python and breaks if its heap changes; the
                deque of ready callbacks can be appended to at any time.
        """
        self.last = time.monotonic()
        loop = self._loop()
        if loop is None or not in_callback or not self._options:  # an unknown kind need not have call_soon
            self._schedule(self.last)
        elif not loop.is_closed():
            self.due = self.last + self._current
            loop.call_soon(self._start_timer, **self._options)

    def _start_timer(self) -> None:
        if not self._stopped:
            self._guarded(self._set_first_timer, time.monotonic())

    def _set_first_timer(self, now: float) -> None:
        loop = self._loop()
        if loop is not None:
            loop.call_later(max(self.due - now, 0.0), self._beat, **self._options)

    def resume(self) -> None:
        """Continue when the loop runs again after it was stopped: the time between does not count as lag."""
        self.last = time.monotonic()
        self.due = max(self.due, self.last)

    def stop(self) -> None:
        """Stop for good; from any thread. The pending timer fires once, without effect."""
        self._stopped = True

    def set_interval(self, interval: float) -> None:
        """Change the interval, from the next heartbeat on."""
        self._interval = interval

    def invite(self, when: float, wake: Callable[[], None]) -> None:
        """Wake the watcher at the first heartbeat after ``when``, and release the GIL for it there and at later ones.

        Lasts until :meth:`left` or the next invitation.

        Args:
            when: ``time.monotonic`` seconds.
            wake: wakes the watcher.
        """
        self._invited, self._wake, self._doubled = when, wake, 0

    def left(self) -> None:
        """End the invitation after the watcher's tick: heartbeats no longer release the GIL for it."""
        self._invited = IDLE

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats of a busy loop."""
        return self._interval

    @property
    def current_interval(self) -> float:
        """Seconds between two heartbeats now; more than :attr:`interval` while the loop is idle."""
        return self._current

    def was_due(self, start: float, end: float) -> bool:
        """Whether a heartbeat was due between two recent times, ``time.monotonic`` seconds; from any thread."""
        return any(start <= due <= end for due in (*self._dues.copy(), self.due))

    @property
    def window(self) -> Histogram:
        """Lags recorded since the last :meth:`take_window`; the loop's thread writes to it."""
        return self._window

    def take_window(self) -> Histogram:
        """Return the lags recorded since the last call and begin anew; from the watcher's thread."""
        window, self._window = self._window, Histogram()
        return window

    def _schedule(self, now: float) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            self.due = now + self._current
            loop.call_later(self._current, self._beat, **self._options)

    def _beat(self) -> None:
        if self._stopped:
            return
        caller = sys._getframe(1)
        self.base = (id(caller), caller.f_code)
        now = time.monotonic()
        try:
            self._guarded(self._take_note, now)
        finally:
            self._guarded(self._schedule, now)
        self._guarded(self._let_watcher_in, now)

    def _guarded(self, part: Callable[[float], None], now: float) -> None:
        """Run a part of a heartbeat; a failure is reported and does not reach the loop's exception handler."""
        try:
            part(now)
        except Exception as exc:
            if raised_by_handler(exc):
                raise
            self._failures += 1
            self._stopped = self._stopped or self._failures >= MAX_FAILURES
            self._failed(exc)

    def _take_note(self, now: float) -> None:
        self._window.record(now - self.due)
        self._dues.append(self.due)
        self._on_beat(self.due, now)
        utilization = self._utilization()
        if utilization is not None and utilization < IDLE_SHARE:
            self._current = min(max(self._current * 2, self._interval), max(LONGEST, self._interval))
        else:
            self._current = self._interval
        self.before_last, self.last = self.last, now

    def _let_watcher_in(self, now: float) -> None:
        wake = self._wake
        if now >= self._invited and wake is not None:
            if not self._doubled:
                wake()
            release_gil(LET_IN * 2**self._doubled)  # the last release was too short
            self._doubled = min(self._doubled + 1, MOST_DOUBLED)


class HeartbeatProbe:
    """The probe of a loop that can be read in no other way: a block is an overdue heartbeat.

    It began somewhere between the last heartbeat and the due time: the middle is reported as its start, half the
    interval as uncertainty.
    """

    kind = "heartbeat"
    traits = Traits()

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._heart: Heartbeat | None = None
        self._blocks: deque[Block] = deque(maxlen=1000)
        self._running = False
        self._told = 0.0

    def listen(self, heart: Heartbeat) -> None:
        """Take blocks from ``heart``."""
        self._heart = heart

    def on_beat(self, due: float, now: float) -> None:
        """Record a block if this heartbeat is late by the limit or more; on the loop's thread."""
        heart = self._heart
        if heart is None or due == self._told or now - due < self._limit:
            return
        self._told = due
        half = (due - heart.last) / 2
        self._blocks.append(Block(key=due, start=due - half, end=now, uncertainty=half))

    def at_rest(self) -> bool:
        """Return False: a heartbeat does not show whether the loop waits."""
        return False

    def busy_since(
        self, now: float, late: float = 0.0, overdue: float = 0.0, kept: float = 0.0, mark: Any = None
    ) -> float:
        """Return when the overdue heartbeat was due, :data:`IDLE` while none is overdue."""
        heart = self._heart
        return IDLE if heart is None or not self._running or now <= heart.due else heart.due

    def mark(self) -> None:
        """Return nothing: a heartbeat that is overdue is so until it runs."""

    def held_up(self, now: float, seconds: float) -> None:
        """Do nothing: the heartbeat itself is late then."""

    def finished(self) -> list[Block]:
        """Return the blocks shown by late heartbeats since the last call."""
        return [self._blocks.popleft() for _ in range(len(self._blocks))]

    def counters(self, now: float) -> Counters:
        """Return None for every total: the loop has no counters that can be read."""
        return Counters(None, None, None, None)

    def cut(self, now: float) -> None:
        """Record a block if the next heartbeat is overdue by the limit or more."""
        if self._heart is not None:
            self.on_beat(self._heart.due, now)

    def expect(self, when: float) -> None:
        """Do nothing: the heartbeat releases the GIL for the watcher."""

    def wake_when_busy(self, alarm: Callable[[], None]) -> bool:
        """Return False: nothing shows when the loop becomes busy."""
        return False

    def on_end(self, taker: Taker | None) -> None:
        """Do nothing: the waiting handles are unknown."""

    def started(self, key: float) -> float:
        """Return ``key``, when the overdue heartbeat was due."""
        return key

    def set_limit(self, limit: float) -> None:
        """Record heartbeats that are late by ``limit`` seconds or more from now on."""
        self._limit = limit

    def running(self, running: bool) -> None:
        """Record that the loop starts or stops running; a block ends when it stops."""
        if self._running and not running:
            self.cut(time.monotonic())
        self._running = running

    def detach(self) -> None:
        """Stop reading the heartbeat, which its owner stops."""
        self._heart = None

    def abandon(self) -> None:
        """Do the same as :meth:`detach`: there is no lock."""
        self.detach()

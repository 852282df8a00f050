"""The sink thread: turns queued observations into diagnosed stalls and hands them to the sinks.

It is separate from the watcher, so that a slow disk, log handler or callback never makes it miss the next block.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Any

from loopwatch.core.faults import Action, Faults
from loopwatch.core.originals import time
from loopwatch.core.threads.alarm import Alarm
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.watch.lapse import Lapse
from loopwatch.watch.observation import Observation

PUT_OFF = 1.0
"""Longest time in seconds for which a stall is put off; the watcher has kept it back for a while already."""
MAX_WAITING = 1000
"""Capacity of the queue; further observations are dropped and counted."""


class SinkThread:
    """Calls ``emit`` with each observation, in a daemon thread that is started with the first one.

    Args:
        emit: diagnoses and emits an observation.
        lapse: of this thread.
        faults: counts failures.
        puts_off: whether a call has just kept the GIL for long. Another one may follow, and diagnosis would take the
            GIL between the two: from the loop, and from the watcher, which has to see what the loop does.
    """

    def __init__(
        self,
        emit: Callable[[Observation], None],
        lapse: Lapse[Any],
        faults: Faults,
        puts_off: Callable[[], bool] = lambda: False,
    ) -> None:
        self._emit, self._lapse, self._puts_off = emit, lapse, puts_off
        self._is_put_off = self._hurries = False
        self._faults = faults
        self._woken_at: float | None = None
        self._queue: deque[Action] = deque()  # append and popleft are atomic: nothing waits for a lock of this thread
        self._alarm = Alarm()
        self.thread = OwnThread("teller", self._run, self._alarm.wake, lambda: self._queue, self._ended)
        self._stopping = False
        self._busy = False
        self.dropped = 0

    @property
    def has_stopped(self) -> bool:
        """Whether it accepts nothing any more."""
        return self._stopping

    @property
    def cpu(self) -> float:
        """Processor time of its thread, seconds."""
        return self.thread.cpu

    def put(self, seen: Observation) -> None:
        """Queue an observation, which may be put off; never waits for a sink."""
        self._add(functools.partial(self._emit, seen), hurries=False)

    def do(self, action: Action) -> bool:
        """Queue ``action``, to be done at once; return False if the queue is full or the thread has stopped."""
        return self._add(action, hurries=True)

    def _add(self, action: Action, *, hurries: bool) -> bool:
        if self._stopping:
            return False
        if len(self._queue) >= MAX_WAITING:
            self.dropped += 1
            return False
        self._woken_at = self._woken_at or time.monotonic()
        self._queue.append(action)
        with contextlib.suppress(RuntimeError):  # the interpreter is about to exit: stop() runs the queue
            self.thread.start()
        self._hurries = self._hurries or hurries
        if hurries or not self._is_put_off:
            self._alarm.wake()
        return True

    def tick(self) -> None:
        """Go on with what was put off once no call keeps the GIL any more; called now and then."""
        if self._is_put_off and not self._puts_off():
            self._alarm.wake()

    def flush(self, timeout: float) -> bool:
        """Wait until everything queued so far is done, at most ``timeout`` seconds; return whether it is."""
        if threading.get_ident() == self.thread.ident:
            return False
        if not self._queue and not self._busy:
            return True
        done = allocate_lock()
        done.acquire()
        self._queue.append(done.release)
        self._hurries = True
        self._alarm.wake()
        return done.acquire(True, max(timeout, 0.0))

    def stop(self, timeout: float = 1.0) -> None:
        """Run the queued actions, then end the thread; waits at most ``timeout`` seconds."""
        ends = time.monotonic() + timeout
        had_thread = self.thread.ident is not None
        if had_thread:
            self.flush(timeout)
        self._stopping = True
        self.thread.end(max(ends - time.monotonic(), 0.0))
        self._lapse.begin()
        while not had_thread and self._queue and time.monotonic() < ends:
            self._do(self._queue.popleft())

    def _run(self) -> None:
        while self.thread.stays():
            if self._queue and not self._hurries and self._puts_off():
                self._put_off()
            woken_at, self._woken_at = self._woken_at, None
            self._lapse.begin(woken_at)
            self._lapse.goes_on()
            self._busy, self._hurries = True, False
            while self._queue and not self.thread.is_asked:
                self._do(self._queue.popleft())
            self._busy, self._woken_at = False, None  # what came while it was busy did not wait for the GIL
            if not self.thread.is_asked and not self._queue:
                self._lapse.begin()
                self._alarm.wait()

    def _put_off(self) -> None:
        """Wait until calls that keep the GIL no longer follow each other, or something hurries."""
        ends = time.monotonic() + PUT_OFF
        self._is_put_off = True
        while self._puts_off() and not self._hurries and not self.thread.is_asked:
            left = ends - time.monotonic()
            if left <= 0:
                break
            self._alarm.wait(left)
        self._is_put_off, self._woken_at = False, time.monotonic()

    def _ended(self, exc: BaseException) -> None:
        self._busy = False
        self._faults.add("teller", exc)

    def _do(self, action: Action) -> None:
        with self._faults.guard("teller"):
            action()
        self._lapse.goes_on()

"""The thread that tells: it turns observations into stalls and hands them to the sinks.

Apart from the watcher, so that a slow disk, log handler or callback never makes it miss the next block.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable

from loopwatch._faults import OWN_THREADS, Action, Faults
from loopwatch.core.originals import time
from loopwatch.observation import Observation

MAX_WAITING = 1000
"""Observations that may wait to be told; further ones are dropped and counted."""


class Teller:
    """Runs ``tell`` for each observation, in a daemon thread that is started with the first one.

    Args:
        tell: takes an observation.
        faults: where its failures are counted.
    """

    def __init__(self, tell: Callable[[Observation], None], faults: Faults) -> None:
        self._tell = tell
        self._faults = faults
        self._queue: deque[Action] = deque()
        self._changed = threading.Condition()
        self._between = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._busy = False
        self.dropped = 0
        self.cpu = 0.0

    def put(self, seen: Observation) -> None:
        """Take an observation; never waits for a sink."""
        self.do(functools.partial(self._tell, seen))

    def do(self, action: Action) -> bool:
        """Have ``action`` done in turn; return False if it will not be: too many wait, or the teller has stopped."""
        with self._changed:
            if self._stopping:
                return False
            if len(self._queue) >= MAX_WAITING:
                self.dropped += 1
                return False
            self._queue.append(action)
            if self._thread is None:
                self._start()
            self._changed.notify_all()
            return True

    def flush(self, timeout: float) -> bool:
        """Wait until everything taken so far is told, at most ``timeout`` seconds; return whether it is."""
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)

    def stop(self, timeout: float = 1.0) -> None:
        """Tell what is waiting, then end the thread; waits at most ``timeout`` seconds."""
        ends = time.monotonic() + timeout
        thread = self._thread
        if thread is not None:
            self.flush(timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if thread is None:
            while self._queue and time.monotonic() < ends:
                self._do(self._queue.popleft())
        elif thread is not threading.current_thread():
            thread.join(max(ends - time.monotonic(), 0.0))

    def hold(self, timeout: float) -> bool:
        """Have nothing told until :meth:`release`: a fork now finds no lock of a sink taken, unless one is slow.

        Returns:
            Whether it is held; waits at most ``timeout`` seconds for the sinks.
        """
        return self._between.acquire(timeout=timeout)

    def release(self) -> None:
        """Go on after :meth:`hold`."""
        self._between.release()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{OWN_THREADS}teller", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to exit: what waits is told by stop()
            return
        self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                action = self._queue.popleft()
                self._busy = True
            with self._between:
                self._do(action)
            self.cpu = time.thread_time()
            del action  # it would keep the program's objects until the next one
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _do(self, action: Action) -> None:
        with self._faults.guard("teller"):
            action()

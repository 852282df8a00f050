"""The thread that tells: it turns observations into stalls and hands them to the sinks.

Apart from the watcher, so that a slow disk, log handler or callback never makes it miss the next block.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from loopwatch._faults import Faults
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
        self._queue: deque[Observation] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._busy = False
        self.dropped = 0
        self.cpu = 0.0

    def put(self, seen: Observation) -> None:
        """Take an observation; never waits for a sink."""
        with self._changed:
            if len(self._queue) >= MAX_WAITING:
                self.dropped += 1
                return
            self._queue.append(seen)
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="loopwatch-teller", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything taken so far is told, at most ``timeout`` seconds; return whether it is."""
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)

    def stop(self, timeout: float = 1.0) -> None:
        """Tell what is waiting, then end the thread; waits at most ``timeout`` seconds."""
        ends = time.monotonic() + timeout
        self.flush(timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(ends - time.monotonic(), 0.0))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                seen = self._queue.popleft()
                self._busy = True
            with self._faults.guard("diagnosis"):
                self._tell(seen)
            self.cpu = time.thread_time()
            with self._changed:
                self._busy = False
                self._changed.notify_all()

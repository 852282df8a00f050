"""Accumulates the metrics of one agent and computes their points on demand: one account for all exporters.

OpenTelemetry and Prometheus read the same account, so that both export the same values. Nothing here runs on the thread
of an event loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from loopwatch.core.dataclasses import replace
from loopwatch.core.faults import Faults
from loopwatch.events import FlaggedFunction, Stall
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.collect import Collector
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Inputs, Reading
from loopwatch.watch.observation import LoopReading

PART = "telemetry"
"""Part name under which faults of the metrics are counted."""
PATIENCE = 3
"""Failed collections in a row that count as a fault; a single one may have raced with changes by the program."""


class Accumulator:
    """The metrics of one agent.

    Args:
        look: returns the current state of loops, pools and the agent; called from any thread.
        faults: the agent's fault handling.

    Attributes:
        account: the interface for exporters.
    """

    def __init__(self, look: Callable[[], Inputs], faults: Faults) -> None:
        self._look, self._faults = look, faults
        self._lock = threading.RLock()  # a finalizer of the program may run while it is held
        self._collector = Collector()
        self._last: Inputs | None = None
        self._failures = 0
        self._exemplars = Exemplars()
        self.account = Account(self.read, self._exemplars)

    def configure(self, max_culprits: int) -> None:
        """Read the current state from now on, with at most ``max_culprits`` culprits in series of their own."""
        with self._lock:
            self._collector.max_culprits = max_culprits
            self._last = None

    def freeze(self) -> None:
        """Read the state once more, before the services stop; later collections report that state."""
        with self._faults.guard(PART):
            inputs = self._look()
            with self._lock:
                self._collector.read(inputs)
                self._last = replace(inputs, loops=())  # the loops report their last values in loop_gone()

    def after_fork_in_child(self) -> None:
        """Reset in a forked child, with empty counters."""
        self._lock = threading.RLock()
        self._last = None
        self._collector = Collector(self._collector.max_culprits)
        self._exemplars.clear()

    def loop_gone(self, loop: LoopReading) -> None:
        """Add the last values of a loop that is no longer watched."""
        with self._lock:
            self._collector.loop_gone(loop)

    def emit(self, stall: Stall, _flagged: FlaggedFunction | None = None, _span: object = None) -> None:
        """Count a stall that is over; a hang is counted when it ends."""
        if not stall.ongoing:
            with self._lock:
                self._collector.saw(stall)
            self._exemplars.saw(stall)

    def read(self, pause: Callable[[], None] = lambda: None) -> Reading | None:
        """Return all current points, None if they cannot be computed; from any thread.

        Args:
            pause: called between parts of the work, to yield the GIL.
        """
        if self._faults.is_off(PART):
            return None
        try:
            inputs = self._last or self._look()
            pause()
            with self._lock:
                found = self._collector.read(inputs, pause)
            self._failures = 0
        except Exception as exc:  # noqa: BLE001 - logged, and counted where it happens again
            self._failures += 1
            if self._failures >= PATIENCE:
                self._faults.add(PART, exc)
            else:
                self._faults.say(logging.INFO, "loopwatch: a reading of its figures failed and is left out: %r", exc)
            return None
        return found

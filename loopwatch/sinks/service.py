"""The sink service of the agent: turns observations into stalls in its own thread, and emits them to every sink.

That thread may block: a slow disk, log handler or callback delays later stalls, never a loop or the watcher.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loopwatch.config import Config
from loopwatch.core import log
from loopwatch.core.faults import Action, Faults
from loopwatch.core.off_loop import off_loop
from loopwatch.core.patches import PatchSet
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.events import FlaggedFunction, Stall
from loopwatch.sinks.local import LocalSinks
from loopwatch.sinks.pipeline import NamedSinks, StallPipeline, StallSink
from loopwatch.sinks.thread import SinkThread
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.lapse import Lapse
from loopwatch.watch.observation import Case, LoopReading, Observation
from loopwatch.watch.stacks import RawStack

LAG_EVERY = 10.0
"""Seconds between two attempts to journal the lag of the loops, at least."""


class SinkService:
    """Diagnoses observations, and emits their stalls to every sink.

    Args:
        config: returns the current settings.
        patches: records replaced attributes.
        faults: of the agent.
        before: returns the sinks of other services that take a stall before the log does.
        after: returns those that take it after the log and the journal; the program's callbacks come last.
        dropped: called with the id of an observation that makes no stall.
        readings: returns the statistics of all loops; callable from any thread.
        submitter: returns the stack of the latest submission to a process pool before a time.
        lapse: makes what the sink thread reports to when it was kept from running.
        puts_off: whether a call has just kept the GIL, so that the sink thread had better wait a little.

    Attributes:
        local: the log, the journal and the hang file.
    """

    def __init__(
        self, config: Callable[[], Config], patches: PatchSet, faults: Faults, *, before: NamedSinks, after: NamedSinks,
        dropped: Callable[[str], object], readings: Callable[[], Iterable[LoopReading]],
        submitter: Callable[[float], RawStack | None] = lambda _before: None,
        lapse: Callable[[], Lapse[Any]], puts_off: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._config, self._patches, self._faults = config, patches, faults
        self._before, self._after, self._readings = before, after, readings
        self._lapse_of, self._puts_off = lapse, puts_off
        self._pipeline = StallPipeline(
            config, faults, self._all,
            expected=lambda stall: self.local.record_expected(stall), dropped=dropped,
            dump_of=lambda seen: self.local.dump_of(seen), goes_on=lambda: self._lapse.goes_on(),
            submitter=submitter,
        )  # fmt: skip
        self._awaits_loop = False
        self._next_flush = self._next_lag = 0.0
        self._renew()

    def _renew(self) -> None:
        """Create a new thread and new files; the old ones have ended, or belong to the parent process."""
        self._lapse = self._lapse_of()
        self._thread = SinkThread(self._pipeline.take, self._lapse, self._faults, self._puts_off)
        self.local = LocalSinks(self._config(), self._patches, self._faults)

    def _all(self) -> Iterable[tuple[str, StallSink]]:
        return (*self._before(), *self.local.in_use(), *self._after())

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the files and accept observations; the thread starts with the first one."""
        if self._thread.has_stopped:
            self._renew()
        self.local.open()

    def configure(self, new: Config, *, is_on: bool) -> None:
        """Apply the settings ``new``; ``is_on`` if files may be open."""
        self._pipeline.configure()
        self.local.configure(new, is_open=is_on)

    def drain(self, timeout: float) -> None:
        """Emit queued stalls and end the thread; waits at most ``timeout`` seconds."""
        with self._faults.guard("teller"):
            self._thread.stop(timeout)

    def close(self) -> None:
        """Close the files."""
        self.local.write_lag(is_last=True)
        self.local.close()

    def after_fork_in_child(self) -> None:
        """Start over in a forked child: without stalls, files or thread until :meth:`loop_begins`."""
        parents = self.local
        self._pipeline.clear()
        self._renew()
        self._thread.thread.hold()
        self._awaits_loop = True
        parents.abandon()

    def loop_begins(self) -> None:
        """Open the files of a forked child and release its thread; on a loop's thread, before that loop is watched."""
        if self._awaits_loop:
            self._awaits_loop = False
            self._thread.thread.release()
            off_loop(lambda: self.local.open(leftovers=False))

    # -- events ---------------------------------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """Queue an observation; never blocks."""
        self._thread.put(seen)

    def do(self, action: Action) -> bool:
        """Queue ``action`` for the sink thread; return False if the queue is full or the thread has ended."""
        return self._thread.do(action)

    def tick(self, now: float, threads: Mapping[int, str], longest_sleep: float) -> None:
        """Re-arm the timer of the hang file, and go on with what was put off; in the watcher's thread."""
        self.local.tick(now, threads, longest_sleep)
        self._thread.tick()
        if self.local.is_lag_due(now) and now >= self._next_lag:
            self._next_lag = now + LAG_EVERY  # the sink thread may take a while
            self._thread.do(self._write_lag)
        if log.stderr.waiting and now >= self._next_flush:
            self._next_flush = now + 1.0
            self._thread.do(log.stderr.flush)

    def loop_gone(self, reading: LoopReading) -> None:
        """Keep the lag of a loop that is no longer watched; in any thread."""
        self.local.add_lag((reading,), is_last=True)

    def _write_lag(self) -> None:
        self.local.add_lag(self._readings())
        self.local.write_lag()

    def diagnose_early(self, seen: Observation, case: Case, then: Callable[[], object]) -> None:
        """Early diagnosis: diagnose an ongoing block for its waiters, then call ``then``; from the watcher's thread."""

        def diagnose() -> None:
            case.foreseen = self._pipeline.diagnose_early(seen)
            then()

        self._thread.do(diagnose)

    def start_over(self, expectation: Expectation, listens: bool) -> None:
        """Log the blocks of a server's start-up, after the stalls so far; must not block."""

        def log_start() -> None:  # queued: blocks that await diagnosis are counted first
            if expectation.counted.blocks:
                self.local.log_expected(expectation.counted, "" if listens else "it has not come to listen")

        self._thread.do(log_start)

    # -- queries --------------------------------------------------------------------------------------------------

    def stalls(self) -> tuple[Stall, ...]:
        """Return the latest stalls, oldest first."""
        return tuple(self._pipeline.ring)

    def flagged(self, now: float) -> tuple[FlaggedFunction, ...]:
        """Return the functions that are flagged at ``now``, seconds since the epoch."""
        return self._pipeline.flagged(now)

    def flush(self, timeout: float) -> bool:
        """Wait until all observations so far are emitted, at most ``timeout`` seconds; return whether they are."""
        return self._thread.flush(timeout)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that keeps the timer of the hang file disarmed during a fork."""
        return self.local.held()

    @property
    def thread(self) -> OwnThread:
        """The sink thread."""
        return self._thread.thread

    @property
    def cpu(self) -> float:
        """Processor time of the sink thread, seconds."""
        return self._thread.cpu

    @property
    def dropped(self) -> int:
        """Observations dropped because the queue was full."""
        return self._thread.dropped

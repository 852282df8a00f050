"""The health thread: polls pools and child processes, derives states and findings, logs changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from loopwatch.config import Config
from loopwatch.core.dataclasses import replace
from loopwatch.core.faults import Faults
from loopwatch.core.median import median
from loopwatch.core.off_loop import running_loop
from loopwatch.core.originals import time
from loopwatch.core.patches import PatchSet
from loopwatch.core.threads.alarm import Alarm
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.events import Finding, WorkerState
from loopwatch.health.children.hooks import ProcessHooks
from loopwatch.health.children.watched import Children, has_children
from loopwatch.health.exit_waits import ExitWaits
from loopwatch.health.records import ExitWait, PoolReading, ProcessFacts, Source
from loopwatch.health.watched_pool import Watched
from loopwatch.system import threads

if TYPE_CHECKING:
    from loopwatch.health.children.processes import Processes
    from loopwatch.health.findings import FindingTracker
    from loopwatch.health.health_log import HealthLog
    from loopwatch.system.cgroup import Cpus, Oom

PERIOD = 2.0
"""Seconds between two polls."""
LONGEST_PERIOD = 60.0
BUDGET_SHARE = 0.2
"""Share of ``Config.cpu_budget`` that polling may use: many processes are polled less often."""
FRESH = 0.5
"""Seconds: a snapshot polls again if facts are older than this, or than the last start or end of a child."""
QUICK = 0.005
"""Seconds that such a poll takes at most; processes it did not reach keep their last facts."""
PATIENCE = 0.02
"""Seconds that a snapshot waits for a poll in progress."""
NAP = 0.001
"""Seconds that the thread sleeps to measure how late it gets the GIL back."""
PART = "health"

_NOTHING: dict[int, ProcessFacts] = {}


def _usable_cpus() -> Cpus:
    from loopwatch.system import cgroup

    return cgroup.usable_cpus()


class Monitor:
    """Monitors pools and child processes from a daemon thread, which starts with the first of them.

    Args:
        config: returns the current settings.
        patches: registry of replaced attributes.
        faults: counter of failures.
        polled: called by the thread after each poll.
        exits: the waits of a program that is about to end.
        pools: returns the watched executors that these may wait for.
        cpus: returns how many processors this process may use, and may run on.

    Example:
        >>> monitor = Monitor(Config, PatchSet(), Faults())
        >>> monitor.start()
        >>> monitor.readings(), monitor.findings()
        ((), ())
        >>> monitor.stop()
    """

    def __init__(
        self,
        config: Callable[[], Config],
        patches: PatchSet,
        faults: Faults,
        polled: Callable[[], object] = lambda: None,
        *,
        exits: ExitWaits | None = None,
        pools: Callable[[], Sequence[Watched]] = lambda: (),
        cpus: Callable[[], Cpus] = _usable_cpus,
    ) -> None:
        self._exits, self._pools = exits or ExitWaits(config), pools
        self._config, self._patches, self._faults, self._cpus = config, patches, faults, cpus
        self._polled = polled
        self.process_hooks = ProcessHooks(patches, faults, self._born)
        self._running = False
        self._next_number = count(1)
        self._begin()

    def _begin(self) -> None:
        self._guard = threading.RLock()  # a signal handler or finalizer of the program may re-enter
        self._polling = threading.RLock()
        self._alarm = Alarm()
        self._sources: tuple[Source, ...] = ()
        self._numbers: dict[Source, int] = {}
        self._oom: Oom | None = None
        self._children = Children(self.process_hooks, lambda: self._config().hung_after, self._oom_killed)
        self._processes: Processes | None = None
        self._advisor: FindingTracker | None = None
        self._findings: tuple[Finding, ...] = ()
        self._health_log: HealthLog | None = None
        self.thread = OwnThread("health", self._run, lambda: self._alarm.wake(), needed=self._is_needed)
        self._polled_at = float("-inf")
        self._next_tick = 0.0
        self._cpus_now: Cpus | None = None
        self._next_cpus = 0.0
        self._changes_seen = -1
        self._due: float | None = None  # kept while the thread is paused for a fork

    # -- life cycle -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Record child processes from now on; the thread starts only once there is something to monitor."""
        self._running = True
        with self._faults.guard("children"):
            self.process_hooks.start()
            self._children.begin()
        self.tick(time.monotonic())

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread, waiting at most ``timeout`` seconds; the owner of the patches undoes them."""
        self._running = False
        self.process_hooks.stop()
        self.thread.end(timeout)
        self.process_hooks.known = {}
        self._begin()

    def add(self, source: Source) -> None:
        """Monitor ``source``; a second call does nothing."""
        with self._guard:
            if source not in self._numbers:
                self._numbers[source] = next(self._next_number)
                self._sources = (*self._sources, source)
        self._ensure_thread()

    def remove(self, source: Source) -> None:
        """Stop monitoring ``source``."""
        with self._guard:
            self._numbers.pop(source, None)
            self._sources = tuple(each for each in self._sources if each is not source)

    def look_at_exit(self, may_start: bool) -> None:
        """Look at the waits at the end of the program in time; safe in any thread, also while the interpreter exits."""
        if may_start:
            self._ensure_thread()
        self._alarm.wake()

    @property
    def sources(self) -> tuple[Source, ...]:
        """All monitored sources."""
        return self._sources

    def tick(self, now: float) -> None:
        """Start the thread if there is an unrecorded child; cheap, to be called regularly.

        Args:
            now: ``time.monotonic`` seconds.
        """
        if now >= self._next_tick and self._running and not self.thread.exists:
            self._next_tick = now + PERIOD
            if self._has_work():
                self._ensure_thread()

    def after_fork_in_child(self) -> None:
        """Start afresh in a forked child, which has neither the thread nor the children."""
        self.process_hooks.after_fork_in_child()
        self._begin()

    # -- readings and findings ------------------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether the thread exists, because there is something to monitor."""
        return self.thread.exists

    @property
    def cpu(self) -> float:
        """CPU seconds of its thread."""
        return self.thread.cpu

    def readings(self) -> tuple[PoolReading, ...]:
        """Return the readings of all pools, and of child processes if there were any; takes milliseconds at most."""
        if self._faults.is_off(PART) or not self._running:
            return ()
        now = time.monotonic()
        is_stale = now - self._polled_at > FRESH or self.process_hooks.changes != self._changes_seen
        is_stale = is_stale and self._has_work()
        if is_stale and self._polling.acquire(timeout=PATIENCE):
            try:
                with self._faults.guard(PART):
                    # Importing psutil takes too long on a loop's thread: without it only the process ids are read.
                    self._look(quick=True, facts=self._processes is not None or running_loop() is None)
            finally:
                self._polling.release()
        return self._read(time.monotonic())

    def findings(self) -> tuple[Finding, ...]:
        """Return the current findings, as of the last poll."""
        return self._findings

    def poll_now(self) -> None:
        """Poll everything and update the findings, in the calling thread. For tests."""
        self._poll()

    # -- polling --------------------------------------------------------------------------------------------------

    def _born(self) -> None:
        if self._running:
            self._ensure_thread()

    def _ensure_thread(self) -> None:
        if self.thread.exists or not self._running or self._faults.is_off(PART):
            return
        if not threading.main_thread().is_alive():
            return  # the interpreter is about to exit and starts no more threads
        try:
            self.thread.start()
        except RuntimeError as exc:  # the system is out of threads
            self._faults.add(PART, exc)

    def _run(self) -> None:
        thread, alarm = self.thread, self._alarm  # local: stop() replaces both
        if self._due is None:
            self._due = time.monotonic() + PERIOD
        try:
            while thread.stays():
                alarm.wait(max(self._next() - time.monotonic(), 0.0))
                if thread.is_asked or time.monotonic() < self._next():
                    continue
                began, imports = time.thread_time(), self._processes is None
                self._poll()
                self._polled()
                used = 0.0 if imports else time.thread_time() - began
                self._due = time.monotonic() + period(used, self._config().cpu_budget)
                if not self._has_work():
                    self._due = None
                    return
        except Exception as exc:  # noqa: BLE001 - the thread's outermost frame: a fault ends the monitoring
            self._faults.add(PART, exc)

    def _next(self) -> float:
        """Return when to poll next, ``time.monotonic`` seconds."""
        return min(self._due or 0.0, self._exits.due())

    def _is_needed(self) -> bool:
        return bool(self._sources or self.process_hooks.known or self._exits.is_pending)

    def _has_work(self) -> bool:
        return bool(self._is_needed() or self._children.pids() or has_children())

    def _poll(self) -> None:
        if self._faults.is_off(PART):
            return
        with self._polling, self._faults.guard(PART):
            self._look()
            readings = self._read(time.monotonic())
            self._conclude(readings, time.monotonic())
            for source in [source for source in self._sources if source.gone]:
                self.remove(source)

    def _conclude(self, readings: tuple[PoolReading, ...], now: float) -> None:
        ends = tuple(self._children.ends)
        exits: tuple[ExitWait, ...] = ()
        with self._faults.guard("exit"):
            exits = self._exits.overdue(now, self._pools())
        if not self._faults.is_off("advice"):
            with self._faults.guard("advice"):
                if self._advisor is None:
                    from loopwatch.health.findings import FindingTracker  # loaded at the first use

                    self._advisor = FindingTracker()
                gil_wait = self._gil_wait(readings)
                if self._cpus_now is None or now >= self._next_cpus:
                    self._cpus_now, self._next_cpus = self._cpus(), now + LONGEST_PERIOD
                cpus, affinity = self._cpus_now
                self._findings = self._advisor.update(
                    readings, now, cpus, ends, affinity=affinity, gil_wait=gil_wait, exits=exits, at=time.time()
                )
        if not self._faults.is_off("log"):
            with self._faults.guard("log"):
                if self._health_log is None:
                    from loopwatch.health.health_log import HealthLog

                    self._health_log = HealthLog()
                config = self._config()
                for line in self._health_log.of(readings, self._findings, ends, now, config.log_interval):
                    line.write(config.log_level)

    def _gil_wait(self, readings: tuple[PoolReading, ...]) -> float | None:
        """Return the seconds this thread waits for the GIL, None if no pool thread is busy."""
        from loopwatch.health.history import THREADS

        busy = any(
            worker.state == WorkerState.BUSY
            for reading in readings
            if reading.stats.kind in THREADS
            for worker in reading.stats.workers
        )
        return gil_wait() if busy else None

    def _look(self, *, quick: bool = False, facts: bool = True) -> None:
        """Update the set of processes and, with ``facts``, poll the facts of each."""
        if self._oom is None:
            from loopwatch.system.cgroup import Oom  # loaded at the first use

            self._oom = Oom()
        oom = self._oom
        before, complete, self._changes_seen = oom.look(), True, self.process_hooks.changes
        claimed = [pid for source in self._sources for pid in self._pids(source)]
        self._children.look(claimed)
        pids = [*claimed, *self._children.pids()]
        if facts and (pids or self._processes is not None):
            if self._processes is None:
                from loopwatch.health.children.processes import Processes  # imports psutil

                self._processes = Processes(self.process_hooks.exit_of, oom)
            until = time.monotonic() + QUICK if quick else None
            complete = self._processes.poll(pids, until=until, unique=not quick)
            self._processes.forget(self._children.settle(self._processes.facts))
        if facts and complete:
            oom.begin(before)
        if facts:
            self._polled_at = time.monotonic()

    def _oom_killed(self, pids: frozenset[int]) -> bool | None:
        return None if self._oom is None else self._oom.killed(pids)

    def _read(self, now: float) -> tuple[PoolReading, ...]:
        facts = _NOTHING if self._processes is None else self._processes.facts
        found = []
        for source in (*self._sources, *((self._children,) if self._children.used else ())):
            try:
                found.append(replace(source.reading(facts, now), number=self._numbers.get(source, 0)))
            except Exception as exc:  # noqa: BLE001 - a failing pool must not affect the others
                self._drop(source, exc)
        return tuple(found)

    def _pids(self, source: Source) -> list[int]:
        try:
            return [pid for pid in source.pids() if pid]
        except Exception as exc:  # noqa: BLE001 - likewise
            self._drop(source, exc)
            return []

    def _drop(self, source: Source, exc: Exception) -> None:
        """Stop monitoring a pool that cannot be read."""
        self.remove(source)
        self._faults.add_one("pool", exc)


def period(used: float, budget: float) -> float:
    """Return the seconds until the next poll.

    Args:
        used: CPU seconds of the last poll.
        budget: ``Config.cpu_budget``.
    """
    return min(max(used / (budget * BUDGET_SHARE), PERIOD), LONGEST_PERIOD)


def gil_wait() -> float:
    """Return the seconds this thread waits to get the GIL back: the median of five measurements.

    A thread that computes in Python yields the GIL after the switch interval (5 ms). Time on the run queue is excluded.
    A sleep of zero would not do: the other thread needs a moment to wake up and take the GIL.
    """
    waits = []
    for _ in range(5):
        before, began = _run_queue(), time.perf_counter()
        time.sleep(NAP)
        late = time.perf_counter() - began - NAP
        waits.append(max(late - (_run_queue() - before), 0.0))
    return median(waits)


def _run_queue() -> float:
    """Return the seconds this thread has spent on the run queue, 0 where the system does not report it."""
    found = threads.scheduled(threading.get_native_id())
    return 0.0 if found is None else found.run_queue

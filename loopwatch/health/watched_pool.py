"""The base class of watched pools of all kinds: identity, state of the executor, outcomes of its tasks.

Objects of the program (pools, threads, processes, queues, results) are held only weakly, and live no longer than the
program needs them. Statistics reported afterwards consist of numbers and names.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from loopwatch.core.dataclasses import replace
from loopwatch.core.originals import time
from loopwatch.events import PoolStats, WorkerState, WorkerStats
from loopwatch.health.pool_workers import PoolWorkers, Work
from loopwatch.health.records import PoolReading, ProcessFacts
from loopwatch.health.states import Executor, Situation, judge
from loopwatch.health.task_board import TaskBoard
from loopwatch.health.task_stats import TaskStats, Window

LINGER = 60.0
"""Seconds for which the statistics of an ended pool are still reported: long enough to be exported or scraped."""
SETTLE = 0.5
"""Seconds after the end in which they may still change."""


class Identity(NamedTuple):
    """Name, kind and origin of a pool.

    Attributes:
        name: unique among the pools of this process.
        kind: as in :class:`~loopwatch.events.PoolStats`.
        place: where it was created, ``file:line in function``; empty if unknown.
    """

    name: str
    kind: str
    place: str


class Terms(NamedTuple):
    """Parameters of a watched pool.

    Attributes:
        identity: of the pool.
        hung_after: returns ``Config.hung_after``, seconds.
        collected: called with the weak reference when the executor is garbage collected; None for no callback.
    """

    identity: Identity
    hung_after: Callable[[], float]
    collected: Callable[[Any], object] | None = None


class Watched:
    """One watched pool, held weakly; each kind of pool has a subclass that reads it.

    Subclasses must keep strong references to the pool only for an instant: dropping the last one ends the pool, which
    is for the program to do.

    Args:
        pool: the executor.
        terms: its identity and settings.
    """

    knows_neglected = False
    """Whether lost errors are detected for this kind."""

    def __init__(self, pool: Any, terms: Terms) -> None:
        self.ref = weakref.ref(pool, terms.collected)
        self.keys: tuple[int, ...] = ()
        """Ids of objects by which calls are matched to this pool while it exists."""
        self.identity = terms.identity
        self.task_stats = TaskStats()
        self.started = self.recycled = 0
        self.ended_by_program = False
        """Whether the program has shut it down explicitly."""
        self._hung_after = terms.hung_after
        self._window = Window()
        self._fate = Executor.OPEN
        self._fate_at = 0.0
        self._over_at: float | None = None
        self._last: PoolReading | None = None

    # -- implemented by subclasses --------------------------------------------------------------------------------

    def fate(self, pool: Any) -> Executor:
        """Return the state of the executor ``pool``."""
        raise NotImplementedError

    def has_workers(self) -> bool:
        """Whether any worker is alive."""
        raise NotImplementedError

    def count(self) -> None:
        """Count finished tasks that were only recorded so far."""

    def unfinished(self) -> Sequence[tuple[str, threading.Thread | None]]:
        """Return the names of the tasks that run, each with its thread in this process, None if it has none."""
        return ()

    def has_thread(self, _thread: threading.Thread, /) -> bool:
        """Whether a thread works for it."""
        return False

    def close(self) -> None:
        """Release resources once the pool is no longer watched."""

    def pids(self) -> Sequence[int]:
        """Return the ids of the worker processes to poll."""
        return ()

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return the statistics of the pool.

        Args:
            facts: polled facts of its processes.
            now: ``time.monotonic`` seconds.
        """
        raise NotImplementedError

    # -- called by the monitor ------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether it has ended and was reported so for :data:`LINGER` seconds."""
        return self._over_at is not None and time.monotonic() - self._over_at >= LINGER

    @property
    def is_over(self) -> bool:
        """Whether it has ended: it accepts no calls and has no worker."""
        return self._over_at is not None

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return its statistics, given the polled facts of its processes."""
        last = self._last
        if last is not None:
            return self._with_neglected(last)
        fate = self._fate_now()
        if fate is not self._fate:
            self._fate, self._fate_at = fate, now
        is_over = fate is not Executor.OPEN and not self.has_workers()
        self.count()
        self.task_stats.fold()
        stats = self.read(facts, now)
        reading = PoolReading(
            stats, self.task_stats.waits.copy(), self.task_stats.runs.copy(), neglected=dict(self.task_stats.neglected)
        )
        if is_over:
            if self._over_at is None:
                self._over_at = now
            elif now - self._over_at > SETTLE:  # final
                self._last = reading
        return reading

    def _with_neglected(self, last: PoolReading) -> PoolReading:
        """Return the final reading with later lost errors: results may outlive their pool."""
        self.task_stats.fold()
        count = self.task_stats.neglected.total()
        if self.knows_neglected and count != last.stats.neglected:
            stats = replace(last.stats, neglected=count)
            last = self._last = replace(last, stats=stats, neglected=dict(self.task_stats.neglected))
        return last

    def _fate_now(self) -> Executor:
        pool = self.ref()
        if pool is not None:
            return self.fate(pool)
        if self._fate not in (Executor.OPEN, Executor.ENDING):
            return self._fate
        return Executor.SHUT_DOWN if self.ended_by_program else Executor.COLLECTED

    # -- helpers for subclasses -----------------------------------------------------------------------------------

    def worker(
        self,
        pid: int,
        work: Work,
        born: float,
        now: float,
        *,
        facts: ProcessFacts | None = None,
        cpu: float | None = None,
        **known: Any,
    ) -> WorkerStats:
        """Return the statistics of one worker, with its state.

        Args:
            pid: process id, or native id of a thread.
            work: its current activity.
            born, now: its start and the current time, ``time.monotonic`` seconds.
            facts: polled facts of the process.
            cpu: CPU seconds, used without ``facts``.
            **known: attributes of :class:`~loopwatch.health.states.Situation` that take precedence over the facts.
        """
        running_for = None if work.since is None else max(now - work.since, 0.0)
        situation = Situation.of(
            facts, now, age=max(now - born, 0.0), executor=self._fate, executor_for=now - self._fate_at,
            ready=work.ready, calls=work.calls, task=work.task, running_for=running_for, **known,
        )  # fmt: skip
        verdict = judge(situation, self._hung_after())
        return WorkerStats(
            pid=pid,
            state=verdict.state,
            calls=work.calls or 0,
            done=work.done,
            age=situation.age,
            memory=(facts.memory or 0) if facts is not None else 0,
            reason=verdict.reason,
            unique=facts.unique if facts is not None else None,
            starved=facts.starved if facts is not None else None,
            cpu=facts.cpu if facts is not None else cpu,
            task=work.task,
            running_for=running_for,
            exitcode=situation.exitcode,
            oom_killed=situation.oom_killed,
        )

    def dead(
        self, pool_workers: PoolWorkers, now: float, lost: Callable[[int], str] | None = None
    ) -> list[WorkerStats]:
        """Return the workers that crashed within the last :data:`LINGER` seconds.

        Args:
            pool_workers: the pool's workers.
            now: ``time.monotonic`` seconds.
            lost: returns words about the task that a worker had when it died, by its number.
        """
        found = []
        for each in list(pool_workers.dead):
            if now - each.at < LINGER:
                work = Work(0, each.done)
                worker = self.worker(
                    each.pid, work, each.born, each.at, alive=False, exitcode=each.exitcode,
                    oom_killed=each.pid in pool_workers.oom,
                )  # fmt: skip
                if lost is not None and each.task is not None:
                    worker = replace(worker, reason=f"{worker.reason} {lost(each.task)}")
                found.append(worker)
        return found

    def stats(
        self,
        workers: Collection[WorkerStats],
        now: float,
        *,
        queued: int,
        running: int,
        submitted: int | None = None,
        running_for: float = 0.0,
        **others: Any,
    ) -> PoolStats:
        """Assemble the statistics of the pool.

        Args:
            workers: all workers to report.
            now: ``time.monotonic`` seconds.
            queued, running: number of waiting and of current tasks.
            submitted: number of tasks accepted; None for the sum of finished, waiting and current ones.
            running_for: total seconds that current tasks have run so far.
            **others: further fields of :class:`~loopwatch.events.PoolStats`.
        """
        task_stats = self.task_stats
        over = task_stats.completed + task_stats.failed + task_stats.cancelled
        alive = sum(worker.state not in _GONE for worker in workers)
        return PoolStats(
            name=self.identity.name,
            kind=self.identity.kind,
            created_at=self.identity.place,
            workers=tuple(workers),
            queued=queued,
            running=running,
            submitted=over + queued + running if submitted is None else submitted,
            completed=task_stats.completed,
            failed=task_stats.failed,
            cancelled=task_stats.cancelled,
            failures=dict(task_stats.failures),
            started=self.started,
            recycled=self.recycled,
            wait=task_stats.waits.stats(),
            run=task_stats.runs.stats(),
            utilization=self._window.share(now, task_stats.busy + running_for, alive),
            closed=self._fate is not Executor.OPEN,
            neglected=task_stats.neglected.total() if self.knows_neglected else None,
            **{"task_cpu": task_stats.cpu, **others},
        )


class WatchedProcessPool(Watched):
    """A pool whose workers are processes, or may be.

    Args:
        pool: the executor.
        terms: its identity and settings.
        board: the task board its workers write to, None without one.
    """

    def __init__(self, pool: Any, terms: Terms, board: TaskBoard | None) -> None:
        super().__init__(pool, terms)
        self.pool_workers = PoolWorkers(board)
        self.waiting = 0
        """Number of threads that wait for it to end."""

    def living(self) -> Collection[object]:
        """Return its live workers, also those of a pool that was shut down or collected."""
        raise NotImplementedError

    def look(self) -> None:
        """Update the set of its workers."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop reading the task board; callbacks of current tasks may still arrive."""
        self.pool_workers.close()

    def has_workers(self) -> bool:
        """Whether a worker is alive, or the reason of a crash is still undetermined."""
        return bool(self.living()) or self.pool_workers.is_unsettled

    def pids(self) -> Sequence[int]:
        """Return the ids of its worker processes."""
        self.look()
        return self.pool_workers.pids()

    def process_stats(
        self, workers: Collection[WorkerStats], now: float, *, running: int, pending: int, cpu: float | None,
        max_workers: int | None, lost: Callable[[int], str],
    ) -> PoolStats:  # fmt: skip
        """Assemble the statistics of the pool, including crashed workers.

        Args:
            workers: current ones.
            now: ``time.monotonic`` seconds.
            running: number of tasks they run.
            pending: number of tasks without a result, including running ones.
            cpu: CPU seconds of all its workers so far.
            max_workers: the pool's limit.
            lost: as for :meth:`dead`.
        """
        return self.stats(
            [*workers, *self.dead(self.pool_workers, now, lost)], now,
            queued=max(pending - running, 0), running=running,
            running_for=sum(worker.running_for or 0.0 for worker in workers), max_workers=max_workers,
            crashed=sum(self.pool_workers.crashes.values()), crashes=dict(self.pool_workers.crashes),
            decoding=self.pool_workers.overhead(), cpu=cpu,
        )  # fmt: skip


_GONE = (WorkerState.DEAD, WorkerState.ZOMBIE)

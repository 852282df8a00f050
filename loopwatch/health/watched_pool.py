"""The base class of watched pools of all kinds: identity, whether the pool is open, outcomes of its tasks.

Nothing of the program's is held here but weakly: pools, threads, processes, queues and results go when the program lets
go of them, whatever is still to be said of them. What is said afterwards are numbers and names.
"""

from __future__ import annotations

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
"""s for which the figures of a pool are told that is over: long enough to be exported or scraped."""
SETTLE = 0.5
"""s in which they may still change."""


class Identity(NamedTuple):
    """What a pool is called.

    Attributes:
        name: unlike that of any other pool of this process.
        kind: one of those of :class:`~loopwatch.events.PoolStats`.
        place: where it was made, ``file:line in function``; empty where that is not known.
    """

    name: str
    kind: str
    place: str


class Terms(NamedTuple):
    """How a pool is watched.

    Attributes:
        identity: what it is called.
        hung_after: returns ``Config.hung_after``, seconds.
        collected: called when nobody has a reference to the executor any more; None where nobody asks.
    """

    identity: Identity
    hung_after: Callable[[], float]
    collected: Callable[[Any], object] | None = None


class Watched:
    """One pool under watch, held weakly. Kinds of pools differ in how they are looked into.

    A pool is looked at for an instant only: whoever holds it last ends it, and that is to be the program.

    Args:
        pool: the executor.
        terms: how it is watched.
    """

    knows_neglected = False
    """Whether it is known of failed tasks that nobody asks for their error."""

    def __init__(self, pool: Any, terms: Terms) -> None:
        self.ref = weakref.ref(pool, terms.collected)
        self.keys: tuple[int, ...] = ()
        """Ids of objects by which calls are recognized as its own, as long as it is there."""
        self.identity = terms.identity
        self.task_stats = TaskStats()
        self.started = self.recycled = 0
        self.ended_by_program = False
        """Whether the program has shut it down itself."""
        self._hung_after = terms.hung_after
        self._window = Window()
        self._fate = Executor.OPEN
        self._fate_at = 0.0
        self._over_at: float | None = None
        self._last: PoolReading | None = None

    # -- what the kinds say ---------------------------------------------------------------------------------------

    def fate(self, pool: Any) -> Executor:
        """Return whether ``pool`` still takes calls."""
        raise NotImplementedError

    def has_workers(self) -> bool:
        """Whether any worker is alive."""
        raise NotImplementedError

    def count(self) -> None:
        """Count what is over and was only noted."""

    def close(self) -> None:
        """It is watched no more."""

    def pids(self) -> Sequence[int]:
        """Return the worker processes whose facts are wanted."""
        return ()

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return the figures; what is the same for all kinds is filled in later.

        Args:
            facts: of its processes.
            now: ``time.monotonic``.
        """
        raise NotImplementedError

    # -- what the monitor asks ------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether it is over: takes no calls, has no worker, and has been told as such for a while."""
        return self._over_at is not None and time.monotonic() - self._over_at >= LINGER

    @property
    def is_over(self) -> bool:
        """Whether it takes no calls and has no worker."""
        return self._over_at is not None

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return its figures, given what was polled of its processes."""
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
            elif now - self._over_at > SETTLE:  # nothing changes any more
                self._last = reading
        return reading

    def _with_neglected(self, last: PoolReading) -> PoolReading:
        """Return a reading that nothing else changes: results may be kept for longer than their pool."""
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

    # -- for the kinds --------------------------------------------------------------------------------------------

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
        """Return one worker, judged by what is known of it.

        Args:
            pid: process id, or native id of a thread.
            work: what it is about.
            born, now: ``time.monotonic`` s when it was started, and of now.
            facts: of the process.
            cpu: s of processor time, where there are no facts.
            **known: attributes of :class:`~loopwatch.health.states.Situation` that win over the facts.
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
        """Return those that have crashed not long ago.

        Args:
            staff: the workers.
            now: ``time.monotonic``.
            lost: says what became of the task, by its number, that a worker had when it died.
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
        """Put the figures together.

        Args:
            workers: all that are to be told.
            now: ``time.monotonic``.
            queued, running: tasks that wait, and that workers have.
            submitted: tasks taken; None to add up what became of them.
            running_for: s for which those that run now have run, all together.
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
        terms: how it is watched.
        board: where its workers note what they do, None if they cannot.
    """

    def __init__(self, pool: Any, terms: Terms, board: TaskBoard | None) -> None:
        super().__init__(pool, terms)
        self.pool_workers = PoolWorkers(board)
        self.waiting = 0
        """Threads that wait for it to end."""

    def living(self) -> Collection[object]:
        """Return its workers that are alive, also those of a pool that was shut down or collected."""
        raise NotImplementedError

    def look(self) -> None:
        """See which workers it has now."""
        raise NotImplementedError

    def close(self) -> None:
        """It is watched no more; tasks that are under way may still tell that they are over."""
        self.pool_workers.close()

    def has_workers(self) -> bool:
        """Whether one of its workers is left, or how one ended is still to be found out."""
        return bool(self.living()) or self.pool_workers.is_unsettled

    def pids(self) -> Sequence[int]:
        """Return its worker processes."""
        self.look()
        return self.pool_workers.pids()

    def process_stats(
        self, workers: Collection[WorkerStats], now: float, *, running: int, pending: int, cpu: float | None,
        max_workers: int | None, lost: Callable[[int], str],
    ) -> PoolStats:  # fmt: skip
        """Put the figures together, with those of workers that have died.

        Args:
            workers: those that are there.
            now: ``time.monotonic``.
            running: tasks that they run.
            pending: tasks without a result, those that run among them.
            cpu: processor seconds of all its workers.
            max_workers: at most.
            lost: as of :meth:`dead`.
        """
        return self.stats(
            [*workers, *self.dead(self.pool_workers, now, lost)], now,
            queued=max(pending - running, 0), running=running,
            running_for=sum(worker.running_for or 0.0 for worker in workers), max_workers=max_workers,
            crashed=sum(self.pool_workers.crashes.values()), crashes=dict(self.pool_workers.crashes),
            decoding=self.pool_workers.overhead(), cpu=cpu,
        )  # fmt: skip


_GONE = (WorkerState.DEAD, WorkerState.ZOMBIE)

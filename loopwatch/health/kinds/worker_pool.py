"""Worker pools of loopwatch: they report their statistics themselves; the facts of their processes are polled."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from loopwatch.core.dataclasses import replace
from loopwatch.core.originals import time
from loopwatch.events import WorkerState, WorkerStats
from loopwatch.health.records import PoolReading, ProcessFacts
from loopwatch.health.states import Situation, judge
from loopwatch.health.task_stats import Window
from loopwatch.health.watched_pool import LINGER


class OwnPool(Protocol):
    """The interface of :class:`loopwatch.WorkerPool` that is used here."""

    def reading(self) -> PoolReading:
        """Return its statistics; callable from any thread."""


class WatchedOwn:
    """The :class:`~loopwatch.health.records.Source` of a :class:`loopwatch.WorkerPool`.

    Args:
        pool: held weakly.
        hung_after: returns ``Config.hung_after``, seconds.
    """

    def __init__(self, pool: OwnPool, hung_after: Callable[[], float]) -> None:
        self.ref = weakref.ref(pool)
        self._hung_after = hung_after
        self._window = Window()
        self._last = pool.reading()
        self._cpu: dict[int, float] = {}
        self._cpu_of_gone = 0.0
        self._over_at: float | None = None

    @property
    def gone(self) -> bool:
        """Whether it has ended and was reported so for :data:`~loopwatch.health.watched_pool.LINGER` seconds."""
        return self._over_at is not None and time.monotonic() - self._over_at >= LINGER

    def pids(self) -> Sequence[int]:
        """Return the ids of its worker processes."""
        pool = self.ref()
        return () if pool is None else [worker.pid for worker in pool.reading().stats.workers]

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return its statistics, with the polled facts of its workers."""
        pool = self.ref()
        if pool is not None:
            self._last = pool.reading()
        stats = self._last.stats
        workers = () if pool is None else tuple(self._worker(each, facts.get(each.pid), now) for each in stats.workers)
        for pid in self._cpu.keys() - {worker.pid for worker in workers}:
            self._cpu_of_gone += self._cpu.pop(pid)
        if self._over_at is None and (pool is None or stats.closed) and not workers:
            self._over_at = now
        busy = self._last.runs.total + sum(worker.running_for or 0.0 for worker in workers)
        cpu = self._cpu_of_gone + sum(self._cpu.values())
        stats = replace(
            stats, workers=workers, closed=stats.closed or pool is None, cpu=cpu,
            utilization=self._window.share(now, busy, len(workers)),
        )  # fmt: skip
        return PoolReading(stats, self._last.waits, self._last.runs)

    def _worker(self, worker: WorkerStats, facts: ProcessFacts | None, now: float) -> WorkerStats:
        if facts is None:
            return worker
        if facts.cpu is not None:
            self._cpu[worker.pid] = facts.cpu
        state, reason = WorkerState(worker.state), worker.reason
        if state is WorkerState.BUSY or not facts.alive:
            situation = Situation.of(
                facts, now, age=worker.age, calls=worker.calls, task=worker.task, running_for=worker.running_for
            )
            state, reason = judge(situation, self._hung_after())
        return replace(worker, state=state, reason=reason, cpu=facts.cpu, unique=facts.unique, starved=facts.starved)

"""Sliding-window history of a pool's statistics: the input of the finding rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.events import PoolStats, WorkerState, WorkerStats
from loopwatch.health.records import End, ExitWait, PoolReading

WINDOW = 30.0
"""Seconds over which changes are computed."""


EVERY = 1.0
"""Seconds between two stored points."""


SHORTEST = 8.0
"""Seconds of history a pool needs before its changes are computed."""


MEMORY_EVERY = 15.0
"""Seconds between two stored points of a worker's memory."""


MOST_STARVED = 0.8
"""Share of busy time on the run queue from which on a CPU share would be a guess, and is None."""


PROCESSES = frozenset({"process", "loky", "multiprocessing", "loopwatch"})


THREADS = frozenset({"thread", "default"})


BUSY = (WorkerState.BUSY, WorkerState.HUNG)


MIB = 1 << 20


UNWAITED_AFTER = 10.0
"""Seconds after which a zombie counts as unreaped if the program goes on to start further processes."""


class Unwaited:
    """Zombies of one pool that the program does not reap: it started other processes long after they had exited.

    Some programs start many processes and wait for them in turn, however long the first one takes; others reap
    finished ones whenever they start the next. Both are healthy, and one zombie does no harm.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._started: dict[int, int] = {}

    def of(self, stats: PoolStats, now: float) -> list[WorkerStats]:
        """Return the current unreaped zombies, given the latest statistics.

        Example:
            >>> unwaited, dead = Unwaited(), (WorkerStats(7, WorkerState.ZOMBIE, 0, 0, 1.0, 0),)
            >>> [len(unwaited.of(PoolStats("children", workers=dead, started=n), 20.0 * n)) for n in (1, 2, 3)]
            [0, 0, 1]
        """
        zombies = [worker for worker in stats.workers if worker.state == WorkerState.ZOMBIE]
        self._since = {worker.pid: self._since.get(worker.pid, now) for worker in zombies}
        old = [worker for worker in zombies if now - self._since[worker.pid] >= UNWAITED_AFTER]
        self._started = {worker.pid: self._started.get(worker.pid, stats.started) for worker in old}
        return [worker for worker in old if stats.started > self._started[worker.pid]]


class Point(NamedTuple):
    """Statistics of a pool at one moment."""

    at: float
    busy: int
    queued: int
    finished: int
    run: float
    cpu: float
    task_cpu: float | None
    pickling: float | None
    starved: dict[int, float]


class Memory(NamedTuple):
    """Memory of a worker at one moment, and the calls it had finished."""

    at: float
    bytes: int
    done: int


@dataclass(slots=True)
class History:
    """The statistics of one pool over time.

    Attributes:
        stats: the latest.
        points: of the last :data:`WINDOW` seconds, oldest first.
        memory: points of each worker, by process id.
        first_seen, last_seen: ``time.monotonic`` seconds.
        crashed: (reason, at) of crashes since it was first seen.
        neglected: number of lost errors by type; that of all failures where the types are not known.
        neglected_at: when their number last grew.
        run: seconds that its calls have run.
        zombies: unreaped ones.
    """

    stats: PoolStats
    first_seen: float
    last_seen: float
    points: deque[Point] = field(default_factory=deque)
    memory: dict[int, deque[Memory]] = field(default_factory=dict)
    crashed: deque[tuple[str, float]] = field(default_factory=lambda: deque(maxlen=100))
    neglected: dict[str, int] = field(default_factory=dict)
    neglected_at: float = float("-inf")
    run: float = 0.0
    zombies: Sequence[WorkerStats] = ()
    _unwaited: Unwaited = field(default_factory=Unwaited)

    def add(self, reading: PoolReading, now: float) -> None:
        """Add a reading."""
        stats, before = reading.stats, self.stats
        for reason, count in stats.crashes.items():
            # A pool that is broken when first seen was created a moment ago: its crashes are new.
            known = before.crashes.get(reason, 0) if self.points else 0
            self.crashed.extend([(reason, now)] * min(max(count - known, 0), CRASHES))
        if (stats.neglected or 0) > (before.neglected or 0 if self.points else 0):
            self.neglected_at = now
        self.neglected = dict(reading.neglected or stats.failures)
        self.stats, self.last_seen, self.run = stats, now, reading.runs.total
        self.zombies = self._unwaited.of(stats, now)
        if self.points and now - self.points[-1].at < EVERY:
            return
        is_known = stats.encoding is not None or stats.decoding is not None
        self.points.append(
            Point(
                now,
                sum(worker.state in BUSY for worker in stats.workers),
                stats.queued,
                stats.completed + stats.failed,
                reading.runs.total,
                stats.cpu,
                stats.task_cpu,
                (stats.encoding or 0.0) + (stats.decoding or 0.0) if is_known else None,
                {worker.pid: worker.starved for worker in stats.workers if worker.starved is not None},
            )
        )
        while self.points[0].at < now - WINDOW and len(self.points) > 2:
            self.points.popleft()
        self._add_memory(stats, now)

    def _add_memory(self, stats: PoolStats, now: float) -> None:
        living = {worker.pid for worker in stats.workers}
        for pid in self.memory.keys() - living:
            del self.memory[pid]
        for worker in stats.workers:
            if worker.memory > 0:
                kept = self.memory.setdefault(worker.pid, deque(maxlen=80))
                if not kept or now - kept[-1].at >= MEMORY_EVERY:
                    kept.append(Memory(now, worker.memory, worker.done))

    @property
    def span(self) -> float:
        """Seconds between the oldest and the latest point."""
        return self.points[-1].at - self.points[0].at if self.points else 0.0

    def change(self) -> Change | None:
        """Return the change over the window, None while it is shorter than :data:`SHORTEST`."""
        if self.span < SHORTEST:
            return None
        first, last = self.points[0], self.points[-1]
        busy = sum((one.busy + other.busy) / 2 * (other.at - one.at) for one, other in pairwise(self.points))
        return Change(
            self.span,
            busy / self.span,
            max(last.cpu - first.cpu, 0.0) / self.span if last.cpu > 0 else None,
            last.finished - first.finished,
            last.run - first.run,
            None if last.task_cpu is None or first.task_cpu is None else last.task_cpu - first.task_cpu,
            None if last.pickling is None or first.pickling is None else last.pickling - first.pickling,
            _starved(self.points) / self.span,
        )


def _starved(points: Sequence[Point]) -> float:
    """Return the seconds on the run queue of workers that are in both of two successive points."""
    return sum(
        max(other.starved[pid] - one.starved[pid], 0.0)
        for one, other in pairwise(points)
        for pid in one.starved.keys() & other.starved.keys()
    )


class Change(NamedTuple):
    """The change of a pool's statistics within a window.

    Attributes:
        span: length of the window in seconds.
        busy: average number of busy workers.
        cores: average number of processors its workers used; None if unknown.
        finished: calls that ended.
        run: seconds they ran.
        task_cpu: CPU seconds they used, None if unknown.
        pickling: seconds of pickling and unpickling in this process, None if unknown.
        starved: average number of workers that were runnable but were given no processor; 0 if unknown.
    """

    span: float
    busy: float
    cores: float | None
    finished: int
    run: float
    task_cpu: float | None
    pickling: float | None
    starved: float

    @property
    def cpu_share(self) -> float | None:
        """Share of the calls' run time in which they computed; None if there was too little of it.

        Time on the run queue is excluded: they would have computed.
        """
        starved = min(self.starved / self.busy, 1.0) if self.busy > 0 else 0.0
        if self.task_cpu is not None and self.run >= 2.0 and self.finished >= 5:
            share = self.task_cpu / self.run
        elif self.cores is not None and self.busy >= 0.5:
            share = self.cores / self.busy
        else:
            return None
        return min(share / (1.0 - starved), 1.0) if starved < MOST_STARVED else None


@dataclass(frozen=True, slots=True)
class Scene:
    """The input of all rules.

    Attributes:
        histories: of the current pools.
        gone: of pools that ended lately.
        ends: ends of child processes, oldest first.
        cpus: processors that this process may use.
        affinity: processors that it may run on; more than ``cpus`` under a CPU limit of the container.
        gil_wait: seconds that a thread waited for the GIL, None if not measured.
        now: ``time.monotonic`` seconds.
        exits: waits at the end of the program.
    """

    histories: Sequence[History]
    gone: Sequence[History]
    ends: Sequence[End]
    cpus: float
    affinity: float
    gil_wait: float | None
    now: float
    exits: Sequence[ExitWait] = ()

    @property
    def is_limited(self) -> bool:
        """Whether the CPU limit of the container is the bound, and not the number of processors."""
        return self.cpus < self.affinity


CRASHES, CRASH_WINDOW = 3, 300.0
"""Crashes of workers of one place, within this many seconds, that make a crash loop."""

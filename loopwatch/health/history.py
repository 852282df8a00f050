"""Sliding-window history of a pool's statistics: the input of the finding rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.events import PoolStats, WorkerState, WorkerStats
from loopwatch.health.records import End, PoolReading

WINDOW = 30.0
"""s over which changes are looked at."""


EVERY = 1.0
"""s between two points that are kept."""


SHORTEST = 8.0
"""s that a pool has to have been seen before anything is said of its changes."""


MEMORY_EVERY = 15.0
"""s between two points of a worker's memory that are kept."""


MOST_STARVED = 0.8
"""Share of their time in which workers may be given no processor before nothing can be said of what they would do."""


PROCESSES = frozenset({"process", "loky", "multiprocessing", "loopwatch"})


THREADS = frozenset({"thread", "default"})


BUSY = (WorkerState.BUSY, WorkerState.HUNG)


MIB = 1 << 20


UNWAITED_AFTER = 10.0
"""s after which a program that starts further processes has passed over a zombie."""


class Unwaited:
    """Zombies of one pool that the program passes over: it has started others long after they had exited.

    Programs start many and wait for them in turn, however long the first one takes; others wait for what has ended
    whenever they start the next. Both are healthy, and one zombie does no harm.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._started: dict[int, int] = {}

    def of(self, stats: PoolStats, now: float) -> list[WorkerStats]:
        """Return those that are there, given the latest figures.

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
    """Figures of a pool at one moment."""

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
    """Memory of a worker at one moment, and the calls it had done."""

    at: float
    bytes: int
    done: int


@dataclass(slots=True)
class History:
    """How the figures of one pool have changed.

    Attributes:
        stats: the latest.
        points: of the last :data:`WINDOW`, oldest first.
        memory: of each worker, by process id.
        first_seen, last_seen: when.
        crashed: (reason, at) of crashes since it was first seen.
        neglected: failed calls whose error nobody can ask for any more, by type as far as that is told.
        neglected_at: when they were last seen to become more.
        run: s that its calls have run.
        zombies: those that the program has passed over.
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
        """Take note of a reading."""
        stats, before = reading.stats, self.stats
        for reason, count in stats.crashes.items():
            # One that is broken when it is first seen has been made a moment ago.
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
        """s over which there are points."""
        return self.points[-1].at - self.points[0].at if self.points else 0.0

    def change(self) -> Change | None:
        """Return what has happened in the window, None while that is too short."""
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
    """Return s for which workers that were there before and after waited for a processor."""
    return sum(
        max(other.starved[pid] - one.starved[pid], 0.0)
        for one, other in pairwise(points)
        for pid in one.starved.keys() & other.starved.keys()
    )


class Change(NamedTuple):
    """What has happened in a pool within a window.

    Attributes:
        span: its length, s.
        busy: workers that were busy, on average.
        cores: processors that its workers used, on average; None where that is not known.
        finished: calls that ended.
        run: s that these ran.
        task_cpu: s of processor time that these used, None where that is not known.
        pickling: s that pickling and unpickling took in this process, None where that is not known.
        starved: workers that were ready to run and were given no processor, on average; 0 where that is not known.
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
        """Share of the time that calls ran in which they computed; None where there was too little.

        What they waited for a processor is left out: they would have computed.
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
    """All that rules look at.

    Attributes:
        histories: of pools that are there.
        gone: of pools that were, not long ago.
        ends: how child processes ended, oldest first.
        cpus: that this process may use.
        gil_wait: s that a thread had to wait for the GIL, None where that was not looked at.
        now: ``time.monotonic``.
    """

    histories: Sequence[History]
    gone: Sequence[History]
    ends: Sequence[End]
    cpus: float
    gil_wait: float | None
    now: float


CRASHES, CRASH_WINDOW = 3, 300.0
"""So many workers of one place that die within so many s are a pattern."""

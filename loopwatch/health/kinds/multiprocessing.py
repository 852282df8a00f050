"""Pools of :mod:`multiprocessing`: ``apply``, ``map`` and ``imap`` in all their forms, in processes and in threads.

If a worker dies, its task is lost: the pool starts another worker, and a caller waits for the result forever. This is
reported as a crash and as a failed task.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from loopwatch.core.originals import time
from loopwatch.core.patches import Patch, loaded
from loopwatch.events import PoolStats, WorkerStats
from loopwatch.health.hooks import Hooks
from loopwatch.health.in_worker import SHIFT, Target, job_number
from loopwatch.health.kinds.base import ExecutorKind, Tools
from loopwatch.health.lost_errors import RESULT, LostErrors
from loopwatch.health.naming import error_name, task_name
from loopwatch.health.pool_workers import PoolWorkers, Work
from loopwatch.health.records import ProcessFacts
from loopwatch.health.seats import Seat, Seats
from loopwatch.health.states import Executor
from loopwatch.health.task_board import RING, Run, TaskBoard
from loopwatch.health.task_stats import Outcome
from loopwatch.health.watched_pool import Terms, Watched, WatchedProcessPool
from loopwatch.system import threads

LOST = "lost"
"""Exception type reported for a task that died with its worker, which has neither result nor exception."""
MANY = 1000
"""Jobs up to which the tasks of each are counted."""
PLACE = "multiprocessing.pool:worker"


class _Job(NamedTuple):
    """One job (an ``apply`` or ``map`` call) of a pool; ``at`` is its start, ``time.monotonic`` seconds."""

    at: float
    name: str


class WatchedPool(WatchedProcessPool):
    """A watched pool of :mod:`multiprocessing`."""

    knows_neglected = True

    def __init__(self, pool: Any, terms: Terms, board: TaskBoard | None) -> None:
        super().__init__(pool, terms, board)
        self.jobs: dict[int, _Job] = {}
        self.keys = id(pool._pool), id(pool._inqueue)
        self._max_workers = pool._processes
        self._cache = weakref.ref(pool._cache)
        self._lost: set[int] = set()
        self.has_threads = terms.identity.kind == "thread"
        self._workers: tuple[weakref.ref[Any], ...] = ()
        self.seats = Seats(self, ThreadNotes)
        self.take(pool._pool, are_new=bool(terms.identity.place))

    # -- workers --------------------------------------------------------------------------------------------------

    def take(self, members: list[Any], *, are_new: bool = True) -> None:
        """Record the pool's current workers.

        Args:
            members: the pool's list of workers, which it changes in place.
            are_new: whether workers not seen before have just started.
        """
        self._workers = tuple(weakref.ref(member) for member in members.copy())
        self.look(are_new=are_new)

    def _members(self) -> list[Any]:
        """Return the workers recorded last that are not garbage collected."""
        return [member for ref in self._workers if (member := ref()) is not None]

    def living(self) -> list[Any]:
        """Return the recorded workers that are alive, or not reaped yet."""
        if self.has_threads:
            return [member for member in self._members() if member.is_alive()]
        return PoolWorkers.living(self._members())

    def look(self, *, are_new: bool = True) -> None:
        """Update the set of its worker processes."""
        if not self.has_threads:
            present = self.living() if self.pool_workers.is_ending else self._members()
            self.pool_workers.look([process.pid for process in present], time.monotonic(), are_new=are_new)

    def ended(self, processes: Sequence[Any]) -> None:
        """Record how workers ended, before the pool replaces them."""
        now = time.monotonic()
        for process in processes:
            exitcode = process.exitcode
            if exitcode is None or self.pool_workers.has_crashed(process.pid):
                continue
            at = self.pool_workers.now(process.pid)
            if exitcode == 0 and (at is None or at.number is None):
                continue
            if exitcode > 0 and at is not None and at.number is None and at.done > 0:
                continue  # it had finished: forked from an executor's thread, it fails to join itself at exit
            dead = self.pool_workers.crashed(process.pid, exitcode, now)
            if dead.task is not None:
                self._lost.add(dead.task)
                self.task_stats.add(Outcome(None, None, LOST))

    def notes_of(self, thread: threading.Thread) -> ThreadNotes:
        """Return the recorder of a worker thread."""
        return self.seats.of(thread, time.monotonic())

    # -- tasks ----------------------------------------------------------------------------------------------------

    def over(self, job: int, index: int, outcome: Any) -> None:
        """Count a task whose result has arrived."""
        number = job_number(job, index)
        if number is None:
            return
        success, value = outcome
        name = None if success or not isinstance(value, BaseException) else error_name(value)
        run = self._run_of(number) if self.has_threads else self.pool_workers.run_of(number)
        if run is None:
            self.task_stats.add(Outcome(None, None, name))
            return
        known = self.jobs.get(job)
        wait = None if known is None else max(run.start - known.at, 0.0)
        self.task_stats.add(Outcome(wait, run.end - run.start, name, run.cpu))

    def _run_of(self, number: int) -> Run | None:
        runs = (each.run_of(number) for each in self.seats.all())
        return next((run for run in runs if run is not None), None)

    def _pending(self) -> int:
        """Return the number of tasks without a result, as far as known, excluding lost ones.

        With more than :data:`MANY` jobs, each counts as one task.
        """
        cache = self._cache() or {}
        self._forget_jobs()
        self._lost = {number for number in self._lost if number >> SHIFT in cache}
        count = len(cache) if len(cache) > MANY else sum(_left(result) for result in list(cache.values()))
        return max(count - len(self._lost), 0)

    def asked(self, job: int, name: str) -> None:
        """Record a submitted job."""
        self.jobs[job] = _Job(time.monotonic(), name)
        self._forget_jobs()

    def _forget_jobs(self) -> None:
        """Forget finished jobs once there are too many: the monitor, which reads them, may be slow."""
        cache = self._cache() or {}
        if len(self.jobs) > 2 * len(cache) + MANY:
            for job in [job for job in list(self.jobs) if job not in cache]:
                self.jobs.pop(job, None)

    def _name_of(self, number: int) -> str:
        job = self.jobs.get(number >> SHIFT)
        return "" if job is None else job.name

    # -- statistics -----------------------------------------------------------------------------------------------

    def fate(self, pool: Any) -> Executor:
        """Return the state of ``pool``."""
        if pool._state in ("INIT", "RUN"):
            return Executor.OPEN
        return Executor.ENDING if self.waiting else Executor.SHUT_DOWN

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return the statistics of the pool."""
        self.look()
        self.pool_workers.settle(facts)
        if self.has_threads:
            workers = [self._thread(thread, now) for thread in self.living()]
            self.started = self.seats.count
        else:
            workers = [self._process(pid, facts.get(pid), now) for pid in self.pool_workers.present()]
            self.started, self.recycled = self.pool_workers.started, self.pool_workers.recycled
        pending = self._pending()
        busy = sum(worker.calls for worker in workers)
        if not self.has_threads and not self.pool_workers.is_known(now):
            busy = min(pending, len(workers))
        cpu = self.seats.cpu if self.has_threads else self.pool_workers.cpu(facts)
        return self.process_stats(
            workers, now, running=busy, pending=pending, cpu=cpu, max_workers=self._max_workers, lost=self._lost_words
        )

    def _lost_words(self, number: int) -> str:
        name = self._name_of(number)
        return f"while it ran {name or 'a task'}, whose result will never come"

    def _process(self, pid: int, facts: ProcessFacts | None, now: float) -> WorkerStats:
        work = self.pool_workers.work(pid, self._name_of, now)
        return self.worker(pid, work, self.pool_workers.born(pid, now), now, facts=facts)

    def _thread(self, thread: threading.Thread, now: float) -> WorkerStats:
        seat, native_id = self.notes_of(thread), thread.native_id or 0
        number, since = seat.number, seat.since
        cpu = threads.thread_cpu(native_id)
        if cpu is not None:
            seat.cpu = max(seat.cpu, cpu)
        if number is None:
            return self.worker(native_id, Work(0, seat.done), seat.born, now, cpu=cpu)
        work = Work(1, seat.done, self._name_of(number), since)
        still = None if cpu is None else seat.still_for(now, native_id, cpu)
        return self.worker(native_id, work, seat.born, now, cpu=cpu, still_for=still)


class ThreadNotes(Seat):
    """Recorder of a worker thread: its current task and the latest finished ones; written by that thread."""

    __slots__ = ("_cpu", "_runs", "number")

    def __init__(self, watched: WatchedPool, thread: threading.Thread, born: float) -> None:
        super().__init__(watched, thread, born)
        self.number: int | None = None
        self._runs: deque[tuple[int, Run]] = deque(maxlen=RING)
        self._cpu = 0.0

    def ready(self) -> None:
        """Record nothing: a thread is ready once it runs."""

    def begin(self, number: int) -> None:
        """Record that task ``number`` was taken."""
        self._cpu = time.thread_time()
        self.since = time.monotonic()
        self.number = number

    def end(self) -> None:
        """Record the end of the current task, if there is one."""
        number, self.number = self.number, None
        if number is not None:
            self.cpu = cpu = time.thread_time()
            self.done += 1
            self._runs.append((number, Run(self.since, time.monotonic(), cpu - self._cpu)))

    def run_of(self, number: int) -> Run | None:
        """Return the times of finished task ``number``, None if this thread does not have them."""
        return next((run for known, run in self._runs.copy() if known == number), None)


class MultiprocessingPools:
    """Hooks of :mod:`multiprocessing.pool`.

    Args:
        hooks: method hooks.
        found: returns the :class:`Watched` of a pool, None if it is not watched.
        each: returns all watched pools.
        target: creates the replacement of the module's worker function.
        neglected: follows failed results.
    """

    def __init__(
        self,
        hooks: Hooks,
        found: Callable[[Any], Watched | None],
        each: Callable[[], Sequence[Watched]],
        target: Callable[[Any, str, Callable[..., Any]], Target],
        neglected: LostErrors,
    ) -> None:
        self._neglected = neglected
        self._hooks, self._found, self._each, self._target = hooks, found, each, target
        self._here = threading.local()

    def start(self, module: Any) -> None:
        """Install the hooks.

        Args:
            module: :mod:`multiprocessing.pool`.
        """
        hooks, pool = self._hooks, module.Pool
        self._neglected.resume()
        in_thread = hooks.guarded(self._in_thread)
        hooks.patches.replace(module, "worker", lambda original, _patch: self._target(original, PLACE, in_thread))
        hooks.patches.replace(pool, "_join_exited_workers", _static).state = (
            hooks.guarded(self._exiting),
            hooks.guarded(self._exited, at=1),
        )
        hooks.patches.replace(pool, "_repopulate_pool_static", _static).state = (
            _nothing,
            hooks.guarded(self._populated, at=4),
        )
        for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
            hooks.both(pool, name, self._asked, self._was_asked)
        for result in (module.ApplyResult, module.IMapIterator):
            hooks.after(result, "__init__", self._begun)
        for result in (module.ApplyResult, module.MapResult, module.IMapIterator, module.IMapUnorderedIterator):
            hooks.before(result, "_set", self._over)
        hooks.before(pool, "close", self._closing)
        hooks.before(pool, "terminate", self._ending)
        hooks.both(pool, "join", self._ending, self._ended)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def _asked(self, pool: Any, func: Any = None, *_args: Any, **_kwargs: Any) -> None:
        self._here.asked = (pool, func)

    def _was_asked(self, _pool: Any, _result: Any) -> None:
        self._here.asked = (None, None)  # the call may have been rejected without creating a result

    def _begun(self, result: Any, _nothing: None) -> None:
        pool, func = getattr(self._here, "asked", (None, None))
        self._here.asked = (None, None)
        watched = self._found(result._pool) if result._pool is not None else None
        if isinstance(watched, WatchedPool):
            name = task_name(func) if pool is result._pool and func is not None else ""
            watched.asked(result._job, name)

    def _over(self, result: Any, index: int, outcome: Any) -> None:
        pool = result._pool
        watched = None if pool is None else self._found(pool)
        if isinstance(watched, WatchedPool):
            watched.over(result._job, index, outcome)
            success, error = outcome
            if not success and not getattr(result, "_error_callback", True):  # results of imap() have none
                self._neglected.follow(result, RESULT, watched.task_stats, error)

    # -- workers --------------------------------------------------------------------------------------------------

    def _of(self, part: Any) -> WatchedPool | None:
        """Return the watched pool that a list of workers, or a call queue, belongs to.

        Takes no reference to the pool: this runs in the pool's threads, where dropping the last one would end it.
        """
        for watched in self._each():
            if id(part) in watched.keys and isinstance(watched, WatchedPool):
                return watched
        return None

    def _exiting(self, members: list[Any]) -> tuple[WatchedPool, list[Any]] | None:
        """Keep the entries of all workers before the pool reaps those that have ended."""
        watched = self._of(members)
        if watched is None or watched.has_threads:
            return None
        found = members.copy()
        watched.pool_workers.kept |= {process.pid for process in found}
        return watched, found

    def _exited(self, before: tuple[WatchedPool, list[Any]] | None, members: list[Any]) -> None:
        """Record the workers that the pool has reaped."""
        if before is not None:
            watched, found = before
            watched.ended([process for process in found if process not in members])
            watched.take(members)
            watched.pool_workers.kept -= {process.pid for process in found}

    def _populated(self, _before: None, _context: Any, _process: Any, _count: int, members: list[Any], *_: Any) -> None:
        watched = self._of(members)
        if watched is not None:
            watched.take(members)

    def _in_thread(self, calls: Any) -> ThreadNotes | None:
        """Return the recorder of the calling thread, a worker that takes tasks from ``calls``."""
        watched = self._of(calls)
        return None if watched is None else watched.notes_of(threading.current_thread())

    def _closing(self, pool: Any) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedPool):
            watched.pool_workers.is_ending = watched.ended_by_program = True

    def _ending(self, pool: Any) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedPool):
            watched.pool_workers.is_ending = watched.ended_by_program = True
            watched.waiting += 1

    def _ended(self, pool: Any, _result: None) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedPool):
            watched.waiting = 0


def _nothing(*_: Any) -> None:
    pass


def _static(original: Any, patch: Patch) -> Any:
    """Wrap a static method with the hooks in ``patch.state``: (before, after).

    ``before`` is called with the arguments, ``after`` with the result of ``before`` and the arguments.
    """

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        if not patch.active:
            return original(*args, **kwargs)
        before, after = patch.state
        noted = before(*args)
        try:
            return original(*args, **kwargs)
        finally:
            after(noted, *args)

    return staticmethod(method)


def _left(result: Any) -> int:
    """Return the number of tasks of a job without a result, as far as known."""
    left = getattr(result, "_number_left", None)
    if left is not None:
        return int(left)
    length = getattr(result, "_length", 1)
    if length is None:  # its tasks are still being generated
        return 1
    return max(int(length) - getattr(result, "_index", 0) - len(getattr(result, "_unsorted", ())), 0)


class MultiprocessingKind(ExecutorKind):
    """:class:`multiprocessing.Pool` and its :class:`~multiprocessing.pool.ThreadPool`."""

    modules = ("multiprocessing.pool",)
    class_name = "Pool"
    needs = ("_pool", "_cache", "_taskqueue", "_inqueue", "_state", "_processes")

    def start(self, tools: Tools, module: Any) -> None:
        """Hook :mod:`multiprocessing.pool`, and register its existing pools."""
        MultiprocessingPools(tools.hooks, tools.found, tools.each, tools.target, tools.lost_errors).start(module)

        def making(_pool: Any, *_args: Any, **_kwargs: Any) -> None:
            tools.board()  # created before the pool starts its workers

        tools.hooks.both(module.Pool, "__init__", making, tools.made, always=False)
        util = loaded("multiprocessing.util")  # pools register there to be terminated at exit
        for finalizer in list(getattr(util, "_finalizer_registry", {}).values()):
            ref = getattr(finalizer, "_weakref", None)
            pool = None if ref is None else ref()
            if isinstance(pool, module.Pool):
                tools.noted(pool)

    def name(self, pool: Any) -> str:
        """Return ``thread`` for a pool of threads, else ``multiprocessing``."""
        threads = getattr(loaded("multiprocessing.pool"), "ThreadPool", None)
        return "thread" if isinstance(threads, type) and issubclass(type(pool), threads) else "multiprocessing"

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        """Return a new :class:`WatchedPool`."""
        return WatchedPool(pool, terms, tools.board())

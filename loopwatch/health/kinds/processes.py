"""Process pools with futures: :class:`concurrent.futures.ProcessPoolExecutor` and loky's, which has the same design.

Their workers record their tasks on the task board (:mod:`loopwatch.health.in_worker`); in the parent, the worker
function is replaced by name, and submissions are recorded. The data sent to workers is unchanged.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.patches import Patch
from loopwatch.events import PoolStats, WorkerStats
from loopwatch.health.exit_waits import ExitWaits
from loopwatch.health.hooks import Hooks
from loopwatch.health.in_worker import Target
from loopwatch.health.kinds.base import ExecutorKind, Tools
from loopwatch.health.lost_errors import Onlooker, failure_of
from loopwatch.health.naming import task_name
from loopwatch.health.pool_workers import PoolWorkers
from loopwatch.health.records import ProcessFacts
from loopwatch.health.states import Executor
from loopwatch.health.submitters import Submitters
from loopwatch.health.task_board import TaskBoard
from loopwatch.health.task_stats import Outcome, TaskStats
from loopwatch.health.watched_pool import Terms, Watched, WatchedProcessPool

TOGETHER = 16
"""Finished tasks counted in one batch; far fewer than a worker's ring on the task board holds."""
CANCELLED = ("CANCELLED", "CANCELLED_AND_NOTIFIED")


class WatchedProcesses(WatchedProcessPool):
    """A watched process pool with futures."""

    knows_neglected = True

    def __init__(self, pool: Any, terms: Terms, board: TaskBoard | None) -> None:
        super().__init__(pool, terms, board)
        self._max_workers = pool._max_workers
        self._manager: weakref.ref[Any] | None = None
        self._over: deque[tuple[int, float, str | None]] = deque()
        self._lost: dict[int, str] = {}
        """Names of tasks whose workers have died, by task number."""
        self._see_manager(pool)
        self.pool_workers.look(self.living(), time.monotonic(), are_new=False)

    # -- workers and pending tasks --------------------------------------------------------------------------------

    def _see_manager(self, pool: Any) -> None:
        """Record the manager thread, which holds workers and pending tasks; the first task starts it."""
        manager = getattr(pool, "_executor_manager_thread", None)
        if manager is not None and (self._manager is None or self._manager() is not manager):
            self._manager = weakref.ref(manager)

    def _managed(self, name: str) -> Mapping[int, Any]:
        """Return a mapping of the manager thread, which may be large; empty without a manager."""
        manager = None if self._manager is None else self._manager()
        return getattr(manager, name, None) or {}

    def living(self) -> list[int]:
        """Return the process ids of its workers, also of a pool that was shut down or collected."""
        return [process.pid for process in PoolWorkers.living(list(self._managed("processes").values()))]

    def _pending(self) -> Mapping[int, Any]:
        """Return its tasks without a result by task number."""
        return self._managed("pending_work_items")

    def look(self) -> None:
        """Update the set of its workers, and count finished tasks."""
        self.pool_workers.look(self.living(), time.monotonic(), count=self.count)

    def look_at(self, pool: Any) -> None:
        """Do the same after ``pool`` may have started its manager thread."""
        self._see_manager(pool)
        self.look()

    def has_changed(self, pool: Any) -> bool:
        """Whether its workers may have changed since the last update; cheap, called after each submission."""
        processes = pool._processes
        return self._manager is None or (processes is not None and len(processes) != self.pool_workers.size)

    def broke(self, manager: Any) -> None:
        """Record how workers died, before the executor terminates the others.

        Args:
            manager: the manager thread, which may not be recorded yet.
        """
        self._manager = weakref.ref(manager)
        processes, now = dict(manager.processes), time.monotonic()
        self.pool_workers.look(processes, now, count=self.count)
        self.pool_workers.is_ending = True
        self.pool_workers.note_crashes(processes, now)
        self._lost = {each.task: self._name_of(each.task) for each in self.pool_workers.dead if each.task is not None}

    def _name_of(self, number: int) -> str:
        return _name_in(self._pending(), number)

    def _lost_words(self, number: int) -> str:
        return f"while it ran {self._lost.get(number) or 'a task'}"

    def has_thread(self, thread: threading.Thread, /) -> bool:
        """Whether ``thread`` is its manager thread."""
        return self._manager is not None and self._manager() is thread

    def unfinished(self) -> list[tuple[str, threading.Thread | None]]:
        """Return the names of its tasks without a result, at most as many as it has workers."""
        names = [_name_in(pending, number) for pending in [self._pending()] for number in list(pending)]
        return [(name, None) for name in names[: self._max_workers] if name]

    # -- outcomes of tasks ----------------------------------------------------------------------------------------

    def over(self, number: int, submitted: float, future: Any) -> None:
        """Record that task ``number`` is finished; kept short, as the caller of the task may be waiting for it."""
        if future._state in CANCELLED:
            self.task_stats.cancelled += 1
            return
        self._over.append((number, submitted, failure_of(future)))
        if len(self._over) >= TOGETHER:
            self.count()

    def count(self) -> None:
        """Count finished tasks, before newer ones overwrite their times on the task board."""
        over = self._over
        while over:
            try:
                number, submitted, error = over.popleft()
            except IndexError:  # another thread counts them
                return
            run = self.pool_workers.run_of(number)
            if run is None:
                self.task_stats.add(Outcome(None, None, error))
            else:
                self.task_stats.add(Outcome(max(run.start - submitted, 0.0), run.end - run.start, error, run.cpu))

    # -- statistics -----------------------------------------------------------------------------------------------

    def fate(self, pool: Any) -> Executor:
        """Return the state of ``pool``."""
        flags = getattr(pool, "_flags", None)  # loky
        if (getattr(pool, "_broken", False) if flags is None else flags.broken) not in (False, None):
            return Executor.BROKEN
        if not (pool._shutdown_thread if flags is None else flags.shutdown):
            return Executor.OPEN
        return Executor.ENDING if self.waiting else Executor.SHUT_DOWN

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return the statistics of the pool."""
        self.look()
        pending = self._pending()
        self.pool_workers.settle(facts)
        present = self.pool_workers.present()
        workers = [self._worker(pid, pending, facts.get(pid), now) for pid in present]
        busy = sum(worker.calls for worker in workers)
        if not self.pool_workers.is_known(now):  # estimated: a pool hands out few more tasks than it has workers
            busy = min(len(pending), len(present))
        self.started, self.recycled = self.pool_workers.started, self.pool_workers.recycled
        return self.process_stats(
            workers, now, running=busy, pending=len(pending), cpu=self.pool_workers.cpu(facts),
            max_workers=self._max_workers, lost=self._lost_words,
        )  # fmt: skip

    def _worker(self, pid: int, pending: Mapping[int, Any], facts: ProcessFacts | None, now: float) -> WorkerStats:
        work = self.pool_workers.work(pid, functools.partial(_name_in, pending), now)
        return self.worker(pid, work, self.pool_workers.born(pid, now), now, facts=facts)


def _name_in(pending: Mapping[int, Any], number: int) -> str:
    item = pending.get(number)
    return "" if item is None else task_name(item.fn)


class ProcessPools:
    """Hooks of the process pools of one module.

    Args:
        hooks: method hooks.
        found: returns the :class:`Watched` of a pool, None if it is not watched.
        each: returns all watched pools.
        target: creates the replacement of a module's worker function.
        exits: notes who waits for the end of a pool.
        submitters: notes who submits.
    """

    def __init__(
        self,
        hooks: Hooks,
        found: Callable[[Any], Watched | None],
        each: Callable[[], Sequence[Watched]],
        target: Callable[[Any, str, None], Target],
        *,
        exits: ExitWaits,
        submitters: Submitters,
    ) -> None:
        self._hooks, self._found, self._each, self._target, self._exits = hooks, found, each, target, exits
        self._submitters = submitters
        self.here = threading.local()
        """``now`` is (the watched pool, the pool) of the ``submit`` call in progress in each thread."""

    def start(self, module: Any) -> None:
        """Install the hooks.

        Args:
            module: :mod:`concurrent.futures.process`, or loky's module of the same design.
        """
        patches, place = self._hooks.patches, f"{module.__name__}:_process_worker"
        patches.replace(module, "_process_worker", lambda original, _patch: self._target(original, place, None))
        patches.replace(module, "_WorkItem", _watched_item).state = self
        patches.replace(module.ProcessPoolExecutor, "submit", _submit).state = self
        self._hooks.both(module.ProcessPoolExecutor, "shutdown", self._ending, self._ended)
        self._hooks.before(module._ExecutorManagerThread, "terminate_broken", self._breaking)

    def watched(self, pool: Any) -> WatchedProcesses | None:
        """Return the :class:`WatchedProcesses` of ``pool``, None if it is not watched."""
        if self._hooks.is_left_alone(pool):
            return None
        try:
            found = self._found(pool)
        except Exception as exc:  # noqa: BLE001 - the boundary between the program and its hooks
            self._hooks.failed(pool, exc)
            return None
        return found if isinstance(found, WatchedProcesses) else None

    def submits(self, frame: FrameType | None) -> None:
        """Note who submits: the caller of ``submit``, None where that is no Python code."""
        try:
            if frame is not None:
                self._submitters.note(frame)
        except Exception as exc:  # noqa: BLE001 - the boundary between the program and its hooks
            self._hooks.failed(self, exc)

    def has_submitted(self, watched: WatchedProcesses, pool: Any) -> None:
        """Record the workers that a submission made ``pool`` start."""
        try:
            if watched.has_changed(pool):
                watched.look_at(pool)
        except Exception as exc:  # noqa: BLE001 - likewise
            self._hooks.failed(pool, exc)

    def over(self, submitted: _Submitted, future: Any) -> None:
        """Record that a task is finished."""
        try:
            submitted.watched.over(submitted.number, submitted.at, future)
        except Exception as exc:  # noqa: BLE001 - likewise
            self._hooks.failed(submitted.watched, exc)

    def _ending(self, pool: Any, wait: bool = True, **_options: Any) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedProcesses):
            watched.look_at(pool)
            watched.pool_workers.is_ending = watched.ended_by_program = True
            watched.waiting += wait
            if wait:
                self._exits.begin(watched)

    def _ended(self, pool: Any, _result: None) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedProcesses):
            watched.waiting = 0
            self._exits.end(watched)

    def _breaking(self, manager: Any, *_args: Any) -> None:
        pool = manager.executor_reference()
        if pool is not None:
            found = self._found(pool)
        else:
            processes = (each for each in self._each() if isinstance(each, WatchedProcesses))
            found = next((each for each in processes if each.has_thread(manager)), None)
        if isinstance(found, WatchedProcesses):
            found.broke(manager)


class _Submitted(Onlooker):
    """Done callback of a task; holds no reference to its future, which would make a cycle."""

    __slots__ = ("_pools", "at", "number", "watched")

    def __init__(self, pools: ProcessPools, watched: WatchedProcesses, number: int, at: float) -> None:
        self._pools, self.watched, self.number, self.at = pools, watched, number, at

    @property
    def task_stats(self) -> TaskStats:
        """Task statistics of its pool."""
        return self.watched.task_stats

    def __call__(self, future: Any) -> None:
        self._pools.over(self, future)


def _submit(original: Any, patch: Patch) -> Any:
    """Wrap ``submit`` so that the work item it creates finds its watched pool."""

    @functools.wraps(original)
    def submit(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        watched = patch.state.watched(self) if patch.active else None
        if watched is None:
            return original(self, *args, **kwargs)
        patch.state.submits(sys._getframe().f_back)
        here = patch.state.here
        here.now = (watched, self)
        try:
            future = original(self, *args, **kwargs)
        finally:
            here.now = None
        patch.state.has_submitted(watched, self)
        return future

    return submit


def _watched_item(original: Any, patch: Patch) -> Any:
    """Return a subclass of work items that record when they are created and when they finish.

    Items are created within ``submit``, under the pool's lock: ``_queue_count`` is then the number of the task.
    """
    monotonic = time.monotonic

    class _WorkItem(original):  # type: ignore[misc]
        __slots__ = ()

        def __init__(self, future: Any, *args: Any, **kwargs: Any) -> None:
            original.__init__(self, future, *args, **kwargs)
            now = getattr(patch.state.here, "now", None) if patch.active else None
            if now is not None:
                watched, pool = now
                future.add_done_callback(_Submitted(patch.state, watched, pool._queue_count, monotonic()))

    _WorkItem.__qualname__, _WorkItem.__module__ = original.__qualname__, original.__module__
    return _WorkItem


class ProcessPoolKind(ExecutorKind):
    """:class:`concurrent.futures.ProcessPoolExecutor`."""

    modules: tuple[str, ...] = ("concurrent.futures.process",)
    class_name = "ProcessPoolExecutor"
    needs = ("_processes", "_pending_work_items", "_queue_count", "_max_workers")

    def start(self, tools: Tools, module: Any) -> None:
        """Hook ``module``, and register its existing pools."""
        ProcessPools(
            tools.hooks, tools.found, tools.each, tools.target, exits=tools.exits, submitters=tools.submitters
        ).start(module)
        tools.hooks.after(module.ProcessPoolExecutor, "__init__", tools.made)
        for manager in list(getattr(module, "_threads_wakeups", ())):
            pool = manager.executor_reference()
            if pool is not None:
                tools.noted(pool)

    def name(self, pool: Any) -> str:
        """Return ``process``."""
        return "process"

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        """Return a new :class:`WatchedProcesses`."""
        return WatchedProcesses(pool, terms, tools.board())


class LokyKind(ProcessPoolKind):
    """Reusable executors of loky and joblib."""

    modules = ("loky.process_executor", "joblib.externals.loky.process_executor")
    part = "loky"

    def name(self, pool: Any) -> str:
        """Return ``loky``."""
        return "loky"

"""Process pools with futures: :class:`concurrent.futures.ProcessPoolExecutor`, and loky's, which is made like it.

Their workers say on a board what they run (:mod:`loopwatch.health.in_worker`); what is replaced in the parent is the
name of the function that workers run, and a note is taken when a task is submitted. What is sent to workers is what it
was.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.patches import Patch
from loopwatch.events import PoolStats, WorkerStats
from loopwatch.health.hooks import Hooks
from loopwatch.health.in_worker import Target
from loopwatch.health.kinds.base import ExecutorKind, Tools
from loopwatch.health.lost_errors import Onlooker, failure_of
from loopwatch.health.naming import task_name
from loopwatch.health.pool_workers import PoolWorkers
from loopwatch.health.records import ProcessFacts
from loopwatch.health.states import Executor
from loopwatch.health.task_board import TaskBoard
from loopwatch.health.task_stats import Outcome, TaskStats
from loopwatch.health.watched_pool import Terms, Watched, WatchedProcessPool

TOGETHER = 16
"""Tasks that are counted together, far fewer than a worker's ring has room for."""
CANCELLED = ("CANCELLED", "CANCELLED_AND_NOTIFIED")


class WatchedProcesses(WatchedProcessPool):
    """A process pool with futures under watch."""

    knows_neglected = True

    def __init__(self, pool: Any, terms: Terms, board: TaskBoard | None) -> None:
        super().__init__(pool, terms, board)
        self._max_workers = pool._max_workers
        self._manager: weakref.ref[Any] | None = None
        self._over: deque[tuple[int, float, str | None]] = deque()
        self._lost: dict[int, str] = {}
        """Names of the tasks whose workers have died, by number."""
        self._see_manager(pool)
        self.pool_workers.look(self.living(), time.monotonic(), are_new=False)

    # -- what it has ----------------------------------------------------------------------------------------------

    def _see_manager(self, pool: Any) -> None:
        """Take note of the thread that manages its workers, which has them and its tasks; the first task starts it."""
        manager = getattr(pool, "_executor_manager_thread", None)
        if manager is not None and (self._manager is None or self._manager() is not manager):
            self._manager = weakref.ref(manager)

    def _managed(self, name: str) -> Mapping[int, Any]:
        """Return a mapping that its manager has, which may be large; empty where there is no manager any more."""
        manager = None if self._manager is None else self._manager()
        return getattr(manager, name, None) or {}

    def living(self) -> list[int]:
        """Return its workers by process id, also those of a pool that was shut down or collected."""
        return [process.pid for process in PoolWorkers.living(list(self._managed("processes").values()))]

    def _pending(self) -> Mapping[int, Any]:
        """Return its tasks without a result, by number."""
        return self._managed("pending_work_items")

    def look(self) -> None:
        """See which workers it has now, and count what is over."""
        self.pool_workers.look(self.living(), time.monotonic(), count=self.count)

    def look_at(self, pool: Any) -> None:
        """The same, after ``pool`` may have begun to have workers."""
        self._see_manager(pool)
        self.look()

    def has_changed(self, pool: Any) -> bool:
        """Whether it has other workers than when they were looked at; cheap, and asked after each task."""
        processes = pool._processes
        return self._manager is None or (processes is not None and len(processes) != self.pool_workers.size)

    def broke(self, manager: Any) -> None:
        """Note how workers died, before the others are ended for it.

        Args:
            manager: the thread that manages them, which may have found out before anybody has taken note of it.
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

    def is_managed_by(self, thread: threading.Thread) -> bool:
        """Whether ``thread`` manages its workers."""
        return self._manager is not None and self._manager() is thread

    # -- what became of a task ------------------------------------------------------------------------------------

    def over(self, number: int, submitted: float, future: Any) -> None:
        """Note that task ``number`` is over. Its caller may be waiting for this to return: little is done here."""
        if future._state in CANCELLED:
            self.task_stats.cancelled += 1
            return
        self._over.append((number, submitted, failure_of(future)))
        if len(self._over) >= TOGETHER:
            self.count()

    def count(self) -> None:
        """Count the tasks that are over, before their workers have noted so many others that theirs are lost."""
        over = self._over
        while over:
            try:
                number, submitted, error = over.popleft()
            except IndexError:  # another thread does it
                return
            run = self.pool_workers.run_of(number)
            if run is None:
                self.task_stats.add(Outcome(None, None, error))
            else:
                self.task_stats.add(Outcome(max(run.start - submitted, 0.0), run.end - run.start, error, run.cpu))

    # -- what is asked --------------------------------------------------------------------------------------------

    def fate(self, pool: Any) -> Executor:
        """Return whether ``pool`` takes calls."""
        flags = getattr(pool, "_flags", None)  # loky
        if (getattr(pool, "_broken", False) if flags is None else flags.broken) not in (False, None):
            return Executor.BROKEN
        if not (pool._shutdown_thread if flags is None else flags.shutdown):
            return Executor.OPEN
        return Executor.ENDING if self.waiting else Executor.SHUT_DOWN

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return its figures."""
        self.look()
        pending = self._pending()
        self.pool_workers.settle(facts)
        present = self.pool_workers.present()
        workers = [self._worker(pid, pending, facts.get(pid), now) for pid in present]
        busy = sum(worker.calls for worker in workers)
        if not self.pool_workers.is_known(now):  # a pool hands out few more tasks than it has workers
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
    """Takes notes of the process pools of one module.

    Args:
        hooks: how methods are replaced.
        found: returns what watches a pool, None for one that is not watched.
        each: returns everything that is watched.
        target: makes what stands for a module's function for workers.
    """

    def __init__(
        self,
        hooks: Hooks,
        found: Callable[[Any], Watched | None],
        each: Callable[[], Sequence[Watched]],
        target: Callable[[Any, str, None], Target],
    ) -> None:
        self._hooks, self._found, self._each, self._target = hooks, found, each, target
        self.here = threading.local()
        """Has what each thread submits something to right now: (what watches it, the pool)."""

    def start(self, module: Any) -> None:
        """Begin.

        Args:
            module: :mod:`concurrent.futures.process`, or the one that loky made after it.
        """
        patches, place = self._hooks.patches, f"{module.__name__}:_process_worker"
        patches.replace(module, "_process_worker", lambda original, _patch: self._target(original, place, None))
        patches.replace(module, "_WorkItem", _watched_item).state = self
        patches.replace(module.ProcessPoolExecutor, "submit", _submit).state = self
        self._hooks.both(module.ProcessPoolExecutor, "shutdown", self._ending, self._ended)
        self._hooks.before(module._ExecutorManagerThread, "terminate_broken", self._breaking)

    def watched(self, pool: Any) -> WatchedProcesses | None:
        """Return what watches ``pool``, None if nothing does."""
        if self._hooks.is_left_alone(pool):
            return None
        try:
            found = self._found(pool)
        except Exception as exc:  # noqa: BLE001 - the seam between the program and what is noted of it
            self._hooks.failed(pool, exc)
            return None
        return found if isinstance(found, WatchedProcesses) else None

    def has_submitted(self, watched: WatchedProcesses, pool: Any) -> None:
        """See which workers a task has made ``pool`` start."""
        try:
            if watched.has_changed(pool):
                watched.look_at(pool)
        except Exception as exc:  # noqa: BLE001 - the same seam
            self._hooks.failed(pool, exc)

    def over(self, submitted: _Submitted, future: Any) -> None:
        """Note that a task is over."""
        try:
            submitted.watched.over(submitted.number, submitted.at, future)
        except Exception as exc:  # noqa: BLE001 - the same seam
            self._hooks.failed(submitted.watched, exc)

    def _ending(self, pool: Any, wait: bool = True, **_options: Any) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedProcesses):
            watched.look_at(pool)
            watched.pool_workers.is_ending = watched.ended_by_program = True
            watched.waiting += wait

    def _ended(self, pool: Any, _result: None) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedProcesses):
            watched.waiting = 0

    def _breaking(self, manager: Any, *_args: Any) -> None:
        pool = manager.executor_reference()
        if pool is not None:
            found = self._found(pool)
        else:
            processes = (each for each in self._each() if isinstance(each, WatchedProcesses))
            found = next((each for each in processes if each.is_managed_by(manager)), None)
        if isinstance(found, WatchedProcesses):
            found.broke(manager)


class _Submitted(Onlooker):
    """Is told when a task is over; has no reference to its future, which has one to it."""

    __slots__ = ("_pools", "at", "number", "watched")

    def __init__(self, pools: ProcessPools, watched: WatchedProcesses, number: int, at: float) -> None:
        self._pools, self.watched, self.number, self.at = pools, watched, number, at

    @property
    def task_stats(self) -> TaskStats:
        """Of its pool."""
        return self.watched.task_stats

    def __call__(self, future: Any) -> None:
        self._pools.over(self, future)


def _submit(original: Any, patch: Patch) -> Any:
    """Return a ``submit`` that says whose it is to what it calls."""

    @functools.wraps(original)
    def submit(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        watched = patch.state.watched(self) if patch.active else None
        if watched is None:
            return original(self, *args, **kwargs)
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
    """Return a class of items that have a note taken of when they are made, and tell when they are over.

    They are made within ``submit``, whose pool's lock is held: it has counted as many tasks as its number says.
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
    """:class:`concurrent.futures.ProcessPoolExecutor`, and loky's after its model."""

    modules: tuple[str, ...] = ("concurrent.futures.process",)
    class_name = "ProcessPoolExecutor"
    needs = ("_processes", "_pending_work_items", "_queue_count", "_max_workers")

    def start(self, tools: Tools, module: Any) -> None:
        ProcessPools(tools.hooks, tools.found, tools.each, tools.target).start(module)
        tools.hooks.after(module.ProcessPoolExecutor, "__init__", tools.made)
        for manager in list(getattr(module, "_threads_wakeups", ())):
            pool = manager.executor_reference()
            if pool is not None:
                tools.noted(pool)

    def name(self, pool: Any) -> str:
        return "process"

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        return WatchedProcesses(pool, terms, tools.board())


class LokyKind(ProcessPoolKind):
    """Reusable executors of loky and joblib."""

    modules = ("loky.process_executor", "joblib.externals.loky.process_executor")
    part = "loky"

    def name(self, pool: Any) -> str:
        return "loky"

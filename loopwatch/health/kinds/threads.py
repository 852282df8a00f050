"""Thread pools: :class:`concurrent.futures.ThreadPoolExecutor`, including the default executors of loops.

The class of work items that its threads take from the queue is replaced. Functions, exceptions and tracebacks are
unchanged.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.patches import Patch
from loopwatch.events import PoolStats, WorkerStats
from loopwatch.health.exit_waits import ExitWaits
from loopwatch.health.hooks import Hooks
from loopwatch.health.kinds.base import ExecutorKind, Tools
from loopwatch.health.lost_errors import failure_of
from loopwatch.health.naming import task_name
from loopwatch.health.pool_workers import Work
from loopwatch.health.records import ProcessFacts
from loopwatch.health.seats import Seat, Seats
from loopwatch.health.states import Executor
from loopwatch.health.task_stats import TOGETHER, TaskStats
from loopwatch.health.watched_pool import Identity, Terms, Watched
from loopwatch.system import threads

_CANCELLED = ("CANCELLED", "CANCELLED_AND_NOTIFIED")
WORTH_A_CLOCK, CLOCK_EVERY = 0.001, 32
"""Seconds of a task's run, and number of tasks, after which the thread's CPU clock (a system call) is read."""
STILL = 1.0
"""Seconds without progress after which the system call or kernel function a thread waits in is read."""


class WatchedThreads(Watched):
    """A watched thread pool."""

    knows_neglected = True

    def __init__(self, pool: Any, terms: Terms) -> None:
        super().__init__(pool, terms)
        self.waiting = 0
        """Number of threads that wait for it to end."""
        self._max_workers = pool._max_workers
        self._queue = weakref.ref(pool._work_queue)
        self.seats = Seats[Seat](self)
        self._look(pool)

    def _look(self, pool: Any) -> None:
        """Create the seats of its current threads; later threads get theirs with their first task."""
        now = time.monotonic()
        for thread in list(pool._threads):
            self.seats.of(thread, now)

    def fate(self, pool: Any) -> Executor:
        """Return the state of ``pool``."""
        if pool._broken:
            return Executor.BROKEN
        if not pool._shutdown:
            return Executor.OPEN
        return Executor.ENDING if self.waiting else Executor.SHUT_DOWN

    def has_workers(self) -> bool:
        """Whether one of its threads is alive."""
        return bool(self.seats.living())

    def unfinished(self) -> list[tuple[str, threading.Thread | None]]:
        """Return the names of the tasks that run, with their threads."""
        found: list[tuple[str, threading.Thread | None]] = []
        for thread in self.seats.living():
            item = self.seats.of(thread, time.monotonic()).item
            if item is not None:
                found.append((_function_of(item), thread))
            del item
        return found

    def has_thread(self, thread: threading.Thread, /) -> bool:
        """Whether ``thread`` is one of its own."""
        return any(each is thread for each in self.seats.living())

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return the statistics of the pool."""
        workers = [self._worker(thread, now) for thread in self.seats.living()]
        self.started = self.seats.count
        cpu = self.seats.cpu
        return self.stats(
            workers, now, queued=self._queued(), running=sum(worker.calls for worker in workers),
            running_for=sum(worker.running_for or 0.0 for worker in workers), max_workers=self._max_workers,
            task_cpu=cpu, cpu=cpu,
        )  # fmt: skip

    def _queued(self) -> int:
        queue = self._queue()
        depth: int = 0 if queue is None else queue.qsize()
        return max(depth - (self._fate is not Executor.OPEN), 0)  # excludes the sentinel that ends its threads

    def _worker(self, thread: threading.Thread, now: float) -> WorkerStats:
        seat, native_id = self.seats.of(thread, now), thread.native_id or 0
        item, since = seat.item, seat.since
        cpu = threads.thread_cpu(native_id)
        if cpu is not None:  # threads of a pool run nothing but its tasks
            seat.cpu = max(seat.cpu, cpu)
        if item is None:
            return self.worker(native_id, Work(0, seat.done), seat.born, now, cpu=cpu)
        work = Work(1, seat.done, _function_of(item), since)
        del item
        known: dict[str, Any] = {}
        if cpu is not None:
            known["still_for"] = still = seat.still_for(now, native_id, cpu)
            if still > STILL:
                call, channel = threads.ThreadFacts(thread.ident or 0, native_id, thread.name).waiting_in()
                known["waits_in"] = channel or call
        return self.worker(native_id, work, seat.born, now, cpu=cpu, **known)


class ThreadPools:
    """Hooks of the thread pools of this process; their threads record their current task.

    Args:
        hooks: method hooks.
        found: returns the :class:`Watched` of a pool, None if it is not watched.
        exits: notes who waits for the end of a pool.
    """

    def __init__(self, hooks: Hooks, found: Callable[[Any], Watched | None], exits: ExitWaits) -> None:
        self._hooks, self._found, self._exits = hooks, found, exits
        self.here = threading.local()
        """``seat`` is the seat of each thread, None if its pool is not watched."""

    def start(self, module: Any) -> None:
        """Install the hooks.

        Args:
            module: :mod:`concurrent.futures.thread`.
        """
        self._hooks.patches.replace(module, "_WorkItem", _watched_item).state = self
        self._hooks.both(module.ThreadPoolExecutor, "shutdown", self._ending, self._ended)

    def _ending(self, pool: Any, wait: bool = True, **_options: Any) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedThreads):
            watched.ended_by_program = True
            watched.waiting += wait
            if wait:
                self._exits.begin(watched)

    def _ended(self, pool: Any, _result: None) -> None:
        watched = self._found(pool)
        if isinstance(watched, WatchedThreads):
            watched.waiting = 0
            self._exits.end(watched)

    def task_stats_of(self, future: Any) -> TaskStats | None:
        """Return the task statistics for the calling thread's current task if ``future`` is its future, else None."""
        seat: Seat | None = getattr(self.here, "seat", None)
        item = None if seat is None else seat.item
        return seat.watched.task_stats if seat is not None and getattr(item, "future", None) is future else None

    def seat(self) -> Seat | None:
        """Find the seat of the calling thread, None if its pool is not watched."""
        if self._hooks.is_off:
            return None
        seat = None
        try:
            thread = threading.current_thread()
            pool = pool_of(thread)
            watched = None if pool is None else self._found(pool)
            if isinstance(watched, WatchedThreads):
                seat = watched.seats.of(thread, time.monotonic())
        except Exception as exc:  # noqa: BLE001 - the boundary between the program's task and its hooks
            self._hooks.failed(threading.current_thread(), exc)
        self.here.seat = seat
        return seat

    def over(self, seat: Seat, future: Any, made_at: float, end: float) -> None:
        """Record the outcome of the task of ``seat``, which finished at ``end``."""
        watched: Watched = seat.watched
        try:
            task_stats = watched.task_stats
            if future._state in _CANCELLED:
                task_stats.cancelled += 1
                return
            seat.done = done = seat.done + 1
            name = failure_of(future) if type(future) is not Future or future._exception is not None else None
            run = end - seat.since
            if run > WORTH_A_CLOCK or not done % CLOCK_EVERY:
                seat.cpu = time.thread_time()
            task_stats.latest.append((seat.since - made_at, run, name, None))
            if len(task_stats.latest) >= TOGETHER:
                task_stats.fold(wait=False)
        except Exception as exc:  # noqa: BLE001 - likewise: a future may be of a class of the program
            self._hooks.failed(watched, exc)


def _watched_item(original: Any, patch: Patch) -> Any:
    """Return a subclass of work items that record when they are created, begin and end.

    ``run`` drops its reference to the item at the end, as the original does: its frame is part of the traceback of an
    exception of the task.
    """
    monotonic = time.monotonic

    class _WorkItem(original):  # type: ignore[misc]
        __slots__ = ("made_at",)

        def __init__(self, *args: Any) -> None:
            original.__init__(self, *args)
            self.made_at = monotonic()

        def run(self, *args: Any) -> None:
            seat = None
            if patch.active:
                try:
                    seat = patch.state.here.seat
                except AttributeError:  # its first task
                    seat = patch.state.seat()
            if seat is None:
                original.run(self, *args)
                return
            seat.since = monotonic()
            seat.item = self
            try:
                original.run(self, *args)
            finally:
                end = monotonic()
                seat.item = None
                patch.state.over(seat, self.future, self.made_at, end)
                del self

    _WorkItem.__qualname__, _WorkItem.__module__ = original.__qualname__, original.__module__
    return _WorkItem


def pool_of(thread: threading.Thread) -> Any:
    """Return the pool that started ``thread``, from the weak reference among the thread's arguments."""
    for argument in getattr(thread, "_args", ()):
        if isinstance(argument, weakref.ref):
            return argument()
    return None


def _function_of(item: Any) -> str:
    function, arguments = getattr(item, "fn", None), getattr(item, "args", ())
    if function is None:  # 3.14: (function, arguments, keywords)
        task = getattr(item, "task", None)
        function, arguments = task[:2] if isinstance(task, tuple) and len(task) > 1 else (task, ())
    return task_name(function, arguments)


class ThreadPoolKind(ExecutorKind):
    """:class:`concurrent.futures.ThreadPoolExecutor`, including the default executors of loops."""

    modules = ("concurrent.futures.thread",)
    class_name = "ThreadPoolExecutor"
    needs = ("_threads", "_work_queue", "_shutdown", "_broken", "_max_workers", "_thread_name_prefix")

    def start(self, tools: Tools, module: Any) -> None:
        """Hook :mod:`concurrent.futures.thread`, and register its existing pools."""
        threads = ThreadPools(tools.hooks, tools.found, tools.exits)
        threads.start(module)
        tools.lost_errors.of_thread = threads.task_stats_of
        tools.hooks.after(module.ThreadPoolExecutor, "__init__", tools.made)
        for thread in list(getattr(module, "_threads_queues", ())):
            pool = pool_of(thread)
            if pool is not None:
                tools.noted(pool)

    def identity(self, pool: Any, place: str, taken: Container[str], tools: Tools) -> Identity:
        """Return the identity of ``pool``: that of a default executor while a loop creates it."""
        return tools.thread_identity(pool, place, taken)

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        """Return a new :class:`WatchedThreads`."""
        return WatchedThreads(pool, terms)

"""Runs inside workers of other libraries' process pools: wraps their task queues to report each task to the parent.

The pool's worker function runs unchanged, on wrapped queues that record on the parent's task board when a task is taken
and when its result is sent. Functions, arguments, results and exceptions pass through untouched. Without a task board
the queues are not wrapped. In the parent, :class:`Target` replaces the worker function under the name by which the pool
finds it. Workers import this module, so it imports little.
"""
# Importing pathlib takes 4 ms, in every watched process.
# ruff: noqa: PTH120

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any, Protocol

from loopwatch.core.originals import time
from loopwatch.core.unseen import unseen
from loopwatch.health.task_board import Address, Slot, claim

Function = Callable[..., Any]

LONG = 300_000
"""Nanoseconds of run time above which the CPU clock is read for each task."""
SAMPLE = 16
"""Of this many shorter tasks, one is measured."""
SHIFT = 32
"""Bits for the number of a task within its job (:mod:`multiprocessing.pool`)."""


def noting(place: str, address: Address) -> Function:
    """Return the function that a worker runs instead of the one at ``place``."""
    return functools.partial(_run_at, place, address)


def _run_at(place: str, address: Address, *args: Any, **kwargs: Any) -> Any:
    from pkgutil import resolve_name

    return run_noting(resolve_name(place), address, args, kwargs)


@unseen
def run_noting(function: Function, address: Address, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a pool's worker ``function`` on queues that record its tasks on the task board."""
    slot = claim(address, os.getpid())
    if slot is None or len(args) < 2:
        return function(*args, **kwargs)
    return run_with(SlotNotes(slot), function, args, kwargs)


@unseen
def run_with(notes: Notes, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a pool's worker ``function`` on queues that report its tasks to ``notes``."""
    results = Outcomes if function.__module__ == "multiprocessing.pool" else Results
    return function(Calls(args[0], notes), results(args[1], notes), *args[2:], **kwargs)


class Notes(Protocol):
    """Recorder of the tasks of one worker."""

    def ready(self) -> None:
        """Record that the worker asks for a task."""

    def begin(self, number: int) -> None:
        """Record that task ``number`` was taken."""

    def end(self) -> None:
        """Record the end of the current task, if there is one."""


class SlotNotes:
    """Records the tasks of this process in its slot of the parent's task board.

    Reading the CPU clock is a system call. Of short tasks only a sample is measured, and the others count as having
    computed all the time; the overhead of arguments and results between short tasks is extrapolated from the samples.
    """

    __slots__ = ("_count", "_cpu", "_is_long", "_measured", "_number", "_slot", "_start")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._number: int | None = None
        self._start = self._count = self._measured = 0
        self._is_long = False
        self._cpu: int | None = None
        """CPU clock, in nanoseconds, at the end of the last task or the start of the current one; None if not read."""

    def ready(self) -> None:
        """Record that the worker asks for a task."""
        self._slot.ready()

    def begin(self, number: int) -> None:
        """Record that task ``number`` was taken."""
        before, between = self._cpu, 0
        is_sample = self._is_long or self._count % SAMPLE == 0
        self._count += 1
        if before is not None or is_sample:
            now = time.process_time_ns()
            if before is not None:
                # A sample stands for the tasks before it, not those after it: a worker may be replaced after a few.
                between = (now - before) * (self._count - 1 - self._measured)
                self._measured = self._count - 1
            self._cpu = now if is_sample else None
        self._number, self._start = number, time.monotonic_ns()
        self._slot.begin(number, self._start, between)

    def end(self) -> None:
        """Record the end of the current task, if there is one."""
        if self._number is None:
            return
        now, before = time.monotonic_ns(), self._cpu
        used = run = now - self._start
        self._is_long = run > LONG
        if before is not None or self._is_long:
            self._cpu = time.process_time_ns()
            if before is not None:
                used = self._cpu - before
        self._slot.end(self._number, self._start, now, used)
        self._number = None


class _Queue:
    """Proxy of one of the pool's queues."""

    def __init__(self, queue: Any, notes: Notes) -> None:
        self._queue, self._notes = queue, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class Calls(_Queue):
    """The call queue: a task begins when it is taken."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return the next item of the queue, and record the start of its task."""
        self._notes.ready()
        item = self._queue.get(*args, **kwargs)
        number = number_of(item)
        if number is not None:
            self._notes.begin(number)
        return item


class Results(_Queue):
    """The result queue: a task ends when its result is about to be sent."""

    @property
    def put(self) -> Function:
        """The queue's method itself: the traceback of an error, such as in pickling, has no frame of loopwatch."""
        self._notes.end()
        put: Function = self._queue.put
        return put


class Outcomes(_Queue):
    """The result queue of :mod:`multiprocessing.pool`, whose workers look up ``put`` only once."""

    def put(self, item: Any) -> None:
        """Record the end of the task and send its result."""
        self._notes.end()
        self._queue.put(item)


def number_of(item: Any) -> int | None:
    """Return the task number of an item of a call queue, None if it is no task."""
    if type(item) is tuple:  # multiprocessing.pool: job, index in it, function, arguments
        return job_number(item[0], item[1]) if len(item) == 5 else None
    number = getattr(item, "work_id", None)  # concurrent.futures.process, loky
    return number if isinstance(number, int) else None


def job_number(job: int | None, index: int | None) -> int | None:
    """Return the task number of task ``index`` of a job, None if either is None."""
    return None if job is None or index is None else (job << SHIFT) + index


_FOLDER = os.path.dirname(os.path.dirname(__file__))


class Target:
    """Replacement of a pool's worker function; can be called in a fork or a thread, and pickled for other processes.

    Args:
        original: the worker function; its first arguments are the call queue and the result queue.
        place: its import path for other processes, ``module:name``.
        address: returns the address of the task board, None to run ``original`` alone. In a forked worker it is the
            parent's.
        in_thread: returns the recorder for the calling thread, a worker that takes tasks from the given queue, or
            None.
    """

    def __init__(
        self,
        original: Function,
        place: str,
        address: Callable[[], Address | None],
        in_thread: Callable[[Any], Notes | None] | None = None,
    ) -> None:
        functools.update_wrapper(self, original)
        self._original, self._place, self._address, self._in_thread = original, place, address, in_thread

    @unseen
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the worker function in a forked process or a thread."""
        address = self._address()
        in_thread = self._in_thread
        if in_thread is not None and threading.current_thread() is not threading.main_thread():
            return run_with(_LateNotes(lambda: in_thread(args[0])), self._original, args, kwargs)
        if address is None or address.pid != os.getppid():
            return self._original(*args, **kwargs)
        return run_noting(self._original, address, args, kwargs)

    def __reduce__(self) -> tuple[Function, tuple[Any, ...]]:
        """Pickle for a spawned worker: as the original function if that could not import this package."""
        address = self._address()
        if address is None or address.pid != os.getpid() or not importable():
            from pkgutil import resolve_name

            return resolve_name, (self._place,)
        return noting, (self._place, address)


class _LateNotes:
    """Recorder of a thread whose pool is still being created: finds that of the pool at the first task."""

    def __init__(self, find: Callable[[], Notes | None]) -> None:
        self._find = find
        self._notes: Notes | None = None

    def ready(self) -> None:
        """Record nothing: a thread is ready once it runs."""

    def begin(self, number: int) -> None:
        """Record that task ``number`` was taken."""
        if self._notes is None:
            self._notes = self._find()
        if self._notes is not None:
            self._notes.begin(number)

    def end(self) -> None:
        """Record the end of the current task, if there is one."""
        if self._notes is not None:
            self._notes.end()


def importable() -> bool:
    """Return whether a spawned worker would import this package from where this process did.

    :mod:`multiprocessing` passes ``sys.path`` to the processes it spawns (``spawn.get_preparation_data``), and the same
    interpreter finds editable installations through ``site``. In all other cases, such as a frozen program or one that
    has removed loopwatch's folder from its path, the answer is False: a worker that fails to import breaks its pool.
    """
    spawn = sys.modules.get("multiprocessing.spawn")
    executable = sys.executable if spawn is None else spawn.get_executable()
    if not executable or os.fsencode(executable) != os.fsencode(sys.executable):
        return False
    if any(_is_editable(finder) for finder in sys.meta_path):
        return True
    found = PathFinder.find_spec("loopwatch", sys.path)
    return found is not None and found.origin is not None and os.path.dirname(found.origin) == _FOLDER


def _is_editable(finder: object) -> bool:
    """Whether ``finder`` was set up by an editable installation of this package (setuptools)."""
    module = getattr(finder, "__module__", "")
    mapping = getattr(sys.modules.get(module), "MAPPING", None) if module.startswith("__editable__") else None
    return isinstance(mapping, dict) and "loopwatch" in mapping

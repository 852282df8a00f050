"""Runs inside workers of other libraries' process pools: wraps their task queues to report each task to the parent.

In the worker the pool's own function runs as ever; its queues note on the parent's task board when a task was taken and
when its result is sent. What travels in them is not touched: neither functions, nor arguments, results, exceptions. If
the board cannot be had, the queues are the pool's own. In the parent :class:`Target` stands where the pool looks for
that function. Workers load this, so that it imports little.
"""
# To load pathlib takes 4 ms, in every process that is watched.
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
"""ns from which on tasks are worth a look at the processor's clock each."""
SAMPLE = 16
"""Of so many shorter ones one is measured."""
SHIFT = 32
"""Bits for the number of a task within its job (:mod:`multiprocessing.pool`)."""


def noting(place: str, address: Address) -> Function:
    """Return what a worker is to run instead of the function at ``place``."""
    return functools.partial(_run_at, place, address)


def _run_at(place: str, address: Address, *args: Any, **kwargs: Any) -> Any:
    from pkgutil import resolve_name

    return run_noting(resolve_name(place), address, args, kwargs)


@unseen
def run_noting(function: Function, address: Address, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a pool's ``function`` for workers on queues that note what it does."""
    slot = claim(address, os.getpid())
    if slot is None or len(args) < 2:
        return function(*args, **kwargs)
    return run_with(SlotNotes(slot), function, args, kwargs)


@unseen
def run_with(notes: Notes, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a pool's ``function`` for workers with ``notes`` being taken."""
    results = Outcomes if function.__module__ == "multiprocessing.pool" else Results
    return function(Calls(args[0], notes), results(args[1], notes), *args[2:], **kwargs)


class Notes(Protocol):
    """What is noted of a worker."""

    def ready(self) -> None:
        """It asks for a task."""

    def begin(self, number: int) -> None:
        """Task ``number`` was taken."""

    def end(self) -> None:
        """The task is over, if there is one."""


class SlotNotes:
    """What this worker runs now, on its parent's board.

    The processor's clock is a system call. Short tasks are measured as samples, and those between them are taken to
    have computed all the time; what arguments and results cost beside short tasks is reckoned from the samples.
    """

    __slots__ = ("_count", "_cpu", "_is_long", "_measured", "_number", "_slot", "_start")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._number: int | None = None
        self._start = self._count = self._measured = 0
        self._is_long = False
        self._cpu: int | None = None
        """The processor's clock when the last task ended, and when the present one began, as far as it was read."""

    def ready(self) -> None:
        """It asks for a task."""
        self._slot.ready()

    def begin(self, number: int) -> None:
        """Task ``number`` was taken."""
        before, between = self._cpu, 0
        is_sample = self._is_long or self._count % SAMPLE == 0
        self._count += 1
        if before is not None or is_sample:
            now = time.process_time_ns()
            if before is not None:
                # It stands for those before it, not for those to come: a worker may be replaced after a few.
                between = (now - before) * (self._count - 1 - self._measured)
                self._measured = self._count - 1
            self._cpu = now if is_sample else None
        self._number, self._start = number, time.monotonic_ns()
        self._slot.begin(number, self._start, between)

    def end(self) -> None:
        """The task is over."""
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
    """A queue of the pool's, with everything that it has."""

    def __init__(self, queue: Any, notes: Notes) -> None:
        self._queue, self._notes = queue, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class Calls(_Queue):
    """The queue of calls: a task begins when it has been taken."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for a task as the queue does."""
        self._notes.ready()
        item = self._queue.get(*args, **kwargs)
        number = number_of(item)
        if number is not None:
            self._notes.begin(number)
        return item


class Results(_Queue):
    """The queue of results: a task ends when its result is about to be sent."""

    @property
    def put(self) -> Function:
        """The queue's own method: errors in it, such as a result that cannot be pickled, show no frame of ours."""
        self._notes.end()
        put: Function = self._queue.put
        return put


class Outcomes(_Queue):
    """The queue of results of :mod:`multiprocessing.pool`, whose workers ask for ``put`` only once."""

    def put(self, item: Any) -> None:
        """Send a result."""
        self._notes.end()
        self._queue.put(item)


def number_of(item: Any) -> int | None:
    """Return the number of a task as it comes out of a queue of calls, None for what is no task."""
    if type(item) is tuple:  # multiprocessing.pool: job, index in it, function, arguments
        return job_number(item[0], item[1]) if len(item) == 5 else None
    number = getattr(item, "work_id", None)  # concurrent.futures.process, loky
    return number if isinstance(number, int) else None


def job_number(job: int | None, index: int | None) -> int | None:
    """Return one number for task ``index`` of a job."""
    return None if job is None or index is None else (job << SHIFT) + index


_FOLDER = os.path.dirname(os.path.dirname(__file__))


class Target:
    """Stands for a pool's function for workers, in every way in which a process can be told to run it.

    Args:
        original: that function; it takes the queue of calls and that of results first.
        place: how it is found in another process, ``module:name``.
        address: returns where the board is, None to run ``original`` alone. In a forked worker it is the parent's.
        in_thread: returns what notes for the calling thread, a worker that asks the given queue for tasks; None if
            nothing does.
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
        """Run it: in a worker that was forked, or in a thread that stands for one."""
        address = self._address()
        in_thread = self._in_thread
        if in_thread is not None and threading.current_thread() is not threading.main_thread():
            return run_with(_LateNotes(lambda: in_thread(args[0])), self._original, args, kwargs)
        if address is None or address.pid != os.getppid():
            return self._original(*args, **kwargs)
        return run_noting(self._original, address, args, kwargs)

    def __reduce__(self) -> tuple[Function, tuple[Any, ...]]:
        """For a worker with an interpreter of its own, in which this package need not be."""
        address = self._address()
        if address is None or address.pid != os.getpid() or not importable():
            from pkgutil import resolve_name

            return resolve_name, (self._place,)
        return noting, (self._place, address)


class _LateNotes:
    """Notes of a thread that is started by a pool which is still being made."""

    def __init__(self, find: Callable[[], Notes | None]) -> None:
        self._find = find
        self._notes: Notes | None = None

    def ready(self) -> None:
        """It asks for a task."""

    def begin(self, number: int) -> None:
        """Task ``number`` was taken."""
        if self._notes is None:
            self._notes = self._find()
        if self._notes is not None:
            self._notes.begin(number)

    def end(self) -> None:
        """The task is over, if there is one."""
        if self._notes is not None:
            self._notes.end()


def importable() -> bool:
    """Return whether a worker with an interpreter of its own would find this package where this process does.

    :mod:`multiprocessing` hands ``sys.path`` on to what it starts (``spawn.get_preparation_data``), and editable
    installations are found by what ``site`` sets up, in the same interpreter. Nothing else is relied upon, such as a
    frozen program, or one that took our folder from its path once it had us: a worker that fails to import is the end
    of its pool.
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

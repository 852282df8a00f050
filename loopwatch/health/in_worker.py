"""What a pool finds where it looks for the function that its workers run: the same, on queues that note what they do.

In the parent; :mod:`loopwatch.health.noting` is the worker's side.
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
from typing import Any

from loopwatch.core.unseen import unseen
from loopwatch.health.noting import Function, Notes, noting, run_noting, run_with
from loopwatch.health.task_board import Address

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

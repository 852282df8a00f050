"""Threads without the trace and profile functions that the program has set for new threads.

Debuggers, coverage and profilers set them with ``threading.settrace`` and ``threading.setprofile`` to watch the
program. The agent's threads are not part of it: they would be slowed down, and would end, with a traceback on the
program's stderr, if such a function raised.
"""

from __future__ import annotations

import builtins
import functools
import operator
import sys
import threading
import types
from collections import deque
from collections.abc import Callable

from loopwatch.core.originals import time

_drop = (functools.partial(sys.settrace, None), functools.partial(sys.setprofile, None))


class _Started(threading.Event):
    """Set by a new thread as soon as it has the GIL: ``Thread.start`` does not wait for that, ``join`` does."""

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        """Return at once, whether it is set."""
        return self.is_set()

    def wait_for_it(self, timeout: float | None) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; return whether it is."""
        return super().wait(timeout)


class UntracedThread(threading.Thread):
    """A daemon thread for which no trace or profile function is called.

    ``run`` is a chain of C functions: a Python function could drop them only after they had been called for itself.
    ``start`` does not wait until it runs: its first step needs the GIL, which a call of the program may keep for long.

    Args:
        target: function to run.
        name: thread name.

    Example:
        >>> thread = UntracedThread(lambda: print("runs", sys.gettrace()), "loopwatch-example")
        >>> thread.start(); thread.join()
        runs None
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._started: _Started = _Started()
        self._is_starting = False
        # Again at the end: other code may set them for all threads (``threading.settrace_all_threads``, since 3.12).
        steps: tuple[Callable[[], object], ...] = (*_drop, target, *_drop)
        self.run = functools.partial(deque, map(operator.call, steps), 0)  # type: ignore

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most ``timeout`` seconds."""
        began = time.monotonic()
        if self._is_starting:
            self._started.wait_for_it(timeout)
        super().join(None if timeout is None else max(timeout - (time.monotonic() - began), 0.0))

    def start(self) -> None:
        """Start it as the standard library does, whatever others have put in the place of its functions since."""
        if _start is None:
            super().start()
        else:
            _start(self)
        self._is_starting = True

    def is_alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return (self._is_starting and not self._started.is_set()) or super().is_alive()


class _Globals(dict[str, object]):
    """The variables of :mod:`threading`, as they are now but for those that are items here."""

    def __missing__(self, name: str) -> object:
        return vars(threading)[name]


def _bound_start() -> Callable[[threading.Thread], None] | None:
    """Return ``Thread.start`` with the functions of the interpreter that start a thread bound to it.

    Programs and their tests replace these, to count threads or to refuse them. None if ``start`` itself is replaced.
    """
    start = threading.Thread.start
    if type(start) is not types.FunctionType or start.__globals__ is not vars(threading) or start.__defaults__:
        return None
    names = ("_start_joinable_thread", "_start_new_thread")  # since 3.13, and before
    bound = {name: getattr(threading, name) for name in names if hasattr(threading, name)}
    return types.FunctionType(start.__code__, _Globals(bound | {"__builtins__": builtins}))


_start = _bound_start()

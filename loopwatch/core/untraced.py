"""Threads that do without the trace and profile functions which the program has set for new threads.

A debugger, coverage or profiler sets them with ``threading.settrace`` and ``threading.setprofile`` to watch the
program: the agent's threads are none of it, would be slowed by them, and would end, with a traceback on the program's
stderr, where such a function raises.
"""

from __future__ import annotations

import functools
import operator
import sys
import threading
from collections import deque
from collections.abc import Callable

_drop = (functools.partial(sys.settrace, None), functools.partial(sys.setprofile, None))


class UntracedThread(threading.Thread):
    """A daemon thread that no trace or profile function is called for.

    ``run`` is a chain of C functions: a Python function could only drop them once they had been called for itself.

    Args:
        target: what it runs.
        name: what it is called.

    Example:
        >>> thread = UntracedThread(lambda: print("runs", sys.gettrace()), "loopwatch-example")
        >>> thread.start(); thread.join()
        runs None
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        # Again at the end: others may set them for all threads (``threading.settrace_all_threads``, since 3.12).
        steps: tuple[Callable[[], object], ...] = (*_drop, target, *_drop)
        self.run = functools.partial(deque, map(operator.call, steps), 0)  # type: ignore

"""Executors of an unknown kind that the program registers explicitly: counts submitted tasks and their outcomes.

Nothing is known about their workers. Wait and run time cannot be distinguished: the reported run time is the time from
``submit`` to the result.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.patches import Patch
from loopwatch.events import PoolStats
from loopwatch.health.hooks import Hooks
from loopwatch.health.kinds.base import ExecutorKind, Tools
from loopwatch.health.naming import error_name
from loopwatch.health.records import ProcessFacts
from loopwatch.health.states import Executor
from loopwatch.health.task_stats import Outcome
from loopwatch.health.watched_pool import Terms, Watched

MANY = 1000
"""Most tasks whose state is read one by one; further ones count as queued."""


class WatchedOther(Watched):
    """A watched executor of which only ``submit`` is known.

    Raises:
        TypeError: its methods cannot be replaced, or it does not support weak references.
    """

    def __init__(self, pool: Any, terms: Terms, hooks: Hooks) -> None:
        if not _has_really(pool, "submit"):
            raise TypeError("it is made up when it is asked for, as that of a mock")
        super().__init__(pool, terms)
        self._pending: dict[_Task, weakref.ref[Any]] = {}
        self._is_shut_down = False
        most = getattr(pool, "_max_workers", None)
        self._max_workers = most if isinstance(most, int) else None
        self._over = hooks.guarded(self.over, whose=self)
        self._replace(hooks, pool, "submit", time.monotonic, hooks.guarded(self._submitted, whose=self))
        if _has_really(pool, "shutdown"):
            self._replace(hooks, pool, "shutdown", hooks.guarded(self._ending, whose=self), _nothing)

    def _replace(self, hooks: Hooks, pool: Any, name: str, *notes: Callable[..., object]) -> None:
        patch = hooks.patches.replace(pool, name, functools.partial(_noting, self.ref), lives_with_owner=True)
        patch.state = notes

    def _submitted(self, future: Any, at: float) -> None:
        task = _Task(self._over, at)
        self._pending[task] = weakref.ref(future)
        future.add_done_callback(task)

    def _ending(self) -> None:
        self._is_shut_down = self.ended_by_program = True

    def over(self, task: _Task, future: Any) -> None:
        """Count a finished task."""
        self._pending.pop(task, None)
        if future.cancelled():
            self.task_stats.cancelled += 1
            return
        error = future.exception()
        self.task_stats.add(Outcome(None, time.monotonic() - task.at, None if error is None else error_name(error)))

    def fate(self, pool: Any) -> Executor:
        """Return the state of the executor: shut down if the program has called ``shutdown``."""
        return Executor.SHUT_DOWN if self._is_shut_down else Executor.OPEN

    def has_workers(self) -> bool:
        """Whether it has unfinished tasks: its workers are unknown."""
        return bool(self._pending)

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return the statistics of the executor."""
        running = queued = 0
        looked_at = list(islice(self._pending.copy().items(), MANY))
        for task, ref in looked_at:
            future = ref()
            if future is None:  # collected: it will never be done
                self._pending.pop(task, None)
            elif future.running():
                running += 1
            else:
                queued += 1
        queued += max(len(self._pending) - len(looked_at), 0)
        return self.stats((), now, queued=queued, running=running, max_workers=self._max_workers)


class _Task:
    """Done callback of a task; ``at`` is when it was submitted, ``time.monotonic`` seconds."""

    __slots__ = ("_note", "at")

    def __init__(self, note: Callable[[_Task, Any], object], at: float) -> None:
        self._note, self.at = note, at

    def __call__(self, future: Any) -> None:
        self._note(self, future)


def _has_really(pool: Any, name: str) -> bool:
    """Whether ``pool`` has a method that can be restored: in its instance dictionary or its class."""
    return name in vars(pool) or callable(getattr(type(pool), name, None))


def _nothing(_result: Any, _before: Any) -> None:
    pass


def _noting(ref: weakref.ref[Any], original: Any, patch: Patch) -> Any:
    """Return the replacement of an executor's method, which does not keep the executor alive.

    ``patch.state`` holds its hooks: ``before()``, and ``after(result, what before() returned)``.
    """
    function = getattr(original, "__func__", None)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        bound = original if function is None else function.__get__(ref())
        if not patch.active:
            return bound(*args, **kwargs)
        before, after = patch.state
        known = before()
        result = bound(*args, **kwargs)
        after(result, known)
        return result

    if function is not None:
        del method.__wrapped__  # a bound method, which would keep the executor alive
        original = None
    return method


class OtherKind(ExecutorKind):
    """Any object with ``submit``, watched only if the program registers it."""

    def start(self, tools: Tools, module: Any) -> None:
        """Do nothing: there is no module to hook."""

    def name(self, pool: Any) -> str:
        """Return ``other``."""
        return "other"

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        """Return a new :class:`WatchedOther`; raises TypeError if its methods cannot be replaced."""
        return WatchedOther(pool, terms, tools.hooks)

"""Executors of an unknown kind that the program registers by itself: counts what is submitted, and its outcomes.

Nothing is known of their workers. How long a task waited and how long it ran cannot be told apart: what is told as its
run time goes from ``submit`` to the result.
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
"""Tasks that are looked at one by one; of more it is only known how many there are."""


class WatchedOther(Watched):
    """An executor of which nothing but ``submit`` is known.

    Raises:
        TypeError: its methods cannot be replaced, or it cannot be referenced weakly.
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
        """Count a task that is over."""
        self._pending.pop(task, None)
        if future.cancelled():
            self.task_stats.cancelled += 1
            return
        error = future.exception()
        self.task_stats.add(Outcome(None, time.monotonic() - task.at, None if error is None else error_name(error)))

    def fate(self, pool: Any) -> Executor:
        """Return whether it takes calls, as far as is known."""
        return Executor.SHUT_DOWN if self._is_shut_down else Executor.OPEN

    def has_workers(self) -> bool:
        """Whether it has any is not known: whether it has a task."""
        return bool(self._pending)

    def read(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolStats:
        """Return its figures."""
        running = queued = 0
        looked_at = list(islice(self._pending.copy().items(), MANY))
        for task, ref in looked_at:
            future = ref()
            if future is None:  # nobody will ever be told
                self._pending.pop(task, None)
            elif future.running():
                running += 1
            else:
                queued += 1
        queued += max(len(self._pending) - len(looked_at), 0)
        return self.stats((), now, queued=queued, running=running, max_workers=self._max_workers)


class _Task:
    """Is told when a task is over; ``at`` is ``time.monotonic`` s when it was submitted."""

    __slots__ = ("_note", "at")

    def __init__(self, note: Callable[[_Task, Any], object], at: float) -> None:
        self._note, self.at = note, at

    def __call__(self, future: Any) -> None:
        self._note(self, future)


def _has_really(pool: Any, name: str) -> bool:
    """Whether it has a method that can be put back: in its own dictionary, or by its class."""
    return name in vars(pool) or callable(getattr(type(pool), name, None))


def _nothing(_result: Any, _before: Any) -> None:
    pass


def _noting(ref: weakref.ref[Any], original: Any, patch: Patch) -> Any:
    """Return what is put on an executor in place of its method: it keeps it alive no more than the class does.

    What is to be done before and after, with (result, what the first returned), is in ``patch.state``.
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
        del method.__wrapped__  # it is bound, and would keep the executor alive
        original = None
    return method


class OtherKind(ExecutorKind):
    """Whatever has ``submit``: watched only where the program asks for it."""

    def start(self, tools: Tools, module: Any) -> None:
        """Nothing: it comes from no module that is known."""

    def name(self, pool: Any) -> str:
        return "other"

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        return WatchedOther(pool, terms, tools.hooks)

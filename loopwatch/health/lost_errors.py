"""Detects exceptions of failed calls that are never retrieved. Costs nothing where calls succeed.

The class of a failed result is switched to a look-alike subclass, and back when its error is read. If the result is
collected before that, its error is lost. The attribute that holds the error is observed: every way of retrieving the
error reads it, and no frame of loopwatch enters a traceback.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from loopwatch.core.patches import Patch
from loopwatch.health.hooks import Hooks
from loopwatch.health.naming import error_name
from loopwatch.health.task_stats import TaskStats

NOTE, GIVEN_UP, BASE = "_loopwatch_note", "_loopwatch_given_up", "_loopwatch_base"
"""Attributes of a followed result: (its statistics, error name), whether it was given up; of its class: the base."""


class Onlooker:
    """A done callback of loopwatch, which counts the call for :attr:`task_stats` and does not retrieve its error."""

    __slots__ = ()

    @property
    def task_stats(self) -> TaskStats:
        """Task statistics of the call's pool."""
        raise NotImplementedError


class Shape(NamedTuple):
    """The attributes of one kind of results that matter here.

    Attributes:
        error: attribute that holds the error; every retrieval reads it.
        asking: methods that count as a retrieval although they do not read it.
    """

    error: str
    asking: tuple[str, ...]


FUTURE = Shape("_exception", ("add_done_callback",))
"""Results of :mod:`concurrent.futures`."""
RESULT = Shape("_value", ("successful",))
"""Results of :mod:`multiprocessing.pool`."""


class LostErrors:
    """Follows failed results until their error is retrieved or lost.

    Args:
        hooks: method hooks; they count failures.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._kinds: dict[type, type | None] = {}
        self._gone = hooks.guarded(self._is_gone)
        self._is_on = False
        self.of_thread: Callable[[Any], TaskStats | None] = lambda _future: None
        """Returns the task statistics of the call of this future if the calling thread runs it, else None."""

    def start(self, module: Any) -> None:
        """Hook futures.

        Args:
            module: :mod:`concurrent.futures._base`.
        """
        self.resume()
        self._hooks.patches.replace(module.Future, "set_exception", _set_exception).state = (
            self._hooks.guarded(self._failing),
            self._hooks.guarded(self._failed),
        )
        self._hooks.after(module.Future, "cancel", self._cancelled)

    def resume(self) -> None:
        """Follow and count from now on."""
        self._is_on = True

    def stop(self) -> None:
        """Stop counting; results that are still followed are restored when their error is read."""
        self._is_on = False
        self._kinds = {}

    # -- futures --------------------------------------------------------------------------------------------------

    def _failing(self, future: Any, exception: BaseException) -> None:
        """Follow a future that is about to fail: its error cannot have been retrieved yet."""
        task_stats = self.of_thread(future)
        if task_stats is None:
            task_stats = next((each.task_stats for each in future._done_callbacks if isinstance(each, Onlooker)), None)
        if task_stats is not None and not _is_handled(future):
            self.follow(future, FUTURE, task_stats, exception)

    def _failed(self, future: Any) -> None:
        if _is_handled(future):  # a callback was added in between
            let_go(future)

    def _cancelled(self, future: Any, result: bool) -> None:
        """Treat a cancel() attempt as giving up the error: ``Executor.map`` cancels all calls after one that failed."""
        if not result:
            setattr(future, GIVEN_UP, True)
            let_go(future)

    # -- any result -----------------------------------------------------------------------------------------------

    def follow(self, result: Any, shape: Shape, task_stats: TaskStats, error: Any) -> None:
        """Follow ``result``, which is about to be set to ``error``; does nothing if its class does not allow it.

        Args:
            result: the caller's future or async result.
            shape: its attributes.
            task_stats: counts the error if it is lost.
            error: counted by its type.
        """
        base = type(result)
        if not self._is_on or hasattr(base, BASE):
            return
        if base not in self._kinds:
            if not _is_known(base):
                return
            self._kinds[base] = _kind(base, shape, self._gone)
        kind = self._kinds[base]
        if kind is None:
            return
        # Set before the class is switched: its property hides the attribute, and vars() would create a costly __dict__.
        setattr(result, shape.error, error)
        setattr(result, NOTE, (task_stats.ref, error_name(error)))
        try:
            result.__class__ = kind
        except TypeError:  # another memory layout
            self._kinds[base] = None
            delattr(result, NOTE)

    def _is_gone(self, note: tuple[weakref.ref[TaskStats], str]) -> None:
        """Count a lost error; called by the garbage collector, on any thread, at any time."""
        task_stats = note[0]()
        if task_stats is not None and self._is_on and not sys.is_finalizing():
            task_stats.neglect(note[1])


_LIBRARIES = ("concurrent", "multiprocessing", "loky", "joblib")


def _is_known(base: type) -> bool:
    """Whether ``base`` is a class of a known library: classes of the program are neither subclassed nor kept here."""
    return base.__module__.partition(".")[0] in _LIBRARIES and not hasattr(base, "__del__")


def let_go(result: Any) -> None:
    """Give ``result`` its original class back, as its error was retrieved."""
    base = getattr(type(result), BASE, None)
    if base is not None:
        result.__class__ = base
        with suppress(AttributeError):  # another thread has retrieved it, too
            delattr(result, NOTE)


def failure_of(future: Any) -> str | None:
    """Return the name of a done future's error, None if it has none, without counting as a retrieval."""
    if hasattr(type(future), BASE):
        note = getattr(future, NOTE, None)
        if note is not None:
            name: str = note[1]
            return name
    error = future._exception  # already retrieved
    return None if error is None else error_name(error)


def _is_handled(future: Any) -> bool:
    """Whether the program handles the error otherwise (done callback, waiter) or gave the call up."""
    for callback in future._done_callbacks:
        if not isinstance(callback, Onlooker):
            return True
    for waiter in future._waiters:
        if getattr(waiter, "stop_on_exception", False):  # wait(FIRST_EXCEPTION)
            return True
    return hasattr(future, GIVEN_UP)


def _set_exception(original: Any, patch: Patch) -> Any:
    """Wrap ``set_exception`` with hooks before and after it."""

    @functools.wraps(original)
    def set_exception(self: Any, exception: Any) -> None:
        if not patch.active:
            original(self, exception)
            return
        before, after = patch.state
        before(self, exception)
        original(self, exception)
        if hasattr(type(self), BASE):
            after(self)

    return set_exception


def _kind(base: type, shape: Shape, gone: Callable[[Any], object]) -> type:
    """Return a look-alike subclass of ``base``, for results whose error has not been read."""
    name = shape.error

    def read(self: Any) -> Any:
        let_go(self)
        return getattr(self, name)

    def write(self: Any, value: Any) -> None:
        """Store ``value``, unless :meth:`LostErrors.follow` has done so already."""
        if vars(self).get(name) is not value:
            vars(self)[name] = value

    def collected(self: Any) -> None:
        note = getattr(self, NOTE, None)
        if note is not None:
            gone(note)

    def asked(method: str) -> property:
        def look_up(self: Any) -> Any:
            let_go(self)
            return getattr(self, method)

        return property(look_up)

    looks = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__, "__slots__": ()}
    asking = {method: asked(method) for method in shape.asking}
    return type(base)(
        base.__name__, (base,), {**looks, **asking, name: property(read, write), "__del__": collected, BASE: base}
    )

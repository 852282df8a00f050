"""Detects exceptions of failed calls that nobody ever retrieves. Costs nothing where calls succeed.

A result that has failed becomes one of a subclass of its class that looks the same, until its error is read: then it is
what it was. If it is collected before that, nobody can ask any more, and its error was neglected. The error itself is
what is watched: whoever asks, in whatever way and since whenever, reads it, and no frame of ours comes in between.
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
"""Names in a failed result: whose it is; that somebody has tried to cancel it. In its class: what it was."""


class Onlooker:
    """A done callback of ours, which does not ask for the error: it counts the call for :attr:`task_stats`."""

    __slots__ = ()

    @property
    def task_stats(self) -> TaskStats:
        """Of the pool that the call belongs to."""
        raise NotImplementedError


class Shape(NamedTuple):
    """What results of one kind are like.

    Attributes:
        error: attribute that has the error, and is read by whoever asks for it.
        asking: methods that ask without reading it, or tell somebody else.
    """

    error: str
    asking: tuple[str, ...]


FUTURE = Shape("_exception", ("add_done_callback",))
"""Those of :mod:`concurrent.futures`."""
RESULT = Shape("_value", ("successful",))
"""Those of :mod:`multiprocessing.pool`."""


class LostErrors:
    """Follows failed results until somebody asks for their error, or nobody can.

    Args:
        hooks: how methods are replaced, and where failures are counted.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._kinds: dict[type, type | None] = {}
        self._gone = hooks.guarded(self._is_gone)
        self._is_on = False
        self.of_thread: Callable[[Any], TaskStats | None] = lambda _future: None
        """Returns for whom the calling thread runs the call with this future, None if it does not."""

    def start(self, module: Any) -> None:
        """Begin.

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
        """Count from now on."""
        self._is_on = True

    def stop(self) -> None:
        """Count no more; what is still followed is let go of when somebody asks for it."""
        self._is_on = False
        self._kinds = {}

    # -- futures --------------------------------------------------------------------------------------------------

    def _failing(self, future: Any, exception: BaseException) -> None:
        """A future is about to fail: nobody can have asked yet."""
        task_stats = self.of_thread(future)
        if task_stats is None:
            task_stats = next((each.task_stats for each in future._done_callbacks if isinstance(each, Onlooker)), None)
        if task_stats is not None and not _is_told(future):
            self.follow(future, FUTURE, task_stats, exception)

    def _failed(self, future: Any) -> None:
        if _is_told(future):  # since a moment ago
            let_go(future)

    def _cancelled(self, future: Any, result: bool) -> None:
        """Whoever tries to cancel it does not want to know: ``Executor.map`` does that to all that follow an error."""
        if not result:
            setattr(future, GIVEN_UP, True)
            let_go(future)

    # -- any ------------------------------------------------------------------------------------------------------

    def follow(self, result: Any, shape: Shape, task_stats: TaskStats, error: Any) -> None:
        """Follow ``result``, which is about to be told that it failed; nothing is done where that cannot be.

        Args:
            result: what the caller has.
            shape: what it is like.
            tally: who counts it if it is neglected.
            error: what it is about to be told; counted by its type.
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
        # Kept before it is followed: what stands in the instance is hidden then, and its __dict__ costs as it is made.
        setattr(result, shape.error, error)
        setattr(result, NOTE, (task_stats.ref, error_name(error)))
        try:
            result.__class__ = kind
        except TypeError:  # of another layout
            self._kinds[base] = None
            delattr(result, NOTE)

    def _is_gone(self, note: tuple[weakref.ref[TaskStats], str]) -> None:
        """Called by the garbage collector, on any thread, at any time."""
        task_stats = note[0]()
        if task_stats is not None and self._is_on and not sys.is_finalizing():
            task_stats.neglect(note[1])


_LIBRARIES = ("concurrent", "multiprocessing", "loky", "joblib")


def _is_known(base: type) -> bool:
    """Whether it is a library's own class: one of the program's is neither derived from nor kept here."""
    return base.__module__.partition(".")[0] in _LIBRARIES and not hasattr(base, "__del__")


def let_go(result: Any) -> None:
    """Have ``result`` be what it was: somebody has asked."""
    base = getattr(type(result), BASE, None)
    if base is not None:
        result.__class__ = base
        with suppress(AttributeError):  # another thread has asked, too
            delattr(result, NOTE)


def failure_of(future: Any) -> str | None:
    """Return the name of the error of a future that is done, None if it has none, without asking for it."""
    if hasattr(type(future), BASE):
        note = getattr(future, NOTE, None)
        if note is not None:
            name: str = note[1]
            return name
    error = future._exception  # somebody has asked
    return None if error is None else error_name(error)


def _is_told(future: Any) -> bool:
    """Whether somebody else hears of the error, or does not want to."""
    for callback in future._done_callbacks:
        if not isinstance(callback, Onlooker):
            return True
    for waiter in future._waiters:
        if getattr(waiter, "stop_on_exception", False):  # wait(FIRST_EXCEPTION)
            return True
    return hasattr(future, GIVEN_UP)


def _set_exception(original: Any, patch: Patch) -> Any:
    """Return a ``set_exception`` that has notes taken before and after it does what it did."""

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
    """Return a subclass of ``base`` that looks the same, for results whose error nobody has read."""
    name = shape.error

    def read(self: Any) -> Any:
        let_go(self)
        return getattr(self, name)

    def write(self: Any, value: Any) -> None:
        """What it is about to be told is kept already."""
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

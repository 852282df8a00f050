"""Whether anybody has asked for the error of a call that failed. Costs nothing where calls succeed.

A result that has failed becomes one of a subclass of its class that looks the same, until its error is read: then it is
what it was. If it is collected before that, nobody can ask any more, and its error was neglected. The error itself is
what is watched: whoever asks, in whatever way and since whenever, reads it, and no frame of ours comes in between.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from loopwatch.pools.hooks import Hooks
from loopwatch.pools.naming import error_name
from loopwatch.pools.tally import Tally

NOTE, GIVEN_UP, BASE = "_loopwatch_note", "_loopwatch_given_up", "_loopwatch_base"
"""Names in a failed result: whose it is; that somebody has tried to cancel it. In its class: what it was."""


class Onlooker:
    """A done callback of ours, which does not ask for the error: it counts the call for :attr:`tally`."""

    __slots__ = ()

    @property
    def tally(self) -> Tally:
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


class Neglected:
    """Follows failed results until somebody asks for their error, or nobody can.

    Args:
        hooks: how methods are replaced, and where failures are counted.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._kinds: dict[type, type | None] = {}
        self._gone = hooks.guarded(self._is_gone)
        self._is_on = False
        self.of_thread: Callable[[Any], Tally | None] = lambda _future: None
        """Returns for whom the calling thread runs the call with this future, None if it does not."""

    def start(self, module: Any) -> None:
        """Begin.

        Args:
            module: :mod:`concurrent.futures._base`.
        """
        self.resume()
        self._hooks.both(module.Future, "set_exception", self._failing, self._failed)
        self._hooks.after(module.Future, "cancel", self._cancelled)

    def resume(self) -> None:
        """Count from now on."""
        self._is_on = True

    def stop(self) -> None:
        """Count no more; what is still followed is let go of when somebody asks for it."""
        self._is_on = False
        self._kinds = {}

    # -- futures --------------------------------------------------------------------------------------------------

    def _failing(self, future: Any, exception: BaseException, *_: Any) -> None:
        """A future is about to fail: nobody can have asked yet."""
        tally = next((each.tally for each in future._done_callbacks if isinstance(each, Onlooker)), None)
        tally = self.of_thread(future) if tally is None else tally
        if tally is not None and not _is_told(future):
            self.follow(future, FUTURE, tally, error_name(exception))

    def _failed(self, future: Any, _result: None) -> None:
        if BASE in vars(type(future)) and _is_told(future):  # since a moment ago
            let_go(future)

    def _cancelled(self, future: Any, result: bool) -> None:
        """Whoever tries to cancel it does not want to know: ``Executor.map`` does that to all that follow an error."""
        if not result:
            vars(future)[GIVEN_UP] = True
            let_go(future)

    # -- any ------------------------------------------------------------------------------------------------------

    def follow(self, result: Any, shape: Shape, tally: Tally, error: str) -> None:
        """Follow ``result``, which is about to be told that it failed; nothing is done where that cannot be.

        Args:
            result: what the caller has.
            shape: what it is like.
            tally: who counts it if it is neglected.
            error: what is counted.
        """
        base = type(result)
        if not self._is_on or BASE in vars(base):
            return
        if base not in self._kinds:
            self._kinds[base] = None if hasattr(base, "__del__") else _kind(base, shape, self._gone)
        kind = self._kinds[base]
        if kind is None:
            return
        kept = vars(result)
        kept[NOTE] = tally.ref, error
        try:
            result.__class__ = kind
        except TypeError:  # of another layout
            self._kinds[base] = None
            del kept[NOTE]

    def _is_gone(self, note: tuple[weakref.ref[Tally], str]) -> None:
        """Called by the garbage collector, on any thread, at any time."""
        tally = note[0]()
        if tally is not None and self._is_on and not sys.is_finalizing():
            tally.neglect(note[1])


def let_go(result: Any) -> None:
    """Have ``result`` be what it was: somebody has asked."""
    base = vars(type(result)).get(BASE)
    if base is not None:
        vars(result).pop(NOTE, None)
        result.__class__ = base


def error_of(future: Any) -> BaseException | None:
    """Return the error of a future that is done, without asking for it."""
    if BASE in vars(type(future)):
        error: BaseException | None = vars(future)[FUTURE.error]
        return error
    return future._exception  # type: ignore[no-any-return]


def _is_told(future: Any) -> bool:
    """Whether somebody else hears of the error, or does not want to."""
    return (
        GIVEN_UP in vars(future)
        or any(not isinstance(each, Onlooker) for each in future._done_callbacks)
        or any(getattr(each, "stop_on_exception", False) for each in future._waiters)  # wait(FIRST_EXCEPTION)
    )


def _kind(base: type, shape: Shape, gone: Callable[[Any], object]) -> type:
    """Return a subclass of ``base`` that looks the same, for results whose error nobody has read."""
    name = shape.error

    def read(self: Any) -> Any:
        let_go(self)
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(name) from None

    def write(self: Any, value: Any) -> None:
        vars(self)[name] = value

    def collected(self: Any) -> None:
        note = vars(self).pop(NOTE, None)
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

"""Deferred start: calls a function when the process first runs a loop, uses a pool or starts a worker process.

Self-contained: runs in every Python process under ``loopwatch run`` that imports asyncio, most of which never do any of
that, and imports nothing that asyncio has not loaded. Its replacements are undone at the first use.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable

from loopwatch.core.import_hooks import WhenComplete, WhenImported
from loopwatch.core.stand_in import StandIn
from loopwatch.core.unseen import unseen

TYPE_CHECKING = False  # recognised by type checkers; importing typing takes 3 ms
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_FIRST_USES = (
    ("asyncio.events", "", "_set_running_loop"),
    ("uvloop", "Loop", "run_forever"),  # has its own reference to _set_running_loop
    ("trio", "", "run"),  # not watched, which is logged
    ("concurrent.futures.thread", "ThreadPoolExecutor", "submit"),
    ("concurrent.futures.process", "ProcessPoolExecutor", "__init__"),
    ("multiprocessing.pool", "Pool", "__init__"),
    ("multiprocessing.process", "BaseProcess", "start"),
    ("os", "", "fork"),
    ("os", "", "forkpty"),
)
"""Module, class and function. ``subprocess`` is not among them: libraries run programs at import, and children that run
already are found when the agent starts."""


class Deferred:
    """Calls ``begin`` once, just before the first use, on the thread that makes it.

    Args:
        begin: the deferred action.
        origin: returns where a thread pool is being created, ``file:line in function``; None to ignore that pool.
        failed: called with every exception, including those of ``begin``; must not raise.

    Example:
        >>> import asyncio
        >>> deferred = Deferred(lambda: print("watched from now on"), lambda: "", print)
        >>> deferred.start()
        >>> asyncio.run(asyncio.sleep(0))
        watched from now on
    """

    def __init__(
        self, begin: Callable[[], object], origin: Callable[[], str | None], failed: Callable[[Exception], object]
    ) -> None:
        self._begin, self._origin, self._failed = begin, origin, failed
        self._uses: list[_Use] = []
        self._finders: list[WhenImported] = []
        self._made: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.is_waiting = False

    def start(self) -> None:
        """Start waiting for the first use."""
        self.is_waiting = True
        for name, owner, function in _FIRST_USES:
            self._when_imported(name, functools.partial(self._wait_for, owner, function))
        self._when_imported("concurrent.futures.thread", self._wait_for_made)

    def cancel(self) -> None:
        """Stop waiting: undo the replacements; ``begin`` is not called any more."""
        self.is_waiting = False
        for use in self._uses:
            use.undo()
        for finder in self._finders:
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        self._uses.clear()
        self._finders.clear()

    def fire(self) -> None:
        """Call ``begin`` now, unless it has been called or cancelled."""
        if self.is_waiting:
            self.cancel()
            self._begin()

    def pools(self) -> list[tuple[Any, str]]:
        """Return (pool, ``file:line in function``) for each live thread pool that was created while waiting."""
        return [(pool, place) for ref, place in list(self._made.values()) if (pool := ref()) is not None]

    def _when_imported(self, name: str, callback: Callable[[ModuleType], object]) -> None:
        module = sys.modules.get(name)
        if module is None:
            self._finders.append(WhenImported(name, callback))
            sys.meta_path.insert(0, self._finders[-1])
        elif getattr(module.__spec__, "_initializing", False):  # being imported now: uvloop, which imports asyncio
            WhenComplete.of(module, lambda module: self.is_waiting and callback(module))
        else:
            callback(module)

    def _wait_for(self, owner: str, function: str, module: ModuleType) -> None:
        target = getattr(module, owner, None) if owner else module
        if target is not None and hasattr(target, function):
            self._add(target, function, lambda _args: self.fire())

    def _wait_for_made(self, module: ModuleType) -> None:
        """Record new thread pools without firing: libraries create pools at import that may never be used."""
        self._add(module.ThreadPoolExecutor, "__init__", self._note)

    def _add(self, owner: Any, name: str, before: Callable[[tuple[Any, ...]], object]) -> None:
        try:
            self._uses.append(_Use(owner, name, before, self._failed))
        except Exception as exc:  # noqa: BLE001 - must not fail the program's import
            self._failed(exc)

    def _note(self, args: tuple[Any, ...]) -> None:
        place = self._origin()
        if args and place is not None:
            made, key = self._made, id(args[0])
            made[key] = weakref.ref(args[0], lambda _ref: made.pop(key, None)), place


@unseen
class _Use:
    """Wraps a function or method so that ``before(args)`` is called before each call, until :meth:`undo`."""

    def __init__(
        self,
        owner: Any,
        name: str,
        before: Callable[[tuple[Any, ...]], object],
        failed: Callable[[Exception], object],
    ) -> None:
        self._owner, self._name, self._before, self._failed = owner, name, before, failed
        self._is_own = name in vars(owner)
        self._forwards = False
        self._original = getattr(owner, name)
        self._local = threading.local()
        self._replacement: Any = (
            self._function()
            if isinstance(owner, type)
            else StandIn(self._original, unseen(lambda _original, args, kwargs: self._call(args, kwargs)))
        )
        setattr(owner, name, self._replacement)

    def undo(self) -> None:
        """Restore the original; a replacement that other code has wrapped stays as a pass-through."""
        self._before = _nothing
        self._forwards = self._is_in_place
        if not self._is_in_place:
            return
        if self._is_own:
            setattr(self._owner, self._name, self._original)
        else:
            delattr(self._owner, self._name)

    @property
    def _is_in_place(self) -> bool:
        return vars(self._owner).get(self._name) is self._replacement

    def _function(self) -> Callable[..., Any]:
        @unseen
        @functools.wraps(self._original)
        def method(*args: Any, **kwargs: Any) -> Any:  # subclasses call Base.method(self) unbound
            return self._call(args, kwargs)

        return method

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and args[0] is None:  # _set_running_loop(None): a loop has stopped
            return self._forward(args, kwargs)
        if self._name == "_set_running_loop" and self._before is not _nothing and not self._is_in_place:
            # The patch that begin() installs is not called this time, as it leads to the foreign wrapper and back here:
            # the agent finds the loop running.
            result = self._original(*args, **kwargs)
            self._note(args)
            return result
        self._note(args)
        return self._forward(args, kwargs)

    def _note(self, args: tuple[Any, ...]) -> None:
        try:
            self._before(args)
        except Exception as exc:  # noqa: BLE001 - boundary between the program and the agent
            self._failed(exc)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what replaces the original now, unless that is the caller."""
        found = vars(self._owner).get(self._name)
        is_outer = found is None or found is self._replacement or getattr(self._local, "is_inside", False)
        if is_outer or not self._forwards:
            return self._original(*args, **kwargs)
        if isinstance(self._owner, type) and args:
            found, args = found.__get__(args[0], type(args[0])), args[1:]
        self._local.is_inside = True
        try:
            return found(*args, **kwargs)
        finally:
            self._local.is_inside = False


def _nothing(_args: tuple[Any, ...]) -> None:
    pass

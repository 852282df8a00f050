"""Auto-offload: offloads functions named in the settings once they block the loop; call sites stay as they are.

A function is unchanged until it is flagged. Then its code is replaced (see
:class:`loopwatch.core.patches.CodePatch`) by a call of the policy, which runs it inline, in a thread, or in a process.

- ``auto_offload`` names coroutine functions: they are awaited already, and run on a loop elsewhere.
- ``transparent_offload`` names plain functions: their task is suspended meanwhile, where a bridge is open (see
  :mod:`loopwatch.offloading.bridge`). It is open in tasks created from then on, or in coroutines passed to
  :meth:`AutoOffload.bridge`.
"""

from __future__ import annotations

import contextvars
import dataclasses
import inspect
import linecache
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from loopwatch.core.off_loop import running_loop
from loopwatch.core.patches import Around, CodePatch, Patch, PatchSet
from loopwatch.core.text import printable
from loopwatch.core.unseen import unseen
from loopwatch.diagnosis.flagging import Flagging
from loopwatch.events import Cause, FlaggedFunction, Frame, OffloadStats, Stall
from loopwatch.offloading import default_pool, lock_check
from loopwatch.offloading.function import OffloadedFunction, name_of
from loopwatch.offloading.loop_bound import of_a_loop
from loopwatch.offloading.measurements import Measurements
from loopwatch.offloading.names import Found, Search, Target
from loopwatch.offloading.remote_call import Raised
from loopwatch.offloading.route import Route
from loopwatch.offloading.side_effects import CALLS_ITSELF, Probation
from loopwatch.watch.probes.base import Loop
from loopwatch.watch.stacks import is_own
from loopwatch.workers import worker
from loopwatch.workers.options import CallOptions

AUTO, TRANSPARENT = "auto_offload", "transparent_offload"
MOST_WITHIN = 10
"""Nested calls of a function after which it is restored: each takes more of the recursion limit."""
IN_A_THREAD = "the function calls itself, and in a thread each call would be looked at"
OUTSIDE = "they were made outside a bridged task"
WITHIN_CONTEXT = "they were made within Context.run(), and no other task could enter that context meanwhile"
_IMMUTABLE_TYPE, _HEAP_TYPE = 1 << 8, 1 << 9
"""Type flags: see ``Py_TPFLAGS_IMMUTABLETYPE`` in CPython's Include/object.h."""


class Listed:
    """A function named in the settings.

    Attributes:
        way: name of the setting.
        found: the function.
        offloaded: its offloaded form, since it was flagged; None before.
        patch: the replacement of its code, None if it is not replaced.
        asks_for_error, calls_itself: see :class:`Probation`.
    """

    def __init__(self, way: str, found: Found) -> None:
        self.way, self.found = way, found
        self.offloaded: OffloadedFunction | None = None
        self.patch: CodePatch | None = None
        self.asks_for_error = self.calls_itself = False

    @property
    def name(self) -> str:
        """``module:qualname``."""
        return f"{printable(self.found.function.__module__)}:{printable(self.found.function.__qualname__)}"


class AutoOffload:
    """Offloads the named functions that are flagged.

    Args:
        auto: names of coroutine functions.
        transparent: names of plain functions.
        flagging: counts the stalls of each.
        patches: of the agent.
        say: logs a line for the user.
    """

    def __init__(
        self,
        auto: Sequence[str],
        transparent: Sequence[str],
        flagging: Flagging,
        patches: PatchSet,
        say: Callable[[str], None],
    ) -> None:
        self._ways = {
            **dict.fromkeys(map(Target.of, auto), AUTO),
            **dict.fromkeys(map(Target.of, transparent), TRANSPARENT),
        }
        self._flagging, self._patches, self._say = flagging, patches, say
        self._search = Search(list(self._ways), self._on_found, self._on_missing)
        self._listed: dict[str, Listed] = {}
        self._missing: dict[Target, str] = {}
        self._lock = threading.RLock()
        self._bridges: Any = None
        if transparent:
            from loopwatch.offloading import bridge

            self._bridges = bridge
        self._is_open = self._is_narrow = False
        self._kinds: set[type] = set()
        """Classes of the loops that have run."""
        self._bridged: dict[type, Patch] = {}
        """Classes whose ``create_task`` is replaced."""

    def start(self) -> None:
        """Start the search for the functions."""
        self._search.start()

    def after_fork_in_child(self) -> None:
        """Renew the lock in a forked child, where it may be held for ever."""
        self._lock = threading.RLock()

    def stop(self) -> None:
        """Restore every function and loop, and end the default pool and threads unless they have other users."""
        self._search.stop()
        with self._lock:
            self._is_open = False
            for listed in self._listed.values():
                if listed.patch is not None:
                    self._patches.undo(listed.patch)
            for patch in self._bridged.values():
                self._patches.undo(patch)
        default_pool.end_what_was_moved()

    # -- finding --------------------------------------------------------------------------------------------------

    def _on_found(self, target: Target, functions: list[Found]) -> None:
        way = self._ways[target]
        for found in functions:
            is_coroutine = inspect.iscoroutinefunction(found.function)
            if is_coroutine == (way == AUTO):
                listed = Listed(way, found)
                known = self._listed.get(listed.name)
                if known is None or (found.single and not known.found.single):
                    self._listed[listed.name] = listed
            elif found.single:
                kind, other = ("a coroutine function", AUTO) if is_coroutine else ("a plain function", TRANSPARENT)
                self._on_missing(target, f"it is {kind}: name it in {other}")

    def _on_missing(self, target: Target, why: str) -> None:
        self._missing[target] = why
        self._say(f"loopwatch: {self._ways[target]} names {target.name}, which stays as it is: {why}")

    # -- flagging -------------------------------------------------------------------------------------------------

    def saw(self, stall: Stall) -> None:
        """Count a stall for the innermost named function in it, and offload that once it is flagged."""
        self._search.look()
        for frame in (*((stall.culprit,) if stall.culprit is not None else ()), *reversed(stall.stack)):
            listed = self._listed.get(f"{frame.module}:{frame.function}")
            if listed is not None and (listed.offloaded is None or listed.offloaded.route.stays != CALLS_ITSELF):
                flagged = self._count(stall, frame)
                if flagged is not None:
                    self._move(listed, flagged)
                return

    def _count(self, stall: Stall, frame: Frame) -> FlaggedFunction | None:
        return self._flagging.add(dataclasses.replace(stall, culprit=frame))

    def _move(self, listed: Listed, flagged: FlaggedFunction) -> None:
        with self._lock:
            if listed.offloaded is not None or worker.here.is_worker:
                return
            function = cast("Any", listed.found.function)
            probation = Probation(function)
            patch = None if probation.stays else self._patches.inside(function, self._around(listed))
            offloaded = self._function(listed, patch.original if patch else function, probation, flagged)
            listed.patch, listed.offloaded = patch, offloaded
        self._say(f"loopwatch: {flagged.stalls} stalls within {flagged.window:g} s: {offloaded.explain()}")
        if listed.way == TRANSPARENT and not offloaded.route.stays:
            self._open()

    @staticmethod
    def _function(listed: Listed, function: Any, probation: Probation, flagged: FlaggedFunction) -> OffloadedFunction:
        """Return ``function`` in its offloaded form; its measurements start with those of its stalls."""
        listed.asks_for_error, listed.calls_itself = probation.asks_for_error, probation.calls_itself
        stays, bound = probation.stays, ""
        if listed.way == TRANSPARENT and probation.asks:
            stays = f"it calls {probation.asks}(), which needs the running loop"
        elif not listed.found.single:
            bound = f"{function.__module__}:* moves to threads only: name it by itself"
        elif not _main_is_guarded():
            bound = "__main__ would run in it: it has no if __name__ == '__main__'"
        measurements, run = Measurements(), flagged.blocked / flagged.stalls
        measurements.assume(flagged.stalls, run, 0.0 if flagged.cause in (Cause.IO, Cause.SLEEP) else run)
        is_tried = not bound and stays == probation.stays
        route = Route(
            name_of(function), "auto", measurements, stays=stays, bound=bound,
            probation=probation if is_tried else None, cause=flagged.cause,
        )  # fmt: skip
        route.decide(calls=0)
        return OffloadedFunction(function, route, measurements, CallOptions(), way=listed.way, shares_context=True)

    # -- calls ----------------------------------------------------------------------------------------------------

    def _around(self, listed: Listed) -> Around:
        dispatch = self._transparently if listed.way == TRANSPARENT else self._awaited

        def around(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            offloaded, within = listed.offloaded, _within.get()
            if offloaded is None:  # its code is just being replaced
                return original(*args, **kwargs)
            # Indirect recursion may go as deep as before: only the outermost call is offloaded.
            if within.count(offloaded) > MOST_WITHIN:
                self._give_back(listed)
                return original(*args, **kwargs)
            token = _within.set((*within, offloaded))
            try:
                return original(*args, **kwargs) if offloaded in within else dispatch(listed, offloaded, args, kwargs)
            finally:
                _within.reset(token)

        return around

    def _give_back(self, listed: Listed) -> None:
        with self._lock:
            if listed.patch is not None and listed.offloaded is not None:
                self._patches.undo(listed.patch)
                listed.offloaded.route.keep_inline(CALLS_ITSELF)

    @unseen
    async def _awaited(
        self, listed: Listed, offloaded: OffloadedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        place = offloaded.route.place()
        if place != "inline" and (against := self._why_inline(listed, args, kwargs)):
            offloaded.left[against] += 1
            place = "inline"
        return await offloaded.run(place, args, kwargs)

    @unseen
    def _transparently(
        self, listed: Listed, offloaded: OffloadedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        place = offloaded.route.place()
        if place == "inline":
            return self._inline(listed, offloaded, args, kwargs)
        if not self._bridges.is_open():
            if running_loop() is not None:
                offloaded.left[OUTSIDE] += 1
            return self._inline(listed, offloaded, args, kwargs)
        against = "" if self._bridges.is_in_own_context() else WITHIN_CONTEXT
        against = against or (IN_A_THREAD if place == "thread" and listed.calls_itself else "")
        against = against or lock_check.why_not_here(sys._getframe()) or self._why_inline(listed, args, kwargs)
        if against:
            offloaded.left[against] += 1
            return self._inline(listed, offloaded, args, kwargs)
        result = self._bridges.wait(offloaded.elsewhere(place, args, kwargs))
        if type(result) is Raised:
            raise result.error
        return result

    @unseen
    def _inline(
        self, listed: Listed, offloaded: OffloadedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a call here; if it holds the loop, the patch is paused: no other call can be offloaded meanwhile."""
        if listed.patch is None or running_loop() is None:
            return offloaded.inline(args, kwargs)
        with listed.patch.paused():
            return offloaded.inline(args, kwargs)

    def _why_inline(self, listed: Listed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if listed.asks_for_error and sys.exc_info()[0] is not None:
            return "its caller handled an exception, for which it may ask"
        kind = of_a_loop((args, kwargs))
        return kind and f"an argument was an {kind}"

    # -- the bridge -----------------------------------------------------------------------------------------------

    def bridge(self, coroutine: Awaitable[Any]) -> Awaitable[Any]:
        """Return ``coroutine`` with the bridge open in it, once a function needs that; else ``coroutine`` itself.

        From the first use on the bridge is open only in coroutines passed here and the tasks that they create, no
        longer in every task.
        """
        self._is_narrow = True
        if not self._is_open or not inspect.iscoroutine(coroutine) or self._bridges.is_open():
            return coroutine
        bridged: Awaitable[Any] = self._bridges.Bridged(coroutine)
        return bridged

    def loop_started(self, loop: Loop) -> None:
        """Register a running loop; tasks that it creates are bridged once a function needs that."""
        self._search.look()
        with self._lock:
            if type(loop) not in self._kinds:
                self._kinds.add(type(loop))
                if self._is_open:
                    self._bridge_tasks(type(loop))

    def _open(self) -> None:
        with self._lock:
            if not self._is_open:
                self._is_open = True
                for kind in self._kinds:
                    self._bridge_tasks(kind)

    def _bridge_tasks(self, kind: type) -> None:
        """Patch ``create_task`` of a loop class to bridge its coroutines, whatever the task factory."""
        owner = next(each for each in kind.__mro__ if "create_task" in vars(each))
        if not owner.__flags__ & _HEAP_TYPE or owner.__flags__ & _IMMUTABLE_TYPE:  # compiled, as uvloop's
            owner = kind
        if owner not in self._bridged:
            self._bridged[owner] = self._patches.around(owner, "create_task", self._create_task)

    def _bridges_new_tasks(self) -> bool:
        """Whether a task created now is bridged; tasks created by a bridged task always are."""
        return self._is_open and (not self._is_narrow or self._bridges.is_open())

    def _create_task(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        coroutine = args[0] if args else None
        if self._bridges_new_tasks() and inspect.iscoroutine(coroutine) and not is_own(coroutine.cr_code.co_filename):
            args = (self._bridges.Bridged(coroutine), *args[1:])
        return original(*args, **kwargs)

    # -- statistics -----------------------------------------------------------------------------------------------

    def stats(self) -> tuple[OffloadStats, ...]:
        """Return a record for each named function, offloaded or not."""
        found = [
            listed.offloaded.stats() if listed.offloaded is not None else _waiting(listed)
            for listed in self._listed.values()
        ]
        missing = [
            OffloadStats(target.name, self._ways[target], "inline", why) for target, why in self._missing.items()
        ]
        return (*found, *missing)


_within: contextvars.ContextVar[tuple[OffloadedFunction, ...]] = contextvars.ContextVar(
    "loopwatch_moved_within", default=()
)
"""The named functions that the context is in, outermost first."""


def _main_is_guarded() -> bool:
    """Whether a worker can import ``__main__`` without running the program again, as far as its source shows."""
    source = "".join(linecache.getlines(str(getattr(sys.modules.get("__main__"), "__file__", None) or "")))
    return not source or re.search(r"""__name__\s*==\s*["']__main__["']""", source) is not None


def _waiting(listed: Listed) -> OffloadStats:
    return OffloadStats(listed.name, listed.way, "inline", "it was not found to block")

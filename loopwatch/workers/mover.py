"""Moves the functions that the configuration names once they are found to block: their call sites stay as they are.

A function is what it was until then. When it has been in the way of a loop as often as flags one, its code is
exchanged (see :class:`loopwatch._patches.CodePatch`) for a call of the policy, which runs it inline, in a thread, or in
a process.

- ``auto_offload`` names coroutine functions: what is awaited already is run on a loop elsewhere.
- ``transparent_offload`` names plain functions: their task is suspended meanwhile, where a bridge is open (see
  :mod:`loopwatch.workers.bridge`). It is opened for tasks that are created from then on, or for what
  :meth:`Mover.bridge` is given.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

from loopwatch._patches import CodePatch, Patch, PatchSet, loaded
from loopwatch.events import FlaggedFunction, Frame, OffloadStats, Stall
from loopwatch.flagging import Flagging
from loopwatch.probes.probe import Loop
from loopwatch.workers import defaults, held, worker
from loopwatch.workers.moved import Moved, known
from loopwatch.workers.options import CallOptions
from loopwatch.workers.probation import Probation, of_a_loop
from loopwatch.workers.targets import Found, Search, Target

AUTO, TRANSPARENT = "auto_offload", "transparent_offload"
OUTSIDE = "they were made outside a bridged task"
_OWN = str(Path(__file__).parents[1])
_IMMUTABLE_TYPE, _HEAP_TYPE = 1 << 8, 1 << 9
"""Flags of a type: see ``Py_TPFLAGS_IMMUTABLETYPE`` in CPython's Include/object.h."""


class Listed:
    """A function of the configuration.

    Attributes:
        way: the setting that names it.
        found: the function.
        moved: since it was flagged, how it runs; None before.
    """

    def __init__(self, way: str, found: Found) -> None:
        self.way, self.found = way, found
        self.moved: Moved | None = None
        self.patch: CodePatch | None = None

    @property
    def name(self) -> str:
        """``module:qualname``."""
        return f"{self.found.function.__module__}:{self.found.function.__qualname__}"


class Mover:
    """Watches the stalls for functions that may be moved, and moves them.

    Args:
        auto: names of coroutine functions.
        transparent: names of plain functions.
        flagging: counts in how many stalls each was.
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
            from loopwatch.workers import bridge  # needs the extra

            self._bridges = bridge
        self._is_open = self._is_narrow = False
        self._kinds: set[type] = set()
        """Of the loops that have run."""
        self._bridged: dict[type, Patch] = {}
        """Classes whose ``create_task`` is replaced."""

    def start(self) -> None:
        """Look for the functions."""
        self._search.start()

    def stop(self) -> None:
        """Have everything as it was before, and end the default pool if nobody else uses it."""
        self._search.stop()
        with self._lock:
            self._is_open = False
            for listed in self._listed.values():
                if listed.patch is not None:
                    self._patches.undo(listed.patch)
            for patch in self._bridged.values():
                self._patches.undo(patch)
        if not any(each.has_used("process") for each in known() if each.way == "offload"):
            defaults.close_soon()

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
        """Count a stall for the innermost function of the list that was in it; move that if it is flagged now."""
        self._search.look()
        for frame in (*((stall.culprit,) if stall.culprit is not None else ()), *reversed(stall.stack)):
            listed = self._listed.get(f"{frame.module}:{frame.function}")
            if listed is not None:
                flagged = self._count(stall, frame)
                if flagged is not None:
                    self._move(listed, flagged)
                return

    def _count(self, stall: Stall, frame: Frame) -> FlaggedFunction | None:
        return self._flagging.add(dataclasses.replace(stall, culprit=frame))

    def _move(self, listed: Listed, flagged: FlaggedFunction) -> None:
        with self._lock:
            if listed.moved is not None or worker.INSIDE:
                return
            dispatch = self._transparently if listed.way == TRANSPARENT else self._awaited
            found, function = listed.found, cast("Any", listed.found.function)

            def around(_original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return dispatch(moved, args, kwargs)

            listed.patch = patch = self._patches.inside(function, around)
            listed.moved = moved = Moved(patch.original, "auto", CallOptions(), way=listed.way)
            probation = Probation(patch.original)
            moved.shares_context = True
            if listed.way == TRANSPARENT and probation.asks:
                moved.stays = f"it calls {probation.asks}(), which needs the running loop"
            elif found.single:
                moved.probation = probation
            else:
                moved.bound = f"{function.__module__}:* moves to threads only: name it by itself"
            moved.known_from(flagged.stalls, flagged.blocked / flagged.stalls, flagged.cause)
        self._say(f"loopwatch: {flagged.stalls} stalls within {flagged.window:g} s: {moved.explain()}")
        if listed.way == TRANSPARENT:
            self._open()

    # -- calls ----------------------------------------------------------------------------------------------------

    async def _awaited(self, moved: Moved, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = moved.place()
        if place != "inline" and (kind := of_a_loop((args, kwargs))):
            moved.left[f"an argument was an {kind}"] += 1
            place = "inline"
        return await moved.run(place, args, kwargs)

    def _transparently(self, moved: Moved, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = moved.place()
        if place == "inline" or moved.stays:
            return moved.inline(args, kwargs)
        if not self._bridges.is_open():
            asyncio = loaded("asyncio")
            if asyncio is not None and asyncio._get_running_loop() is not None:
                moved.left[OUTSIDE] += 1
            return moved.inline(args, kwargs)
        against = held.why_not_here(sys._getframe())
        if not against and (kind := of_a_loop((args, kwargs))):
            against = f"an argument was an {kind}"
        if against:
            moved.left[against] += 1
            return moved.inline(args, kwargs)
        return self._bridges.wait(moved.elsewhere(place, args, kwargs))

    # -- the bridge -----------------------------------------------------------------------------------------------

    def bridge(self, coroutine: Awaitable[Any]) -> Awaitable[Any]:
        """Return what runs ``coroutine`` with the bridge open, once a function needs it; else ``coroutine`` itself.

        From the first use on the bridge is open only for what is given to it and the tasks that this creates, and no
        longer for each task.
        """
        self._is_narrow = True
        if not self._is_open or not inspect.iscoroutine(coroutine) or self._bridges.is_open():
            return coroutine
        bridged: Awaitable[Any] = self._bridges.Bridged(coroutine)
        return bridged

    def loop_started(self, loop: Loop) -> None:
        """Note that a loop runs; the tasks that it creates are bridged as soon as that is needed."""
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
        """Have loops of a kind bridge what their ``create_task`` is given, whatever task factory they use."""
        owner = next(each for each in kind.__mro__ if "create_task" in vars(each))
        if not owner.__flags__ & _HEAP_TYPE or owner.__flags__ & _IMMUTABLE_TYPE:  # compiled, as uvloop's
            owner = kind
        if owner not in self._bridged:
            self._bridged[owner] = self._patches.around(owner, "create_task", self._create_task)

    def _bridges_new_tasks(self) -> bool:
        """Whether a task is bridged that is created now; those that a bridged one creates are in any case."""
        return self._is_open and (not self._is_narrow or self._bridges.is_open())

    def _create_task(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        coroutine = args[0] if args else None
        if self._bridges_new_tasks() and inspect.iscoroutine(coroutine) and not _is_own(coroutine):
            args = (self._bridges.Bridged(coroutine), *args[1:])
        return original(*args, **kwargs)

    # -- what is told ---------------------------------------------------------------------------------------------

    def stats(self) -> tuple[OffloadStats, ...]:
        """Return a record for each function that is named, moved or not."""
        found = [
            listed.moved.stats() if listed.moved is not None else _waiting(listed) for listed in self._listed.values()
        ]
        missing = [
            OffloadStats(target.name, self._ways[target], "inline", why) for target, why in self._missing.items()
        ]
        return (*found, *missing)


def _waiting(listed: Listed) -> OffloadStats:
    return OffloadStats(listed.name, listed.way, "inline", "it was not found to block")


def _is_own(coroutine: Any) -> bool:
    return str(coroutine.cr_code.co_filename).startswith(_OWN)

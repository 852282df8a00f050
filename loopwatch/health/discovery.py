"""Discovers the executors of this process automatically: existing ones, and those created from now on."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.health.default_executors import DefaultExecutors
from loopwatch.health.exit_waits import ExitWaits
from loopwatch.health.hooks import Hooks
from loopwatch.health.in_worker import Notes, Target
from loopwatch.health.kinds import KINDS, OTHER
from loopwatch.health.kinds.base import Tools
from loopwatch.health.lost_errors import LostErrors
from loopwatch.health.naming import origin, pool_name
from loopwatch.health.records import Source
from loopwatch.health.submitters import Submitters
from loopwatch.health.task_board import Address, TaskBoard
from loopwatch.health.watched_pool import Identity, Terms, Watched

MOST = 200
"""Most pools watched at a time, including closed ones whose statistics are still reported."""


class ExecutorDiscovery:
    """Finds and watches the executors of this process, except loopwatch's worker pools.

    Args:
        patches: registry of replaced attributes.
        faults: counter of failures.
        add, remove: called with a pool when monitoring of it begins and ends.
        hung_after: returns ``Config.hung_after``, seconds.
        loop_name: returns the name of an event loop, None for an unknown one.
        exits: notes who waits for the end of a pool.

    Attributes:
        submitters: the latest submissions to process pools.
    """

    def __init__(
        self,
        patches: PatchSet,
        faults: Faults,
        *,
        add: Callable[[Source], object],
        remove: Callable[[Source], object],
        hung_after: Callable[[], float],
        loop_name: Callable[[Any], str | None],
        exits: ExitWaits,
    ) -> None:
        self._hooks = Hooks(patches, faults, self._dropped)
        self._add, self._remove, self._hung_after = add, remove, hung_after
        self._neglected = LostErrors(self._hooks)
        self._exits = exits
        self.submitters = Submitters()
        self._inherited: Address | None = None
        self._defaults = DefaultExecutors(self._hooks, self._found, loop_name, self._is_default)
        self._tools = Tools(
            self._hooks, self._found, self.each, self._made, self._noted, self._target, self._board_here,
            self._neglected, self._defaults.identify, exits, self.submitters,
        )  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._watched: list[Watched] = []
        self._by_id: dict[int, Watched] = {}
        self._aside: dict[int, weakref.ref[Any]] = {}
        self._board: TaskBoard | None = None
        self._has_no_board = False

    # -- life cycle -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Hook the modules of all kinds: those already imported, and others when they are."""
        self._hooks.when_imported("concurrent.futures._base", self._neglected.start)
        for kind in KINDS:
            for module in kind.modules:
                self._hooks.when_imported(module, functools.partial(kind.start, self._tools), part=kind.part)
        self._defaults.start()
        self._exits.start(self._hooks)

    def stop(self) -> None:
        """Stop discovery and forget all pools; the owner of the patches undoes them."""
        self._hooks.stop()
        self._neglected.stop()
        self._inherited = None
        self._exits.forget()
        self.submitters.forget()
        for each in self._watched:
            each.close()
        if self._board is not None:
            self._board.close()
        self._begin()

    def after_fork_in_child(self) -> None:
        """Start afresh in a forked child: the parent's executors do not run here."""
        self._exits.forget()
        self.submitters.forget()
        board = self._board
        if board is not None:
            self._inherited = board.address
            board.close()
        self._begin()

    # -- watched pools --------------------------------------------------------------------------------------------

    def each(self) -> Sequence[Watched]:
        """Return all watched pools."""
        return self._watched.copy()

    def watch(self, pool: Any, name: str | None = None) -> Watched | None:
        """Watch ``pool`` and optionally name it; return its :class:`Watched`, None if there are too many already.

        Raises:
            TypeError: it is of an unknown kind, and its methods cannot be replaced.
        """
        if self._hooks.is_left_alone(pool):
            return None
        watched = self._found(pool, origin().place, any_kind=True)
        if watched is not None and name:
            self._rename(watched, name)
        return watched

    def adopt(self, loop: Any) -> None:
        """Register the default executor of a loop that existed before the agent."""
        if not self._hooks.is_off:
            self._defaults.adopt(loop)

    def found(self, pool: Any, place: str) -> None:
        """Watch a pool that was created at ``place`` before the agent started."""
        if not self._hooks.is_off:
            self._found(pool, place)

    def _rename(self, watched: Watched, name: str, kind: str | None = None) -> None:
        with self._lock:
            taken = {each.identity.name for each in self._watched if each is not watched}
            before = watched.identity
            watched.identity = Identity(pool_name("", "", taken, name), kind or before.kind, before.place)

    def _is_default(self, watched: Watched, name: str) -> None:
        self._rename(watched, name, "default")

    def _made(self, pool: Any, _result: None) -> None:
        """Handle a new executor, whose subclass may not have finished ``__init__`` yet."""
        made = origin()
        if made.aside:
            aside, key = self._aside, id(pool)
            aside[key] = weakref.ref(pool, lambda _ref: aside.pop(key, None))
        else:
            self._found(pool, made.place)

    def _noted(self, pool: Any) -> None:
        """Watch a pool that existed before the agent; a failure affects no other pool."""
        self._hooks.guarded(self._found)(pool)

    def _dropped(self, thing: Any) -> None:
        """Stop watching an object of the program after it, or its :class:`Watched`, has failed."""
        with self._lock:
            for each in [each for each in self._watched if each is thing or each.ref() is thing]:
                self._watched.remove(each)
                self._remove(each)

    def _found(self, pool: Any, place: str = "", *, any_kind: bool = False) -> Watched | None:
        if id(pool) in self._aside:
            return None
        watched = self._by_id.get(id(pool))
        if watched is not None and watched.ref() is pool:
            return watched
        with self._lock:
            watched = self._by_id.get(id(pool))
            if watched is None or watched.ref() is not pool:
                watched = self._make(pool, place, any_kind=any_kind) if self._has_room() else None
                if watched is None:
                    return None
                self._by_id[id(pool)] = watched
                self._watched.append(watched)
        self._add(watched)
        return watched

    def _make(self, pool: Any, place: str, *, any_kind: bool) -> Watched | None:
        kind = next((each for each in KINDS if each.owns(pool)), OTHER if any_kind else None)
        if kind is None or not kind.is_made(pool):
            return None
        taken = {each.identity.name for each in self._watched}
        identity = kind.identity(pool, place, taken, self._tools)
        collected = functools.partial(_forget, self._by_id, id(pool))
        return kind.watch(pool, Terms(identity, self._hung_after, collected), self._tools)

    def _has_room(self) -> bool:
        """Drop expired pools, then the oldest closed one if there are too many; return whether there is room."""
        self._watched = [each for each in self._watched if not each.gone]
        if len(self._watched) >= MOST:
            over = next((each for each in self._watched if each.is_over), None)
            if over is None:
                return False
            self._watched.remove(over)
            self._remove(over)
        return True

    # -- the task board -------------------------------------------------------------------------------------------

    def _board_here(self) -> TaskBoard | None:
        if self._board is None and not self._has_no_board:
            try:
                self._board = TaskBoard()
            except (OSError, AttributeError):  # such as a system without memfd_create, or no descriptor left
                self._has_no_board = True
        return self._board

    def _address(self) -> Address | None:
        return self._inherited if self._board is None else self._board.address

    def _target(self, original: Any, place: str, in_thread: Callable[[Any], Notes | None] | None) -> Target:
        return Target(original, place, self._address, in_thread)


def _forget(by_id: dict[int, Watched], key: int, ref: Any) -> None:
    """Forget a collected executor, whose id may be reused."""
    watched = by_id.get(key)
    if watched is not None and watched.ref is ref:
        watched.keys = ()
        del by_id[key]

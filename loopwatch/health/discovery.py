"""Discovers the executors of this process automatically: existing ones, and those created from now on."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet, loaded
from loopwatch.health.default_executors import Defaults
from loopwatch.health.hooks import Hooks
from loopwatch.health.in_worker import Notes, Target
from loopwatch.health.kinds.multiprocessing import MultiprocessingPools, WatchedPool
from loopwatch.health.kinds.other import WatchedOther
from loopwatch.health.kinds.processes import ProcessPools, WatchedProcesses
from loopwatch.health.kinds.threads import ThreadPools, WatchedThreads, pool_of
from loopwatch.health.lost_errors import Neglected
from loopwatch.health.naming import origin, pool_name
from loopwatch.health.records import Source
from loopwatch.health.task_board import Address, Board
from loopwatch.health.watched_pool import Identity, Watched

MOST = 200
"""Pools that are watched at a time, those counted that are over and still told."""
LOKY_MODULES = ("loky.process_executor", "joblib.externals.loky.process_executor")
PROCESS_MODULES = {"concurrent.futures.process": "process", **dict.fromkeys(LOKY_MODULES, "loky")}
"""Where process pools with futures are made, and what they are called."""


class Executors:
    """The executors of this process that are not ours.

    Args:
        patches: where replaced attributes are kept.
        faults: where failures are counted.
        add, remove: called with a pool that is to be looked after, and no more.
        hung_after: s, as ``Config.hung_after``.
        loop_name: returns what an event loop is called, None for one that is not known.
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
    ) -> None:
        self._hooks = Hooks(patches, faults, self._dropped)
        self._add, self._remove, self._hung_after = add, remove, hung_after
        self._neglected = Neglected(self._hooks)
        self._inherited: Address | None = None
        self._defaults = Defaults(self._hooks, self._found, loop_name, self._is_default)
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._watched: list[Watched] = []
        self._by_id: dict[int, Watched] = {}
        self._aside: dict[int, weakref.ref[Any]] = {}
        self._board: Board | None = None
        self._has_no_board = False

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find executors from now on."""
        self._hooks.when_imported("concurrent.futures._base", self._neglected.start)
        self._hooks.when_imported("concurrent.futures.thread", self._start_threads)
        self._hooks.when_imported("concurrent.futures.process", self._start_processes)
        for name in LOKY_MODULES:
            self._hooks.when_imported(name, self._start_processes, part="loky")
        self._hooks.when_imported("multiprocessing.pool", self._start_pools)
        self._defaults.start()

    def stop(self) -> None:
        """Find no more; the patches are undone by their owner."""
        self._hooks.stop()
        self._neglected.stop()
        self._inherited = None
        for each in self._watched:
            each.close()
        if self._board is not None:
            self._board.close()
        self._begin()

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child, whose executors are the parent's no longer."""
        board = self._board
        if board is not None:
            self._inherited = board.address
            board.close()
        self._begin()

    def _start_threads(self, module: Any) -> None:
        threads = ThreadPools(self._hooks, self._found)
        threads.start(module)
        self._neglected.of_thread = threads.tally_of
        self._hooks.after(module.ThreadPoolExecutor, "__init__", self._made)
        for thread in list(getattr(module, "_threads_queues", ())):
            pool = pool_of(thread)
            if pool is not None:
                self._noted(pool)

    def _start_processes(self, module: Any) -> None:
        ProcessPools(self._hooks, self._found, self.each, self._target).start(module)
        self._hooks.after(module.ProcessPoolExecutor, "__init__", self._made)
        for manager in list(getattr(module, "_threads_wakeups", ())):
            pool = manager.executor_reference()
            if pool is not None:
                self._noted(pool)

    def _start_pools(self, module: Any) -> None:
        MultiprocessingPools(self._hooks, self._found, self.each, self._target, self._neglected).start(module)
        self._hooks.both(module.Pool, "__init__", self._making, self._made, always=False)
        util = loaded("multiprocessing.util")  # where pools see to it that they are ended at exit
        for finalizer in list(getattr(util, "_finalizer_registry", {}).values()):
            ref = getattr(finalizer, "_weakref", None)
            pool = None if ref is None else ref()
            if isinstance(pool, module.Pool):
                self._noted(pool)

    # -- what is watched ------------------------------------------------------------------------------------------

    def each(self) -> Sequence[Watched]:
        """Return everything that is watched."""
        return self._watched.copy()

    def watch(self, pool: Any, name: str | None = None) -> Watched | None:
        """Watch ``pool``, and give it a name; return what watches it, None if there are too many already.

        Raises:
            TypeError: it is of a kind that is not known, and its methods cannot be replaced.
        """
        if self._hooks.is_left_alone(pool):
            return None
        watched = self._found(pool, origin().place, any_kind=True)
        if watched is not None and name:
            self._rename(watched, name)
        return watched

    def adopt(self, loop: Any) -> None:
        """Take note of the default executor of a loop that was there before us."""
        if not self._hooks.is_off:
            self._defaults.adopt(loop)

    def found(self, pool: Any, place: str) -> None:
        """Watch a pool that was made before us, at ``place``."""
        if not self._hooks.is_off:
            self._found(pool, place)

    def _rename(self, watched: Watched, name: str, kind: str | None = None) -> None:
        with self._lock:
            taken = {each.identity.name for each in self._watched if each is not watched}
            before = watched.identity
            watched.identity = Identity(pool_name("", "", taken, name), kind or before.kind, before.place)

    def _is_default(self, watched: Watched, name: str) -> None:
        self._rename(watched, name, "default")

    def _making(self, _pool: Any, *_args: Any, **_kwargs: Any) -> None:
        """A pool is about to be made, and to start its workers at once."""
        self._board_here()

    def _made(self, pool: Any, _result: None) -> None:
        """An executor was made; a subclass may still be about to make itself."""
        made = origin()
        if made.aside:
            aside, key = self._aside, id(pool)
            aside[key] = weakref.ref(pool, lambda _ref: aside.pop(key, None))
        else:
            self._found(pool, made.place)

    def _noted(self, pool: Any) -> None:
        """Watch a pool that was there before us; if it cannot be, others still are."""
        self._hooks.guarded(self._found)(pool)

    def _dropped(self, thing: Any) -> None:
        """An object of the program has failed, or what watches it: look after it no more."""
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
        collected = functools.partial(_forget, self._by_id, id(pool))
        taken = {each.identity.name for each in self._watched}
        if _is_a(pool, "concurrent.futures.thread", "ThreadPoolExecutor"):
            if not _has(pool, "_threads", "_work_queue", "_shutdown", "_broken", "_max_workers", "_thread_name_prefix"):
                return None  # it was not made by its base class
            identity = self._defaults.identify(pool, place, taken)
            return WatchedThreads(pool, identity, self._hung_after, collected)
        for module, kind in PROCESS_MODULES.items():
            if _is_a(pool, module, "ProcessPoolExecutor"):
                if not _has(pool, "_processes", "_pending_work_items", "_queue_count", "_max_workers"):
                    return None
                identity = Identity(pool_name(type(pool).__name__, place, taken), kind, place)
                return WatchedProcesses(pool, identity, self._hung_after, collected, self._board_here())
        if _is_a(pool, "multiprocessing.pool", "Pool"):
            if not _has(pool, "_pool", "_cache", "_taskqueue", "_inqueue", "_state", "_processes"):
                return None
            kind = "thread" if _is_a(pool, "multiprocessing.pool", "ThreadPool") else "multiprocessing"
            identity = Identity(pool_name(type(pool).__name__, place, taken), kind, place)
            return WatchedPool(pool, identity, self._hung_after, collected, self._board_here())
        if any_kind:
            identity = Identity(pool_name(type(pool).__name__, place, taken), "other", place)
            return WatchedOther(pool, identity, self._hung_after, collected, self._hooks)
        return None

    def _has_room(self) -> bool:
        """Forget pools that have been over for a while, and if need be those that are over."""
        self._watched = [each for each in self._watched if not each.gone]
        if len(self._watched) >= MOST:
            over = next((each for each in self._watched if each.is_over), None)
            if over is None:
                return False
            self._watched.remove(over)
            self._remove(over)
        return True

    # -- the board ------------------------------------------------------------------------------------------------

    def _board_here(self) -> Board | None:
        if self._board is None and not self._has_no_board:
            try:
                self._board = Board()
            except (OSError, AttributeError):  # such as a system without memfd_create, or no descriptor left
                self._has_no_board = True
        return self._board

    def _address(self) -> Address | None:
        return self._inherited if self._board is None else self._board.address

    def _target(self, original: Any, place: str, in_thread: Callable[[Any], Notes | None] | None = None) -> Target:
        return Target(original, place, self._address, in_thread)


def _is_a(pool: Any, module: str, name: str) -> bool:
    """Whether it is one indeed: what a mock says of its class is not asked."""
    kind = getattr(loaded(module), name, None)
    return isinstance(kind, type) and issubclass(type(pool), kind)


def _has(pool: Any, *names: str) -> bool:
    return all(hasattr(pool, name) for name in names)


def _forget(by_id: dict[int, Watched], key: int, ref: Any) -> None:
    """The executor with this id is collected; another one may have it soon."""
    watched = by_id.get(key)
    if watched is not None and watched.ref is ref:
        watched.keys = ()
        del by_id[key]

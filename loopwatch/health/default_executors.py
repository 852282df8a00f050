"""Identifies the default executors of event loops, which serve DNS, files and ``asyncio.to_thread``."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Container
from types import FrameType
from typing import Any

from loopwatch.core.patches import Patch, loaded
from loopwatch.health.hooks import Hooks
from loopwatch.health.naming import pool_name
from loopwatch.health.watched_pool import Identity, Watched

_DEPTH = 14
"""Most stack frames between ``run_in_executor``, which creates the default executor, and the hook on its creation."""


class DefaultExecutors:
    """Distinguishes the default executors of loops from other thread pools, and names them after their loop.

    Args:
        hooks: method hooks.
        found: returns the :class:`Watched` of a pool.
        loop_name: returns the name of a loop, None for an unknown one.
        rename: gives a :class:`Watched` the name of a default executor.
    """

    def __init__(
        self,
        hooks: Hooks,
        found: Callable[[Any], Watched | None],
        loop_name: Callable[[Any], str | None],
        rename: Callable[[Watched, str], object],
    ) -> None:
        self._hooks, self._found, self._loop_name, self._rename = hooks, found, loop_name, rename
        self._here = threading.local()

    def start(self) -> None:
        """Hook asyncio and uvloop once they are imported."""
        self._hooks.when_imported("asyncio.base_events", self._patch_asyncio)
        self._hooks.when_imported("uvloop", self._patch_uvloop)

    def adopt(self, loop: Any) -> None:
        """Register the default executor that ``loop`` already has."""
        pool = getattr(loop, "_default_executor", None)
        if pool is not None:
            self._hooks.guarded(self._set, at=1)(loop, pool)

    def _patch_asyncio(self, module: Any) -> None:
        self._hooks.before(module.BaseEventLoop, "set_default_executor", self._hooks.guarded(self._set, at=1))

    def _patch_uvloop(self, module: Any) -> None:
        self._hooks.patches.replace(module.Loop, "run_in_executor", _run_in_executor).state = self._here
        self._hooks.before(module.Loop, "set_default_executor", self._hooks.guarded(self._set, at=1))

    def _set(self, loop: Any, executor: Any) -> None:
        watched = self._found(executor)
        if watched is not None and watched.identity.kind == "thread":
            self._rename(watched, _name(self._name_of(loop)))

    def identify(self, pool: Any, place: str, taken: Container[str]) -> Identity:
        """Return the identity of a thread pool that is being created."""
        loop = self._maker()
        if loop is not None:
            return Identity(pool_name("", "", taken, _name(self._name_of(loop))), "default", place)
        prefix = pool._thread_name_prefix
        given = "" if prefix.startswith("ThreadPoolExecutor-") else prefix
        return Identity(pool_name(type(pool).__name__, place, taken, given), "thread", place)

    def _maker(self) -> Any:
        """Return the loop whose default executor the calling thread is creating, None if there is none."""
        loop = getattr(self._here, "loop", None)
        base = loaded("asyncio.base_events")
        if loop is not None or base is None:
            return loop
        code = getattr(base.BaseEventLoop.run_in_executor, "__code__", None)
        frame: FrameType | None = sys._getframe(1)
        for _ in range(_DEPTH):
            if frame is None:
                return None
            if frame.f_code is code:
                return frame.f_locals.get("self") if frame.f_locals.get("executor") is None else None
            frame = frame.f_back
        return None

    def _name_of(self, loop: Any) -> str:
        return self._loop_name(loop) or threading.current_thread().name


def _name(loop: str) -> str:
    return f"default executor of {loop}"


def _run_in_executor(original: Any, patch: Patch) -> Any:
    """Wrap uvloop's ``run_in_executor``, which has no Python frame, to record the loop that creates an executor."""

    @functools.wraps(original)
    def run_in_executor(self: Any, executor: Any, *args: Any) -> Any:
        if executor is not None or not patch.active:
            return original(self, executor, *args)
        here = patch.state
        here.loop = self
        try:
            return original(self, executor, *args)
        finally:
            here.loop = None

    return run_in_executor

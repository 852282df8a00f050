"""The offloading service of the agent: offloads the functions named in the settings; statistics of all offloading."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet, loaded
from loopwatch.events import FlaggedFunction, OffloadStats, PlaceStats, Stall
from loopwatch.health.kinds.worker_pool import OwnPool
from loopwatch.watch.probes.base import Loop
from loopwatch.workers.settings import settings

if TYPE_CHECKING:
    from loopwatch.offloading.auto import AutoOffload

PART = "offload"


class OffloadingService:
    """The offloading of one agent: of the functions named in its settings, once they block a loop.

    Args:
        loops: returns the watched loops.
        patches: records replaced attributes.
        faults: of the agent.
    """

    def __init__(self, loops: Callable[[], Iterable[Loop]], patches: PatchSet, faults: Faults) -> None:
        self._loops, self._patches, self._faults = loops, patches, faults
        self._auto: AutoOffload | None = None

    def start(self, config: Config, pool_opened: Callable[[OwnPool], object] | None = None) -> None:
        """Offload the functions that ``config`` names, and apply its defaults to decorated ones.

        Args:
            config: the settings in force.
            pool_opened: called with each worker pool that is open now or opened later; must not raise. None: no call.
        """
        if pool_opened is not None:
            settings.opened = pool_opened
            pools = loaded("loopwatch.workers.pool")
            for pool in () if pools is None else pools.open_pools():
                pool_opened(pool)
        self._start(config)

    def _start(self, config: Config) -> None:
        settings.workers, settings.offload_to = config.workers, config.offload_to
        if not (config.auto_offload or config.transparent_offload) or self._faults.is_off(PART):
            return
        with self._faults.guard(PART):
            from loopwatch.diagnosis.flagging import Flagging
            from loopwatch.offloading.auto import AutoOffload  # loads the worker pool: only if needed

            self._auto = AutoOffload(
                config.auto_offload,
                config.transparent_offload,
                Flagging(config.flag_after, config.flag_window, config.max_culprits),
                self._patches,
                lambda text: self._faults.say(logging.WARNING, "%s", text),
            )
            self._auto.start()
            for loop in self._loops():
                self._auto.loop_started(loop)

    def configure(self, config: Config, changes: Iterable[str]) -> None:
        """Apply changed settings while running.

        Args:
            config: all settings.
            changes: names of the changed ones.
        """
        settings.workers, settings.offload_to = config.workers, config.offload_to
        if {"auto_offload", "transparent_offload"} & set(changes):
            self._stop()
            self._start(config)

    def stop(self) -> None:
        """Restore auto-offloaded functions, and reset the defaults of decorated ones."""
        self._stop()
        settings.reset()

    def _stop(self) -> None:
        mover, self._auto = self._auto, None
        if mover is not None:
            with self._faults.guard(PART):
                mover.stop()

    def loop_started(self, loop: Loop) -> None:
        """Register a loop that starts to run; on its thread."""
        if self._auto is not None and not self._faults.is_off(PART):
            with self._faults.guard(PART):
                self._auto.loop_started(loop)

    def after_fork_in_child(self) -> None:
        """Renew the lock in a forked child, where it may be held for ever."""
        if self._auto is not None:
            self._auto.after_fork_in_child()

    def emit(self, stall: Stall, flagged: FlaggedFunction | None, _span: Any = None) -> None:
        """Take a stall: record the cause of a flagged function, and offload it if the settings name it."""
        if flagged is not None:
            settings.causes[flagged.name] = flagged.cause
        if self._auto is not None:
            self._auto.saw(stall)

    def bridge(self, coroutine: Awaitable[Any]) -> Awaitable[Any]:
        """Return an awaitable to use instead of ``coroutine``, in which plain functions can be offloaded."""
        return coroutine if self._auto is None else self._auto.bridge(coroutine)

    def stats(self) -> tuple[OffloadStats, ...]:
        """Return statistics of each function that is offloaded, or may be."""
        offloaded = loaded("loopwatch.offloading.function")
        if offloaded is None:
            return ()
        named = () if self._auto is None else self._auto.stats()
        return (*named, *(each.stats() for each in offloaded.known() if each.way == "offload"))

    @staticmethod
    def places() -> tuple[PlaceStats, ...]:
        """Return the totals of offloadable calls by destination; empty without such calls."""
        spent = loaded("loopwatch.workers.totals")
        return () if spent is None else spent.places()

"""Discovers event loops automatically: loops that start to run, in any thread, and loops already running.

Python loops are found through ``asyncio.events._set_running_loop``; uvloop loops, which keep their own reference to
that function, through ``uvloop.Loop.run_forever``. Nothing here runs more often than a loop is started.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.events
import gc
from collections.abc import Callable, Iterator
from typing import Any

from loopwatch.core.frames import current_frames
from loopwatch.core.patches import ListItem, PatchSet, loaded, when_imported
from loopwatch.watch.probes.base import Loop
from loopwatch.watch.stacks import below, uncollected


class LoopDiscovery:
    """Reports loops that start, stop and close.

    Args:
        patches: holds the replaced attributes.
        started, stopped: called on the loop's thread right before it runs and after it ran; must not raise.
        closing: called right before a uvloop loop is closed, which frees its memory; must not raise.
        say: logs a line for the user.
    """

    def __init__(
        self,
        patches: PatchSet,
        started: Callable[[Loop], None],
        stopped: Callable[[Loop], None],
        closing: Callable[[Loop], None],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._trio_reported = False
        self._patches = patches
        self._started, self._stopped, self._closing = started, stopped, closing
        self._hooks: list[ListItem] = []
        self._sees_closing = False

    def start(self) -> None:
        """Install the hooks."""
        self._patches.around(asyncio.events, "_set_running_loop", self._set_running_loop)
        self._hooks += when_imported("uvloop", self._patch_uvloop)
        self._hooks += when_imported("trio", self._patch_trio)

    def stop(self) -> None:
        """Remove the import hooks; the owner of the patches undoes them, once no loop is read any more."""
        for hook in self._hooks:
            hook.undo()
        self._hooks.clear()

    def running(self) -> Iterator[Loop]:
        """Yield the loops running now, in any thread."""
        own = asyncio._get_running_loop()
        if own is not None:
            yield own
        with uncollected():
            found = [loop for frame in current_frames().values() if (loop := _loop_of(frame)) is not None]
        uvloop = loaded("uvloop")
        if uvloop is not None:
            # Compiled loops have no frames, but the garbage collector finds the instances of their class (a heap type).
            found += [item for item in gc.get_referrers(uvloop.Loop) if isinstance(item, uvloop.Loop)]
        yield from (loop for loop in found if loop is not own and not loop.is_closed() and loop.is_running())

    def _set_running_loop(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = asyncio._get_running_loop()
        result = original(*args, **kwargs)
        after = asyncio._get_running_loop()
        if before is not after:
            if before is not None:
                self._stopped(before)
            if after is not None:
                self._started(after)
        return result

    def _patch_uvloop(self, uvloop: Any) -> None:
        def run_forever(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            loop = original.__self__  # type: ignore[attr-defined]
            if loop.is_running() or loop.is_closed():
                return original(*args, **kwargs)
            self._started(loop)
            try:
                return original(*args, **kwargs)
            finally:
                self._stopped(loop)

        self._patches.around(uvloop.Loop, "run_forever", run_forever)
        self.see_closing()

    def see_closing(self) -> None:
        """Report uvloop loops that are about to close; call it before the first of them is read."""
        uvloop = loaded("uvloop")
        if self._sees_closing or uvloop is None:
            return

        def close(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            loop = original.__self__  # type: ignore[attr-defined]
            if not loop.is_running():
                self._closing(loop)
            return original(*args, **kwargs)

        self._sees_closing = True
        self._patches.around(uvloop.Loop, "close", close)

    def _patch_trio(self, trio: Any) -> None:
        def run(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._trio_reported:
                self._trio_reported = True
                self._say("loopwatch: trio is not supported, what trio.run() runs is not watched")
            return original(*args, **kwargs)

        self._patches.around(trio, "run", run)


def _loop_of(frame: Any) -> Loop | None:
    """Return the loop whose ``run_forever`` is on the stack of ``frame``; loopwatch's own frames are ignored."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "run_forever" and code.co_filename == asyncio.base_events.__file__:
            return frame.f_locals.get("self")
        frame = frame.f_back or below(frame)
    return None

"""The end of a child process of multiprocessing: it runs no ``atexit`` functions (``BaseProcess._bootstrap``)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.patches import ListItem, PatchSet, when_imported

PART = "leaving"


class ChildExit:
    """Has something done when such a child has finished its work, and before it is gone.

    Args:
        patches: where the replaced attribute is kept.
        faults: where failures are counted.
        leave: what is to be done; in the main thread of the child.
    """

    def __init__(self, patches: PatchSet, faults: Faults, leave: Callable[[], object]) -> None:
        self._patches, self._faults, self._leave = patches, faults, leave
        self._hooks: list[ListItem] = []

    def start(self) -> None:
        """Wait for the end, if multiprocessing is imported or will be; we do not import it."""
        self._hooks += when_imported("multiprocessing.util", self._patch)

    def stop(self) -> None:
        """Wait no more; the patch is undone by its owner."""
        for hook in self._hooks:
            hook.undo()
        self._hooks.clear()

    def _patch(self, util: ModuleType) -> None:
        with self._faults.guard(PART):
            self._patches.around(util, "_exit_function", self._exit_function)

    def _exit_function(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # In any other process it is called at exit, through a reference that is older than ours.
        try:
            return original(*args, **kwargs)
        finally:
            with self._faults.guard(PART):
                self._leave()

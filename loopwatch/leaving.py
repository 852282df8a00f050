"""The end of a child process of multiprocessing: it runs no ``atexit`` functions (``BaseProcess._bootstrap``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from loopwatch._faults import Faults
from loopwatch._imports import WhenImported
from loopwatch._patches import ListItem, PatchSet, loaded

PART = "leaving"


class Leaving:
    """Has something done when such a child has finished its work, and before it is gone.

    Args:
        patches: where the replaced attribute is kept.
        faults: where failures are counted.
        leave: what is to be done; in the main thread of the child.
    """

    def __init__(self, patches: PatchSet, faults: Faults, leave: Callable[[], object]) -> None:
        self._patches, self._faults, self._leave = patches, faults, leave
        self._hook: ListItem | None = None

    def start(self) -> None:
        """Wait for the end, if multiprocessing is imported or will be; we do not import it."""
        module = loaded("multiprocessing.util")
        if module is not None:
            self._patch(module)
        else:
            self._hook = ListItem(sys.meta_path, WhenImported("multiprocessing.util", self._patch), first=True)

    def stop(self) -> None:
        """Wait no more; the patch is undone by its owner."""
        if self._hook is not None:
            self._hook.undo()
            self._hook = None

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

"""Exit hook for child processes of multiprocessing, which run no ``atexit`` functions (``BaseProcess._bootstrap``)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.patches import ListItem, PatchSet, when_imported

PART = "leaving"


class ChildExit:
    """Calls a function when a multiprocessing child has finished its work, before the process ends.

    Args:
        patches: holds the replaced attribute.
        faults: counts failures.
        leave: called in the main thread of the child.
    """

    def __init__(self, patches: PatchSet, faults: Faults, leave: Callable[[], object]) -> None:
        self._patches, self._faults, self._leave = patches, faults, leave
        self._hooks: list[ListItem] = []

    def start(self) -> None:
        """Install the hook, now or once the program imports multiprocessing; never imports it."""
        self._hooks += when_imported("multiprocessing.util", self._patch)

    def stop(self) -> None:
        """Stop waiting for the import; the owner of ``patches`` undoes the patch."""
        for hook in self._hooks:
            hook.undo()
        self._hooks.clear()

    def _patch(self, util: ModuleType) -> None:
        with self._faults.guard(PART):
            self._patches.around(util, "_exit_function", self._exit_function)

    def _exit_function(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Other processes call it at exit, through a reference that is older than the patch.
        try:
            return original(*args, **kwargs)
        finally:
            with self._faults.guard(PART):
                self._leave()

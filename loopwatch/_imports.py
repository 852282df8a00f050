"""Call back once a module has been imported, without importing it ourselves.

Stands alone (standard library only, nothing heavy): it also runs in every Python process started under ``loopwatch
run``, most of which never start an event loop. Unlike wrapt's import hooks the finder goes away when it is done.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class WhenImported:
    """A meta path finder that waits for one module; finds nothing itself.

    Args:
        name: module to wait for.
        callback: called with the module after it ran; not called if it failed to import.

    Example:
        >>> hook = WhenImported("uvloop", print)
        >>> sys.meta_path.insert(0, hook)
        >>> sys.meta_path.remove(hook)
    """

    def __init__(self, name: str, callback: Callable[[ModuleType], object]) -> None:
        self._name, self._callback = name, callback
        self._searching = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the finder protocol
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Find ``name`` through the other finders and have its loader call back."""
        if name != self._name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # An instance attribute of this one loader object, which dies with the spec.
            del spec.loader.exec_module  # type: ignore[union-attr]
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._callback(module)

        try:
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        except AttributeError:
            return None  # a loader without attributes of its own: leave it alone
        return spec

"""Import hooks: callbacks for modules that the program imports; the modules are never imported here.

Self-contained (standard library only, nothing heavy): also runs in every Python process started under
``loopwatch run``, most of which never start an event loop. Unlike wrapt's import hooks the finder removes itself when
it is done.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False  # recognised by type checkers; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import Any


class WhenImported:
    """A meta path finder that waits for one module and finds nothing itself.

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
        """Find ``name`` through the other finders, and wrap its loader so that it calls back."""
        if name != self._name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Notifying(spec.loader, self._imported)  # type: ignore[assignment]
        return spec

    def _imported(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._callback(module)


class _Notifying:
    """Proxy for the loader of one module until it has run; loaders may be shared, so they are not changed."""

    def __init__(self, loader: Any, imported: Callable[[ModuleType], None]) -> None:
        self._loader, self._imported = loader, imported

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with the real loader."""
        spec.loader = self._loader
        try:
            return self._loader.create_module(spec)  # type: ignore[no-any-return]
        finally:
            spec.loader = self  # type: ignore[assignment]

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with its real loader in place, then call back."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._imported(module)


class WhenComplete(ModuleSpec):
    """Calls back once a module whose import is in progress, further up the stack, has been imported.

    Replaces the class of its ``__spec__`` until then: the end of the import is recorded there (``_load_unlocked`` in
    Lib/importlib/_bootstrap.py), and nowhere else.
    """

    @classmethod
    def of(cls, module: ModuleType, callback: Callable[[ModuleType], object]) -> None:
        """Call back with ``module`` once it is imported; not if its import fails."""
        spec = module.__spec__
        if type(spec) is ModuleSpec:
            spec.loopwatch = module, callback  # type: ignore[attr-defined]
            spec.__class__ = cls

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            module, callback = self.__dict__.pop("loopwatch")
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            if sys.modules.get(self.name) is module:
                callback(module)

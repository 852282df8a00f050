"""Resolves functions named in the settings as ``pkg.mod:function``: now, or when their module is imported."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Self

from loopwatch.core.import_hooks import WhenImported
from loopwatch.core.patches import ListItem, loaded


class Target(NamedTuple):
    """The name of a function in the settings.

    Attributes:
        module: module of the function.
        path: qualified name in it; ``*`` for all functions and methods that the module defines.
    """

    module: str
    path: str

    @property
    def name(self) -> str:
        """The name as configured."""
        return f"{self.module}:{self.path}"

    @classmethod
    def of(cls, name: str) -> Self:
        """Parse a configured name; the configuration has checked its form."""
        module, _, path = name.partition(":")
        return cls(module, path)


class Found(NamedTuple):
    """A function found by its name.

    Attributes:
        function: a function written in Python: plain, or a coroutine function.
        single: whether it was named by itself, not by ``*``.
        method: whether it takes an object or a class as its first argument.
    """

    function: FunctionType
    single: bool
    method: bool


class Search:
    """Finds functions by name, each as soon as its module is imported.

    Args:
        targets: the names.
        on_found: called with (target, functions).
        on_missing: called with (target, reason) for a name that does not resolve.
    """

    def __init__(
        self,
        targets: list[Target],
        on_found: Callable[[Target, list[Found]], None],
        on_missing: Callable[[Target, str], None],
    ) -> None:
        self._open = list(targets)
        self._on_found, self._on_missing = on_found, on_missing
        self._hooks: list[ListItem] = []

    def start(self) -> None:
        """Search the imported modules, and install import hooks for the others."""
        self.look(begun=False)
        for module in dict.fromkeys(target.module for target in self._open if target.module not in sys.modules):
            self._hooks.append(ListItem(sys.meta_path, WhenImported(module, self._imported), first=True))
            top = module.partition(".")[0]
            if not _can_be_found(top):
                self._miss(module, f"there is no module {top}")

    def look(self, *, begun: bool = True) -> None:
        """Search again, in modules imported since.

        Args:
            begun: whether the program runs, so that its ``__main__`` is complete.
        """
        for target in list(self._open):
            module = loaded(target.module)
            if module is not None and (begun or target.module != "__main__"):
                self._resolve(target, module)

    def _imported(self, module: ModuleType) -> None:
        for target in [each for each in self._open if each.module == module.__name__]:
            self._resolve(target, module)

    def _resolve(self, target: Target, module: ModuleType) -> None:
        self._open.remove(target)
        try:
            found = list(_all_of(module)) if target.path == "*" else [_one_of(module, target.path)]
        except LookupError as exc:
            self._on_missing(target, str(exc.args[0]))
        else:
            self._on_found(target, found)

    def stop(self) -> None:
        """Remove the import hooks; report names whose modules were never imported."""
        for hook in self._hooks:
            hook.undo()
        self._hooks.clear()
        for target in self._open:
            self._on_missing(target, f"{target.module} was never imported")
        self._open.clear()

    def _miss(self, module: str, why: str) -> None:
        for target in [each for each in self._open if each.module == module]:
            self._open.remove(target)
            self._on_missing(target, why)


def _can_be_found(top: str) -> bool:
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _one_of(module: ModuleType, path: str) -> Found:
    owner: Any = module
    *outer, last = path.split(".")
    for name in outer:
        owner = vars(owner).get(name)
        if not isinstance(owner, type):
            raise LookupError(f"{module.__name__} has no class {name}")
    raw = inspect.getattr_static(owner, last, None)
    if raw is None:
        raise LookupError(f"{owner.__name__} has no {last}")
    return _found(raw, path, single=True)


def _found(raw: Any, path: str, *, single: bool) -> Found:
    function = getattr(raw, "__func__", raw)
    if not isinstance(function, FunctionType):
        raise LookupError(f"{path} is a {type(raw).__name__}, and no function written in Python")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise LookupError(f"{path} is a generator, which cannot be moved; return a list")
    return Found(function, single, "." in path and not isinstance(raw, staticmethod))


def _all_of(module: ModuleType) -> Iterator[Found]:
    """Yield what ``*`` names: the functions that a module defines, and methods of its classes except special ones."""
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            methods = [(f"{name}.{inner}", raw) for inner, raw in vars(value).items() if not inner.startswith("__")]
        else:
            methods = [(name, value)]
        for path, raw in methods:
            function = getattr(raw, "__func__", raw)
            if getattr(function, "__module__", None) == module.__name__:
                try:
                    yield _found(raw, path, single=False)
                except LookupError:
                    continue

"""WhenImported: one call after one module has been imported, and no trace of it afterwards."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loopwatch.core.import_hooks import WhenImported

NAMES = ("awaited_module", "awaited_package", "bystander", "builtin_like")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path with modules of the user's; they and all finders are gone afterwards."""
    (tmp_path / "awaited_module.py").write_text("value = 41\nvalue += 1\n")
    (tmp_path / "bystander.py").write_text("value = 1\n")
    package = tmp_path / "awaited_package"
    package.mkdir()
    (package / "__init__.py").write_text("order = ['package']\n")
    (package / "part.py").write_text("from awaited_package import order\norder.append('part')\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


class Calls(list[ModuleType]):
    """The modules passed to a hook."""

    def __call__(self, module: ModuleType) -> None:
        self.append(module)


def waiting_for(name: str) -> tuple[WhenImported, Calls]:
    calls = Calls()
    hook = WhenImported(name, calls)
    sys.meta_path.insert(0, hook)
    return hook, calls


def test_called_once_after_the_module_ran() -> None:
    """The callback gets the module once, after its code has run to its end, and the finder is gone then."""
    hook, calls = waiting_for("awaited_module")
    module = importlib.import_module("awaited_module")
    assert calls == [module]
    assert module.value == 42
    assert hook not in sys.meta_path
    importlib.reload(module)
    importlib.import_module("awaited_module")
    assert calls == [module]


def test_module_does_not_see_the_hook() -> None:
    """The module's spec and loader are the original ones, without an attribute of the hook."""
    _, calls = waiting_for("awaited_module")
    module = importlib.import_module("awaited_module")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert "exec_module" not in vars(module.__loader__)
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert len(calls) == 1


def test_failing_import_is_no_import(modules: Path) -> None:
    """A module that raises is not reported, and its error is unchanged; once repaired, it is reported."""
    path = modules / "awaited_module.py"
    path.write_text("raise RuntimeError('no database here')\n")
    hook, calls = waiting_for("awaited_module")
    with pytest.raises(RuntimeError, match="no database here"):
        importlib.import_module("awaited_module")
    assert calls == []
    assert hook in sys.meta_path
    path.write_text("value = 'repaired, and longer than before'\n")
    importlib.invalidate_caches()
    assert importlib.import_module("awaited_module").value.startswith("repaired")
    assert len(calls) == 1
    assert hook not in sys.meta_path


def test_other_modules_are_left_alone() -> None:
    """Importing something else neither calls nor removes the hook, nor touches its loader."""
    hook, calls = waiting_for("awaited_module")
    module = importlib.import_module("bystander")
    assert "exec_module" not in vars(module.__loader__)
    assert calls == []
    assert hook in sys.meta_path


def test_module_that_does_not_exist() -> None:
    """A missing module raises as before, and the hook keeps waiting."""
    hook, calls = waiting_for("builtin_like")
    with pytest.raises(ModuleNotFoundError, match="builtin_like"):
        importlib.import_module("builtin_like")
    assert calls == []
    assert hook in sys.meta_path


def test_looking_for_a_module_is_no_import() -> None:
    """find_spec() alone does not call the hook; a later import does."""
    _, calls = waiting_for("awaited_module")
    assert importlib.util.find_spec("awaited_module") is not None
    assert "awaited_module" not in sys.modules
    assert calls == []
    importlib.import_module("awaited_module")
    assert len(calls) == 1


def test_other_finders_are_asked() -> None:
    """A module that only another finder knows is found through it, once, and reported."""
    asked: list[str] = []

    class Loader:
        def create_module(self, spec: ModuleSpec) -> None:
            return None

        def exec_module(self, module: ModuleType) -> None:
            module.value = 7  # type: ignore[attr-defined]

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            asked.append(name)
            return ModuleSpec(name, Loader()) if name == "builtin_like" else None  # type: ignore[arg-type]

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    _, calls = waiting_for("builtin_like")
    module = importlib.import_module("builtin_like")
    assert module.value == 7
    assert calls == [module]
    assert asked == ["builtin_like"]


def test_loader_without_attributes_of_its_own() -> None:
    """A loader that accepts no attributes is supported: the module is imported and reported."""

    class Slotted:
        __slots__ = ()

        def create_module(self, spec: ModuleSpec) -> None:
            return None

        def exec_module(self, module: ModuleType) -> None:
            module.value = 8  # type: ignore[attr-defined]

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(name, Slotted()) if name == "builtin_like" else None  # type: ignore[arg-type]

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    _, calls = waiting_for("builtin_like")
    module = importlib.import_module("builtin_like")
    assert module.value == 8
    assert calls == [module]
    assert isinstance(module.__loader__, Slotted)


def test_package_is_reported_before_its_parts() -> None:
    """Importing pkg.part imports pkg first: a hook for pkg is called with the complete pkg either way."""
    _, calls = waiting_for("awaited_package")
    part = importlib.import_module("awaited_package.part")
    assert [module.__name__ for module in calls] == ["awaited_package"]
    assert part.order == ["package", "part"]


def test_submodule_can_be_awaited() -> None:
    """A hook for pkg.part is called with that submodule, and importing pkg alone does not call it."""
    hook, calls = waiting_for("awaited_package.part")
    importlib.import_module("awaited_package")
    assert calls == []
    module = importlib.import_module("awaited_package.part")
    assert calls == [module]
    assert hook not in sys.meta_path


def test_callback_that_raises() -> None:
    """An error of the callback propagates to the import, and the finder is gone all the same."""

    def broken(module: ModuleType) -> None:
        raise ZeroDivisionError

    hook = WhenImported("awaited_module", broken)
    sys.meta_path.insert(0, hook)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("awaited_module")
    assert hook not in sys.meta_path


def test_withdrawn_hook_is_not_called() -> None:
    """A hook taken out of sys.meta_path while the module is being imported is not called."""
    calls = Calls()
    hook = WhenImported("awaited_module", calls)
    spec = hook.find_spec("awaited_module")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.value == 42
    assert calls == []


def test_two_hooks_for_one_module() -> None:
    """Two agents may wait for the same module: each is called once."""
    first, calls_of_first = waiting_for("awaited_module")
    second, calls_of_second = waiting_for("awaited_module")
    importlib.import_module("awaited_module")
    assert (len(calls_of_first), len(calls_of_second)) == (1, 1)
    assert first not in sys.meta_path
    assert second not in sys.meta_path


def test_loader_that_is_a_class() -> None:
    """A builtin module's loader, a class that serves all builtin modules, is not touched."""
    from importlib.machinery import BuiltinImporter

    before, name = dict(vars(BuiltinImporter)), "_symtable"
    assert name in sys.builtin_module_names
    sys.modules.pop(name, None)
    _, calls = waiting_for(name)
    module = importlib.import_module(name)
    assert calls == [module]
    assert module.__loader__ is BuiltinImporter
    assert dict(vars(BuiltinImporter)) == before


def test_loader_that_is_used_again() -> None:
    """A finder that returns one loader twice, for a lookup and for an import, ends with that loader clean."""

    class Loader:
        def create_module(self, spec: ModuleSpec) -> None:
            return None

        def exec_module(self, module: ModuleType) -> None:
            module.value = 9  # type: ignore[attr-defined]

    loader = Loader()

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(name, loader) if name == "builtin_like" else None  # type: ignore[arg-type]

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    _, calls = waiting_for("builtin_like")
    assert importlib.util.find_spec("builtin_like") is not None
    assert importlib.import_module("builtin_like").value == 9
    assert len(calls) == 1
    assert vars(loader) == {}

"""The package's public contract: its names, its layers, and a light import."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import loopwatch

ROOT = Path(loopwatch.__file__).parent

PUBLIC = {"agent", "config", "errors", "events", "testing"}
"""Modules at the top of the package; everything else there is a folder or begins with an underscore."""

RECORDS = {"config", "errors", "events"}
"""Public modules at the bottom: they import ``core`` and each other, and everybody imports them."""

ORDER = (
    "core", "system", "watch", "diagnosis", "sinks", "report", "health", "telemetry", "workers", "offloading",
    "agent", "_installed", "testing", "demo", "cli", "__main__",
)  # fmt: skip
"""The contract, lowest first: a module may import its own folder and those before it. No two are equal."""

ONLY_IN = {
    "opentelemetry.sdk": ("loopwatch.telemetry.otel",),
    "opentelemetry.exporter": ("loopwatch.telemetry.otel",),
    "opentelemetry": ("loopwatch.telemetry.otel", "loopwatch.workers.tracing"),
    "prometheus_client": ("loopwatch.telemetry.prometheus",),
    "psutil": ("loopwatch.health.children", "loopwatch.telemetry.prometheus.neighbours"),
    "greenlet": ("loopwatch.offloading.bridge",),
}
"""Who may import a library, imports for type checkers left out."""

PURE = {
    "loopwatch.diagnosis",
    "loopwatch.watch.governor",
    "loopwatch.events",
    "loopwatch.watch.expectations",
    "loopwatch.watch.prompts",
    "loopwatch.core.text",
    "loopwatch.system.syscalls",
    "loopwatch.health.states",
    "loopwatch.health.findings",
    "loopwatch.health.finding_rules",
    "loopwatch.health.history",
}
IMPURE = {"os", "time", "threading", "socket", "asyncio", "subprocess", "linecache", "sys"}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the modules that ``path`` imports, those for type checkers only left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    names = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def folder_of(module: str) -> str:
    """Return the folder below ``loopwatch`` that ``module`` is in, or its own name if it is at the top."""
    return module.split(".")[1] if "." in module else ""


def own_imports() -> list[tuple[str, str]]:
    """Return the imports between modules of the package, as pairs."""
    known = modules()
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    pairs = {(name, found) for name, path in known.items() for found in imports(path) if found in known}
    # ``from package import module`` is about the module.
    return sorted((name, found) for name, found in pairs if name != found and found not in packages)


def test_every_module_is_public_or_in_a_known_folder() -> None:
    """Modules at the top of the package are public, or among the few exceptions; the others are in known folders."""
    top = {folder_of(name) for name in modules()} - {""}
    assert top == set(ORDER) | RECORDS | {"_version"}
    loose = {path.stem for path in ROOT.glob("*.py")}
    assert loose == PUBLIC | {"__init__", "__main__", "_installed", "_version"}


def test_no_folder_hides_a_public_name() -> None:
    """No folder has a public name, since importing a folder makes it an attribute of the package."""
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders & set(loopwatch.__all__) == set()


def test_every_package_is_shipped() -> None:
    """Each folder with an ``__init__`` is in the list of packages that an installation gets."""
    listed = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(listed) == found | {"loopwatch.integrations", "loopwatch.dashboards"}


def test_imports_point_down() -> None:
    """No module imports from a folder that comes after its own."""
    rank = {name: place for place, name in enumerate(ORDER)}
    wrong = [
        (name, found)
        for name, found in own_imports()
        if folder_of(found) in rank
        and not (folder_of(name) == folder_of(found) or rank.get(folder_of(name), -1) > rank[folder_of(found)])
        and not (folder_of(name) in {"", *RECORDS} and folder_of(found) == "core")
    ]
    assert wrong == []


def test_modules_have_no_cycle() -> None:
    """Within a folder, too, imports go one way: there is an order in which each module follows those it imports."""
    above: dict[str, set[str]] = {name: set() for name in modules()}
    for name, found in own_imports():
        above[name].add(found)
    order = graphlib.TopologicalSorter(above)
    order.prepare()  # raises CycleError, which names one


def test_libraries_are_imported_in_one_place() -> None:
    """OpenTelemetry, prometheus_client, psutil and greenlet are each imported by a few modules only."""
    wrong = [
        (name, found)
        for name, path in modules().items()
        for found in imports(path)
        for library, allowed in ONLY_IN.items()
        if (found == library or found.startswith(library + "."))
        and not any(name == place or name.startswith(place + ".") for place in allowed)
    ]
    assert wrong == []


def test_pure_modules_have_no_side_effects() -> None:
    """Diagnosis and governor import neither clocks nor threads nor files."""
    wrong = [
        (name, imported)
        for name, path in modules().items()
        if any(name == pure or name.startswith(pure + ".") for pure in PURE)
        for imported in imports(path)
        if imported.partition(".")[0] in IMPURE
    ]
    assert wrong == []


def test_integrations_use_public_names_only() -> None:
    """An integration uses public names only."""
    folder = ROOT.parent / "integrations"
    wrong = [
        (path.name, name)
        for path in folder.glob("*.py")
        for name in imports(path)
        if name.startswith("loopwatch") and name not in {"loopwatch", "loopwatch.testing"}
    ]
    assert wrong == []


def test_public_names_are_frozen() -> None:
    """The public names are these, and each can be imported."""
    assert sorted(loopwatch.__all__) == [
        "Agent",
        "Backend",
        "CallOptions",
        "Cause",
        "Config",
        "ConfigError",
        "Decision",
        "Evidence",
        "FlaggedFunction",
        "Frame",
        "LoopwatchError",
        "NotPicklable",
        "OffloadError",
        "PoolClosed",
        "PoolStats",
        "QueueFull",
        "SharedBuffer",
        "Snapshot",
        "Stall",
        "TaskTimeout",
        "WorkerCrashed",
        "WorkerPool",
        "WorkerStats",
        "current_agent",
        "expected",
        "install",
        "offload",
        "uninstall",
    ]
    for name in loopwatch.__all__:
        assert getattr(loopwatch, name).__name__ == name
    assert set(dir(loopwatch)) == set(loopwatch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = loopwatch.nope  # type: ignore[attr-defined]


def loaded_by(statement: str) -> set[str]:
    """Return the modules that ``statement`` loads in a fresh interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    # -X frozen_modules and site differ between machines: only new modules count.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_else() -> None:
    """``import loopwatch`` loads itself and the parts of importlib that PEP 562 needs, nothing more."""
    allowed = {"loopwatch", "importlib", "importlib._bootstrap", "importlib._bootstrap_external", "warnings"}
    assert loaded_by("import loopwatch") <= allowed | {"__future__", "typing", "_typing", "_warnings"} | _of_typing()


def _of_typing() -> set[str]:
    return loaded_by("import typing, importlib")


def test_install_loads_nothing_heavy() -> None:
    """Installing does not import OpenTelemetry, psutil, multiprocessing, ctypes or uvloop."""
    loaded = loaded_by("import loopwatch; loopwatch.install()")
    heavy = {"opentelemetry", "psutil", "multiprocessing", "uvloop", "ctypes", "sqlite3", "grpc", "requests"}
    assert heavy & {name.partition(".")[0] for name in loaded} == set()


CHANGES = {"add", "append", "appendleft", "clear", "discard", "extend", "pop", "popitem", "popleft", "remove",
           "setdefault", "update"}  # fmt: skip


def _variables(tree: ast.Module) -> set[str]:
    """Return the names of a module's own variables, except variables made by ``process_state.one``."""
    found = set()
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign) else None
        is_owned = isinstance(value, ast.Call) and ast.unparse(value.func) == "one"
        if isinstance(node, ast.Assign):
            targets = node.targets
        else:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name) and not is_owned}
    return found


def _changed_by(node: ast.AST) -> list[ast.expr]:
    """Return the names that ``node`` changes in place."""
    if isinstance(node, ast.Assign | ast.Delete | ast.AugAssign):
        targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
        return [target.value for target in targets if isinstance(target, ast.Subscript | ast.Attribute)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
        return [node.func.value]
    return []


def changed_variables(tree: ast.Module) -> set[str]:
    """Return the names of a module's variables that its functions rebind or change in place."""
    changed: set[str] = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
        for node in ast.walk(function):
            changed |= set(node.names) if isinstance(node, ast.Global) else set()
            changed |= {each.id for each in _changed_by(node) if isinstance(each, ast.Name)}
    return changed & _variables(tree)


def test_state_of_the_process_is_in_one_module() -> None:
    """No module changes a variable of its own but ``core.process_state``, and the cache of pickles that it names."""
    found = {name: changed_variables(ast.parse(path.read_text())) for name, path in modules().items()}
    assert {name: changed for name, changed in found.items() if changed} == {
        "loopwatch.core.process_state": {"_ones", "_living"},
        "loopwatch.workers.pickling": {"_FUNCTIONS"},
    }

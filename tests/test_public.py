"""What the package promises to everybody: its names, its layers, the lightness of its import."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import loopwatch

ROOT = Path(loopwatch.__file__).parent

LAYERS = [
    {"loopwatch.core"},
    {"loopwatch.events", "loopwatch.errors", "loopwatch.diagnosis.flagging"},
    {"loopwatch.config", "loopwatch.core.patches", "loopwatch.core.faults"},
    {
        "loopwatch.watch.probes",
        "loopwatch.system.threads",
        "loopwatch.watch.stacks",
        "loopwatch.watch.task_info",
        "loopwatch.watch.observation",
        "loopwatch.watch.expectations",
        "loopwatch.watch.prompts",
        "loopwatch.watch.server_start",
        "loopwatch.watch.contention",
        "loopwatch.watch.usage",
        "loopwatch.watch.watched_loop",
        "loopwatch.watch.watcher",
        "loopwatch.watch.waiters",
        "loopwatch.watch.discovery",
        "loopwatch.core.child_exit",
        "loopwatch.health",
        "loopwatch.watch.governor",
        "loopwatch.diagnosis",
    },
    {"loopwatch.telemetry", "loopwatch.sinks.thread", "loopwatch.workers"},
    {"loopwatch.sinks.service", "loopwatch.offloading.service"},
    {"loopwatch.services"},
    {"loopwatch.agent"},
    {"loopwatch._installed"},
    {
        "loopwatch.cli.main",
        "loopwatch.__main__",
        "loopwatch.cli.run",
        "loopwatch.cli.doctor",
        "loopwatch.cli.dashboards",
        "loopwatch.cli.grafana",
        "loopwatch.cli.bootstrap",
        "loopwatch.demo",
        "loopwatch.demo.app",
        "loopwatch.testing",
    },
]
"""The contract, lowest layer first; a module may import its own layer and those below it."""

PURE = {
    "loopwatch.diagnosis",
    "loopwatch.watch.governor",
    "loopwatch.events",
    "loopwatch.diagnosis.flagging",
    "loopwatch.watch.expectations",
    "loopwatch.watch.prompts",
    "loopwatch.core.text",
    "loopwatch.health.states",
    "loopwatch.health.findings",
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


def layer_of(module: str) -> int | None:
    for level, members in enumerate(LAYERS):
        if any(module == member or module.startswith(member + ".") for member in members):
            return level
    return None


def test_every_module_has_a_layer() -> None:
    """A new module must be given its place."""
    unplaced = [name for name in modules() if name != "loopwatch" and layer_of(name) is None]
    assert unplaced == []


def test_every_package_is_shipped() -> None:
    """Each folder with an ``__init__`` is in the list of packages that an installation gets."""
    listed = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(listed) == found | {"loopwatch.integrations", "loopwatch.dashboards"}


def test_imports_point_down() -> None:
    """No module imports from a layer above its own."""
    wrong = [
        (name, imported)
        for name, path in modules().items()
        for imported in imports(path)
        if name != "loopwatch" and (layer_of(imported) or 0) > (layer_of(name) or 0)
    ]
    assert wrong == []


def test_pure_modules_touch_no_world() -> None:
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
    """An integration needs nothing that a user could not use."""
    folder = ROOT.parent / "integrations"
    wrong = [
        (path.name, name)
        for path in folder.glob("*.py")
        for name in imports(path)
        if name.startswith("loopwatch") and name not in {"loopwatch", "loopwatch.testing"}
    ]
    assert wrong == []


def test_public_names_are_frozen() -> None:
    """The public names are these, and each can be had."""
    assert sorted(loopwatch.__all__) == [
        "Agent",
        "Backend",
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
    # -X frozen_modules and site differ between machines: only what is new counts.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_else() -> None:
    """``import loopwatch`` loads itself and what PEP 562 needs of importlib, nothing more."""
    allowed = {"loopwatch", "importlib", "importlib._bootstrap", "importlib._bootstrap_external", "warnings"}
    assert loaded_by("import loopwatch") <= allowed | {"__future__", "typing", "_typing", "_warnings"} | _of_typing()


def _of_typing() -> set[str]:
    return loaded_by("import typing, importlib")


def test_install_loads_nothing_heavy() -> None:
    """Installing does not import OpenTelemetry, psutil, multiprocessing, ctypes or uvloop."""
    loaded = loaded_by("import loopwatch; loopwatch.install()")
    heavy = {"opentelemetry", "psutil", "multiprocessing", "uvloop", "ctypes", "sqlite3", "grpc", "requests"}
    assert heavy & {name.partition(".")[0] for name in loaded} == set()

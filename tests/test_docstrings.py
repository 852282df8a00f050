"""Docstrings: every public definition has one, and every example in one runs."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import loopwatch

ROOT = Path(loopwatch.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py" and ">>>" in path.read_text(encoding="utf-8")
)
"""Those with an example."""


def undocumented(node: ast.AST, name: str) -> Iterator[str]:
    """Yield the public definitions in ``node`` that have no docstring."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        decorators = [ast.unparse(each) for each in child.decorator_list]
        is_repeated = any(each == "overload" or each.endswith(".setter") for each in decorators)
        if ast.get_docstring(child) is None and not is_repeated:
            yield f"{name}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{name}.{child.name}")


def test_every_public_definition_has_a_docstring() -> None:
    """Modules, classes, functions and methods whose names do not begin with an underscore have a docstring."""
    missing = []
    for path in sorted(ROOT.rglob("*.py")):
        tree, name = ast.parse(path.read_text()), str(path.relative_to(ROOT))
        missing += [] if ast.get_docstring(tree) is not None else [name]
        missing += undocumented(tree, name)
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each example prints the documented output."""
    if "uvloop" in name:
        pytest.importorskip("uvloop")
    monkeypatch.chdir(tmp_path)
    failed, _tried = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0

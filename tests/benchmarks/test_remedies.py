"""The remedy table, the benchmark that proves its rows, and the table in the documentation belong together."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from loopwatch.diagnosis.remedy_table import TABLE

ROOT = Path(__file__).parents[2]
DOCUMENTED = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in (ROOT / "docs" / "remedies.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "[docs]" in line
]


@pytest.fixture
def remedies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("remedies", ROOT / "benchmarks" / "remedies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "remedies", module)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_wide_and_each_row_has_its_reason() -> None:
    """There are eighty rows or more, each with an operation of its own, a reason, and a reference."""
    operations = [row.operation for row in TABLE]
    assert len(operations) == len(set(operations)) >= 80
    for row in TABLE:
        assert row.reason, row.operation
        assert re.match(r"https://\S+$", row.reference), row.operation


def test_each_row_is_proven_or_says_why_not(remedies: ModuleType) -> None:
    """Each row of the table has two programs, or a reason why they cannot be run; there are no others."""
    assert set(remedies.PAIRS) | set(remedies.NOT_RUN) == {row.operation for row in TABLE}
    assert not set(remedies.PAIRS) & set(remedies.NOT_RUN)


def test_the_documentation_shows_the_table(remedies: ModuleType) -> None:
    """The documented table has each row, with its causes, words, reason and reference as they are."""
    expected = [remedies.row_of(row, remedies.Measured(why="")).split(" | ")[:5] for row in TABLE]
    assert [[cell.strip("| ") for cell in row] for row in expected] == [row[:5] for row in DOCUMENTED]


def test_documented_remedies_help() -> None:
    """What was measured is a fifth of the blocked time at most, but for the rows that the documentation names."""
    measured = [row for row in DOCUMENTED if not row[5].startswith("not run")]
    helped = [row for row in measured if float(row[7]) <= 0.2]
    assert len(measured) >= 80
    assert len(helped) >= 0.95 * len(measured)

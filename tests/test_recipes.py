"""The recipes in CONTRIBUTING are correct: their files exist, and a cause is known in every required place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import loopwatch
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.events import Cause

ROOT = Path(__file__).parent.parent
PACKAGE = Path(loopwatch.__file__).parent
RECIPES = (ROOT / "CONTRIBUTING.md").read_text().partition("## How to add")[2].partition("\n## ")[0]


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_its_words_and_its_colour(cause: Cause) -> None:
    """Each cause has words in log line and demo, a colour of its own in the page, and a line in the README."""
    style = (PACKAGE / "report" / "page" / "style.css").read_text()
    colours = dict(re.findall(r"\.([a-z_]+)\{--c:(#[0-9a-f]{6})\}", style))
    facts = CAUSES[cause]
    assert facts.doing and facts.why and facts.remedy.endswith(".")
    assert list(colours.values()).count(colours[cause.value]) == 1
    assert f"| `{cause.value}` |" in (ROOT / "README.md").read_text()


def test_recipes_name_existing_files() -> None:
    """Each file and folder of a recipe exists."""
    named = re.findall(r"`([a-z_/.]+(?:\.py|\.css|\.md|/))`", RECIPES)
    assert len(named) > 30
    beside = PACKAGE / "telemetry" / "metrics"
    assert [name for name in named if not any((base / name).exists() for base in (ROOT, PACKAGE, beside))] == []

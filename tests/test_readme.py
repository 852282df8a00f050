"""The claims of README and documentation are true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loopwatch
from loopwatch.cli.main import main
from loopwatch.diagnosis import cause, own_part, starvation
from loopwatch.events import LagRecord
from loopwatch.sinks.files import journal_path
from loopwatch.sinks.journal import JournalWriter
from tests.support.stalls import T0, make_stall

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_first_two_shell_blocks_are_demo_and_tests() -> None:
    """The first command installs and runs the demo, the second installs and passes the tests; each stands alone."""
    demo, tests = blocks("sh")[:2]
    assert demo.splitlines()[-1] == ".venv/bin/loopwatch demo"
    assert tests.splitlines()[-1] == ".venv/bin/python -m pytest -n auto"
    for block in (demo, tests):
        assert block.startswith("python -m venv .venv\n.venv/bin/pip install ")


def test_python_blocks_run(tmp_path: Path) -> None:
    """The Python blocks of the README run, one after the other, in a fresh interpreter."""
    stubs = (
        "class app:\n    @staticmethod\n    def add_middleware(middleware, **settings): middleware(None, **settings)\n"
    )
    code = stubs + "\n".join(blocks("python"))
    ast.parse(code)
    quiet = os.environ | {"LOOPWATCH_LOG_LEVEL": "CRITICAL"}  # a busy machine starves the loop, which is logged
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=quiet
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_python_blocks_of_offload_page_run(tmp_path: Path) -> None:
    """The Python blocks of docs/offload.md run and print the documented output, the decorator's one by itself."""
    page = (ROOT / "docs" / "offload.md").read_text()
    first, decorator, *others = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    said = []
    for code in ("".join((first, *others)), decorator):
        program = tmp_path / "page.py"
        program.write_text(code)
        done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append((done.stdout.strip(), done.stderr))
    (named, warned), (decorated, silent) = said
    assert named == "json:dumps runs inline, on the loop: it was not found to block"
    assert "transparent_offload names reports.text:*, which stays as it is: there is no module reports" in warned
    assert re.fullmatch(r"__main__:pause runs in a thread: it takes .* ms and waits for \d+% of that: .*", decorated)
    assert silent == ""


@pytest.mark.measures
def test_python_blocks_of_settings_page_run(tmp_path: Path) -> None:
    """The Python blocks of docs/settings.md run one after the other, and print what is shown below each."""
    page = (ROOT / "docs" / "settings.md").read_text()
    program = tmp_path / "page.py"
    program.write_text("".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)))
    shown = "".join(re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    env = os.environ | {"LOOPWATCH_LOG_LEVEL": "CRITICAL"}  # a busy machine starves the loop, which is logged
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


def test_suggestion_on_settings_page_is_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The journal that docs/settings.md describes gives the text shown there, at the width of 100 columns."""
    page = (ROOT / "docs" / "settings.md").read_text()
    shown = re.search(
        r"^\$ loopwatch report --suggest-threshold stalls.jsonl\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    assert shown is not None
    writer = JournalWriter(journal_path(f"{tmp_path}/stalls.jsonl", 100), 1 << 20)
    for number in range(20):
        writer.write(make_stall(number, duration=0.25))
    writer.write_lag(LagRecord("main", 100, T0, 36_000.0, 0.1, ((0.001, 99_900), (0.04, 60), (0.09, 40))))
    writer.close()
    assert main(["report", "--suggest-threshold", f"{tmp_path}/stalls.jsonl", "--width", "100"]) == 0
    assert capsys.readouterr().out == shown[1]


def test_causes_are_all_explained() -> None:
    """The table of causes has each cause once, and no other."""
    table = README.partition("## What it says")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [each.value for each in loopwatch.Cause]


def test_thresholds_of_the_own_part() -> None:
    """The numbers in docs/architecture.md about time without a processor and about overload are those of the code."""
    part = ARCHITECTURE.partition("### The own part of a block")[2].partition("###")[0]
    shares = [int(number) / 100 for number in re.findall(r"(\d+) %", part)]
    assert shares == [own_part.NOTABLE, starvation.WORTH_SAYING, starvation.SERIOUS]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", ARCHITECTURE, re.MULTILINE))
    assert rows["handles"].startswith(f"{cause.MANY_HANDLES} or more")
    assert rows["uneven"].startswith(f"{cause.EVEN:.0%} at most".replace("%", " %"))
    assert rows.keys() <= loopwatch.Evidence.__dataclass_fields__.keys()


@pytest.mark.parametrize("command", ["run", "report", "demo", "doctor", "dashboards"])
def test_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that the README shows exists and explains itself."""
    assert f"loopwatch {command}" in README
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: loopwatch" in capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    """Relative links of README and documentation point to files that exist."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    dead = [
        (page.name, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dead == []


def test_architecture_names_every_folder() -> None:
    """The tree in docs/architecture.md has a line for every folder and every top-level module, and for no other."""
    package = Path(loopwatch.__file__).parent
    folders = {f"{path.parent.relative_to(package).as_posix()}/" for path in package.rglob("*/__init__.py")}
    loose = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    tree = ARCHITECTURE.partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_/]+/|[a-z_]+\.py)`", tree))
    beside = {"integrations/", "dashboards/", "dashboards/source/", "service.py"}
    assert named - beside == (folders | loose) - {"cli/bootstrap/"}


def test_settings_are_documented() -> None:
    """Every setting is described in the docstring of Config."""
    documented = loopwatch.Config.__doc__ or ""
    fields = loopwatch.Config.__dataclass_fields__
    assert [name for name in fields if f" {name}" not in documented and f"\n{name}" not in documented] == []

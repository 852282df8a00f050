"""The judge of ``benchmarks/field.py`` is right about made-up journals, and each of its programs has a sound record."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loopwatch.events import Cause

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _imported("field", monkeypatch)


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _imported("field_judge", monkeypatch)


def _imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    for added in set(sys.modules) - before - {name}:
        if str(getattr(sys.modules[added], "__file__", None) or "").startswith(str(BENCHMARKS)):
            monkeypatch.delitem(sys.modules, added)
    return module


def _program(judging: ModuleType, **changes: Any) -> Any:
    right = judging.Right("sleep", "a habit", ("save",), ("sleep",), ("asyncio.sleep",), ("process",))
    return judging.Program("p", Path("/x/p.py"), dataclasses.replace(right, **changes), frozenset())


def _stall(**changes: Any) -> dict[str, Any]:
    frame = {"function": "Shop.save", "module": "__main__", "file": "/x/p.py", "line": 7}
    stall = {
        "ongoing": False, "started_at": 100.0, "duration": 0.4, "uncertainty": 0.0, "starved": 0.0, "cause": "sleep",
        "culprit": frame, "leaf": frame, "samples": [3, 3], "evidence": {"cpu": 0.0}, "remedy": "await asyncio.sleep",
    }  # fmt: skip
    return stall | changes


TRUTH = {"begin": 100.0, "seconds": 0.4}


def test_a_right_stall_is_right_in_all_columns(judging: ModuleType) -> None:
    """A stall with the right culprit, cause, remedy and length is right five times, and nothing is complained of."""
    verdict = judging.judge(_program(judging), [TRUTH], [_stall()], [])
    assert list(verdict.marks.values()) == [True] * 5
    assert verdict.is_right
    assert verdict.said == ()


@pytest.mark.parametrize(
    ("column", "changes"),
    [
        ("culprit", {"culprit": None}),
        ("culprit", {"culprit": {"function": "other", "module": "m", "file": "/x/p.py", "line": 7}}),
        ("cause", {"cause": "python"}),
        ("remedy", {"remedy": "Think again."}),
        ("remedy", {"remedy": "await asyncio.sleep in a process"}),
        ("duration", {"duration": 0.43}),
    ],
)
def test_one_wrong_field_is_wrong_in_one_column(judging: ModuleType, column: str, changes: dict[str, Any]) -> None:
    """Each column depends on its own field alone; the complaint names it."""
    verdict = judging.judge(_program(judging), [TRUTH], [_stall(**changes)], [])
    assert [name for name, mark in verdict.marks.items() if not mark] == [column]
    assert len(verdict.said) == 1
    assert verdict.said[0].startswith(f"{column}: 0.400 s: ")


def test_a_stall_elsewhere_is_no_detection(judging: ModuleType) -> None:
    """A stall half a second away, and one that was only announced, leave all five columns wrong."""
    elsewhere, announced = _stall(started_at=100.9), _stall(ongoing=True)
    verdict = judging.judge(_program(judging), [TRUTH], [elsewhere, announced], [])
    assert list(verdict.marks.values()) == [False] * 5


def test_one_block_that_is_wrong_makes_the_program_wrong(judging: ModuleType) -> None:
    """Of two blocks the second has a wrong cause: the cause is wrong, the other columns right."""
    stalls = [_stall(), _stall(started_at=102.0, cause="io")]
    verdict = judging.judge(_program(judging), [TRUTH, {"begin": 102.0, "seconds": 0.4}], stalls, [])
    assert [verdict.marks[name] for name in judging.COLUMNS] == [True, True, False, True, True]


def test_a_program_that_did_not_block_is_not_judged(judging: ModuleType) -> None:
    """Blocks below 1.1 times the threshold do not count; with too few, no column is right or wrong."""
    verdict = judging.judge(_program(judging), [{"begin": 100.0, "seconds": 0.105}], [_stall()], [])
    assert list(verdict.marks.values()) == [None] * 5
    assert verdict.said == ("the program measured 0 blocks, not 1",)


def test_the_line_counts_where_lines_are_marked(judging: ModuleType) -> None:
    """With line 8 marked, a culprit on line 7 is wrong, and one on line 8 is right."""
    program = dataclasses.replace(_program(judging), lines=frozenset({8}))
    frame = _stall()["culprit"]
    assert [judging.is_culprit(program, frame | {"line": line}) for line in (7, 8)] == [False, True]


def test_nobody_is_right_only_where_the_record_says_so(judging: ModuleType) -> None:
    """No culprit is accepted with "" among the culprits, and only then."""
    programs = [_program(judging), _program(judging, culprit=("save", ""))]
    assert [judging.is_culprit(program, None) for program in programs] == [False, True]


def test_starved_is_right_only_below_the_threshold_of_its_own(judging: ModuleType) -> None:
    """Of 0.4 seconds, 0.35 without a processor make ``starved`` right, 0.2 do not."""
    marks = [
        judging.judge(_program(judging), [TRUTH], [_stall(cause="starved", starved=starved, culprit=None)], []).marks
        for starved in (0.35, 0.2)
    ]
    assert [(each["cause"], each["culprit"]) for each in marks] == [(True, True), (False, False)]


def test_findings_are_judged_in_three_columns(judging: ModuleType) -> None:
    """Where a finding is expected: detected, culprit, remedy; cause and duration do not apply."""
    program = _program(judging, causes=(), finding=("executor", "full"), remedy=("larger",), never=())
    findings = [{"text": "Executor x is full: save is running", "remedy": "Use a larger one."}]
    right, wrong = (judging.judge(program, [], [], found) for found in (findings, []))
    assert [right.marks[name] for name in judging.COLUMNS] == [True, True, None, True, None]
    assert [wrong.marks[name] for name in judging.COLUMNS] == [False, False, None, False, None]
    assert wrong.said == ("no finding",)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("", "no record"),
        ("\n\n---\nkind = 3 =", "x.py"),
        ('\n\n---\nkind = "k"\nafter = "a"\nculprit = []\nremedy = []\ncauses = ["io"]\nword = 1', "word"),
        ('\n\n---\nkind = "k"\nculprit = []\nremedy = []\ncauses = ["io"]', "no after"),
        ('\n\n---\nkind = "k"\nafter = "a"\nculprit = []\nremedy = []', "either causes or finding"),
    ],
)
def test_a_malformed_record_is_refused(judging: ModuleType, tmp_path: Path, record: str, complaint: str) -> None:
    """A record that is missing, is no TOML, has an unknown key, lacks one or has no answer is refused by name."""
    file = tmp_path / "x.py"
    file.write_text(f'"""A program.{record}\n"""\n')
    with pytest.raises(judging.RecordError, match=complaint):
        judging.program(file)


def test_every_program_has_a_sound_record(field: ModuleType, judging: ModuleType) -> None:
    """At least 40 programs; each has known causes and loops, blocks, remedies, and names a culprit that it contains."""
    programs = field.programs()
    assert len(programs) >= 40
    for each in programs:
        right, source = each.right, each.file.read_text()
        assert set(right.causes) <= set(Cause), each.name
        assert set(right.loops) <= {"asyncio", "uvloop"}, each.name
        assert right.loops, each.name
        assert right.blocks >= 1, each.name
        assert right.remedy, each.name
        assert any(right.culprit), each.name
        code = source.partition('"""\n\n')[2]
        assert all(name.rpartition(".")[2] in code for name in right.culprit if not name.endswith(".html")), each.name
        compile(source, each.file, "exec")


def test_a_program_without_its_packages_is_not_run(field: ModuleType, judging: ModuleType) -> None:
    """A missing module is named in the outcome, and nothing is judged."""
    outcome = field.run(_program(judging, needs=("no_such_package_here",)), "asyncio")
    assert (outcome.verdict, outcome.reason) == (None, "not run: no no_such_package_here")


def test_the_table_counts_what_was_judged(field: ModuleType, judging: ModuleType) -> None:
    """Of one right program, one with a wrong cause and one not run, the totals say 2 of 2, and 1 of 2 for the cause."""
    right = judging.judge(_program(judging), [TRUTH], [_stall()], [])
    wrong = judging.judge(_program(judging), [TRUTH], [_stall(cause="io")], [])
    outcomes = [field.Outcome("p", "asyncio", verdict) for verdict in (right, wrong)]
    outcomes.append(field.Outcome("q", "asyncio", None, "not run: no q"))
    assert field.table(outcomes)[-1] == "| all | asyncio | 2 of 2 | 2 of 2 | 1 of 2 | 2 of 2 | 2 of 2 |"
    lines = field.misses(outcomes, {"p": _program(judging)})
    assert len(lines) == 3
    assert lines[-1] == "- q on asyncio: not run: no q"


@pytest.mark.measures
def test_a_program_is_run_and_judged(field: ModuleType) -> None:
    """A coroutine that reads from os.popen is detected with its culprit and cause, in a process of its own."""
    (popen,) = (each for each in field.programs() if each.name == "os_popen")
    verdict = field.run(popen, "asyncio").verdict
    assert verdict is not None
    assert [verdict.marks[name] for name in ("detected", "culprit", "cause")] == [True, True, True], verdict.said

"""docs/health.md says what is so."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from loopwatch.config import Config
from loopwatch.events import WorkerState
from loopwatch.health import finding_rules, findings, health_log, history, monitor, states
from loopwatch.health.children import hooks
from loopwatch.health.states import Executor, Situation, judge

PAGE = (Path(__file__).parents[2] / "docs" / "health.md").read_text()


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table below a title."""
    part = PAGE.partition(f"## {title}")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+", text)]


def test_its_program_prints_what_is_written_below(tmp_path: Path) -> None:
    """The Python block, in a fresh interpreter."""
    (code,), (said,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_how_often_it_looks() -> None:
    """The period and the share of the budget."""
    assert (monitor.PERIOD, monitor.BUDGET_SHARE) == (2, 1 / 5)
    assert "every 2 seconds" in PAGE and "more than a fifth of `cpu_budget`" in PAGE


def test_each_state_and_in_which_order() -> None:
    """All of them, and of two that fit the one that stands first decides."""
    named = [row[0].strip("`") for row in rows("States")]
    assert sorted(named) == sorted(state.value for state in WorkerState)
    fits = {
        "zombie": {"zombie": True},
        "dead": {"alive": False},
        "orphan": {"executor": Executor.SHUT_DOWN, "executor_for": states.GRACE},
        "stopping": {"asked_to_end": True},
        "starting": {"ready": False},
        "hung": {"calls": 1, "still_for": 60.0, "running_for": 60.0},
    }
    merged: dict[str, object] = {"calls": 1}
    for name in ("hung", "starting", "stopping", "orphan", "dead", "zombie"):  # each above all those before it
        merged |= fits[name]
        assert judge(Situation(**merged), Config().hung_after).state == name  # type: ignore[arg-type]
    order = [name for name in named if name in fits]
    assert [name for name in order if name != "stopping"] == ["zombie", "dead", "orphan", "starting", "hung"]


def test_figures_of_states() -> None:
    """As they are in the code."""
    when = {row[0].strip("`"): row[1] for row in rows("States")}
    assert numbers(when["zombie"]) == [history.UNWAITED_AFTER]
    assert numbers(when["stopping"]) == [states.GRACE]
    assert numbers(when["orphan"]) == [states.GRACE, health_log.ORPHAN_AFTER]
    assert numbers(when["hung"]) == [Config().hung_after]


def test_signals_that_tell_to_end() -> None:
    """The five that are named."""
    text = PAGE.partition("## Crashes")[2].partition("while it lived")[0]  # the rest is in test_children.py
    named = set(re.findall(r"SIG[A-Z]+", text)) - {"SIGSEGV"}
    assert {signal.Signals(number).name for number in hooks.ENDING} == named


def test_each_kind_of_finding_with_its_figures() -> None:
    """All of them, with the thresholds of the code."""
    told = {row[0].strip("`"): numbers(row[1]) for row in rows("Findings")}
    assert told == {
        "oversubscribed": [],
        "io-bound-processes": [finding_rules.WAITING * 100],
        "cpu-bound-threads": [finding_rules.GIL_WAIT * 1000],
        "starved-executor": [finding_rules.StarvedExecutor.hold],
        "pool-per-call": [
            finding_rules.POOLS_PER_CALL,
            finding_rules.PROCESSES_PER_CALL,
            finding_rules.PER_CALL_WINDOW,
            finding_rules.WORTH_THREADS * 1000,
            finding_rules.WORTH_PROCESSES * 1000,
        ],
        "costly-payloads": [1],
        "memory-growth": [
            finding_rules.MEMORY_SPAN,
            finding_rules.MEMORY_GROWTH >> 20,
            finding_rules.MEMORY_SHARE * 100,
        ],
        "neglected-errors": [finding_rules.NEGLECT_WINDOW],
        "crash-loop": [history.CRASHES, history.CRASH_WINDOW],
        "queue-growth": [20, history.WINDOW],
        "zombies": [finding_rules.ZOMBIES, history.UNWAITED_AFTER],
    }
    assert set(told) == {name for key, name in vars(finding_rules.Kinds).items() if key.isupper()}
    assert f"over {findings.CLEAR_AFTER:.0f} seconds after its cause" in PAGE

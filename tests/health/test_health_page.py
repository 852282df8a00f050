"""docs/health.md agrees with the code."""

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


def test_example_prints_the_documented_output(tmp_path: Path) -> None:
    """The Python block prints the text block below it, in a fresh interpreter."""
    (code,), (output,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


def test_poll_period() -> None:
    """The page states the poll period and the share of the budget."""
    assert (monitor.PERIOD, monitor.BUDGET_SHARE) == (2, 1 / 5)
    assert "every 2 seconds" in PAGE and "more than a fifth of `cpu_budget`" in PAGE


def test_states_are_listed_in_order_of_precedence() -> None:
    """All states are listed, and where two fit, the one listed first is used."""
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
    for name in ("hung", "starting", "stopping", "orphan", "dead", "zombie"):  # each overrides those before it
        merged |= fits[name]
        assert judge(Situation(**merged), Config().hung_after).state == name  # type: ignore[arg-type]
    order = [name for name in named if name in fits]
    assert [name for name in order if name != "stopping"] == ["zombie", "dead", "orphan", "starting", "hung"]


def test_durations_of_states() -> None:
    """The durations in the table of states are those of the code."""
    when = {row[0].strip("`"): row[1] for row in rows("States")}
    assert numbers(when["zombie"]) == [history.UNWAITED_AFTER]
    assert numbers(when["stopping"]) == [states.GRACE]
    assert numbers(when["orphan"]) == [states.GRACE, health_log.ORPHAN_AFTER]
    assert numbers(when["hung"]) == [Config().hung_after]


def test_signals_that_request_an_end() -> None:
    """The signals that count as a request to end are the ones named on the page."""
    text = PAGE.partition("## Crashes")[2].partition("while it lived")[0]  # the rest is in test_children.py
    named = set(re.findall(r"SIG[A-Z]+", text)) - {"SIGSEGV"}
    assert {signal.Signals(number).name for number in hooks.ENDING} == named


def test_kinds_of_findings_and_their_thresholds() -> None:
    """All kinds of findings are listed, with the thresholds of the code."""
    documented = {row[0].strip("`"): numbers(row[1]) for row in rows("Findings")}
    assert documented == {
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
        "unfinished-exit": [],
        "zombies": [finding_rules.ZOMBIES, history.UNWAITED_AFTER],
    }
    assert set(documented) == {name for key, name in vars(finding_rules.Kinds).items() if key.isupper()}
    assert f"over {findings.CLEAR_AFTER:.0f} seconds after its cause" in PAGE

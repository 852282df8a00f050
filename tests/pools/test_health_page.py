"""docs/health.md says what is so."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from loopwatch.config import Config
from loopwatch.events import WorkerState
from loopwatch.pools import advice, births, health, monitor, news
from loopwatch.pools.health import Executor, Situation, judge

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
    assert "every 2 s" in PAGE and "more than a fifth of `cpu_budget`" in PAGE


def test_each_state_and_in_which_order() -> None:
    """All of them, and of two that fit the one that stands first decides."""
    named = [row[0].strip("`") for row in rows("States")]
    assert sorted(named) == sorted(state.value for state in WorkerState)
    fits = {
        "zombie": {"zombie": True},
        "dead": {"alive": False},
        "orphan": {"executor": Executor.SHUT_DOWN, "executor_for": health.GRACE},
        "stopping": {"told_to_end": True},
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
    assert numbers(when["zombie"]) == [advice.UNWAITED_AFTER]
    assert numbers(when["stopping"]) == [health.GRACE]
    assert numbers(when["orphan"]) == [health.GRACE, news.ORPHAN_AFTER]
    assert numbers(when["hung"]) == [Config().hung_after]


def test_signals_that_tell_to_end() -> None:
    """The five that are named."""
    text = PAGE.partition("## Crashes")[2].partition("while it lived")[0]  # the rest is in test_children.py
    named = set(re.findall(r"SIG[A-Z]+", text)) - {"SIGSEGV"}
    assert {signal.Signals(number).name for number in births.ENDING} == named


def test_each_kind_of_finding_with_its_figures() -> None:
    """All of them, with the thresholds of the code."""
    told = {row[0].strip("`"): numbers(row[1]) for row in rows("Findings")}
    assert told == {
        "oversubscribed": [],
        "io-bound-processes": [advice.WAITING * 100],
        "cpu-bound-threads": [advice.GIL_WAIT * 1000],
        "starved-executor": [dict(advice.RULES)[advice.starved]],
        "pool-per-call": [
            advice.POOLS_PER_CALL,
            advice.PROCESSES_PER_CALL,
            advice.PER_CALL_WINDOW,
            advice.WORTH_THREADS * 1000,
            advice.WORTH_PROCESSES * 1000,
        ],
        "costly-payloads": [1],
        "memory-growth": [advice.MEMORY_SPAN, advice.MEMORY_GROWTH >> 20, advice.MEMORY_SHARE * 100],
        "neglected-errors": [advice.NEGLECT_WINDOW],
        "crash-loop": [advice.CRASHES, advice.CRASH_WINDOW],
        "queue-growth": [20, advice.WINDOW],
        "zombies": [advice.ZOMBIES, advice.UNWAITED_AFTER],
    }
    assert set(told) == {name for key, name in vars(advice.Kinds).items() if key.isupper()}
    assert f"over {advice.CLEAR_AFTER:.0f} s after its cause" in PAGE

"""Foreign test suites have the same results with and without the agent, and ``benchmarks/foreign.py`` itself works."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SUITES = {
    "event loops": (
        ["test_asyncio.test_base_events", "test_asyncio.test_selector_events", "test_asyncio.test_unix_events"],
        300,
    ),
    "futures and tasks": (
        [
            "test_asyncio.test_futures",
            "test_asyncio.test_tasks.CTask_CFuture_Tests",
            "test_asyncio.test_tasks.PyTask_PyFuture_Tests",
        ],
        350,
    ),
    "subprocess": (["test_subprocess.ProcessTestCase", "test_subprocess.POSIXProcessTestCase"], 150),
}
"""Suites of CPython, each with a lower bound of its number of tests."""

ODD = """
    import os, sys, unittest

    class Odd(unittest.TestCase):
        def test_1_passes(self):
            pass

        def test_2_fails(self):
            self.fail("on both sides")

        def test_3_crashes(self):
            os.abort()

        def test_4_is_skipped(self):
            self.skipTest("on both sides")

        def test_5_minds_the_agent(self):
            self.assertFalse("loopwatch" in sys.modules)

        def test_6_has_parts(self):
            for number in range(3):
                with self.subTest(number):
                    self.assertNotEqual(number, 1)
"""


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("foreign")


def _compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "foreign.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _package(folder: Path, source: str) -> Path:
    """Make a ``test`` package like CPython's with one suite, ``test_odd``."""
    (folder / "test/support").mkdir(parents=True)
    (folder / "test/__init__.py").touch()
    (folder / "test/support/__init__.py").write_text("use_resources = None\n")
    (folder / "test/test_odd.py").write_text(textwrap.dedent(source))
    return folder


@pytest.mark.skipif(importlib.util.find_spec("test.test_asyncio") is None, reason="CPython's tests are not installed")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", SUITES)
def test_results_of_cpython_suites_are_the_same(kind: str) -> None:
    """Each test of CPython has the same result under ``loopwatch run`` as without."""
    suites, tests = SUITES[kind]
    done = _compare("--suites", *suites)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| test_")]
    assert [row[1].strip() for row in rows] == suites
    assert sum(int(row[3]) for row in rows) >= tests * 0.9, done.stdout
    assert all(int(row[6]) == 0 for row in rows)


@pytest.mark.timeout(300)
def test_a_difference_is_found_and_a_crash_loses_one_test(tmp_path: Path) -> None:
    """Of six tests the one that detects the agent differs in three of three runs; tests after a crash are compared."""
    done = _compare("--suites", "test_odd", "--tests", _package(tmp_path, ODD))
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    assert "| test_odd | 6 | 2 |" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("- ")] == [
        "- test.test_odd.Odd.test_5_minds_the_agent: ok -> failed (repeated: 0 of 3 against 3 of 3 not ok): "
        "AssertionError: True is not false"
    ]


@pytest.mark.timeout(300)
def test_a_hang_loses_one_test(tmp_path: Path, foreign: ModuleType) -> None:
    """A process that makes no progress is killed, and the tests after the one that hangs run in a new process."""
    package = _package(
        tmp_path,
        """
        import time, unittest

        class Odd(unittest.TestCase):
            def test_1_hangs(self):
                time.sleep(1e6)

            def test_2_passes(self):
                pass
        """,
    )
    bench = foreign.Bench(sys.executable, {}, str(package), 5.0, None)
    run = bench.run("test_odd", foreign.ALONE)
    assert {test.rpartition(".")[2]: outcome.word for test, outcome in run.outcomes.items()} == {
        "test_1_hangs": "hung",
        "test_2_passes": "ok",
        foreign.EXIT: "ok",
    }


def test_a_suite_that_cannot_be_loaded_is_no_success(tmp_path: Path) -> None:
    """The exit code is 2 if both sides fail before the first test."""
    package = _package(tmp_path, "raise SystemExit('no such thing here')")
    done = _compare("--suites", "test_odd", "--tests", package)
    assert (done.returncode, "could not be run: test_odd" in done.stderr) == (2, True), done.stderr
    assert _compare("--suites", "test_nothing", "--tests", package).returncode == 2


def test_a_flaky_test_is_no_difference(foreign: ModuleType) -> None:
    """Only a test with steady results without the agent and another result with it counts as a difference."""

    def verdict(alone: str, watched: str) -> bool:
        words = {"+": foreign.Outcome("ok"), "-": foreign.Outcome("failed")}
        repeats = tuple(tuple(words[mark] for mark in side) for side in (alone, watched))
        flaky: bool = foreign.Difference("t", (words["+"], words["-"]), repeats).is_flaky
        return flaky

    assert {pair: verdict(*pair.split()) for pair in ("+++ ---", "+++ ++-", "+++ +++", "--- ---", "+-+ ---")} == {
        "+++ ---": False,
        "+++ ++-": False,  # a difference in some runs is enough
        "+++ +++": True,
        "--- ---": True,
        "+-+ ---": True,
    }
    assert not foreign.Difference("t", (foreign.Outcome("ok"), foreign.Outcome("hung"))).is_flaky
    logged = foreign.Outcome("failed", "AssertionError: b'loopwatch: child process 1 is gone' != b''")
    steady = (foreign.Outcome("ok"),) * 3
    assert not foreign.Difference("t", (steady[0], logged), (steady, steady)).is_flaky
    hung = foreign.Outcome("hung")
    assert not foreign.Difference("t", (steady[0], hung), (steady, steady)).is_flaky
    assert foreign.Difference("t", (steady[0], hung), ((hung, *steady), steady)).is_flaky

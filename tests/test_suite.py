"""The suite itself: it sets the signals it relies on, and repeats a measurement only if the machine was short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from repeat import Waits

ROOT = Path(__file__).parents[1]


def test_signals_do_what_they_usually_do() -> None:
    """Ctrl-C raises, and the signals of tests have their default effect, whatever started the suite."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="shells that ignore signals for background jobs are Unix's")
def test_signals_ignored_by_the_shell_are_set() -> None:
    """Under a shell that ignores SIGINT for its background jobs, children of tests get the usual one."""
    claim = f"{Path(__file__).name}::{test_signals_do_what_they_usually_do.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{claim}"]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


SPOILED = """
import pytest, repeat
runs = []

def waited(self, before):
    return {reason!r}

repeat.Waits.since = waited

@pytest.mark.measures
def test_fails_at_first():
    runs.append(1)
    assert len(runs) > {fails}
"""


@pytest.mark.parametrize(
    ("reason", "fails", "code"),
    [("threads waited", 1, 0), ("threads waited", 2, 0), ("threads waited", 3, 1), ("", 1, 1)],
    ids=["second attempt", "third attempt", "never", "a machine with processors to spare"],
)
def test_measurements_are_repeated(tmp_path: Path, reason: str, fails: int, code: int) -> None:
    """A failed measurement is repeated twice at most, with its reason, and not at all without one."""
    (tmp_path / "test_it.py").write_text(SPOILED.format(reason=reason, fails=fails))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = measures\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "repeat", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "support")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout.count("; threads waited") == (min(fails, 2) if reason else 0), done.stdout


def test_evidence_of_a_busy_machine() -> None:
    """A wait counts from a twentieth of the time on, and the sentence says who waited for how long."""
    before = Waits(at=10.0, machine=1.0, own=2.0, stolen=3.0)
    assert Waits(at=12.0, machine=1.09, own=2.09, stolen=3.09).since(before) == ""
    assert Waits(at=12.0, machine=1.5, own=None, stolen=3.0).since(before) == (
        "in 2.000 s a thread of this machine waited for 0.500 s"
    )
    assert Waits(at=12.0, machine=None, own=2.25, stolen=None).since(before) == (
        "in 2.000 s the threads of the test waited for 0.250 s"
    )

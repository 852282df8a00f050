"""Functions that programs and their tests replace are not used by the agent."""

from __future__ import annotations

import datetime
import subprocess
import sys
import textwrap
import threading
import time as theirs

import pytest

from loopwatch.core import originals

AGREED = 0.5
"""s between two readings of one clock, on any machine."""


def in_fresh_interpreter(code: str) -> str:
    """Run ``code`` and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_private_copy_of_a_module() -> None:
    """The private copy of a module is not the one that programs import, and theirs is unchanged."""
    assert originals.time is not theirs
    assert sys.modules["time"] is theirs
    assert originals.time.monotonic is not theirs.monotonic
    assert abs(originals.time.monotonic() - theirs.monotonic()) < AGREED
    assert abs(originals.time.time() - theirs.time()) < AGREED


def test_replaced_clock_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks and sleep replaced by a test are not used by the agent."""
    for name in ("monotonic", "time", "sleep", "perf_counter", "thread_time"):
        monkeypatch.setattr(theirs, name, lambda *_: pytest.fail("the program's function was called"))
    before = originals.time.monotonic()
    originals.time.sleep(0.001)
    assert originals.time.monotonic() > before
    assert originals.wall_clock() > 1.7e9


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "stopped",
    [
        pytest.param("import freezegun; freezegun.freeze_time('1970-01-01 02:44:00').start()", id="freezegun"),
        pytest.param("import time_machine; time_machine.travel(9840).start()", id="time-machine"),
        pytest.param("import time; time.monotonic = time.time = lambda: 9840.0", id="by hand"),
    ],
)
def test_stopped_clocks_go_on(stopped: str, order: str) -> None:
    """The agent's clocks show real time under freezegun, time-machine and hand-set clocks, in any order."""
    if "import time;" not in stopped:
        pytest.importorskip(stopped.split()[1].rstrip(";"))
    ours = "from loopwatch.core.originals import time as ours"
    now, elapsed = in_fresh_interpreter(
        f"""
        {ours if order == "before" else stopped}
        {stopped if order == "before" else ours}
        began = ours.monotonic()
        ours.sleep(0.02)
        print(ours.time(), ours.monotonic() - began)
        """
    ).split()
    assert abs(float(now) - datetime.datetime.now().timestamp()) < 60
    assert 0.02 <= float(elapsed) < 30


def test_release_gil_lets_another_thread_run() -> None:
    """Another thread that waits for the GIL runs while this one has released it, without calling ``sleep``."""
    done, ran = threading.Event(), []
    thread = threading.Thread(target=lambda: (ran.append(1), done.set()))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # no thread is forced to release the GIL
    try:
        thread.start()
        for _ in range(20_000):
            originals.release_gil(1e-4)
            if ran:
                break
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert ran == [1]

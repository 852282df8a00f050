"""Debuggers, trace functions and coverage work as without the agent, and the agent keeps working."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hostproc import program, succeeded

pytestmark = pytest.mark.measures

KINDS = ("asyncio", "uvloop")

RAISES = """
    import loopwatch
    def trace(frame, event, arg):
        if threading.current_thread().name.startswith("loopwatch"):
            raise ValueError("traced")
    threading.settrace(trace)
    threading.setprofile(trace)
    quiet()
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)
    runner(sys.argv[1])(blocked(0.3))
    agent.flush()
    say(stalls=len(agent.stalls()), faults=agent.snapshot().agent.faults)
    loopwatch.uninstall()
"""

STEPPED = """
    import io, pdb, loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)
    shown = io.StringIO()

    def callback():
        time.sleep(0.5)
        debugger = pdb.Pdb(stdin=io.StringIO("n\\nn\\np 'value', value\\nc\\n"), stdout=shown, nosigint=True)
        debugger.use_rawinput = False
        debugger.set_trace()
        value = 1
        value = 2
        value = 3
        sys.settrace(None)
        over.set_result(None)

    async def main():
        global over
        over = asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.15)
        asyncio.get_running_loop().call_soon(callback)
        await over

    runner(sys.argv[1])(main())
    agent.flush()
    say(steps=shown.getvalue().count("callback()"), value="('value'," in shown.getvalue(), stalls=len(agent.stalls()))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_trace_functions_that_raise_do_not_end_threads_of_the_agent(kind: str) -> None:
    """A trace function set for new threads is not used in the agent's: no traceback, and the stall is found."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    found = succeeded(RAISES, kind)
    assert found["faults"] == {}
    assert found["stalls"] >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_debugger_stops_at_the_lines_of_a_callback_that_blocked(kind: str) -> None:
    """After ``set_trace`` in a callback that was sampled before, each following line is stepped through."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    found = succeeded(STEPPED, kind)
    assert found["stalls"] >= 1
    assert (found["steps"] >= 3, found["value"]) == (True, True)


def test_coverage_reports_as_without_the_agent(tmp_path: Path) -> None:
    """Lines are counted in every thread, and the report does not fail for missing sources of the agent's wrappers."""
    covered = tmp_path / "covered.py"
    covered.write_text(
        textwrap.dedent(
            """
            import asyncio, threading, time, loopwatch
            loopwatch.install(threshold=0.05, log_level="CRITICAL")
            def work():
                return 1
            async def main():
                await asyncio.sleep(0.1)
                time.sleep(0.1)
                await asyncio.to_thread(work)
                await asyncio.sleep(0.1)
            asyncio.run(main())
            loopwatch.uninstall()
            """
        )
    )
    command = [sys.executable, "-m", "coverage"]
    for arguments in (["run", "covered.py"], ["json", "-q"]):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
    found = json.loads((tmp_path / "coverage.json").read_text())["files"]["covered.py"]
    assert found["missing_lines"] == []
    assert 5 in found["executed_lines"]


@pytest.mark.parametrize("kind", KINDS)
def test_program_ended_by_ctrl_c_exits_as_without_the_agent(kind: str) -> None:
    """The exit status is that of SIGINT, although the agent handles a stall and stops after the KeyboardInterrupt."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    source = """
        import loopwatch
        quiet()
        if sys.argv[2] == "watched":
            loopwatch.install(threshold=0.05)
        async def main():
            await asyncio.sleep(0.1)
            time.sleep(0.1)
            raise KeyboardInterrupt
        runner(sys.argv[1])(main())
    """
    plain, watched = (program(source, kind, how).code for how in ("plain", "watched"))
    assert watched == plain

"""A pause by a debugger outside the process is not reported as a stall."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hostproc import start

pytestmark = pytest.mark.measures

PROGRAM = """
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)
    gaps = []
    async def main():
        say(pid=os.getpid())
        ends = time.monotonic() + 20
        while max(gaps, default=0.0) < 0.5 and time.monotonic() < ends:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - began)
        await asyncio.sleep(0.2)
    runner(sys.argv[1])(main())
    agent.flush()
    say(gap=max(gaps), long=[stall.cause for stall in agent.stalls() if stall.duration > 0.4])
"""


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (apt-get install gdb)")
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_pause_by_a_debugger_is_not_a_stall(kind: str) -> None:
    """No stall is reported when gdb stops the whole process for half a second and stays attached."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    with start(PROGRAM, kind) as process:
        assert process.stdout is not None
        pid = json.loads(process.stdout.readline())["pid"]
        commands = ["-ex", "shell sleep 0.6", "-ex", "continue"]
        done = subprocess.run(
            ["gdb", "-nx", "-batch", "-p", str(pid), *commands], capture_output=True, text=True, timeout=50, check=False
        )
        found = json.loads(process.stdout.readline())
    if found["gap"] < 0.5:
        pytest.skip(f"gdb may not attach here: {done.stderr.strip().splitlines()[-1:]}")
    assert found["long"] == []

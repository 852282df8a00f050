"""The agent keeps no pool, executor, process, thread, queue or result alive."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("let_go.py")
COUNTS = {
    "threads": 200, "threads that are dropped": 200, "pool of threads": 20, "other": 200, "plain threads": 200,
    "default executor of asyncio": 50, "default executor of uvloop": 50, "popen": 50, "process": 20,
    "subprocess of asyncio": 20, "worker pool": 2, "loky": 2, "processes fork": 5, "processes spawn": 2,
    "processes forkserver": 2, "pool fork": 10, "pool spawn": 2, "pool forkserver": 2,
}  # fmt: skip
"""How many of each are made; fewer where each is a process."""


def run(kind: str, *arguments: str) -> tuple[int, int, list[str], list[str], dict[str, int], dict[str, int]]:
    command = [sys.executable, str(PROGRAM), kind, str(COUNTS[kind]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout.splitlines()[-1])
    return found  # type: ignore[no-any-return]


@pytest.mark.long
@pytest.mark.parametrize("kind", COUNTS)
def test_dropped_objects_are_freed(kind: str) -> None:
    """No more objects are left than without the agent before the garbage collector runs, and none afterwards.

    The numbers of descriptors, child processes, semaphores and threads are the same as before.
    """
    for name in ("uvloop", "loky"):
        if kind.endswith(name) and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    plain = run(kind, "plain", "0")
    count, left, kinds, alive, before, after = run(kind, "agent", str(plain[1]))
    assert count == plain[0] >= COUNTS[kind]
    assert (left <= plain[1], kinds, alive) == (True, plain[2], [])
    assert after == before


POOLS_IN_A_ROW = """
import logging, multiprocessing, os, resource
import loopwatch
logging.getLogger("loopwatch").setLevel(100)
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    agent = loopwatch.install()
    most = 0
    for _ in range(200):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, range(-4, 0)) == [4, 3, 2, 1]
        most = max(most, len(os.listdir("/proc/self/fd")))
    print(most, agent.snapshot().agent.faults)
"""


@pytest.mark.long
def test_more_pools_than_descriptors(tmp_path: Path) -> None:
    """A process limited to 256 descriptors can make 200 pools of 8 descriptors each one after the other."""
    script = tmp_path / "pools.py"
    script.write_text(POOLS_IN_A_ROW)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    most, _, faults = done.stdout.strip().partition(" ")
    assert int(most) < 60
    assert faults == "{}"

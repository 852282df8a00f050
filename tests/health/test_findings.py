"""Findings about real programs, with the agent installed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_of_pools import until

import loopwatch
from loopwatch.agent import Agent
from loopwatch.events import Finding
from loopwatch.health import findings, history, monitor
from loopwatch.health.finding_rules import POOLS_PER_CALL, Kinds
from loopwatch.health.history import CRASHES
from loopwatch.system import cgroup

pytestmark = pytest.mark.measures


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent that polls ten times a second."""
    monkeypatch.setattr(monitor, "PERIOD", 0.1)
    agent = loopwatch.install(log_level="CRITICAL", cpu_budget=1.0, threshold=60)
    yield agent
    assert agent.snapshot().agent.faults == {}
    loopwatch.uninstall()


def found(agent: Agent, kind: str) -> Finding | None:
    return next((each for each in agent.snapshot().findings if each.kind == kind), None)


def finding(agent: Agent, kind: str) -> Finding:
    until(lambda: found(agent, kind), 40)
    result = found(agent, kind)
    assert result is not None
    return result


@pytest.mark.long
def test_a_starved_default_executor(watching: Agent, run: Callable[[Any], Any]) -> None:
    """A default executor whose threads are all blocked while two calls wait is a finding."""
    over = threading.Event()

    async def main() -> Finding:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(2))
        calls = [loop.run_in_executor(None, over.wait, 50) for _ in range(4)]
        while (result := found(watching, Kinds.STARVED)) is None:
            await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(*calls)
        return result

    result = run(asyncio.wait_for(main(), 45))
    assert (result.evidence["busy"], result.evidence["max_workers"], result.evidence["queued"]) == (2, 2, 2)
    assert result.evidence["longest"] > 2
    assert "all 2 threads of the default executor are busy" in result.text


def test_a_pool_for_each_call(watching: Agent) -> None:
    """Thread pools made, used once and shut down at one line are a finding."""
    for _ in range(POOLS_PER_CALL):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(abs, -1).result() == 1
    result = finding(watching, Kinds.PER_CALL)
    assert result.evidence["pools"] == POOLS_PER_CALL and result.evidence["calls_each"] == 1
    assert result.subject.startswith(__file__) and result.subject.endswith("in test_a_pool_for_each_call")


def test_children_that_die_again_and_again(watching: Agent) -> None:
    """Forks of one line that die by a signal are a crash loop; children that the program itself kills are not."""
    for _ in range(CRASHES + 2):
        with subprocess.Popen(["/bin/sleep", "60"]) as child:
            child.kill()
    for _ in range(CRASHES):
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sh", ["sh", "-c", "kill -SEGV $$"])
        os.waitpid(pid, 0)
    result = finding(watching, Kinds.CRASHES)
    assert result.evidence["crashes"] == result.evidence["SIGSEGV"] == CRASHES
    (children,) = [pool for pool in watching.snapshot().pools if pool.kind == "children"]
    assert children.crashes == {signal.Signals.SIGSEGV.name: CRASHES}


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A real control group with a CPU limit of 0.6; the test is skipped where none can be made."""
    group = Path("/sys/fs/cgroup/cpu") / f"loopwatch-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("60000")
    except OSError as exc:
        pytest.skip(f"no control group of version 1 can be made here: {exc}")
    try:
        yield group
    finally:
        until(lambda: not cgroup.members(group))
        group.rmdir()


UNDER_A_LIMIT = """
import concurrent.futures, json, os, sys, time
from pathlib import Path

def compute(over):
    while not os.path.exists(over):
        sum(range(10_000))

if __name__ == "__main__":
    group, over, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    import loopwatch
    from loopwatch.health import finding_rules, history, monitor
    # A second instead of the half minute that a finding takes; the numbers are rates.
    monitor.PERIOD, history.EVERY, history.SHORTEST, finding_rules.Oversubscribed.hold = 0.2, 0.2, 3.0, 0.5
    agent = loopwatch.install(log_level="CRITICAL", cpu_budget=1.0, threshold=60)
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        calls = [pool.submit(compute, str(over)) for _ in range(workers)]
        found, end = (), time.monotonic() + (60 if workers > 1 else 8)
        while not found and time.monotonic() < end:
            time.sleep(0.2)
            found = [each for each in agent.snapshot().findings if each.kind == "oversubscribed"]
        over.touch()
    print(json.dumps([(each.text, each.remedy, dict(each.evidence)) for each in found]))
"""


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_under_a_real_cpu_limit(limited_group: Path, tmp_path: Path, workers: int) -> None:
    """Two workers that compute in a group with 0.6 processors are a finding, by its limit; one is none."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors: with one it is not the limit alone that matters")
    program = tmp_path / "program.py"
    program.write_text(UNDER_A_LIMIT)
    command = [sys.executable, str(program), str(limited_group), str(tmp_path / "over"), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == workers - 1
    for text, remedy, evidence in results:
        assert "the CPU limit of the container allows 0.6" in text
        assert remedy.startswith("Raise the CPU limit of the container to 2, or give the pool max_workers=1: ")
        assert (evidence["cpus"], evidence["max_workers"]) == (0.6, 2)
        assert evidence["affinity"] == len(os.sched_getaffinity(0))
        assert 1.5 <= evidence["busy"] <= 2
        assert 1.2 <= evidence["wanted"] <= 2.3
        assert evidence["cores"] <= 0.8 and evidence["starved"] >= 0.6


def test_zombies_that_pile_up(watching: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four unreaped children are a finding once others are started, and are no longer listed once reaped."""
    monkeypatch.setattr(history, "UNWAITED_AFTER", 0.5)
    for rule in findings.RULES:
        monkeypatch.setattr(type(rule), "hold", 0.0)
    children = [subprocess.Popen(["/bin/true"]) for _ in range(4)]

    def zombies_after_another_child() -> Finding | None:
        subprocess.run(["/bin/true"], check=True)
        return found(watching, Kinds.ZOMBIES)

    until(zombies_after_another_child, 40)
    result = finding(watching, Kinds.ZOMBIES)
    assert result.evidence == {"zombies": 4}
    assert f"made at {__file__}" in result.text
    for child in children:
        child.wait()
    until(lambda: all(pool.workers == () for pool in watching.snapshot().pools if pool.kind == "children"))

"""Findings about real programs, with the agent installed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests_of_pools import until

import loopwatch
from loopwatch.agent import Agent
from loopwatch.events import Finding
from loopwatch.health import findings, history, monitor
from loopwatch.health.finding_rules import POOLS_PER_CALL, Kinds
from loopwatch.health.history import CRASHES


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

"""Advice to real programs, by the agent as it is installed."""

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
    told = found(agent, kind)
    assert told is not None
    return told


def test_a_starved_default_executor(watching: Agent, run: Callable[[Any], Any]) -> None:
    """All threads of it wait for something, and two calls more for a thread."""
    over = threading.Event()

    async def main() -> Finding:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(2))
        calls = [loop.run_in_executor(None, over.wait, 50) for _ in range(4)]
        while (told := found(watching, Kinds.STARVED)) is None:
            await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(*calls)
        return told

    told = run(asyncio.wait_for(main(), 45))
    assert (told.evidence["busy"], told.evidence["max_workers"], told.evidence["queued"]) == (2, 2, 2)
    assert told.evidence["longest"] > 2
    assert "all 2 threads of the default executor are busy" in told.text


def test_a_pool_for_each_call(watching: Agent) -> None:
    """A thread pool is made, used once and shut down, at one line."""
    for _ in range(POOLS_PER_CALL):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(abs, -1).result() == 1
    told = finding(watching, Kinds.PER_CALL)
    assert told.evidence["pools"] == POOLS_PER_CALL and told.evidence["calls_each"] == 1
    assert told.subject.startswith(__file__) and told.subject.endswith("in test_a_pool_for_each_call")


def test_children_that_die_again_and_again(watching: Agent) -> None:
    """Three forks of one line that are killed from outside; the same by this program's own hand is nothing."""
    for _ in range(CRASHES + 2):
        with subprocess.Popen(["/bin/sleep", "60"]) as child:
            child.kill()
    for _ in range(CRASHES):
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sh", ["sh", "-c", "kill -SEGV $$"])
        os.waitpid(pid, 0)
    told = finding(watching, Kinds.CRASHES)
    assert told.evidence["crashes"] == told.evidence["SIGSEGV"] == CRASHES
    (children,) = [pool for pool in watching.snapshot().pools if pool.kind == "children"]
    assert children.crashes == {signal.Signals.SIGSEGV.name: CRASHES}


def test_zombies_that_pile_up(watching: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four children that nobody waits for, and others are started; once somebody does they are gone."""
    monkeypatch.setattr(history, "UNWAITED_AFTER", 0.5)
    for rule in findings.RULES:
        monkeypatch.setattr(type(rule), "hold", 0.0)
    children = [subprocess.Popen(["/bin/true"]) for _ in range(4)]

    def passed_over() -> Finding | None:
        subprocess.run(["/bin/true"], check=True)
        return found(watching, Kinds.ZOMBIES)

    until(passed_over, 40)
    told = finding(watching, Kinds.ZOMBIES)
    assert told.evidence == {"zombies": 4}
    assert f"made at {__file__}" in told.text
    for child in children:
        child.wait()
    until(lambda: all(pool.workers == () for pool in watching.snapshot().pools if pool.kind == "children"))

"""The governor at work in the agent: it looks less often when it costs too much, says so once, and still sees."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from conftest import Run

import loopwatch
from loopwatch import Cause
from loopwatch.agent import Agent
from loopwatch.testing import RecordingSink


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "cpu_budget" in record.getMessage()]


def test_over_budget_it_backs_off_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """Three times over budget the intervals double at each decision up to 16 times, with one log line in all."""
    caplog.set_level(logging.INFO, "loopwatch")
    agent = Agent(loopwatch.Config(cpu_budget=0.02))
    stretches = []
    for step in range(8):
        agent._watch.watcher.thread.cpu = step * 0.3  # 0.3 s of processor time in 5 s are 6 % of a core
        agent._watch._tick(step * 5.0)
        stretches.append(agent.snapshot().agent.stretch)
    assert stretches == [1, 2, 4, 8, 16, 16, 16, 16]
    assert agent.snapshot().agent.cpu_share == pytest.approx(0.06)
    assert told(caplog) == [
        "loopwatch: its own processor time (6.0 % of a core) is over cpu_budget=0.02; it looks less often now"
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_within_budget_it_comes_back() -> None:
    """Once it costs less than a third of its budget the intervals shrink again, to the normal ones."""
    agent = Agent(loopwatch.Config(cpu_budget=0.02))
    agent._watch._governor.stretch = 16.0
    stretches = []
    for step in range(6):
        agent._watch.watcher.thread.cpu = step * 0.01  # 0.2 %
        agent._watch._tick(step * 5.0)
        stretches.append(agent.snapshot().agent.stretch)
    assert stretches == [16, 8, 4, 2, 1, 1]


def test_the_budget_can_be_changed_at_run_time() -> None:
    """configure(cpu_budget=...) holds from the next decision on."""
    agent = Agent(loopwatch.Config(cpu_budget=0.001))
    for step in range(3):
        agent._watch.watcher.thread.cpu = step * 0.1
        agent._watch._tick(step * 5.0)
    assert agent.snapshot().agent.stretch == 4
    agent.configure(cpu_budget=0.5)
    for step in range(3, 6):
        agent._watch.watcher.thread.cpu = step * 0.1
        agent._watch._tick(step * 5.0)
    assert agent.snapshot().agent.stretch == 1


def test_a_block_is_found_at_the_longest_intervals(run: Run, loop_kind: str, sink: RecordingSink) -> None:
    """Even looking sixteen times less often, a block of 1.5 s is found, and on asyncio its length is exact."""
    agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    agent._watch._governor.stretch = 16.0
    truth = []

    async def main() -> None:
        await asyncio.sleep(0.3)
        agent._watch._governor.stretch = 16.0  # the first ticks may have come to a decision
        assert agent.snapshot().agent.stretch == 16.0
        began = time.monotonic()
        time.sleep(1.5)
        truth.append(time.monotonic() - began)
        await asyncio.sleep(0.05)

    run(main())
    stall = max(sink.wait(), key=lambda stall: stall.duration)
    if loop_kind == "uvloop":
        assert abs(stall.duration - truth[0]) <= stall.uncertainty + 0.01
    else:
        assert abs(stall.duration - truth[0]) <= 0.01
    assert stall.cause in (Cause.SLEEP, Cause.UNKNOWN)

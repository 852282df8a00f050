"""The agent samples less often when it is over its budget, logs that once, and still finds stalls."""

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

pytestmark = pytest.mark.measures


def budget_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "cpu_budget" in record.getMessage()]


def test_over_budget_intervals_grow_and_one_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """At three times the budget the intervals double with each decision up to sixteenfold, with one log line in all."""
    caplog.set_level(logging.INFO, "loopwatch")
    agent = Agent(loopwatch.Config(cpu_budget=0.02))
    stretches = []
    for step in range(8):
        agent._watch.watcher.thread.cpu = step * 0.3  # 0.3 seconds of processor time in 5 are 6 % of a core
        agent._watch._tick(step * 5.0)
        stretches.append(agent.snapshot().agent.stretch)
    assert stretches == [1, 2, 4, 8, 16, 16, 16, 16]
    assert agent.snapshot().agent.cpu_share == pytest.approx(0.06)
    assert budget_lines(caplog) == [
        "loopwatch: its own processor time (6.0 % of a core) is over cpu_budget=0.02; it looks less often now"
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_within_budget_intervals_shrink_again() -> None:
    """Once the agent uses less than a third of its budget the intervals shrink to normal."""
    agent = Agent(loopwatch.Config(cpu_budget=0.02))
    agent._watch._governor.stretch = 16.0
    stretches = []
    for step in range(6):
        agent._watch.watcher.thread.cpu = step * 0.01  # 0.2 %
        agent._watch._tick(step * 5.0)
        stretches.append(agent.snapshot().agent.stretch)
    assert stretches == [16, 8, 4, 2, 1, 1]


def test_the_budget_can_be_changed_at_run_time() -> None:
    """configure(cpu_budget=...) takes effect with the next decision."""
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
    """A block of 1.5 seconds is found at sixteenfold intervals, and on asyncio its duration is exact."""
    agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    agent._watch._governor.stretch = 16.0
    truth = []

    async def main() -> None:
        await asyncio.sleep(0.3)
        agent._watch._governor.stretch = 16.0  # the first ticks may have changed it
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

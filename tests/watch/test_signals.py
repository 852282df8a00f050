"""Signals that arrive while a loop polls: handlers that hold it are found, the poll that they interrupt is no block."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest
from conftest import Run

import loopwatch
from loopwatch.agent import Agent
from loopwatch.events import Cause, Stall

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals on this system"),
    pytest.mark.measures,
]


took: list[float] = []


def sleeps(_number: int, _frame: FrameType | None) -> None:
    """Reload a file slowly, say."""
    began = time.monotonic()
    time.sleep(0.25)
    took.append(time.monotonic() - began)


def computes(_number: int, _frame: FrameType | None) -> None:
    """Load a model, say."""
    began, ends = time.monotonic(), time.thread_time() + 0.25
    while time.thread_time() < ends:
        pass
    took.append(time.monotonic() - began)


def returns(_number: int, _frame: FrameType | None) -> None:
    """Set a flag, say."""


@pytest.fixture
def watching() -> Iterator[Agent]:
    yield loopwatch.install(threshold=0.1, log_level="CRITICAL", grace=0.0, cpu_budget=1.0)
    loopwatch.uninstall()


def stalls_of(agent: Agent) -> list[Stall]:
    assert agent.flush(10)
    return [stall for stall in agent.stalls() if stall.cause is not Cause.STARVED]


async def signalled(after: float, wait: float) -> None:
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    await asyncio.sleep(wait)
    timer.join()


@pytest.mark.parametrize(("handler", "cause"), [(sleeps, Cause.SLEEP), (computes, Cause.PYTHON)])
def test_a_handler_that_holds_the_poll(watching: Agent, run: Run, handler: object, cause: Cause) -> None:
    """A signal handler that runs while the loop polls is found: its function, cause and, within the uncertainty,
    duration."""
    before = signal.signal(signal.SIGUSR1, handler)  # type: ignore[arg-type]

    async def test() -> None:
        took.clear()
        await asyncio.sleep(0.2)
        for _ in range(3):  # a timer is due in the midst of the handler
            await asyncio.gather(signalled(0.1, 0.5), asyncio.sleep(0.2))

    try:
        run(test())
    finally:
        signal.signal(signal.SIGUSR1, before)
    stalls = stalls_of(watching)
    assert len(stalls) == 3
    for stall, seconds in zip(stalls, took, strict=True):
        assert stall.cause is cause, stall.evidence
        assert stall.culprit is not None
        assert stall.culprit.function == handler.__name__  # type: ignore[attr-defined]
        assert abs(stall.duration - seconds) <= stall.uncertainty + 0.1


def test_a_signal_is_no_block(watching: Agent, run: Run) -> None:
    """Signals whose handler returns at once interrupt polls of any length; none of them is taken for a block."""
    before = signal.signal(signal.SIGUSR1, returns)

    async def test() -> None:
        for number in range(5):
            await signalled(0.15 + 0.13 * number, 0.85)

    try:
        run(test())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stalls_of(watching) == []


def test_the_end_of_a_child_is_no_block(watching: Agent, run: Run) -> None:
    """A child process that ends while the loop polls is not taken for a block (SIGCHLD interrupts libuv's poll)."""

    async def test() -> None:
        await asyncio.sleep(0.2)
        for number in range(5):
            child = await asyncio.create_subprocess_exec("sleep", str(0.25 + 0.13 * number))
            await child.wait()
            await asyncio.sleep(0.1)

    run(test())
    assert stalls_of(watching) == []

"""Calls that keep the GIL and follow each other without a pause, as on a server with a queue of slow requests."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import runner

import loopwatch
from loopwatch.events import Cause, Stall

pytestmark = pytest.mark.measures

CALLS = 8
PATTERN = re.compile(r"(a+)+$")


def backtrack(text: str) -> None:
    """Keep the GIL in one call."""
    PATTERN.match(text)


def text_of(seconds: float) -> str:
    """Return a text for which :func:`backtrack` takes at least that long."""
    length = 18
    while True:
        text, began = "a" * length + "b", time.perf_counter()
        PATTERN.match(text)
        if time.perf_counter() - began >= seconds:
            return text
        length += 1


async def requests(text: str, gap: float) -> None:
    """Serve one request after the other."""

    async def request() -> None:
        backtrack(text)

    await asyncio.sleep(0.3)
    for number in range(CALLS):
        await asyncio.create_task(request(), name=f"request {number}")
        await asyncio.sleep(gap)
    await asyncio.sleep(0.2)


def measured(text: str, gap: float) -> list[Stall]:
    """Return the stalls of one run."""
    agent = loopwatch.install(threshold=0.05, log_level="CRITICAL", cpu_budget=1.0)
    asyncio.run(requests(text, gap))
    assert agent.flush(10)
    loopwatch.uninstall()
    return list(agent.stalls())


@pytest.mark.parametrize("gap", [0, 0.001, 0.01])
def test_calls_without_a_pause_are_kept_apart(gap: float) -> None:
    """Each call is a stall of its own; no other function is blamed, and most have their culprit.

    How many are named depends on how soon the system wakes a thread.
    """
    stalls = measured(text_of(0.12), gap)
    named = [stall for stall in stalls if stall.culprit is not None]
    blocks = [stall for stall in stalls if stall.cause is not Cause.STARVED]
    right = [stall for stall in named if stall.culprit and stall.culprit.function == "backtrack"]
    assert len(stalls) >= CALLS
    assert len(right) >= len(blocks) / 3
    assert len(right) >= 0.8 * len(named)


ROW = """
import asyncio, re, sys
from pathlib import Path
import loopwatch

async def request():
    re.match(r"(a+)+$", sys.argv[2])

async def main():
    await asyncio.sleep(0.3)
    for _ in range(8):
        await asyncio.create_task(request())
        await asyncio.sleep(0)
    (hang,) = Path(sys.argv[1]).glob("*.hang")
    print(hang.read_text().count("most recent call first"))

agent = loopwatch.install(threshold=0.05, hang_after=0.8, journal=sys.argv[1], log_level="CRITICAL", cpu_budget=1.0)
asyncio.run(main())
"""


def test_a_long_row_is_no_hang(tmp_path: Path) -> None:
    """A row of calls that is longer than ``hang_after`` does not set off the timer of the hang file."""
    command = [sys.executable, "-c", ROW, str(tmp_path), text_of(0.25)]  # pytest would have the timer for itself
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=True)
    assert done.stdout == "0\n"


@pytest.mark.parametrize("flushes", [False, True])
def test_a_call_at_the_very_end_has_its_culprit(loop_kind: str, flushes: bool) -> None:
    """What was only looked at is complete when the loop ends, and when the agent does right after it."""
    text = text_of(0.2)

    async def main() -> None:
        await asyncio.sleep(0.3)
        backtrack(text)

    agent = loopwatch.install(threshold=0.1, log_level="CRITICAL", cpu_budget=1.0)
    runner(loop_kind)(main())
    if flushes:
        assert agent.flush(10)
    loopwatch.uninstall()
    (stall,) = [each for each in agent.stalls() if each.cause is Cause.NATIVE_GIL]
    assert stall.culprit is not None
    assert stall.culprit.function == "backtrack"

"""The culprit where a greenlet, a template engine, generated code or a library stands between the loop and the user."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from conftest import Run

import loopwatch
from loopwatch.agent import Agent
from loopwatch.events import Cause, Stall

pytestmark = pytest.mark.measures

LONG = 0.3


@pytest.fixture
def watching() -> Iterator[Agent]:
    yield loopwatch.install(threshold=0.1, log_level="CRITICAL", grace=0.0, cpu_budget=1.0)
    loopwatch.uninstall()


def the_stall(agent: Agent) -> Stall:
    """Return the longest stall."""
    assert agent.flush(10)
    return max(agent.stalls(), key=lambda stall: stall.duration)


def line_of(function: Any, text: str) -> int:
    """Return the number of the line of ``function`` that contains a text."""
    code: CodeType = function.__code__
    lines = Path(code.co_filename).read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if n >= code.co_firstlineno and text in line)


def parse(item: str) -> int:
    """Take half of a microsecond."""
    one, _, other = item.partition(":")
    return len(one) + len(other)


async def consume(ends: float) -> int:
    """Read items that are there already, so that no await suspends."""
    total = 0
    while time.thread_time() < ends:
        for _ in range(1000):
            total += parse("1:2")
        await asyncio.sleep(0) if total < 0 else None
    return total


def test_a_short_function_is_not_blamed_for_a_long_loop(watching: Agent, run: Run) -> None:
    """The function that is called half a million times is not the culprit, the loop that calls it is."""

    async def test() -> None:
        await asyncio.sleep(0.2)
        await consume(time.thread_time() + LONG)
        await asyncio.sleep(0.05)

    run(test())
    stall = the_stall(watching)
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.culprit.file) == ("consume", __file__)
    assert stall.samples[0] >= 0.6 * stall.samples[1]


@dataclasses.dataclass
class Point:
    """Has an ``__init__`` without a source line."""

    x: int
    y: int
    z: int


def make_points(ends: float) -> list[Point]:
    """Run generated code most of the time."""
    points: list[Point] = []
    while time.thread_time() < ends:
        points = [Point(n, n, n) for n in range(10_000)]
    return points


def test_generated_code_belongs_to_its_caller(watching: Agent, run: Run) -> None:
    """Code that a dataclass has generated is not shown as the culprit: its caller's line is."""

    async def test() -> None:
        await asyncio.sleep(0.2)
        gc.disable()
        make_points(time.thread_time() + LONG)
        gc.enable()
        await asyncio.sleep(0.05)

    run(test())
    culprit = the_stall(watching).culprit
    assert culprit is not None
    assert culprit.function.startswith("make_points")  # a comprehension is a function before 3.12
    assert culprit.file == __file__


def spin(seconds: float) -> None:
    """Compute."""
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


async def in_a_greenlet(greenlet: Any) -> None:
    """Run a plain function in a greenlet, as SQLAlchemy's asyncio layer does."""
    greenlet.greenlet(spin).switch(LONG)


def test_code_in_a_greenlet_belongs_to_the_coroutine_that_switched(watching: Agent, run: Run, loop_kind: str) -> None:
    """The stack goes on below the greenlet, the callback is known, and so is the length."""

    async def test() -> None:
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await in_a_greenlet(greenlet)
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.05)

    took: list[float] = []
    greenlet = pytest.importorskip("greenlet")
    run(test())
    stall = the_stall(watching)
    assert [frame.function for frame in stall.stack][-2:] == ["in_a_greenlet", "spin"]
    assert stall.task is not None
    assert stall.duration == pytest.approx(took[0], abs=0.1)
    if loop_kind != "uvloop":
        assert stall.uncertainty < 0.02


def test_a_template_is_named_by_its_own_line(watching: Agent, run: Run, tmp_path: Any) -> None:
    """A block within a template of Jinja2 is told with the template's file and line, not those of its code."""
    jinja2 = pytest.importorskip("jinja2")
    page = tmp_path / "page.html"
    page.write_text("<h1>title</h1>\n\n{% for row in rows %}\n  {{ slow(row) }}\n{% endfor %}\n")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(str(tmp_path)))
    template = environment.get_template("page.html")

    async def test() -> None:
        await asyncio.sleep(0.2)
        template.render(rows=[1], slow=lambda _row: sum(sum(range(1000)) for _ in range(20_000)))
        await asyncio.sleep(0.05)

    run(test())
    shown = [(frame.file, frame.line) for frame in the_stall(watching).stack if frame.file.endswith(".html")]
    assert shown == [(str(page), 4)]


def collects(ends: float) -> None:
    """Collect garbage in a thread of its own."""
    while time.monotonic() < ends:
        gc.collect()


def test_a_collection_in_another_thread_has_that_threads_line(watching: Agent, run: Run) -> None:
    """A loop that waits for a collection in another thread is blocked by gc, at the line that collects."""
    ballast = [[n] for n in range(1_500_000)]

    async def test() -> None:
        await asyncio.sleep(0.2)
        thread = threading.Thread(target=collects, args=(time.monotonic() + 0.05,))
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)

    run(test())
    stall = the_stall(watching)
    assert stall.cause is Cause.GC
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.culprit.line) == ("collects", line_of(collects, "gc.collect()"))
    assert len(ballast) == 1_500_000


NESTED = """
    import asyncio, sys, time
    import nest_asyncio
    import loopwatch

    agent = loopwatch.install(threshold=0.1, log_level="CRITICAL", cpu_budget=1.0)

    def spin():
        ends = time.thread_time() + 0.3
        while time.thread_time() < ends:
            pass

    async def other():
        await asyncio.sleep(0.2)
        began = time.monotonic()
        spin()
        return time.monotonic() - began

    async def main():
        await asyncio.sleep(0.1)
        return asyncio.get_running_loop().run_until_complete(other())

    nest_asyncio.apply()
    took = asyncio.run(main())
    assert agent.flush(10)
    stall = max(agent.stalls(), key=lambda stall: stall.duration)
    print(stall.culprit.function, took, stall.duration, stall.uncertainty)
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="nest_asyncio does not know it")
def test_a_block_in_a_nested_loop_is_exact() -> None:
    """A block within a pass of nest_asyncio is as long as it was, without uncertainty."""
    pytest.importorskip("nest_asyncio")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(NESTED)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    function, *seconds = ran.stdout.split()
    took, duration, uncertainty = map(float, seconds)
    assert function == "spin"
    assert duration == pytest.approx(took, abs=0.05)
    assert uncertainty < 0.02

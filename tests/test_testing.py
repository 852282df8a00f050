"""The test helpers that ship with the package fail when they should, and only then."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Run

from loopwatch.agent import Agent
from loopwatch.errors import ConfigError, LoopwatchError
from loopwatch.events import Cause, Evidence, Stall
from loopwatch.testing import FakeClock, RecordingSink, assert_not_blocked

pytestmark = pytest.mark.measures

LONG = 0.15


def blocking_helper() -> None:
    time.sleep(LONG)


class Failure:
    """The assertion's message: the first block's duration in seconds, and the whole text."""

    def __init__(self, error: BaseException) -> None:
        self.text = str(error)
        found = re.search(r"blocked (\d+) ms by (\S+) ", self.text)
        assert found is not None, self.text
        self.seconds, self.culprit = int(found[1]) / 1000, found[2]


def fails(run: Run, coroutine: Any) -> Failure:
    with pytest.raises(AssertionError) as caught:
        run(coroutine)
    return Failure(caught.value)


async def in_with() -> None:
    with assert_not_blocked(0.05):
        blocking_helper()


async def in_async_with() -> None:
    async with assert_not_blocked(0.05):
        await asyncio.sleep(0)
        blocking_helper()
        await asyncio.sleep(0)


@assert_not_blocked(0.05)
async def decorated() -> None:
    await asyncio.sleep(0)
    blocking_helper()


@assert_not_blocked(0.05)
def decorated_function() -> None:
    blocking_helper()


async def calls_decorated_function() -> None:
    decorated_function()


@pytest.mark.parametrize("blocked", [in_with, in_async_with, decorated, calls_decorated_function])
def test_names_culprit_and_duration(run: Run, blocked: Callable[[], Any]) -> None:
    """Each form fails on a block, with its culprit, its duration within 20 percent, its cause and the remedy."""
    failure = fails(run, blocked())
    assert failure.culprit == "blocking_helper"
    assert LONG * 0.95 <= failure.seconds <= LONG * 1.2 + 0.02
    assert failure.text.startswith("the event loop was blocked for 0.05 s or longer, 1 time(s):\n  loop ")
    assert f"({__file__}:" in failure.text
    assert "sleeping (sleep)" in failure.text
    assert "await asyncio.sleep()" in failure.text


def test_names_each_block(run: Run) -> None:
    """Three blocks are three lines."""

    async def main() -> None:
        async with assert_not_blocked(0.05):
            for _ in range(3):
                blocking_helper()
                await asyncio.sleep(0.06)

    failure = fails(run, main())
    assert "3 time(s)" in failure.text
    assert failure.text.count("\n  loop ") == 3


def test_passes_when_not_blocked(run: Run) -> None:
    """Work in short pieces, and any time spent waiting, is no block; results and arguments are passed through."""

    @assert_not_blocked(0.5)
    async def handler(first: int, *, second: int) -> int:
        for _ in range(5):
            time.sleep(0.002)
            await asyncio.sleep(0.02)
        return first + second

    async def main() -> None:
        with assert_not_blocked(0.5):
            await asyncio.sleep(0.05)
        assert await handler(1, second=2) == 3
        assert await handler(3, second=4) == 7

    run(main())


def test_blocks_outside_are_ignored(run: Run) -> None:
    """Only blocks inside the context count."""

    async def main() -> None:
        blocking_helper()
        with assert_not_blocked(0.1):
            pass
        blocking_helper()
        async with assert_not_blocked(0.1):
            await asyncio.sleep(0)
        blocking_helper()

    run(main())


def test_decorated_function_looks_like_itself() -> None:
    """Name, documentation and kind of a decorated function are kept."""
    assert decorated.__name__ == "decorated"
    assert inspect.iscoroutinefunction(decorated)
    assert decorated_function.__name__ == "decorated_function"
    assert not inspect.iscoroutinefunction(decorated_function)


def test_not_raised_over_another_exception(run: Run) -> None:
    """A test that fails keeps its own failure, which is not chained to an assertion about blocks."""

    async def with_(kind: str) -> None:
        if kind == "with":
            with assert_not_blocked(0.05):
                blocking_helper()
                raise ZeroDivisionError("its own")
        async with assert_not_blocked(0.05):
            blocking_helper()
            raise ZeroDivisionError("its own")

    for kind in ("with", "async with"):
        with pytest.raises(ZeroDivisionError, match="its own") as caught:
            run(with_(kind))
        assert caught.value.__context__ is None


def test_no_loop() -> None:
    """Outside a loop it raises an error that explains its use."""
    with pytest.raises(LoopwatchError, match="no event loop runs here; use it inside a coroutine"):
        assert_not_blocked(0.05).__enter__()
    with pytest.raises(LoopwatchError, match="no event loop runs here"):
        decorated_function()


@pytest.mark.parametrize("bad", [0, -1, float("nan"), "fast", None])
def test_bad_limit(bad: Any) -> None:
    """A limit that is no number above 0 is refused where it is written, not where it is used."""
    with pytest.raises(ConfigError, match=r"^threshold=.*: must be a number of seconds above 0"):
        assert_not_blocked(bad)
    with pytest.raises(ConfigError, match="unknown setting 'treshold'"):
        assert_not_blocked(0.1, treshold=1)


def test_settings_go_through_the_decorator(run: Run) -> None:
    """Further settings count in each form: code named as a library is not the culprit."""

    @assert_not_blocked(0.05, library_code=(__name__,), user_code=("no_such_module",))
    async def handler() -> None:
        blocking_helper()

    with pytest.raises(AssertionError) as caught:
        run(handler())
    assert "by blocking_helper" not in str(caught.value)


def test_beside_an_installed_agent(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """Both report the block, each by its own limit, and the installed agent goes on afterwards."""

    async def main() -> None:
        await asyncio.sleep(0.01)
        with pytest.raises(AssertionError, match="blocking_helper"), assert_not_blocked(0.05):
            blocking_helper()
        await asyncio.sleep(0.01)
        blocking_helper()
        await asyncio.sleep(0.01)

    run(main())
    agent.flush()
    assert len(sink.wait(2)) == 2
    assert {stall.cause for stall in sink.stalls} == {Cause.SLEEP}
    assert agent.snapshot().agent.faults == {}


def test_nested(run: Run) -> None:
    """The inner one passes by its limit, and the outer one fails by its own."""

    async def main() -> None:
        with assert_not_blocked(0.05), assert_not_blocked(5.0):
            blocking_helper()

    assert fails(run, main()).culprit == "blocking_helper"


def test_nothing_is_left_behind(run: Run) -> None:
    """After a hundred uses the loop's selector, the threads and the collector's callbacks are as before."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        threads, callbacks = set(threading.enumerate()), list(gc.callbacks)
        for _ in range(100):
            async with assert_not_blocked(0.5):
                await asyncio.sleep(0)
        assert set(threading.enumerate()) <= threads
        assert gc.callbacks == callbacks
        assert "select" not in vars(getattr(loop, "_selector", object)) or not hasattr(loop, "_selector")

    run(main())


def stall(number: int) -> Stall:
    return Stall(str(number), "main", 0.0, 0.2, Cause.SLEEP, Evidence(0.2))


def test_sink_returns_as_soon_as_enough_came() -> None:
    """wait() returns the stalls in their order, the moment the last of them comes from another thread."""
    sink = RecordingSink()
    thread = threading.Thread(target=lambda: [sink(stall(number)) for number in range(3)])
    thread.start()
    assert [item.id for item in sink.wait(3)] == ["0", "1", "2"]
    thread.join()
    assert sink.stalls == sink.wait(0)


def test_sink_says_how_many_are_missing() -> None:
    """Too few stalls are an assertion error that says how many came."""
    sink = RecordingSink()
    sink(stall(1))
    with pytest.raises(AssertionError, match=r"^1 of 2 stalls came within 0\.01 s"):
        sink.wait(2, timeout=0.01)


def test_clock_stands_still() -> None:
    """A FakeClock moves only when it is advanced."""
    clock = FakeClock(10.0)
    assert clock() == clock() == 10.0
    clock.advance(0.5)
    assert clock() == clock.now == 10.5

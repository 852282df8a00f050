"""``loopwatch.expected``: blocks of the code inside are counted and journaled, and are no stalls; all others are."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import loopwatch
from loopwatch.agent import Agent
from loopwatch.events import Cause, ExpectedBlocks
from loopwatch.report.reader import read_journals
from loopwatch.testing import RecordingSink
from loopwatch.watch.assemble import expected_within
from loopwatch.watch.expectations import MOST_REASONS, OTHERS, Expectations
from loopwatch.watch.expected_code import MOST_SPANS, Span, marks, spans_within
from loopwatch.watch.observation import Sample
from loopwatch.watch.probes.base import Block
from loopwatch.watch.stacks import RawStack
from tests.conftest import Run

pytestmark = pytest.mark.measures


LONG = 0.25
"""Seconds of a block, with a threshold of 0.1."""


def only(agent: Agent) -> ExpectedBlocks:
    (loop,) = agent.snapshot().loops
    (found,) = loop.expected
    return found


async def settle(agent: Agent) -> None:
    await asyncio.sleep(0.03)
    assert await asyncio.to_thread(agent.flush, 5.0)


def reported(agent: Agent) -> list[loopwatch.Stall]:
    """The stalls, without those that a busy machine makes."""
    return [stall for stall in agent.stalls() if stall.cause is not Cause.STARVED]


# -- the statement ----------------------------------------------------------------------------------------------------


def with_statement() -> None:
    with loopwatch.expected("warm-up"):
        time.sleep(LONG)


@loopwatch.expected("warm-up")
def decorated() -> None:
    time.sleep(LONG)


async def with_awaits() -> None:
    with loopwatch.expected("warm-up"):
        await asyncio.sleep(0.02)
        time.sleep(LONG)
        await asyncio.sleep(0.02)


@loopwatch.expected("warm-up")
async def decorated_coroutine() -> None:
    await asyncio.sleep(0.02)
    time.sleep(LONG)
    await asyncio.sleep(0.02)


async def async_with() -> None:
    async with loopwatch.expected("warm-up"):
        await asyncio.sleep(0.02)
        time.sleep(LONG)


def keeps_the_gil() -> None:
    data = list(range(300_000))
    with loopwatch.expected("warm-up"):
        ends = time.monotonic() + LONG
        while time.monotonic() < ends:
            json.dumps(data)


Blocks = Callable[[], None] | Callable[[], Awaitable[None]]


@pytest.mark.measures
@pytest.mark.parametrize(
    "block", [with_statement, decorated, with_awaits, decorated_coroutine, async_with, keeps_the_gil]
)
def test_block_is_counted_and_no_stall(
    block: Blocks, agent: Agent, sink: RecordingSink, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """One block of 0.25 seconds is counted under its reason; no stall, log line, callback or flagged function."""
    caplog.set_level(logging.DEBUG, "loopwatch")

    async def main() -> None:
        await asyncio.sleep(0.02)
        made = block()
        if made is not None:
            await made
        await settle(agent)
        found = only(agent)
        assert (found.reason, found.blocks) == ("warm-up", 1)
        assert LONG <= found.blocked == found.longest < LONG + 0.2
        (loop,) = agent.snapshot().loops
        assert (loop.stalls, loop.blocked, loop.blocked_for) == (0, 0.0, 0.0)

    run(main())
    assert (reported(agent), sink.stalls, agent.flagged()) == ([], [], ())
    assert [record for record in caplog.records if "blocked" in record.getMessage()] == []


@pytest.mark.measures
def test_plain_callback_is_covered(agent: Agent, run: Run) -> None:
    """A callback outside any task is covered too, also where a loop does not show its context."""

    async def main() -> None:
        await asyncio.sleep(0.02)
        asyncio.get_running_loop().call_soon(decorated)
        await asyncio.sleep(0.05)
        await settle(agent)
        assert only(agent).blocks == 1

    run(main())
    assert reported(agent) == []


@pytest.mark.measures
def test_other_tasks_are_not_covered_meanwhile(agent: Agent, run: Run) -> None:
    """While the code inside awaits, a block by another task is a stall, and one by a task started inside is not."""

    async def blocks(at: float) -> None:
        await asyncio.sleep(at)
        time.sleep(LONG)

    async def main() -> None:
        await asyncio.sleep(0.02)
        foreign = asyncio.create_task(blocks(0.05), name="foreign")
        with loopwatch.expected("warm-up"):
            await asyncio.create_task(blocks(0.5), name="own")
            await foreign
        await settle(agent)
        assert only(agent).blocks == 1

    run(main())
    assert [stall.task for stall in reported(agent)] == ["foreign"]


@pytest.mark.measures
def test_what_follows_is_not_covered(agent: Agent, run: Run) -> None:
    """Code after the statement is reported, also in a task that was started inside and outlives it."""

    async def late() -> None:
        await asyncio.sleep(0.1)
        time.sleep(LONG)

    async def main() -> None:
        await asyncio.sleep(0.02)
        with loopwatch.expected("warm-up"):
            outlives = asyncio.create_task(late(), name="outlives")
            await asyncio.sleep(0.02)
        await outlives
        time.sleep(LONG)
        await settle(agent)

    run(main())
    assert [stall.duration >= LONG for stall in reported(agent)] == [True, True]


@pytest.mark.measures
def test_mixed_callback_is_judged_by_its_larger_part(agent: Agent, run: Run) -> None:
    """Of two callbacks with an expected and another part, the one whose other part is larger is the only stall."""

    async def main() -> None:
        await asyncio.sleep(0.02)
        for inside, outside in ((0.3, 0.12), (0.12, 0.3)):
            with loopwatch.expected("warm-up"):
                time.sleep(inside)
            time.sleep(outside)
            await asyncio.sleep(0.05)
        await settle(agent)
        assert only(agent).blocks == 1

    run(main())
    assert len(reported(agent)) == 1


@pytest.mark.measures
def test_hang_is_not_announced(agent: Agent, run: Run) -> None:
    """A block longer than ``hang_after`` is not announced, and not shown as ongoing in the statistics meanwhile."""
    agent.configure(hang_after=0.3)
    during: list[float] = []

    async def main() -> None:
        await asyncio.sleep(0.02)
        with loopwatch.expected("migration"):
            for _ in range(8):
                time.sleep(0.1)
                during.extend(loop.blocked_for for loop in agent.snapshot().loops)
        await settle(agent)
        assert only(agent).longest >= 0.8

    run(main())
    assert reported(agent) == []
    assert set(during) == {0.0}


@pytest.mark.measures
def test_journal_says_why(tmp_path: Path, run: Run) -> None:
    """The journal holds the block with its reason, among the expected ones."""
    agent = loopwatch.install(journal=f"{tmp_path}/", log_level="CRITICAL", cpu_budget=1.0)

    async def main() -> None:
        await asyncio.sleep(0.02)
        with_statement()
        await settle(agent)

    run(main())
    loopwatch.uninstall()
    (block,) = read_journals(str(tmp_path)).expected
    assert (block.expected, block.cause) == ("warm-up", Cause.SLEEP)
    assert block.culprit is not None
    assert block.culprit.function == "with_statement"


# -- its life ---------------------------------------------------------------------------------------------------------


def test_without_an_agent_nothing_is_marked() -> None:
    """Without an agent no mark is made, the code runs, and its result and exceptions are its own."""

    @loopwatch.expected("nothing")
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    marks.spans.clear()
    with loopwatch.expected("nothing"):
        assert marks.variable.get() is None
        time.sleep(0.002)
    assert double(4) == 8
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")
    assert not marks.spans
    with pytest.raises(KeyError), loopwatch.expected("nothing"):
        raise KeyError("own")


@pytest.fixture
def watched(agent: Agent) -> Iterator[None]:
    """An agent is there, so that marks are made."""
    assert marks.watchers == 1
    marks.spans.clear()
    yield
    assert marks.variable.get() is None


def test_marks_are_nested_and_removed(watched: None) -> None:
    """Inside, the innermost reason is in force; outside, none is, also after an exception."""

    def reason() -> str | None:
        mark = marks.variable.get()
        return None if mark is None else mark.reason

    outer, inner = loopwatch.expected("outer"), loopwatch.expected("inner")
    with outer:
        with inner:
            assert reason() == "inner"
            with outer:  # the same object again
                assert reason() == "outer"
            assert reason() == "inner"
        assert reason() == "outer"
    with pytest.raises(ZeroDivisionError), outer:
        raise ZeroDivisionError
    assert reason() is None


def test_one_object_serves_many_tasks(watched: None) -> None:
    """Tasks that enter the same object in turns leave their own entries."""
    shared = loopwatch.expected("shared")

    async def enter(delay: float) -> None:
        with shared:
            await asyncio.sleep(delay)
            mark = marks.variable.get()
            assert mark is not None
            assert mark.until == float("inf")
        assert marks.variable.get() is None
        assert mark.until < float("inf")

    async def main() -> None:
        await asyncio.gather(*(enter(delay / 500) for delay in (3, 1, 2)))

    asyncio.run(main())


def test_entry_left_in_another_context_is_over(watched: None) -> None:
    """An asynchronous generator that is closed by another task than it was begun by leaves no mark in force."""
    found = []

    async def generator() -> AsyncIterator[int]:
        with loopwatch.expected("generator"):
            found.append(marks.variable.get())
            yield 1

    async def main() -> None:
        items = generator()
        assert await asyncio.create_task(anext(items)) == 1  # type: ignore[arg-type]
        await items.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    (mark,) = found
    assert mark is not None
    assert mark.until < float("inf")
    assert mark.covering(time.monotonic()) is None


def test_spans_are_bounded_and_short_ones_left_out(watched: None) -> None:
    """At most 64 spans are kept; an entry of some microseconds leaves none."""
    for _ in range(MOST_SPANS + 3):
        with loopwatch.expected("long enough"):
            time.sleep(0.0011)
    assert len(marks.spans) == MOST_SPANS
    marks.spans.clear()
    for _ in range(100):
        with loopwatch.expected("short"):
            pass
    assert len(marks.spans) <= 2  # unless the machine held one up


def test_cheap_enough_for_every_call(watched: None) -> None:
    """Entering and leaving takes less than 20 microseconds at the median, even on a busy machine."""
    spans = []
    for _ in range(2000):
        begun = time.perf_counter()
        with loopwatch.expected("call"):
            pass
        spans.append(time.perf_counter() - begun)
    assert sorted(spans)[1000] < 20e-6


@pytest.mark.parametrize("what", [5, (number for number in ())])
def test_only_functions_can_be_decorated(what: object) -> None:
    """Anything else, and generator functions, are a ConfigError that names the way out."""
    with pytest.raises(loopwatch.ConfigError, match="use a with statement"):
        loopwatch.expected("x")(what)  # type: ignore[type-var]

    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(loopwatch.ConfigError, match=r"not <function .*generator"):
        loopwatch.expected("x")(generator)


def test_reasons_are_bounded() -> None:
    """Beyond 64 reasons without time limits, blocks are counted under one common reason."""
    known = Expectations()
    for number in range(MOST_REASONS + 5):
        known.always(f"warm-up {number}", "main").counted = ExpectedBlocks(f"warm-up {number}", "main", blocks=1)
    assert known.always("one more", "main").reason == OTHERS
    assert len(known.stats()) == MOST_REASONS + 1


# -- by time ----------------------------------------------------------------------------------------------------------


def sample(at: float, *, expected: str | None = None, is_known: bool = True, task: str | None = "t") -> Sample:
    return Sample(at, 0.0, RawStack(()), expected=expected, is_known=is_known, task=task)


def span(start: float, end: float, reason: str = "a") -> Span:
    return Span(reason, 7, start, end, in_task=True)


@pytest.mark.parametrize(
    ("samples", "spans", "reason"),
    [
        ([], [span(10.1, 10.9)], "a"),
        ([], [span(10.1, 10.4)], None),  # less than half
        ([], [span(10.0, 10.3), span(10.4, 10.75, "b"), span(10.35, 10.36)], "b"),
        ([], [span(10.0, 10.4), span(10.1, 10.3)], None),  # nested: counted once
        ([sample(10.95)], [span(10.1, 10.9)], "a"),  # taken after a call that kept the GIL
        ([sample(10.5)], [span(10.1, 10.9)], None),  # another callback ran within the span
        ([sample(10.5, is_known=False)], [span(10.1, 10.9)], "a"),
        ([sample(10.5, is_known=False, task=None)], [span(10.1, 10.9)], None),  # a plain callback, on uvloop
        ([sample(10.5, expected="a")], [span(10.1, 10.9)], "a"),
    ],
)
def test_block_is_judged_by_when_code_was_entered_and_left(
    samples: list[Sample], spans: list[Span], reason: str | None
) -> None:
    """A block is expected if most of it lies within spans that no sample of another callback contradicts."""
    assert expected_within(samples, spans, Block(10.0, 10.0, 11.0)) == reason


def test_spans_of_a_block(watched: None) -> None:
    """Only spans of the block's thread, begun and ended within the block, are its own."""
    marks.spans.extend([span(1.0, 2.0), span(0.9, 2.0), span(1.0, 2.1), Span("b", 8, 1.0, 2.0, in_task=True)])
    assert spans_within(7, 1.0, 2.0) == [span(1.0, 2.0)]
    marks.spans.clear()


def test_marks_of_a_row_of_jobs_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts its successor from within expected code, and then leaves, is not kept by its successors."""
    monkeypatch.setattr(marks, "watchers", 1)
    context, entered = contextvars.copy_context(), loopwatch.expected("job 0")
    context.run(entered.__enter__)
    for number in range(1, 50):
        successor, inner = context.run(contextvars.copy_context), loopwatch.expected(f"job {number}")
        successor.run(inner.__enter__)
        context.run(entered.__exit__, None, None, None)
        context, entered = successor, inner
    mark, length = context[marks.variable], 0
    while mark is not None:
        mark, length = mark.outer, length + 1
    assert length <= 2
    context.run(entered.__exit__, None, None, None)

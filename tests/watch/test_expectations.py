"""Which blocks of a loop are expected, and how they are accounted for."""

from __future__ import annotations

import dataclasses

import pytest

from loopwatch.events import Cause, Evidence, ExpectedBlocks, Frame, Stall
from loopwatch.watch.expectations import MOST, Expectation, Expectations

WARM, LOAD = Frame("warm", "app", "/srv/app.py", 3), Frame("load", "app", "/srv/app.py", 9)


def start(begin: float = 10.0, until: float = 20.0) -> Expectation:
    return Expectation("start-up of uvicorn", "main", begin, until)


def stall(duration: float, culprit: Frame | None = None, cause: Cause = Cause.SLEEP) -> Stall:
    return Stall("id", "main", 0.0, duration, cause, Evidence(duration), culprit=culprit)


@pytest.mark.parametrize(
    ("block", "is_expected"),
    [
        ((10.5, 11.0), True),
        ((9.0, 10.0), False),  # it ended when the span began
        ((9.0, 10.1), True),  # it led into the span
        ((19.0, 20.9), True),  # most of it lies before the end
        ((19.5, 20.6), False),  # most of it lies after the end
        ((20.0, 20.5), False),
    ],
)
def test_block_mostly_within_the_span_is_expected(block: tuple[float, float], is_expected: bool) -> None:
    """A block that extends beyond the end of the span is expected if most of it lies within the span."""
    assert start().covers(*block) is is_expected


def test_end_of_an_expectation_is_never_extended() -> None:
    """An expectation that ended early stays ended, and a lasting block is not expected from then on."""
    span = start()
    assert [span.covers_now(now) for now in (9.9, 10.0, 19.9, 20.0)] == [False, True, True, False]
    span.end(12.0)
    span.end(15.0)
    assert span.until == 12.0
    assert (span.covers_now(11.9), span.covers_now(12.0)) == (True, False)


def test_account() -> None:
    """The account holds number, sum and the longest block with its culprit and cause."""
    span = start()
    assert span.counted == ExpectedBlocks("start-up of uvicorn", "main")
    for each in (stall(0.25, WARM), stall(0.5, LOAD, Cause.PYTHON), stall(0.125)):
        span.count(each)
    assert span.counted == ExpectedBlocks("start-up of uvicorn", "main", 3, 0.875, 0.5, LOAD, Cause.PYTHON)


def test_expectations_are_bounded() -> None:
    """The latest expectations are kept, and those without a block are not listed."""
    known = Expectations()
    spans = [start(begin=10.0 * n, until=10.0 * n + 5) for n in range(MOST + 2)]
    for span in spans:
        known.add(span)
    assert known.of(11.0, 12.0) is None  # the second one, which was evicted
    assert known.of(21.0, 22.0) is spans[2]
    assert known.at(24.9) is spans[2]
    assert known.at(25.0) is None
    spans[2].count(stall(0.5))
    assert known.stats() == (dataclasses.replace(spans[2].counted),)
    assert known.stats()[0].blocked == 0.5

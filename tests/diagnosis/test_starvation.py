"""The words for time without a processor: from when, whom they name, and what they advise."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.diagnosis.own_part import Parts, parts_of, total
from loopwatch.diagnosis.starvation import A_PART, SERIOUS, WORTH_SAYING, advice, cure, described, is_notable
from loopwatch.events import Cause, Evidence, Stall

QUOTA = "CPU limit of the container"
OTHERS = "other processes"


def parts(starved: float, throttled: float = 0.0, duration: float = 1.0) -> Parts:
    return Parts(duration - starved, starved, throttled)


def test_thresholds() -> None:
    """A tenth of a block is said, three tenths are dealt with, a fifth of that time is named."""
    assert (WORTH_SAYING, SERIOUS, A_PART) == (0.1, 0.3, 0.2)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (parts(0.0), ""),
        (Parts(0.0, 0.0, 0.0), ""),
        (parts(0.0999), ""),
        (Parts(math.nan, math.nan, math.nan), ""),
        (parts(0.1), f"100 ms of the 1.00 s without a processor ({OTHERS})"),
        (parts(0.21, 0.2, duration=0.62), f"210 ms of the 620 ms without a processor ({QUOTA})"),
        (parts(1.5, 0.75, duration=2.5), f"1.50 s of the 2.50 s without a processor ({QUOTA} and {OTHERS})"),
        (parts(0.5, 0.5), f"500 ms of the 1.00 s without a processor ({QUOTA})"),
        (parts(0.5, 0.41), f"500 ms of the 1.00 s without a processor ({QUOTA})"),
        (parts(0.5, 0.39), f"500 ms of the 1.00 s without a processor ({QUOTA} and {OTHERS})"),
        (parts(0.5, 0.11), f"500 ms of the 1.00 s without a processor ({QUOTA} and {OTHERS})"),
        (parts(0.5, 0.09), f"500 ms of the 1.00 s without a processor ({OTHERS})"),
        (parts(1.0, 1.0), f"1.00 s of the 1.00 s without a processor ({QUOTA})"),
    ],
)
def test_described(block: Parts, words: str) -> None:
    """Seconds of the block are said from 10 % on; who took less than a fifth of them is left out."""
    assert described(block) == words
    assert is_notable(block) == bool(words)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (parts(0.5), "run fewer busy processes on this machine, or give this one a processor of its own"),
        (parts(0.5, 0.5), "raise the CPU limit of the container, or run fewer workers in it"),
        (parts(0.5, 0.25), "raise the CPU limit of the container, and run fewer busy processes on this machine"),
        (parts(0.0), "run fewer busy processes on this machine, or give this one a processor of its own"),
    ],
)
def test_cure(block: Parts, words: str) -> None:
    """The quota, the neighbours, or both are what is to change."""
    assert cure(block) == words


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (parts(0.0), ""),
        (parts(0.29, 0.29), ""),
        (Parts(math.nan, math.nan, math.nan), ""),
        (
            parts(0.3, 0.3),
            " It also had no processor for 300 ms: raise the CPU limit of the container, or run fewer workers in it.",
        ),
        (
            parts(2.0, duration=4.0),
            " It also had no processor for 2.00 s: run fewer busy processes on this machine, or give this one a "
            "processor of its own.",
        ),
    ],
)
def test_advice(block: Parts, words: str) -> None:
    """A second sentence is added from 30 % of the block on."""
    assert advice(block) == words


def stall(**fields: Any) -> Stall:
    return Stall("a", "main", 1.0, fields.pop("duration", 1.0), Cause.PYTHON, Evidence(1.0), **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1.0, 0.0, 0.0)),
        ({"starved": 0.25, "throttled": 0.125}, (0.75, 0.25, 0.125)),
        ({"starved": 4.0, "throttled": 3.0}, (0.0, 1.0, 1.0)),
        ({"starved": 0.25, "throttled": 0.5}, (0.75, 0.25, 0.25)),
        ({"starved": -1.0, "throttled": 0.5}, (1.0, 0.0, 0.0)),
        ({"starved": math.nan, "throttled": math.inf}, (1.0, 0.0, 0.0)),
        ({"starved": math.inf, "throttled": math.nan}, (0.0, 1.0, 0.0)),
        ({"starved": 0.5, "duration": 0.0}, (0.0, 0.0, 0.0)),
    ],
)
def test_parts_of_a_recorded_stall(fields: dict[str, Any], expected: tuple[float, float, float]) -> None:
    """The parts add up to the duration, and what a foreign journal may have is bounded."""
    assert parts_of(stall(**fields)) == expected


def test_total() -> None:
    """Parts of several blocks are added up, without rounding errors; none are nothing."""
    assert total(parts(0.1, 0.1) for _ in range(10)) == (pytest.approx(9.0), 1.0, 1.0)
    assert total([]) == (0.0, 0.0, 0.0)


@given(st.floats(0, 1e6), st.floats(), st.floats())
def test_any_stall_has_words(duration: float, starved: float, throttled: float) -> None:
    """Whatever a journal holds, the seconds named are part of the block, on one line."""
    found = parts_of(stall(duration=duration, starved=starved, throttled=throttled))
    assert 0 <= found.throttled <= found.starved <= duration
    assert found.own + found.starved == pytest.approx(duration)
    assert "\n" not in described(found) + advice(found)
    assert bool(advice(found)) <= bool(described(found))

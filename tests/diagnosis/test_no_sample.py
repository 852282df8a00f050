"""A block without a sample says what held the loop right before it, as a neighbour and not as its culprit."""

from __future__ import annotations

from typing import Any

import pytest
from stalls import T0, frame, make_stall

from loopwatch.diagnosis.no_sample import with_neighbour
from loopwatch.events import Cause, Evidence, Stall

BEFORE = make_stall(0, started_at=T0, duration=0.25)


def missed(**fields: Any) -> Stall:
    usual: dict[str, Any] = {
        "started_at": T0 + 0.26, "culprit": None, "leaf": None, "stack": (), "samples": (0, 0), "remedy": "Time it.",
        "cause": Cause.UNKNOWN, "evidence": Evidence(wall=0.25),
    }  # fmt: skip
    return make_stall(1, **(usual | fields))


def test_the_block_before_is_named() -> None:
    """Its advice names the code right before it; it still has no culprit."""
    found = with_neighbour(missed(), [BEFORE])
    assert found.culprit is None
    assert found.remedy == f"Time it. No stack of it was seen; right before it, {BEFORE.culprit} held the loop."


@pytest.mark.parametrize(
    ("fields", "before"),
    [
        ({}, []),
        ({"started_at": T0 + 0.4}, [BEFORE]),  # it did not follow at once
        ({"started_at": T0 - 0.5}, [BEFORE]),  # it came before
        ({"loop": "other"}, [BEFORE]),
        ({"pid": 101}, [BEFORE]),
        ({"leaf": frame()}, [BEFORE]),  # something of it was seen
        ({"was_in": frame()}, [BEFORE]),
        ({"evidence": Evidence(wall=0.25, samples=1)}, [BEFORE]),
        ({}, [missed(started_at=T0)]),  # nothing is known of that one either
    ],
)
def test_nothing_is_said_without_a_neighbour(fields: dict[str, Any], before: list[Stall]) -> None:
    """A stall of which something was seen, or without a known block right before it, stays as it is."""
    stall = missed(**fields)
    assert with_neighbour(stall, before) is stall

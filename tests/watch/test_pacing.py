"""The watcher's next tick: a table of views of a loop, and the time of the tick that follows from each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.watch.pacing import LONGEST_GAP, LONGEST_TICK, SHORTEST_GAP, View, next_look, tick_of

IDLE = float("inf")
NOW = 1000.0
THRESHOLD = 0.1


def view(**facts: Any) -> View:
    """A loop of asyncio that is busy and currently waiting."""
    usual = View(
        now=NOW, rests=False, since=IDLE, samples=0, is_active=True, is_quiet=False, is_exact=True, is_traced=False,
        was_kept=False, was_blocked=False, beat_due=NOW + 0.03, last_beat=NOW - 0.02, beat_interval=0.05,
    )  # fmt: skip
    return usual._replace(**facts)


@pytest.mark.parametrize(
    ("what", "facts", "seconds"),
    [
        ("a busy loop of asyncio: once within each threshold", {}, 0.09),
        ("an idle one: within a threshold", {"is_active": False}, 0.09),
        ("a quiet one: every other threshold", {"is_active": False, "is_quiet": True}, 0.2),
        ("one that has waited since the last tick: likewise", {"rests": True}, 0.2),
        ("busy for 30 ms: when half of the threshold is over", {"since": NOW - 0.03}, 0.02),
        ("busy for 48 ms: not at once", {"since": NOW - 0.0495}, SHORTEST_GAP),
        ("blocked for half of the threshold: a quarter of its age", {"since": NOW - 0.06}, 0.015),
        ("blocked for a second: ten times a second", {"since": NOW - 1.0}, LONGEST_GAP),
        ("blocked for a minute, sampled often: a fiftieth of its age", {"since": NOW - 60.0, "samples": 100}, 1.2),
        ("uvloop, quiet: within a threshold", {"is_exact": False, "is_active": False, "is_quiet": True}, 0.09),
        ("uvloop, waiting since the last tick: likewise", {"is_exact": False, "rests": True}, 0.09),
        ("uvloop, busy: with a heartbeat", {"is_exact": False}, 0.09),
        ("uvloop, heartbeat overdue: twice within a threshold", {"is_exact": False, "beat_due": NOW - 0.01}, 0.05),
        ("uvloop, its next heartbeat is far: likewise", {"is_exact": False, "beat_due": NOW + 0.5}, 0.05),
        ("uvloop, after a call that kept the GIL: soon", {"is_exact": False, "was_kept": True}, SHORTEST_GAP),
        ("uvloop, traced: at most a tick after the last heartbeat", {"is_exact": False, "is_traced": True}, 0.08),
    ],
)  # fmt: skip
def test_next_tick(what: str, facts: dict[str, Any], seconds: float) -> None:
    """The seconds until the next tick, with a threshold of 100 ms."""
    assert next_look(view(**facts), THRESHOLD, 1.0).at - NOW == pytest.approx(seconds), what


@pytest.mark.parametrize(
    ("facts", "invite", "keeps"),
    [
        ({"is_exact": False}, NOW - 0.02 + 0.06, False),
        ({"is_exact": False, "is_active": False}, None, False),
        ({}, None, False),
        ({"is_exact": False, "since": NOW - 0.2}, None, True),
        ({"is_exact": False, "rests": True}, None, True),
    ],
)
def test_heartbeat_wakes_the_watcher_only_when_a_tick_is_due(
    facts: dict[str, Any], invite: float | None, keeps: bool
) -> None:
    """The heartbeat is asked to wake it on a busy loop without timestamps, kept during a block, else cancelled."""
    look = next_look(view(**facts), THRESHOLD, 1.0)
    assert look.invite == (None if invite is None else pytest.approx(invite))
    assert look.keeps is keeps


def test_stretched_watcher_ticks_less_often() -> None:
    """All samples but the first are stretched in full, up to a threshold; other ticks by 1 to 2, from 4 on."""
    blocked = view(since=NOW - 0.06, samples=1)
    assert [next_look(blocked, THRESHOLD, stretch).at - NOW for stretch in (1.0, 4.0, 100.0)] == pytest.approx(
        [0.015, 0.06, 0.09]
    )
    first = blocked._replace(samples=0)
    assert [next_look(first, THRESHOLD, stretch).at - NOW for stretch in (1.0, 100.0)] == pytest.approx([0.015] * 2)
    busy = view(was_blocked=True)
    assert [next_look(busy, THRESHOLD, stretch).at - NOW for stretch in (1.0, 100.0)] == pytest.approx([0.09] * 2)
    assert [tick_of(0.09, stretch) for stretch in (1.0, 4.0, 8.0, 16.0)] == pytest.approx([0.09, 0.09, 0.18, 0.18])


@given(
    seen=st.builds(
        View,
        now=st.just(NOW),
        rests=st.booleans(),
        since=st.floats(0, NOW) | st.just(IDLE),
        samples=st.integers(0, 200),
        is_active=st.booleans(),
        is_quiet=st.booleans(),
        is_exact=st.booleans(),
        is_traced=st.booleans(),
        was_kept=st.booleans(),
        was_blocked=st.booleans(),
        beat_due=st.floats(NOW - 10, NOW + 10),
        last_beat=st.floats(NOW - 10, NOW),
        beat_interval=st.floats(0.001, 2),
    ),
    threshold=st.floats(0.001, 60),
    stretch=st.floats(1, 100),
)
def test_next_tick_is_in_the_near_future(seen: View, threshold: float, stretch: float) -> None:
    """Whatever the state of a loop, the watcher neither spins nor forgets it."""
    wait = next_look(seen, threshold, stretch).at - NOW
    longest = max(LONGEST_TICK * max(stretch / 4, 1.0), (NOW - seen.since) / 50)
    assert 0.0049 <= wait <= longest + 1e-6

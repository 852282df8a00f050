"""Threads of the agent notice that they were kept from running, and what for."""

from __future__ import annotations

import sys
import time

import pytest

from loopwatch.system.threads import Scheduled
from loopwatch.watch.lapse import Lapse, Waited

INTERVAL = sys.getswitchinterval()


@pytest.mark.parametrize(
    ("what", "waited", "late", "seconds"),
    [
        ("for the GIL alone", Waited(0.0, 60), 0.3, 0.3),
        ("partly for a processor", Waited(0.1, 60), 0.3, 0.2),
        ("held back by a quota: it hardly woke", Waited(0.1, 4), 0.3, 4 * INTERVAL),
        ("mostly for a processor: the GIL may have been free", Waited(0.02, 2), 0.025, None),
        ("on time", Waited(0.0, 1), 0.0002, 0.0002),
        ("nothing is known of its waits", Waited(), 0.3, 0.3),
    ],
)
def test_seconds_waited_for_the_gil(what: str, waited: Waited, late: float, seconds: float | None) -> None:
    """A wait for a processor is none for the GIL, and a thread that waits for the GIL wakes once an interval."""
    assert waited.for_gil(late) == (None if seconds is None else pytest.approx(seconds))


def test_one_wait_of_several_for_the_gil() -> None:
    """A thread that computed for two switch intervals meanwhile waited three times, not once for all of it."""
    assert Waited(0.0, 60).for_gil_each(0.3) == pytest.approx(0.3)
    assert Waited(0.0, 60, 2.1 * INTERVAL).for_gil_each(0.3) == pytest.approx((0.3 - 2.1 * INTERVAL) / 3)
    assert Waited(0.02, 2).for_gil_each(0.025) is None


def test_difference_of_two_readings() -> None:
    """Waits and wake-ups are differences; without both readings they are unknown, and never negative."""
    before, after = Scheduled(1.0, 0.5, 100), Scheduled(1.2, 0.75, 130)
    assert Waited.between(before, after) == Waited(0.25, 30, pytest.approx(0.2))
    assert Waited.between(after, before) == Waited(0.0, 0)
    assert Waited.between(None, after) == Waited.between(before, None) == Waited()


def test_lapse_is_reported_at_once_with_what_was_seen_then() -> None:
    """A step that took too long is reported with the glimpse taken right after it; shorter ones are not."""
    found: list[tuple[str, float, Waited]] = []
    lapse = Lapse(lambda: "glimpse", lambda *late: found.append(late), least=0.05)
    lapse.begin()
    lapse.goes_on()
    assert found == []
    time.sleep(0.06)
    lapse.goes_on()
    ((glimpsed, late, waited),) = found
    assert glimpsed == "glimpse" and late >= 0.06
    if sys.platform == "linux":
        assert waited.runs is not None and waited.runs >= 1
    lapse.goes_on()
    assert len(found) == 1


def test_lapse_counts_from_when_the_work_was_due() -> None:
    """Work that was due a while ago and begins now comes late by that while."""
    found: list[float] = []
    lapse = Lapse(lambda: (), lambda _glimpsed, late, _waited: found.append(late), least=0.05)
    lapse.begin(time.monotonic() - 0.2)
    lapse.goes_on()
    (late,) = found
    assert late >= 0.2

"""When a part of the agent is switched off, for how long, and what is logged of it; with a fake clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from loopwatch.core.faults import APART, FIRST_PAUSE, LONGEST_PAUSE, OCCASIONS, TRIAL, WINDOW, Faults
from loopwatch.testing import FakeClock


class Part:
    """A part named ``journal`` of an agent with a fake clock."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = FakeClock(1000.0)
        self.failed: list[str] = []
        self.faults = Faults(failed=self.failed.append, clock=self.clock)
        self._caplog = caplog

    def fail(self, times: int = 1, every: float = 1.0, about: object = None) -> None:
        """Let it fail, with ``every`` seconds before each fault."""
        for _ in range(times):
            self.clock.advance(every)
            with self.faults.guard("journal", about):
                raise OSError("no\nspace")

    def work(self) -> bool:
        """Let it work, unless it is off; return whether it did."""
        return self.faults.attempt("journal", lambda: True, False)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def part(caplog: pytest.LogCaptureFixture) -> Iterator[Part]:
    """A part and its log lines."""
    caplog.set_level(logging.INFO, "loopwatch")
    return Part(caplog)


def test_one_fault_is_counted_and_logged(part: Part) -> None:
    """A single fault switches nothing off; only the first one is logged, on one line."""
    part.fail()
    part.fail(every=2 * WINDOW)
    assert part.work()
    assert part.faults.counts == {"journal": 2}
    assert part.faults.off() == {}
    assert part.lines == ["loopwatch: its journal failed (the program is not affected): OSError: no\\nspace"]


def test_repeated_faults_switch_the_part_off_and_on(part: Part) -> None:
    """After three faults within a minute a part is off for 10 seconds and then retried; both are logged once."""
    part.fail(OCCASIONS)
    assert not part.work()
    assert part.faults.off() == {"journal": FIRST_PAUSE}
    part.clock.advance(FIRST_PAUSE - 0.1)
    assert part.faults.is_off("journal")
    part.clock.advance(0.2)
    assert not part.faults.is_off("journal")
    assert part.work()
    assert part.faults.off() == {}
    assert part.lines[1:] == [
        "loopwatch: its journal failed 3 times and is switched off for 10 s, and tried again then (the program is not "
        "affected): OSError: no\\nspace",
        "loopwatch: its journal works again, after 3 faults in all",
    ]
    assert part.failed == ["journal"] * 3


def test_a_hundred_faults_at_once_are_one_occasion(part: Part) -> None:
    """Faults in quick succession, and faults about one stall, are one occasion: the part stays on."""
    part.fail(100, every=APART / 200)
    assert part.work()
    part.fail(100, every=WINDOW / 200, about="the stall 7f")
    assert part.work()
    assert part.faults.counts == {"journal": 200}
    assert len(part.lines) == 1


def test_rare_faults_never_switch_it_off(part: Part) -> None:
    """Three faults in more than a minute do not switch it off."""
    part.fail(100, every=WINDOW / (OCCASIONS - 1) + 1)
    assert part.work()


def test_the_pauses_double_up_to_a_bound_and_are_logged_once(part: Part) -> None:
    """A part that fails on every retry is off for 10, 20, ... 600 seconds; nothing is logged until it works again."""
    part.fail(OCCASIONS)
    pauses = []
    for _ in range(9):
        (pause,) = part.faults.off().values()
        assert pause is not None
        pauses.append(pause)
        part.clock.advance(pause)
        assert not part.faults.is_off("journal")
        part.fail(every=0.0)
    assert pauses == [10, 20, 40, 80, 160, 320, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert len(part.lines) == 2
    part.clock.advance(LONGEST_PAUSE)
    assert part.work()
    assert len(part.lines) == 3


def test_pauses_begin_anew_only_after_a_good_while(part: Part) -> None:
    """A part that soon fails again is off for longer; after ten minutes without a fault the pauses restart."""
    part.fail(OCCASIONS)
    part.clock.advance(FIRST_PAUSE)
    assert part.work()
    part.fail(OCCASIONS)
    assert part.faults.off() == {"journal": 2 * FIRST_PAUSE}
    part.clock.advance(2 * FIRST_PAUSE)
    assert part.work()
    part.clock.advance(LONGEST_PAUSE)
    part.fail(OCCASIONS)
    assert part.faults.off() == {"journal": FIRST_PAUSE}


def test_silence_after_a_pause_counts_as_success(part: Part) -> None:
    """A part that only reports faults counts as working after some seconds without a fault."""
    for _ in range(OCCASIONS):
        part.clock.advance(1.0)
        part.faults.add("executors", ValueError("odd"))
    part.clock.advance(FIRST_PAUSE)
    assert not part.faults.is_off("executors")
    assert len(part.lines) == 2
    part.clock.advance(TRIAL)
    assert not part.faults.is_off("executors")
    assert part.lines[2:] == ["loopwatch: its executors works again, after 3 faults in all"]


def test_part_that_cannot_be_restarted(part: Part) -> None:
    """If a thread or hook has ended with the fault, the part stays off, and the log line says until when."""
    part.faults.add("gc", ValueError("odd"), for_good=True)
    part.clock.advance(1e9)
    assert part.faults.is_off("gc")
    assert part.faults.off() == {"gc": None}
    assert part.lines == [
        "loopwatch: its gc failed and is switched off until the agent is installed anew (the program is not affected): "
        "ValueError: odd"
    ]


def test_parts_that_leave_out_single_things_stay(part: Part) -> None:
    """A probe that fails affects only its own loop: the part is never off, however often that happens."""
    for _ in range(10):
        part.clock.advance(1.0)
        part.faults.add("probe", ValueError("odd"))
    assert not part.faults.is_off("probe")
    assert part.faults.counts == {"probe": 10}
    assert len(part.lines) == 1


def test_parts_do_not_touch_each_other(part: Part) -> None:
    """Another part keeps working while one is off."""
    part.fail(OCCASIONS)
    assert part.faults.attempt("log", lambda: "written", None) == "written"
    assert part.faults.attempt("journal", lambda: "written", None) is None

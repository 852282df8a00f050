"""Which thread kept the watcher from running: differences of given clocks, and real threads that hold the GIL."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType

import pytest

from loopwatch.core.frames import current_frames
from loopwatch.system import threads as facts
from loopwatch.system.threads import Scheduled
from loopwatch.watch import contention
from loopwatch.watch.contention import LATE, MIN_HOG, Contention, Hog, Lateness
from loopwatch.watch.probes.base import Block

START = 100.0


def standing() -> FrameType:
    """A frame standing in for that of any thread."""
    return sys._getframe()


FRAME = standing()
NO_HOG = Hog(None, 0.0)


class Clocks:
    """The clocks of all threads, the watcher's run queue and the cgroup, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[facts.ThreadId, float] = {}
        self.run_queue, self.runs = 0.0, 0
        self.throttled: float | None = None
        monkeypatch.setattr(facts, "thread_clocks", lambda: dict(self.threads))
        monkeypatch.setattr(facts, "scheduled", lambda _: Scheduled(0.0, self.run_queue, self.runs))
        monkeypatch.setattr(facts, "throttled", lambda: self.throttled)
        monkeypatch.setattr(contention.threading, "active_count", lambda: 4)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Clocks that stand still until a test advances them."""
    return Clocks(monkeypatch)


def found(kept: Contention, *idents: int, innocent: tuple[int, ...] = (), now: float = START) -> Hog:
    """Return the hog among the threads."""
    return kept.find_hog(dict.fromkeys(idents, FRAME), innocent, 10, now)


def note(kept: Contention, hog: Hog, planned: float, now: float) -> Lateness:
    """Record a lateness of the watcher."""
    return kept.note(hog, planned, now, kept.waited(now))


def test_the_busiest_thread_is_the_hog(clocks: Clocks) -> None:
    """The hog is the thread that used most CPU time since the last reading while the watcher could not run."""
    kept = Contention()
    clocks.threads = {(1, 101): 50.0, (2, 102): 1.0, (3, 103): 0.0}
    kept.renew(START, 1.0)
    clocks.threads = {(1, 101): 50.01, (2, 102): 1.25, (3, 103): 0.9}
    hog = found(kept, 1, 2, 3, innocent=(3,))
    assert hog.cpu == pytest.approx(0.25)
    assert hog.stack is not None
    assert hog.stack.frames[0].code.co_name == "standing"


def test_an_ident_that_is_used_again(clocks: Clocks) -> None:
    """A thread with the reused ident of an ended one is charged with its own time only, and is found."""
    kept = Contention()
    clocks.threads = {(7, 101): 5.0}
    kept.renew(START, 1.0)
    clocks.threads = {(7, 102): 0.3}
    assert found(kept, 7).cpu == 0.3


def test_thread_without_an_earlier_reading(clocks: Clocks) -> None:
    """With more threads than are read, one that is read for the first time is not charged with its whole life."""
    kept = Contention()
    clocks.threads = {(number, number): 1.0 for number in range(facts.MAX_THREADS)}
    kept.renew(START, 1.0)
    del clocks.threads[0, 0]
    clocks.threads |= {(1, 1): 1.2, (9999, 9999): 500.0}
    assert found(kept, 1, 2, 9999).cpu == pytest.approx(0.2)


def test_no_other_thread(clocks: Clocks) -> None:
    """Without another thread there is no hog."""
    assert found(Contention()) == NO_HOG


def test_threads_that_take_turns_add_up(clocks: Clocks) -> None:
    """Of four threads that each hold the GIL briefly, the busiest of each time add up and stand out."""
    kept = Contention()
    kept.renew(START, 1.0)
    for number in range(1, 5):
        clocks.threads = {(ident, 100 + ident): number * 0.015 for ident in (1, 2, 3, 4)}
        note(kept, found(kept, 1, 2, 3, 4), START + number * 0.06 - 0.02, START + number * 0.06)
    hindrance = kept.during(Block(START, START, START + 0.3))
    assert hindrance.hog is not None
    assert hindrance.hog.cpu == pytest.approx(0.06)
    assert hindrance.hog.stack is not None
    assert hindrance.late == pytest.approx(0.08)


@pytest.mark.parametrize(("cpu", "stands_out"), [(MIN_HOG * 0.2 + 0.001, True), (MIN_HOG * 0.2 - 0.001, False)])
def test_a_hog_must_stand_out(clocks: Clocks, cpu: float, stands_out: bool) -> None:
    """A thread that ran for less than a twentieth of the observed part of the block is not the hog."""
    kept = Contention()
    kept.renew(START, 1.0)
    clocks.threads = {(1, 101): cpu}
    note(kept, found(kept, 1), START + 0.1, START + 0.2)
    assert (kept.during(Block(START, START, START + 0.4)).hog is not None) is stands_out


def test_short_lateness_is_not_counted(clocks: Clocks) -> None:
    """A few milliseconds to get the GIL do not count as lateness, and neither does time outside of the block."""
    kept = Contention()
    note(kept, NO_HOG, 100.0, 100.0 + LATE - 0.001)
    note(kept, NO_HOG, 100.9, 101.2)
    assert kept.during(Block(100.0, 100.0, 101.0)).late == pytest.approx(0.1)


def test_starved_is_never_more_than_late(clocks: Clocks) -> None:
    """The watcher's wait for a processor long before it was late is not charged to the lateness."""
    kept = Contention()
    kept.renew(100.0, 1.0)
    clocks.run_queue = 5.0
    first = note(kept, NO_HOG, 110.0, 110.05)
    assert (first.starved, first.held) == pytest.approx((0.05, 0.0))
    clocks.run_queue = 5.01
    second = note(kept, NO_HOG, 111.0, 111.05)
    assert second.starved == pytest.approx(0.01)
    assert second.held == pytest.approx(0.04 - 2 * sys.getswitchinterval())


def test_late_and_starved_are_of_the_same_times(clocks: Clocks) -> None:
    """Waits for a processor during uncounted lateness, or outside of the block, do not count."""
    kept = Contention()
    kept.renew(START, 1.0)
    for number in range(5):
        clocks.run_queue += 0.005
        note(kept, NO_HOG, START + number * 0.02, START + number * 0.02 + 0.006)
    clocks.run_queue += 0.05
    note(kept, NO_HOG, START + 0.25, START + 0.35)
    hindrance = kept.during(Block(START, START, START + 0.3))
    assert (hindrance.late, hindrance.starved) == pytest.approx((0.05, 0.025))


def test_system_without_run_queue_times(clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """If run-queue times are unknown, no thread is said to have held the GIL."""
    monkeypatch.setattr(facts, "scheduled", lambda _: None)
    kept = Contention()
    kept.renew(START, 1.0)
    late = note(kept, NO_HOG, START, START + 0.5)
    assert (late.starved, late.held) == (0.0, 0.0)


def test_wake_ups_are_counted_while_the_watcher_is_late(clocks: Clocks) -> None:
    """A watcher that waits for the GIL wakes up each 5 ms; wake-ups of notable latenesses add up."""
    kept = Contention()
    kept.renew(START, 1.0)
    for number, runs in enumerate((40, 2, 21), 1):
        clocks.runs += runs
        note(kept, NO_HOG, START + number - (0.2 if runs > 2 else 0.01), START + number)
    assert kept.during(Block(START, START, START + 4)).runs == 61
    assert kept.during(Block(START + 10, START + 10, START + 11)).runs is None


def test_old_latenesses_are_dropped(clocks: Clocks) -> None:
    """A lateness, and the stack kept with it, is dropped after a minute."""
    kept = Contention()
    note(kept, NO_HOG, START, START + 0.1)
    kept.renew(START + 61, 1.0)
    assert kept.during(Block(START, START, START + 0.2)).late == 0.0


def test_throttled_since_the_last_reading(clocks: Clocks) -> None:
    """Throttled time counts from at most 0.2 seconds before the block, and never exceeds the block."""
    kept = Contention()
    clocks.throttled = 10.0
    kept.renew(100.0, 1.0)
    clocks.throttled = 13.0
    kept.renew(100.25, 1.0)
    clocks.throttled = 13.1
    assert kept.during(Block(100.3, 100.3, 100.5)).throttled == pytest.approx(0.1)
    kept.renew(100.6, 1.0)  # for the sake of another loop
    assert kept.during(Block(100.3, 100.3, 100.5)).throttled == pytest.approx(0.1)
    clocks.throttled = 14.0
    assert kept.during(Block(100.3, 100.3, 100.5)).throttled == pytest.approx(0.2)


def test_no_quota(clocks: Clocks) -> None:
    """Without a quota the throttled time is unknown, rather than known to be zero."""
    kept = Contention()
    kept.renew(100.0, 1.0)
    assert kept.during(Block(100.0, 100.0, 100.3)).throttled is None


@pytest.mark.skipif(sys.platform != "linux", reason="clocks of other threads")
def test_a_real_thread_that_computes_is_found() -> None:
    """A thread that spins while another waits is the hog, with its own stack."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    kept = Contention()
    kept.renew(time.monotonic(), 1.0)
    thread.start()
    try:
        while (facts.thread_cpu(thread.native_id or 0) or 1.0) < 0.05:
            time.sleep(0.005)
        hog = kept.find_hog(current_frames(), {threading.get_ident()}, 10, time.monotonic())
    finally:
        stop.set()
        thread.join()
    assert hog.stack is not None
    assert hog.stack.frames[-1].code.co_name == "_bootstrap"
    assert "spin" in {frame.code.co_name for frame in hog.stack.frames}


def test_a_hog_that_was_found_early_is_kept_for_a_moment(clocks: Clocks) -> None:
    """A thread that is found when the GIL is had, and has ended by the tick, is still its hog, once; not that of
    a tick that comes much later."""
    kept = Contention()
    for now, late, cpu in ((START + 0.3, 0.1, 0.25), (START + 1.3, 0.9, 0.0)):
        clocks.threads = {(1, 101): 1.0}
        kept.renew(now - 0.3, 0.0)
        clocks.threads = {(1, 101): 1.25}
        kept.keep_hog({1: FRAME}, (), 10, now)
        clocks.threads = {}
        assert found(kept, now=now + late).cpu == pytest.approx(cpu)
        assert found(kept, now=now + late) == NO_HOG

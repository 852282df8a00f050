"""The heartbeat on a faked loop with a faked clock: every lateness and every interval is exact."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conftest import raised

from loopwatch.testing import FakeClock
from loopwatch.watch.probes.base import IDLE, Block
from loopwatch.watch.probes.heartbeat import MAX_FAILURES, Heartbeat, HeartbeatProbe


class FakeLoop:
    """A loop with timers only, which runs under control of the test."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.delays: list[float] = []
        self.closed = False

    def is_closed(self) -> bool:
        return self.closed

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert not self.closed, "a timer for a closed loop"
        self.delays.append(delay)
        self.timers.append((self.clock.now + delay, callback))

    def fire(self, late: float = 0.0) -> None:
        """Run the only timer, ``late`` seconds after it was due."""
        (due, callback), self.timers = self.timers[0], self.timers[1:]
        self.clock.now = due + late
        callback()


class Beating:
    """A heartbeat on a faked loop."""

    def __init__(self, clock: FakeClock, interval: float = 0.05) -> None:
        self.clock = clock
        self.loop = FakeLoop(clock)
        self.share: float | None = None
        self.heartbeats: list[tuple[float, float]] = []
        self.failed: list[BaseException] = []
        self.heart = Heartbeat(
            self.loop,
            interval,
            lambda: self.share,
            lambda due, now: self.heartbeats.append((due, now)),
            self.failed.append,
        )
        self.heart.start()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock of the heartbeat's module, set to 100 seconds."""
    fake = FakeClock(100.0)
    monkeypatch.setattr("loopwatch.watch.probes.heartbeat.time", SimpleNamespace(monotonic=fake))
    return fake


@pytest.fixture
def beating(clock: FakeClock) -> Beating:
    """A heartbeat every 50 ms that has just begun."""
    return Beating(clock)


def test_lateness_is_measured_from_the_due_time(beating: Beating) -> None:
    """A heartbeat on time records 0, one 300 ms late records 0.3 seconds, with the due time and the actual time."""
    beating.loop.fire()
    beating.loop.fire(late=0.3)
    stats = beating.heart.take_window().stats()
    assert stats is not None
    assert (stats.count, stats.min) == (2, 0.0)
    assert stats.max == pytest.approx(0.3)
    assert stats.mean == pytest.approx(0.15)
    assert beating.heartbeats[1] == pytest.approx((100.1, 100.4))


def test_next_heartbeat_is_counted_from_the_last(beating: Beating) -> None:
    """A late heartbeat does not make the next one late: that is due one interval after the late one."""
    beating.loop.fire(late=0.3)
    assert beating.heart.due == pytest.approx(100.4)
    assert beating.heart.last == pytest.approx(100.35)


def test_window_is_reset_when_taken(beating: Beating) -> None:
    """Values of a taken window are not returned a second time."""
    beating.loop.fire(late=0.2)
    assert beating.heart.take_window().count == 1
    assert beating.heart.take_window().stats() is None
    beating.loop.fire()
    assert beating.heart.take_window().highest == pytest.approx(0.0, abs=1e-9)


def test_stretches_to_one_second_while_idle_and_back(beating: Beating) -> None:
    """On an idle loop the interval doubles with each heartbeat, up to a second; the first busy one resets it."""
    beating.share = 0.049
    for _ in range(7):
        beating.loop.fire()
    assert beating.loop.delays == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
    beating.share = 0.05
    beating.loop.fire()
    assert beating.loop.delays[-1] == 0.05


def test_lag_is_dated_from_the_due_time_also_when_stretched(beating: Beating) -> None:
    """At one heartbeat a second a block just before the heartbeat is still measured from the due time."""
    beating.share = 0.0
    for _ in range(6):
        beating.loop.fire()
    beating.heart.take_window()
    beating.loop.fire(late=0.25)
    assert beating.heart.take_window().highest == pytest.approx(0.25)


def test_never_stretches_where_utilization_is_unknown(beating: Beating) -> None:
    """The heartbeat keeps its interval where it is the only probe of a loop."""
    for _ in range(5):
        beating.loop.fire()
    assert set(beating.loop.delays) == {0.05}


def test_interval_longer_than_a_second_is_kept(clock: FakeClock) -> None:
    """Idle or not, a configured interval longer than the longest stretch is kept."""
    beating = Beating(clock, interval=5.0)
    for beating.share in (0.0, 0.0, 1.0, 0.0):
        beating.loop.fire()
    assert set(beating.loop.delays) == {5.0}


def test_set_interval(beating: Beating) -> None:
    """A new interval counts from the next heartbeat on."""
    beating.heart.set_interval(0.2)
    beating.loop.fire()
    beating.loop.fire()
    assert beating.loop.delays == [0.05, 0.2, 0.2]


def test_time_between_two_runs_is_no_lag(beating: Beating) -> None:
    """A loop that was stopped for an hour was not late; it is measured again from the next heartbeat on."""
    beating.loop.fire()
    beating.clock.now += 3600
    beating.heart.resume()
    (_, callback), beating.loop.timers = beating.loop.timers[0], []
    callback()
    assert beating.heart.take_window().highest == 0.0
    assert beating.heartbeats[-1] == (beating.clock.now, beating.clock.now)
    beating.loop.fire(late=0.2)
    assert beating.heart.take_window().highest == pytest.approx(0.2)


def test_first_callback_of_a_second_run_is_lag(beating: Beating) -> None:
    """A heartbeat overdue since the loop was stopped is late only by its wait in the second run."""
    beating.loop.fire()
    beating.clock.now += 3600
    beating.heart.resume()
    (_, callback), beating.loop.timers = beating.loop.timers[0], []
    beating.clock.advance(0.4)
    callback()
    assert beating.heart.take_window().highest == pytest.approx(0.4)


def test_second_run_before_the_heartbeat_is_due(beating: Beating) -> None:
    """A heartbeat that is not due yet when the loop runs again keeps its due time."""
    beating.clock.advance(0.01)
    beating.heart.resume()
    beating.loop.fire()
    assert beating.heartbeats == [pytest.approx((100.05, 100.05))]


def test_stop(beating: Beating) -> None:
    """After stop() the pending timer does nothing, and there is no further one."""
    beating.heart.stop()
    beating.loop.fire(late=9.0)
    assert beating.heartbeats == []
    assert beating.heart.take_window().stats() is None
    assert beating.loop.timers == []


def test_closed_loop(beating: Beating) -> None:
    """On a loop that was closed meanwhile no timer is set."""
    beating.loop.closed = True
    beating.loop.fire()
    assert beating.loop.timers == []


def test_keeps_no_loop_alive(clock: FakeClock) -> None:
    """A heartbeat does not keep its loop alive."""
    beating = Beating(clock)
    (_, callback), beating.loop.timers = beating.loop.timers[0], []
    del beating.loop
    gc.collect()
    callback()
    assert len(beating.heartbeats) == 1


def test_base_is_the_frame_that_calls_the_heartbeats(beating: Beating) -> None:
    """The heartbeat records its calling frame: the innermost one below all callbacks of the loop."""
    beating.loop.fire()
    assert beating.heart.base is not None
    assert beating.heart.base[1] is FakeLoop.fire.__code__


def test_failure_of_a_heartbeat_does_not_reach_the_loop(beating: Beating) -> None:
    """A fault in a heartbeat is reported, and the next one comes; after ten failures the heartbeat stops."""

    def wrong() -> float:
        raise RuntimeError("ours")

    beating.heart._utilization = wrong
    while beating.loop.timers:
        beating.loop.fire()
    assert [str(exc) for exc in beating.failed] == ["ours"] * MAX_FAILURES


def test_a_timer_that_cannot_be_set_does_not_reach_the_loop(beating: Beating, monkeypatch: pytest.MonkeyPatch) -> None:
    """If call_later of a loop raises, the loop's exception handler is not called."""
    monkeypatch.setattr(FakeLoop, "call_later", lambda *_, **__: 1 / 0)
    beating.loop.fire()
    assert [type(exc) for exc in beating.failed] == [ZeroDivisionError]


def test_heartbeat_keeps_no_context_alive() -> None:
    """The timers of a heartbeat do not keep the context that the loop was run in."""

    class Kept:
        pass

    variable: contextvars.ContextVar[Kept | None] = contextvars.ContextVar("variable", default=None)
    loop = asyncio.new_event_loop()
    heart = Heartbeat(loop, 0.001, lambda: None, lambda _due, _now: None, raised)

    def started() -> weakref.ref[Kept]:
        value = Kept()
        variable.set(value)
        heart.start()
        return weakref.ref(value)

    kept = contextvars.Context().run(started)
    loop.run_until_complete(asyncio.sleep(0.01))
    heart.stop()
    assert kept() is None
    loop.close()


class Probed(Beating):
    """A loop with its heartbeat as the only probe, limit 0.1 seconds."""

    def __init__(self, clock: FakeClock) -> None:
        self.probe = HeartbeatProbe(0.1)
        self.clock, self.loop = clock, FakeLoop(clock)
        self.heart = Heartbeat(self.loop, 0.05, lambda: None, self.probe.on_beat, raised)
        self.probe.listen(self.heart)
        self.probe.running(True)
        self.heart.start()


@pytest.fixture
def probed(clock: FakeClock) -> Probed:
    """A loop that started at 100 seconds and is read by its heartbeat."""
    return Probed(clock)


def near(block: Block, start: float, end: float, uncertainty: float) -> bool:
    return (block.start, block.end, block.uncertainty) == pytest.approx((start, end, uncertainty))


def test_block_is_dated_back(probed: Probed) -> None:
    """A block is dated to the middle between last heartbeat and due time, with half that span as uncertainty."""
    probed.loop.fire()
    probed.loop.fire(late=0.3)
    (block,) = probed.probe.finished()
    assert near(block, start=100.075, end=100.4, uncertainty=0.025)
    assert block.key == pytest.approx(100.1)
    assert probed.probe.finished() == []


def test_block_below_the_limit_is_none(probed: Probed) -> None:
    """A heartbeat late by less than the limit is lag and no block."""
    probed.loop.fire(late=0.099)
    assert probed.probe.finished() == []
    probed.probe.set_limit(0.09)
    probed.loop.fire(late=0.095)
    assert len(probed.probe.finished()) == 1


def test_activity_begins_at_the_due_time(probed: Probed) -> None:
    """The loop counts as busy from the moment the heartbeat is overdue, under the key of the later block."""
    assert probed.probe.busy_since(100.05) == IDLE
    assert probed.probe.busy_since(100.2) == pytest.approx(100.05)
    probed.loop.fire(late=0.3)
    assert probed.probe.finished()[0].key == pytest.approx(100.05)


def test_a_loop_that_does_not_run_is_not_blocked(probed: Probed) -> None:
    """An overdue heartbeat of a stopped loop is no block."""
    probed.probe.running(False)
    assert probed.probe.busy_since(500.0) == IDLE


def test_cut_ends_a_block(probed: Probed) -> None:
    """cut() reports an overdue heartbeat as if it came now, and the heartbeat itself does not report it again."""
    probed.clock.now = 100.45
    probed.probe.cut(100.45)
    (block,) = probed.probe.finished()
    assert near(block, start=100.025, end=100.45, uncertainty=0.025)
    probed.loop.fire(late=0.41)
    assert probed.probe.finished() == []
    probed.loop.fire(late=0.2)
    assert len(probed.probe.finished()) == 1


def test_block_in_the_last_callback(probed: Probed) -> None:
    """A block right before the loop stops is not lost."""
    probed.loop.fire()
    probed.clock.now = 100.4
    probed.probe.running(False)
    (block,) = probed.probe.finished()
    assert near(block, start=100.075, end=100.4, uncertainty=0.025)


def test_block_at_the_start_of_a_second_run(probed: Probed) -> None:
    """After an hour in which the loop did not run, a block of its first callback has its true length."""
    probed.loop.fire()
    probed.probe.running(False)
    probed.clock.now += 3600
    began = probed.clock.now
    probed.probe.running(True)
    probed.heart.resume()
    assert probed.probe.busy_since(began + 0.3) == began
    (_, callback), probed.loop.timers = probed.loop.timers[0], []
    probed.clock.advance(0.3)
    callback()
    (block,) = probed.probe.finished()
    assert near(block, start=began, end=began + 0.3, uncertainty=0.0)


def test_heartbeat_has_no_utilization(probed: Probed) -> None:
    """A heartbeat has no utilization, and reports it as unknown."""
    assert set(probed.probe.counters(101.0)) == {None}


def test_detached_probe_is_silent(probed: Probed) -> None:
    """After detaching, also twice, nothing is reported."""
    probed.probe.detach()
    probed.probe.abandon()
    probed.loop.fire(late=5.0)
    probed.probe.cut(200.0)
    assert probed.probe.busy_since(200.0) == IDLE
    assert probed.probe.finished() == []

"""The uvloop probe: its state machine on a modelled libuv whose truth is known, and real counters of a real loop."""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loopwatch.watch.probes.base import IDLE, Block
from loopwatch.watch.probes.uvloop import Reading, UvloopProbe, _Between

pytestmark = pytest.mark.measures

uvloop = pytest.importorskip("uvloop")

LIMIT = 0.1
T0 = 1000.0


class Timeline:
    """libuv's counters for a loop that makes the given passes, each (seconds of work, seconds of poll).

    As in libuv's ``uv_run`` a pass is counted right before its poll, which counts as idle time while it lasts.
    """

    def __init__(self, passes: list[tuple[float, float]], waiting: dict[int, int] | None = None) -> None:
        self.passes = passes
        self.waiting = waiting or {}
        self.begins, self.idle_before = [T0], [0.0]
        for work, poll in passes:
            self.begins.append(self.begins[-1] + work + poll)
            self.idle_before.append(self.idle_before[-1] + poll)

    @property
    def end(self) -> float:
        return self.begins[-1]

    def read(self, at: float) -> Reading:
        index = min(bisect.bisect_right(self.begins, at) - 1, len(self.passes) - 1)
        work, poll = self.passes[index]
        polled = min(max(at - self.begins[index] - work, 0.0), poll)
        polling = 0 < polled < poll
        counted = index + (at >= self.begins[index] + work)
        waiting = sum(count for number, count in self.waiting.items() if number < counted)
        return Reading(at, self.idle_before[index] + polled, polling, counted, 0, waiting, self.begins[index])

    def waited(self, start: float, end: float) -> float:
        """Return the seconds between ``start`` and ``end`` that the loop spent in polls."""
        return self.read(end).idle - self.read(start).idle


class Time:
    """The clock of the probe's module: real, unless a timeline is being read."""

    now: float | None = None

    def monotonic(self) -> float:
        return time.monotonic() if self.now is None else self.now

    def thread_time(self) -> float:
        return time.thread_time()

    def process_time(self) -> float:
        return time.process_time()


CLOCK = Time()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the probe's module ask CLOCK."""
    CLOCK.now = None
    monkeypatch.setattr("loopwatch.watch.probes.uvloop.time", CLOCK)


class Scripted(UvloopProbe):
    """A probe whose readings are those of a timeline."""

    def __init__(self, timeline: Timeline, limit: float = LIMIT) -> None:
        self.timeline: Timeline | None = None
        CLOCK.now = None
        loop = uvloop.new_event_loop()
        super().__init__(loop, limit)
        self.detach()
        loop.close()
        self.timeline = timeline
        self._attached = self._last = timeline.read(T0)
        self._started = CLOCK.now = T0

    def _read(self, now: float) -> Reading | None:
        return super()._read(now) if self.timeline is None else self.timeline.read(now)

    def busy_since(
        self, now: float, late: float = 0.0, overdue: float = 0.0, kept: float = 0.0, mark: Any = None
    ) -> float:
        CLOCK.now = now
        return super().busy_since(now, late, overdue, kept, mark)

    def on_beat(self, due: float, now: float) -> None:
        CLOCK.now = now
        super().on_beat(due, now)

    def cut(self, now: float) -> None:
        CLOCK.now = now
        super().cut(now)

    def finished_later(self) -> list[Block]:
        """Return the blocks finished 10 ms later, when the first poll after a block is over."""
        assert CLOCK.now is not None
        CLOCK.now += 0.01
        return self.finished()

    def watched(self, ticks: list[float]) -> list[Block]:
        """Tick at the given times, as the watcher does, and return the blocks."""
        found = []
        for tick in ticks:
            self.busy_since(tick)
            found += self.finished()
        return found + self.finished_later()


QUIET = [(0.0001, 0.05)] * 10


def every(seconds: float, until: float, offset: float = 0.0) -> list[float]:
    count = int((until - T0 - offset) / seconds)
    return [T0 + offset + seconds * number for number in range(1, count + 1)]


@given(st.floats(0.15, 5.0), st.floats(0.005, 0.05), st.floats(0.0, 0.05))
def test_block_between_polls(length: float, tick: float, offset: float) -> None:
    """One long pass between polls is one block, with bounds right within its uncertainty."""
    line = Timeline([*QUIET, (length, 0.05), *QUIET])
    start = line.begins[len(QUIET)]
    (block,) = Scripted(line).watched(every(tick, line.end, offset))
    assert abs(block.start - start) <= block.uncertainty + 1e-6
    assert abs(block.end - (start + length)) <= block.uncertainty + 1e-6
    assert block.end - block.start == pytest.approx(length, abs=block.uncertainty + 1e-6)
    assert block.start <= block.key < block.end
    assert not block.asleep


def test_block_seen_from_polls_on_both_sides_is_exact() -> None:
    """If the loop was seen polling before and is seen polling after, both bounds are exact: uncertainty 0."""
    line = Timeline([(0.0, 1.0), (0.3, 1.0)])
    (block,) = Scripted(line).watched([T0 + 0.5, T0 + 1.1, T0 + 1.2, T0 + 1.7])
    assert (block.start, block.end) == pytest.approx((T0 + 1.0, T0 + 1.3))
    assert block.uncertainty == 0.0


def test_activity_dates_from_the_last_poll() -> None:
    """While the loop is blocked the watcher reads its start; while it polls, that it is idle."""
    line = Timeline([(0.0, 1.0), (0.3, 1.0)])
    probe = Scripted(line)
    assert probe.busy_since(T0 + 0.5) == IDLE
    assert probe.busy_since(T0 + 1.1) == pytest.approx(T0 + 1.0)
    assert probe.busy_since(T0 + 1.25) == pytest.approx(T0 + 1.0)
    assert probe.busy_since(T0 + 1.4) == IDLE


def test_victims_are_the_events_that_waited() -> None:
    """Waiters are libuv's events_waiting added by the first poll after the block."""
    line = Timeline([(0.0, 1.0), (0.3, 0.0), (0.0, 1.0)], waiting={1: 7})
    (block,) = Scripted(line).watched([T0 + 0.5, T0 + 1.1, T0 + 1.6])
    assert block.victims == 7


@given(st.lists(st.floats(0.0005, 0.2), min_size=1, max_size=100), st.floats(0.001, 0.02))
def test_healthy_loop_at_90_percent_never_reports(gaps: list[float], length: float) -> None:
    """A loop busy for 90 percent, in passes of at most 20 ms, has no block of 100 ms, whenever the watcher ticks."""
    line = Timeline([(0.9 * length, 0.1 * length)] * int(sum(gaps) / length + 2))
    ticks, now = [], T0
    for gap in gaps:
        now += gap
        ticks.append(now)
    assert Scripted(line).watched(ticks) == []


@given(st.floats(0.001, 0.02), st.floats(0.005, 0.3))
def test_saturated_loop_never_reports(length: float, tick: float) -> None:
    """A loop that never waits, but whose passes are short, is saturated and not blocked."""
    line = Timeline([(length, 0.0)] * 400)
    assert Scripted(line).watched(every(tick, line.end)) == []


_passes = st.lists(st.tuples(st.floats(0, 0.09), st.floats(0, 0.05)), min_size=5, max_size=60)


@given(_passes, st.floats(0.005, 0.05))
def test_a_loop_that_waits_is_not_blocked(passes: list[tuple[float, float]], tick: float) -> None:
    """Whatever the passes are, a block counts no time that the loop waited, within its uncertainty and one tick."""
    line = Timeline(passes)
    for block in Scripted(line).watched(every(tick, line.end)):
        assert line.waited(block.start, block.end) <= block.uncertainty + tick


def test_wait_after_a_block_is_no_part_of_it() -> None:
    """If the loop has waited and works again at the tick, the wait is not counted."""
    line = Timeline([(0.0, 1.0), (0.3, 0.03), (0.05, 1.0)])
    (block,) = Scripted(line).watched([T0 + 0.5, T0 + 1.1, T0 + 1.2, T0 + 1.28, T0 + 1.34])
    assert abs(block.end - (T0 + 1.3)) <= block.uncertainty + 1e-6


def test_wait_before_a_block_is_no_part_of_it() -> None:
    """If the loop worked and waited since the last tick, the block begins after the wait, or its start is uncertain."""
    line = Timeline([(0.05, 0.03), (0.2, 1.0)])
    (block,) = Scripted(line).watched([T0 + 0.04, T0 + 0.09, T0 + 0.15, T0 + 0.2, T0 + 0.25, T0 + 0.4])
    assert abs(block.start - (T0 + 0.08)) <= block.uncertainty + 1e-6


@given(_passes, st.floats(0.15, 2.0), _passes, st.floats(0.005, 0.05))
def test_long_block_among_work_is_found(
    before: list[tuple[float, float]], length: float, after: list[tuple[float, float]], tick: float
) -> None:
    """Among any mix of shorter passes the long one is found, once, within its uncertainty and one tick."""
    assume(length >= LIMIT + tick)
    line = Timeline([*before, (length, 0.0), *after, *QUIET])
    start = line.begins[len(before)]
    found = Scripted(line).watched(every(tick, line.end))
    covering = [block for block in found if block.start < start + length / 2 < block.end]
    assert len(covering) == 1
    assert covering[0].start <= start + covering[0].uncertainty + 1e-6
    assert covering[0].end == pytest.approx(start + length, abs=covering[0].uncertainty + tick + 1e-6)


def test_pigeonhole() -> None:
    """Of two passes between ticks 0.9 seconds apart one took at least 0.45 seconds, which is enough to report."""
    line = Timeline([(0.0, 0.1), (0.45, 0.0), (0.45, 0.0), (0.0, 1.0)])
    (block,) = Scripted(line).watched([T0 + 0.05, T0 + 0.99, T0 + 1.5])
    assert block.start == pytest.approx(T0 + 0.1)
    assert block.end == pytest.approx(T0 + 1.0)


def test_no_pigeonhole_in_many_passes() -> None:
    """Ninety passes between the same two ticks prove nothing, and nothing is reported."""
    line = Timeline([(0.0, 0.1), *[(0.01, 0.0)] * 90, (0.0, 1.0)])
    assert Scripted(line).watched([T0 + 0.05, T0 + 0.99, T0 + 1.5]) == []


def test_late_heartbeat_of_a_sleeping_loop() -> None:
    """A late heartbeat of a loop in its poll means that it could not wake up, since some time after the last tick."""
    line = Timeline([(0.0, 2.0), (0.0, 1.0)])
    probe = Scripted(line)
    probe.busy_since(T0 + 0.4)
    probe.on_beat(T0 + 0.5, T0 + 1.0)
    (block,) = probe.finished()
    assert (block.start, block.uncertainty) == pytest.approx((T0 + 0.45, 0.05))
    assert (block.end, block.asleep) == (T0 + 1.0, True)


def test_heartbeat_before_proves_progress() -> None:
    """A loop whose heartbeat came after the last tick was not stopped before that heartbeat."""
    line = Timeline([(0.0, 2.0), (0.0, 1.0)])
    probe = Scripted(line)
    probe.busy_since(T0 + 0.2)
    probe.on_beat(T0 + 0.44, T0 + 0.44)
    probe.on_beat(T0 + 0.5, T0 + 1.0)
    (block,) = probe.finished()
    assert (block.start, block.uncertainty) == pytest.approx((T0 + 0.47, 0.03))


def test_block_is_reported_once_while_the_loop_works_on() -> None:
    """If the loop is at work again when a block is found, the new work is not dated into that block."""
    line = Timeline([(0.0, 1.0), (1.0, 0.0), (0.02, 0.0), (0.02, 1.0)])
    blocks = Scripted(line).watched([T0 + 0.9, T0 + 1.1, T0 + 1.5, T0 + 2.01, T0 + 2.03, T0 + 2.2])
    (block,) = blocks
    assert block.start == pytest.approx(T0 + 1.0)
    assert block.end == pytest.approx(T0 + 2.0, abs=block.uncertainty + 1e-6)


def test_block_between_two_ticks() -> None:
    """A watcher that could not run during a block finds the block afterwards, exactly."""
    line = Timeline([(0.0, 1.0), (0.3, 1.0)])
    (block,) = Scripted(line).watched([T0 + 0.65, T0 + 1.34, T0 + 1.4])
    assert block.end - block.start == pytest.approx(0.3)
    assert block.uncertainty == 0.0
    assert block.start == pytest.approx(T0 + 1.0, abs=0.16)


def between(*, cpu: float | None = None, seen: float = 0.9, interrupted: int = 0, forgotten: float = 0.0) -> _Between:
    """A loop that polled for a second, worked for 0.3 s by libuv's counters, and polls again."""
    line = Timeline([(0.0, 1.0), (0.3, 1.0)])
    before, after = line.read(T0 + seen), line.read(T0 + 1.34)
    idle = after.idle - forgotten
    return _Between(before._replace(cpu=1.0), after._replace(cpu=cpu, idle=idle, interrupted=interrupted))


def test_work_that_may_be_the_waiting_of_an_interrupted_poll() -> None:
    """Work that only the counters show is uncertain where they would look the same after a signal in the poll; not if
    they moved on for longer than that, and not if the thread computed."""
    assert between(seen=0.65).is_certain
    assert not between().is_certain
    assert not between(cpu=1.01).is_certain
    assert between(cpu=1.1).is_certain
    assert not between(seen=0.65, interrupted=1, forgotten=0.35).is_certain


TICKER = [(0.0001, 0.001)] * 40
"""A loop with a timer every millisecond, busy for a tenth of the time."""


@given(st.floats(0.11, 3.0), st.floats(0.0, 0.6))
def test_gil_was_held_meanwhile(length: float, seen: float) -> None:
    """Among many short passes the one that waited for the GIL is found, if the GIL was seen to be held."""
    held = max((1 - seen) * length, 0.05)
    line = Timeline([*TICKER, (length, 0.001), (0.0, 1.0)])
    probe = Scripted(line)
    start = line.begins[len(TICKER)]
    found = probe.watched([start - 0.04, start - 0.01])
    probe.busy_since(start + length + 0.0005)
    probe.held_up(start + length, held)
    (block,) = [*found, *probe.finished_later()]
    assert block.end - block.start == pytest.approx(length, abs=block.uncertainty + 1e-6)
    assert block.uncertainty <= max(length - held, 0.0) + 0.01
    assert block.start == pytest.approx(start, abs=0.002)


def test_gil_was_held_only_briefly() -> None:
    """If the GIL was not seen to be held, a busy spell of many passes is no block."""
    line = Timeline([*TICKER, *[(0.01, 0.0)] * 20, (0.0, 1.0)])
    probe = Scripted(line)
    probe.watched([T0 + 0.02, T0 + 0.04])
    probe.busy_since(line.end - 0.5)
    probe.held_up(line.end - 0.5, 0.03)
    assert probe.finished_later() == []


@given(st.floats(0.001, 0.05), st.integers(2, 40), st.floats(0.001, 0.02))
def test_many_passes_between_two_ticks_are_no_block(length: float, count: int, gap: float) -> None:
    """Short passes between two ticks, however far apart, do not add up to a block."""
    line = Timeline([(0.0, 0.1), *[(length, gap)] * count, (0.0, 1.0)])
    assert Scripted(line).watched([T0 + 0.05, line.end - 0.5]) == []


def test_late_heartbeat_of_a_busy_loop_confirms_a_block() -> None:
    """A late heartbeat proves a block, whatever the counters say: no pass begins while it is due."""
    line = Timeline([(0.0, 0.1), *[(0.02, 0.0)] * 40, (0.0, 1.0)])
    probe = Scripted(line)
    assert probe.watched([T0 + 0.05]) == []
    probe.on_beat(T0 + 0.1, T0 + 0.5)
    (block,) = probe.watched([T0 + 0.51, T0 + 0.53, line.end - 0.5])
    assert block.start == pytest.approx(T0 + 0.1)
    assert block.end == pytest.approx(T0 + 0.5, abs=0.02)
    assert not block.asleep


@given(st.floats(0.12, 2.0), st.integers(1, 8), st.floats(0.00005, 0.003))
def test_late_heartbeats_keep_blocks_in_a_row_apart(length: float, count: int, small: float) -> None:
    """Without a single tick of the watcher, each call that keeps the GIL is a block, half of it certain at least."""
    line = Timeline([*QUIET, *[(small, 0.0), (length, 0.0)] * count, (small, 0.0), *QUIET])
    probe = Scripted(line)
    probe.watched([T0 + 0.1, T0 + 0.4])
    last = line.begins[len(QUIET)] - 0.01
    probe.on_beat(last, last)
    for number in range(count):  # it runs in the pass after the call, and is due 50 ms after it ran before
        came = line.begins[len(QUIET) + 2 * number + 2] + small / 2
        probe.on_beat(last + 0.05, came)
        last = came
    blocks = probe.watched([line.end - 0.2])
    assert len(blocks) == count
    for number, block in enumerate(blocks):
        start = line.begins[len(QUIET) + 2 * number + 1]
        assert abs(block.start - start) <= block.uncertainty + 2 * small + 1e-6
        assert abs(block.end - start - length) <= block.uncertainty + 2 * small + 1e-6
        assert block.uncertainty <= (block.end - block.start) / 2
        # Processor time counts only where it was read around the block, and not far from it.
        assert block.window is None or 0.7 <= block.window / (block.end - block.start) <= 1.3001


def test_late_heartbeat_of_a_reported_block() -> None:
    """A heartbeat that waited for a block does not report the same block again."""
    line = Timeline([(0.0, 1.0), (0.3, 1.0)])
    probe = Scripted(line)
    assert len(probe.watched([T0 + 0.5, T0 + 1.1, T0 + 1.2, T0 + 1.4])) == 1
    probe.on_beat(T0 + 1.05, T0 + 1.3)
    assert probe.finished() == []


def test_heartbeat_on_time_reports_nothing() -> None:
    """A heartbeat late by less than the limit is not reported."""
    probe = Scripted(Timeline([(0.0, 5.0)]))
    probe.on_beat(T0 + 0.5, T0 + 0.599)
    assert probe.finished() == []


def test_paused() -> None:
    """With an infinite limit nothing is reported."""
    line = Timeline([(0.0, 1.0), (3.0, 1.0)])
    assert Scripted(line, limit=float("inf")).watched(every(0.05, line.end)) == []


def test_cut_in_the_midst_of_a_block() -> None:
    """cut() ends the block at that instant, and the rest is a new one."""
    line = Timeline([(0.0, 1.0), (1.0, 1.0)])
    probe = Scripted(line)
    probe.watched([T0 + 0.5, T0 + 1.1])
    probe.cut(T0 + 1.4)
    (block,) = probe.finished()
    assert (block.start, block.end, block.uncertainty) == pytest.approx((T0 + 1.0, T0 + 1.4, 0.0))
    (rest,) = probe.watched([T0 + 1.5, T0 + 1.6, T0 + 2.5])
    assert (rest.start, rest.end) == pytest.approx((T0 + 1.4, T0 + 2.0))


def test_block_shortly_before_the_loop_stops() -> None:
    """A block that ended since the last tick is reported when the loop stops, under the key the watcher saw it by."""
    line = Timeline([(0.0, 1.0), (0.3, 0.01), (0.0, 1.0)])
    probe = Scripted(line)
    probe.busy_since(T0 + 0.5)
    key = probe.busy_since(T0 + 1.1)
    probe.cut(T0 + 1.31)
    (block,) = probe.finished()
    assert block.key == key
    assert block.start == pytest.approx(T0 + 1.0)
    assert block.end == pytest.approx(T0 + 1.3, abs=block.uncertainty + 1e-6)


def test_counters_of_a_timeline() -> None:
    """Busy and idle time are exact at the moment of the last reading, whenever they are read."""
    line = Timeline([(0.3, 0.1)] * 10)
    probe = Scripted(line)
    probe.busy_since(T0 + 2.0)
    busy, idle, passes, _ = probe.counters(T0 + 9.0)
    assert (busy, idle) == pytest.approx((1.5, 0.5))
    assert passes == 5


@pytest.fixture
def real() -> Iterator[Any]:
    """An open loop of uvloop."""
    loop = uvloop.new_event_loop()
    yield loop
    if not loop.is_closed():
        loop.close()


def test_utilization_of_a_half_blocked_program(real: Any) -> None:
    """A real program that works for as long as it waits has a utilization of one half."""
    probe = UvloopProbe(real, 10.0)

    async def main() -> float:
        began, busy = time.monotonic(), 0.0
        for _ in range(10):
            started = time.monotonic()
            time.sleep(0.02)
            worked = time.monotonic() - started
            busy += worked
            await asyncio.sleep(worked)
        return busy / (time.monotonic() - began)

    probe.running(True)
    truth = real.run_until_complete(main())
    probe.busy_since(time.monotonic())
    busy, idle, passes, _ = probe.counters(time.monotonic())
    probe.running(False)
    probe.detach()
    assert busy is not None
    assert idle is not None
    assert passes is not None
    share = busy / (busy + idle)
    assert 0.4 <= share <= 0.6
    assert share == pytest.approx(truth, abs=0.05)
    assert passes >= 10


def test_counters_begin_when_attached(real: Any) -> None:
    """Passes of the loop before it was watched are not counted."""
    real.run_until_complete(asyncio.sleep(0.05))
    probe = UvloopProbe(real, LIMIT)
    assert probe.counters(time.monotonic()) == (0.0, 0.0, 0, 0)
    probe.detach()


def test_real_block_is_found(real: Any) -> None:
    """A real sleep of 0.2 seconds on a real loop is one block of that length, found without a heartbeat."""
    probe = UvloopProbe(real, LIMIT)

    async def main() -> float:
        await asyncio.sleep(0.05)
        probe.busy_since(time.monotonic())
        began = time.monotonic()
        time.sleep(0.2)
        probe.busy_since(time.monotonic())
        lasted = time.monotonic() - began
        await asyncio.sleep(0.04)
        probe.busy_since(time.monotonic())
        return lasted

    probe.running(True)
    lasted = real.run_until_complete(main())
    found = probe.finished()
    probe.running(False)
    probe.detach()
    (block,) = found
    assert block.end - block.start == pytest.approx(lasted, abs=block.uncertainty + 0.01)


def test_detach_before_close(real: Any) -> None:
    """After detach the loop may be closed: every method still answers, and none reads its memory."""
    probe = UvloopProbe(real, LIMIT)
    probe.running(True)
    real.run_until_complete(asyncio.sleep(0))
    counted = probe.counters(time.monotonic()).passes
    probe.detach()
    probe.detach()
    real.close()
    now = time.monotonic()
    assert probe.busy_since(now) == IDLE
    probe.on_beat(now - 5, now)
    probe.cut(now)
    probe.running(False)
    probe.running(True)
    assert probe.finished() == []
    assert probe.counters(now).passes == counted
    probe.abandon()


def test_a_probe_keeps_no_loop_alive() -> None:
    """A probe holds its loop weakly."""
    import gc
    import weakref

    loop = uvloop.new_event_loop()
    probe = UvloopProbe(loop, LIMIT)
    reference = weakref.ref(loop)
    probe.detach()
    loop.close()
    del loop
    gc.collect()
    assert reference() is None


SPIN = [(0.001, 0.0)] * 1000
"""A loop that never waits: a thousand passes of a millisecond."""


def test_heartbeats_prove_that_a_late_watcher_missed_no_block() -> None:
    """A watcher that is late by half a second invents no block if the loop's heartbeats came all the time."""
    probe = Scripted(Timeline([*SPIN, (0.0, 1.0)]))
    probe.busy_since(T0 + 0.1)
    for time_ in (0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60):
        probe.on_beat(T0 + time_, T0 + time_)
    since = probe.busy_since(T0 + 0.62, late=0.5)
    probe.held_up(T0 + 0.62, 0.5)
    assert since >= T0 + 0.60
    probe.busy_since(T0 + 0.73)
    assert probe.finished_later() == []


def test_passes_that_keep_the_gil_one_after_the_other_are_kept_apart() -> None:
    """Read at the end of each call, which kept the GIL until then, every pass is a block of its own."""
    calls = 5
    probe = Scripted(Timeline([*QUIET, *[(0.15, 0.0)] * calls, (0.0, 1.0)]))
    begin = T0 + sum(map(sum, QUIET))
    probe.busy_since(begin - 0.01)
    for number in range(calls):
        probe.busy_since(begin + 0.15 * (number + 1) - 0.0005, late=0.14, kept=0.13)
    probe.busy_since(begin + 0.15 * calls + 0.05)
    blocks = probe.finished_later()
    assert len(blocks) == calls
    for number, block in enumerate(blocks):
        assert block.start == pytest.approx(begin + 0.15 * number, abs=0.002)
        assert block.end == pytest.approx(begin + 0.15 * (number + 1), abs=0.002)
        assert block.uncertainty <= 0.05


def test_mark_of_a_moment_ago() -> None:
    """A busy span is that of the mark, also when the loop has gone on, or has been read since."""
    probe = Scripted(Timeline([*QUIET, (0.3, 0.0), (0.0, 1.0)]))
    begin = T0 + sum(map(sum, QUIET))
    CLOCK.now = begin - 0.02
    earlier = probe.mark()
    probe.busy_since(begin - 0.01)
    CLOCK.now = begin + 0.2
    mark = probe.mark()
    assert probe.busy_since(begin + 0.35, mark=mark) == pytest.approx(begin, abs=0.001)
    assert probe.busy_since(begin + 0.36) == IDLE
    assert probe.busy_since(begin + 0.37, mark=mark) == pytest.approx(begin, abs=0.001)
    assert probe.busy_since(begin + 0.38, mark=earlier) == IDLE


def test_overdue_heartbeat_dates_the_block_back() -> None:
    """A block of a busy loop dates back at least to the time the missing heartbeat was due."""
    line = Timeline([*SPIN[:200], (0.3, 0.0), (0.0, 1.0)])
    probe = Scripted(line)
    probe.busy_since(T0 + 0.15)
    probe.on_beat(T0 + 0.19, T0 + 0.19)
    since = probe.busy_since(T0 + 0.30, overdue=0.06)
    assert T0 + 0.19 <= since <= T0 + 0.2421
    probe.on_beat(T0 + 0.24, T0 + 0.5001)
    probe.busy_since(T0 + 0.51)
    (block,) = probe.finished_later()
    assert block.end - block.start == pytest.approx(0.3, abs=block.uncertainty + 0.001)
    assert block.uncertainty <= 0.13


def test_loop_at_rest_is_known_from_one_reading() -> None:
    """Waiting after hardly any work is rest; work since the last tick, or an unreported block, is not."""
    probe = Scripted(Timeline([(0.0001, 0.5), (0.02, 0.5), (0.3, 0.5)]))
    for at, expected in ((0.2, True), (0.4, True), (0.7, False)):
        CLOCK.now = T0 + at
        assert probe.at_rest() is expected
    assert probe.busy_since(T0 + 0.7) == IDLE
    CLOCK.now = T0 + 1.1  # inside the block
    assert not probe.at_rest()


def test_end_of_a_run_that_began_before_the_agent() -> None:
    """A run whose end was not seen is not mistaken for a block of the next run."""
    probe = Scripted(Timeline([(0.0, 0.1), (0.01, 5.0)]))
    assert probe.busy_since(T0 + 0.105) == pytest.approx(T0 + 0.1)
    CLOCK.now = T0 + 3.0
    probe.running(True)
    assert probe.busy_since(T0 + 3.1) == IDLE
    assert probe.finished_later() == []

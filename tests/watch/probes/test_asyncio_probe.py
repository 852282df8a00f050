"""The timed ``select``: faked select and clock give exact numbers, and real selectors are restored."""

from __future__ import annotations

import asyncio
import heapq
import selectors
import signal
import time
from typing import Any

import pytest
from conftest import raised
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.agent import Agent
from loopwatch.config import Config
from loopwatch.core.patches import PatchSet
from loopwatch.testing import FakeClock, RecordingSink
from loopwatch.watch.probes.asyncio import (
    LET_IN,
    MAX_COUNTED,
    MAX_FAILURES,
    MAX_LET_IN,
    AsyncioProbe,
    Cell,
    timed_select,
)
from loopwatch.watch.probes.base import IDLE, Block
from loopwatch.watch.probes.choice import make_probe
from loopwatch.watch.probes.heartbeat import HeartbeatProbe

pytestmark = pytest.mark.measures

LIMIT = 0.1


class Timer:
    """A timer as on asyncio's heap."""

    def __init__(self, when: float, *, cancelled: bool = False) -> None:
        self._when, self._cancelled = when, cancelled

    def __lt__(self, other: Timer) -> bool:
        return self._when < other._when


class CountingList(list[Any]):
    """A list that counts how often its items are read."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


class FakeLoop:
    """The attributes of a loop that the probe reads."""

    def __init__(self) -> None:
        self._ready: list[object] = []
        self._scheduled: list[Timer] = CountingList()


class Faked:
    """A loop whose ``select`` takes as long, and returns as many events, as the test sets."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.clock = FakeClock(1000.0)
        self.loop = FakeLoop()
        self.cell = Cell(self.loop, limit)
        self._lasts, self._events = 0.0, 0
        self.since_in_poll: list[float] = []
        self.failed: list[BaseException] = []
        self.cell.report = self.failed.append
        self.cell.timed = self.timed = timed_select(self.cell, self._original, clock=self.clock)

    def _original(self, timeout: float | None) -> list[int]:
        self.since_in_poll.append(self.timed.pace().since)
        self.clock.advance(self._lasts)
        return [0] * self._events

    def poll(self, lasts: float = 0.0, timeout: float | None = None, events: int = 0) -> None:
        self._lasts, self._events = lasts, events
        self.timed.select(timeout)

    def work(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def blocks(self) -> list[Block]:
        found = list(self.cell.blocks)
        self.cell.blocks.clear()
        return found


@given(st.floats(0, 10), st.floats(0.0, 10))
def test_pass_is_exact(idle: float, busy: float) -> None:
    """A pass lies between the return of one select and the call of the next; from the limit on it is a block."""
    faked = Faked()
    faked.poll(lasts=idle)
    began = faked.clock.now
    faked.work(busy)
    ended = faked.clock.now
    faked.poll()
    found = [(block.start, block.end, block.key) for block in faked.blocks()]
    assert found == ([(began, ended, began)] if ended - began >= LIMIT else [])


def test_block_of_one_pass() -> None:
    """The pass's block is exact, shared by its callbacks, and not a sleep."""
    faked = Faked()
    faked.poll(lasts=5.0)
    faked.work(0.35)
    faked.poll()
    (block,) = faked.blocks()
    assert block.end - block.start == pytest.approx(0.35)
    assert (block.uncertainty, block.shared, block.asleep) == (0.0, True, False)


def test_passes_do_not_add_up() -> None:
    """Passes below the limit do not add up."""
    faked = Faked()
    for _ in range(50):
        faked.poll()
        faked.work(0.099)
    assert faked.blocks() == []


def test_idle_time_and_passes_are_counted() -> None:
    """Idle is the time inside select, passes are its returns."""
    faked = Faked()
    for _ in range(4):
        faked.poll(lasts=0.3)
        faked.work(0.1)
    assert faked.timed.pace().idle == pytest.approx(1.2)
    assert faked.timed.pace().passes == 4


def test_since_is_the_start_of_the_pass() -> None:
    """While the loop works, another thread reads since when; while it waits, that it is idle."""
    faked = Faked()
    faked.poll(lasts=2.0)
    assert faked.since_in_poll == [IDLE]
    assert faked.timed.pace().since == 1002.0


def test_poll_that_does_not_wait_belongs_to_the_pass() -> None:
    """A poll with time-out 0 is no idle time: it holds the loop."""
    faked = Faked()
    faked.poll()
    faked.work(0.01)
    faked.poll(timeout=0, lasts=0.15)
    assert faked.since_in_poll == [IDLE, 1000.01]
    assert faked.timed.pace().idle == 0.0
    faked.work(0.02)
    faked.poll()
    (block,) = faked.blocks()
    assert (block.start, block.end) == pytest.approx((1000.01, 1000.18))


@pytest.mark.parametrize("timeout", [0, 0.05, None])
def test_victims_are_all_waiters(timeout: float | None) -> None:
    """Waiters: 3 ready handles, 2 due timers that were not cancelled, and 4 events of the first poll after it."""
    faked = Faked()
    faked.poll()
    faked.loop._ready += [None] * 3
    for timer in (Timer(1000.1), Timer(1000.2), Timer(1000.05, cancelled=True), Timer(1000.9)):
        heapq.heappush(faked.loop._scheduled, timer)
    faked.work(0.5)
    faked.poll(timeout=timeout, events=4)
    faked.poll(timeout=timeout, events=100)
    faked.work(0.02)
    faked.poll(timeout=timeout, events=100)
    (block,) = faked.blocks()
    assert block.victims == 9


def test_due_timers_are_counted_as_far_as_they_are_due() -> None:
    """Of 10,000 timers on the heap only the due ones, and their neighbours, are examined."""
    faked = Faked()
    for number in range(10_000):
        heapq.heappush(faked.loop._scheduled, Timer(1000.0 + number))
    heap = CountingList(faked.loop._scheduled)
    faked.loop._scheduled = heap
    assert len(faked.cell._due(1002.5)) == 3
    assert heap.looks <= 3 * 4


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=60), st.floats(0, 10))
def test_due_timers_are_counted_right(timers: list[tuple[float, bool]], now: float) -> None:
    """For every heap, the count is that of all timers due now that were not cancelled."""
    faked = Faked()
    for when, cancelled in timers:
        heapq.heappush(faked.loop._scheduled, Timer(when, cancelled=cancelled))
    assert len(faked.cell._due(now)) == sum(when <= now and not cancelled for when, cancelled in timers)


def test_counting_is_bounded() -> None:
    """A hundred thousand due timers are not all walked on the loop's thread."""
    faked = Faked()
    faked.loop._scheduled = heap = CountingList(Timer(0.0) for _ in range(100_000))
    assert len(faked.cell._due(1.0)) == MAX_COUNTED
    assert heap.looks <= 2 * MAX_COUNTED + 2


def test_oversleep_with_time_out() -> None:
    """A select that returns late for its time-out is a block from the due time on, while the loop was asleep."""
    faked = Faked()
    faked.poll(lasts=0.55, timeout=0.05)
    (block,) = faked.blocks()
    assert (block.start, block.end) == pytest.approx((1000.05, 1000.55))
    assert block.key == block.start
    assert (block.asleep, block.shared, block.uncertainty) == (True, False, 0.0)


def test_oversleep_with_events_may_have_begun_earlier() -> None:
    """An event may have been due at any time since select began: that is the uncertainty."""
    faked = Faked()
    faked.poll(lasts=0.55, timeout=0.05, events=2)
    (block,) = faked.blocks()
    assert block.uncertainty == pytest.approx(0.05)
    assert block.victims == 2


def test_oversleep_counts_the_timers_that_waited() -> None:
    """Waiters of an oversleep are its events and the timers due by then."""
    faked = Faked()
    for when in (1000.05, 1000.2, 1000.5, 1003.0):
        heapq.heappush(faked.loop._scheduled, Timer(when))
    faked.poll(lasts=0.55, timeout=0.05, events=1)
    assert faked.blocks()[0].victims == 4


@pytest.mark.parametrize(
    ("timeout", "lasts", "found"),
    [(None, 1000.0, 0), (0.5, 0.599, 0), (0.5, 0.601, 1), (-1.0, 0.101, 1), (-1.0, 0.09, 0)],
)
def test_sleep_without_oversleep(timeout: float | None, lasts: float, found: int) -> None:
    """Without a time-out no sleep is too long; with one it is from the limit on; a negative one is none at all."""
    faked = Faked()
    faked.poll(lasts=lasts, timeout=timeout)
    assert len(faked.blocks()) == found


def test_window_of_an_oversleep_leaves_out_the_sleep() -> None:
    """Processor time is compared with the oversleep and the work before it, not with the intended sleep."""
    faked = Faked()
    faked.poll()  # marks the clocks at 1000.0
    faked.work(0.004)
    faked.poll(lasts=2.5, timeout=2.0)
    (block,) = faked.blocks()
    assert block.window == pytest.approx(0.504)


def test_window_begins_at_most_ten_milliseconds_of_work_before() -> None:
    """The clocks are read at most every 10 ms, so a block's window begins that much before it at the earliest."""
    faked = Faked()
    for _ in range(100):
        faked.poll()
        faked.work(0.003)
    faked.poll()
    faked.work(0.3)
    faked.poll()
    (block,) = faked.blocks()
    assert block.window is not None
    assert 0.299999 <= block.window <= 0.3 + 0.01 + 0.003


def test_paused() -> None:
    """With an infinite limit nothing is ever a block, neither a pass nor a sleep."""
    faked = Faked(limit=IDLE)
    faked.poll(lasts=1000.0, timeout=1.0)
    faked.work(1000.0)
    faked.poll(lasts=1000.0, timeout=1.0)
    assert faked.blocks() == []
    faked.cell.limit = LIMIT
    faked.timed.look_at(0.0)
    faked.work(0.2)
    faked.poll()
    assert len(faked.blocks()) == 1


def test_blocks_are_bounded() -> None:
    """If the blocks are not fetched, the latest thousand are kept."""
    faked = Faked()
    for _ in range(1500):
        faked.poll()
        faked.work(0.2)
    assert len(faked.blocks()) == 1000


@pytest.fixture
def real() -> Any:
    """An open selector loop."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_detach_restores_select(real: Any) -> None:
    """select is replaced on the instance and gone after detach; a second detach does nothing."""
    selector = real._selector
    before = selector.select
    probe = AsyncioProbe(real, LIMIT, PatchSet(), raised)
    assert "select" in vars(selector)
    probe.detach()
    assert "select" not in vars(selector)
    assert selector.select == before
    probe.detach()
    assert "select" not in vars(selector)


def test_off_on_off_on(real: Any) -> None:
    """Three probes one after the other leave one layer, and each works."""
    patches = PatchSet()
    for _ in range(3):
        probe = AsyncioProbe(real, 0.02, patches, raised)
        probe.running(True)
        real.run_until_complete(_blocked(0.03))
        probe.running(False)
        blocks = [block.end - block.start for block in probe.finished()]  # with one layer more, each came twice
        assert len([seconds for seconds in blocks if seconds >= 0.03]) >= 1
        assert len(set(blocks)) == len(blocks)
        probe.detach()
        assert "select" not in vars(real._selector)


async def _blocked(seconds: float) -> None:
    await asyncio.sleep(0)
    time.sleep(seconds)
    await asyncio.sleep(0)


def test_counters_of_a_real_loop(real: Any) -> None:
    """Busy and idle time add up to the time the loop ran, and the idle time is the time it waited."""
    probe = AsyncioProbe(real, LIMIT, PatchSet(), raised)
    began = time.monotonic()
    probe.running(True)

    async def main() -> None:
        await asyncio.sleep(0.05)
        time.sleep(0.03)

    real.run_until_complete(main())
    probe.running(False)
    ran = time.monotonic() - began
    busy, idle, passes, callbacks = probe.counters(time.monotonic())
    probe.detach()
    assert busy is not None
    assert idle is not None
    assert busy + idle == pytest.approx(ran, abs=0.02)
    assert busy >= 0.03
    assert idle >= 0.049
    assert passes is not None
    assert passes >= 3
    assert callbacks is None


def test_time_between_runs_is_neither_busy_nor_idle(real: Any) -> None:
    """A loop that does not run is not watched: no block, no busy time, no activity."""
    probe = AsyncioProbe(real, 0.02, PatchSet(), raised)
    probe.running(True)
    real.run_until_complete(asyncio.sleep(0))
    probe.running(False)
    before = probe.counters(time.monotonic())
    assert probe.busy_since(time.monotonic() + 5) == IDLE
    assert probe.counters(time.monotonic() + 5) == before
    probe.detach()


class Slotted:
    """A selector of the user's own that takes no further attributes."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> Any:
        return self._inner.select(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Odd(selectors.SelectSelector):
    """A selector of the user's own that overrides select."""

    calls = 0

    def select(self, timeout: float | None = None) -> Any:
        self.calls += 1
        return super().select(timeout)


def test_selector_with_slots_falls_back_to_the_heartbeat() -> None:
    """If select cannot be replaced the heartbeat is used, the failure is reported once, and select stays as it was."""
    loop = asyncio.SelectorEventLoop(Slotted())  # type: ignore[arg-type]
    reported: list[BaseException] = []
    probe = make_probe(loop, LIMIT, PatchSet(), reported.append)
    assert isinstance(probe, HeartbeatProbe)
    assert len(reported) == 1
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize(("selector", "kind"), [(Odd, "asyncio"), (Slotted, "heartbeat")])
def test_custom_selector_is_watched(selector: Any, kind: str) -> None:
    """A loop with a user's own selector is watched as well as the selector allows, and its select is still called."""
    sink = RecordingSink()
    agent = Agent(Config(threshold=0.1, on_stall=sink, log_level=10, cpu_budget=1.0))
    agent.start()
    made = selector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(made)) as running:
        running.run(_blocked_in_peace(0.25))
        assert [loop.kind for loop in agent.snapshot().loops] == [kind]
    (stall,) = sink.wait()
    agent.stop()
    assert stall.duration == pytest.approx(0.25, abs=0.03 + stall.uncertainty)
    assert "select" not in getattr(made, "__dict__", {})
    if isinstance(made, Odd):
        assert made.calls >= 3


async def _blocked_in_peace(seconds: float) -> None:
    await asyncio.sleep(0.12)
    await _blocked(seconds)
    await asyncio.sleep(0.12)


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The durations for which the loop's thread was asked to release the GIL, without really sleeping."""
    slept: list[float] = []
    monkeypatch.setattr("loopwatch.watch.probes.asyncio.release_gil", slept.append)
    return slept


def saturate(faked: Faked, seconds: float) -> None:
    """Have the loop make passes of 0.1 ms and never wait."""
    until = faked.clock.now + seconds
    while faked.clock.now < until:
        faked.work(0.0001)
        faked.poll(timeout=0)


def expect(faked: Faked, when: float) -> None:
    """Announce the watcher's next tick."""
    faked.cell.expect(when)
    faked.timed.look_by(faked.cell.visit)


def test_loop_that_never_waits_yields_to_the_watcher(yields: list[float]) -> None:
    """From the announced time on the loop releases the GIL for long enough, within a millisecond."""
    faked = Faked()
    saturate(faked, 0.02)
    expect(faked, faked.clock.now + 0.05)
    saturate(faked, 0.0495)
    assert yields == []
    saturate(faked, 0.0015)
    assert yields != []


def test_loop_that_was_read_does_not_yield(yields: list[float]) -> None:
    """After its tick the watcher announces the next one, and until then the loop does not yield."""
    faked = Faked()
    expect(faked, faked.clock.now + 0.01)
    saturate(faked, 0.011)
    seen = len(yields)
    expect(faked, faked.clock.now + 0.05)
    saturate(faked, 0.04)
    assert 0 < seen == len(yields)


def test_watcher_that_never_ticks_is_not_waited_for(yields: list[float]) -> None:
    """After twenty yields the loop stops yielding to a watcher that does not come."""
    faked = Faked()
    expect(faked, faked.clock.now + 0.01)
    saturate(faked, 5.0)
    assert yields == [LET_IN] * MAX_LET_IN


def test_waiting_loop_does_not_yield(yields: list[float]) -> None:
    """A poll that waits releases the GIL for long enough."""
    faked = Faked()
    expect(faked, faked.clock.now + 0.01)
    for _ in range(100):
        faked.work(0.0001)
        faked.poll(lasts=0.001)
    assert yields == []


def failing(exc: Exception) -> Faked:
    """A loop under a probe whose callback for waiting handles fails."""
    faked = Faked()

    def taker(*_: object) -> None:
        raise exc

    faked.cell.taker = taker
    faked.poll(timeout=0)
    return faked


def test_failure_of_the_probe_does_not_reach_the_loop() -> None:
    """A fault at the end of a block is reported once per block; the loop and the timing of later blocks go on."""
    faked = failing(RuntimeError("ours"))
    for _ in range(3):
        faked.work(0.2)
        faked.poll(timeout=0, events=2)
    assert [str(exc) for exc in faked.failed] == ["ours"] * 3
    faked.cell.taker = None
    faked.work(0.3)
    faked.poll(events=1)
    (block,) = faked.blocks()
    assert block.end - block.start == pytest.approx(0.3)


def test_a_probe_that_always_fails_gives_up() -> None:
    """After ten failures the loop is not recorded any more, and its select behaves as the original."""
    faked = failing(RuntimeError("ours"))
    for _ in range(30):
        faked.work(0.2)
        faked.poll(timeout=0)
    assert len(faked.failed) == MAX_FAILURES
    assert faked.timed.pace().passes == 31


def test_events_without_a_length_are_passed_on() -> None:
    """A program's own select may return an object without a length: the loop gets it, with one fault reported."""
    clock, cell = FakeClock(1000.0), Cell(FakeLoop(), LIMIT)
    failed: list[BaseException] = []
    cell.report = failed.append
    found = iter([("key", 1)])
    cell.timed = timed = timed_select(cell, lambda _timeout: found, clock=clock)
    timed.begin(clock.now)
    clock.advance(0.3)
    assert timed.select(0) is found
    assert len(failed) == 1
    assert isinstance(failed[0], TypeError)


def test_exception_of_a_signal_handler_is_raised() -> None:
    """A time-out raised by a signal handler inside the probe is the program's: it is raised, not swallowed."""

    class TimedOut(Exception):
        pass

    def handler(*_: object) -> None:
        raise TimedOut

    def taker(*_: object) -> None:
        signal.raise_signal(signal.SIGALRM)

    faked = failing(RuntimeError("not this"))
    faked.cell.taker = taker
    before = signal.signal(signal.SIGALRM, handler)
    try:
        faked.work(0.2)
        with pytest.raises(TimedOut):
            faked.poll(timeout=0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert faked.failed == []

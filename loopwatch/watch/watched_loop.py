"""One watched loop: its probe, its heartbeat, its thread, and its statistics of the last window."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Hashable
from typing import Any

from loopwatch.core import greenlets
from loopwatch.core.histogram import Histogram
from loopwatch.core.originals import time
from loopwatch.events import LagStats, LoopStats
from loopwatch.system.threads import Clocks, ThreadFacts
from loopwatch.watch.expectations import Expectations
from loopwatch.watch.observation import Baseline, Case, Episode, LoopReading
from loopwatch.watch.probes.base import IDLE, Block, Counters, Failed, Loop, Probe
from loopwatch.watch.probes.heartbeat import LONGEST, Heartbeat, HeartbeatProbe

WINDOW, FIRST_WINDOW = 10.0, 1.0
"""Seconds of a loop's statistics window, of which the last complete one counts; the first is shorter, to come soon."""
NEVER = float("-inf")
APART = 0.02
"""Seconds between two of the readings that are kept, at least."""
SCHEDULER_EVERY = 0.05
"""Seconds between two readings of the scheduler's statistics, which cost a file; a thread waits little in that time."""


FORGET_AFTER = 0.5
"""Seconds for which samples of an ended callback are kept: by then it is known whether it was a block."""
QUIET_SPELL, QUIET_PASSES = 1.0, 5.0
"""Seconds over which passes are counted, and passes a second up to which a loop is quiet; its heartbeat makes some."""
BUSY_PASSES, OWN_PASSES = 30.0, 4
"""Passes a second above which a loop has timers or events that a late wake-up would hurt; passes by one heartbeat."""


class WatchedLoop:
    """A watched loop and its state. Holds the loop weakly: watching keeps nothing alive.

    Args:
        loop: the loop.
        name: name of the loop.
        probe: reads the loop.
        heartbeat: seconds between two heartbeats; None: the loop must not see a timer of the agent, its lag is unknown.
        failed: receives exceptions caught on the loop's thread.
    """

    def __init__(self, loop: Loop, name: str, probe: Probe, heartbeat: float | None, failed: Failed) -> None:
        self.ref: weakref.ref[Loop] = weakref.ref(loop)
        self.name = name
        self.key: Hashable = object()  # not its id, which is reused
        self.probe = probe
        self._has_heart = heartbeat is not None
        self.heart = Heartbeat(loop, heartbeat or LONGEST, self._utilization_since_beat, probe.on_beat, failed)
        if isinstance(probe, HeartbeatProbe):
            probe.listen(self.heart)
        self.thread: ThreadFacts | None = None
        self.greenlet: greenlets.Reference | None = None
        self.is_running = False
        self._baselines: deque[Baseline] = deque(maxlen=8)
        self.episodes: dict[float, Episode] = {}
        self.finished = IDLE  # key of the last finished block
        self.latest_case: Case | None = None
        self._cases_lock = threading.RLock()
        self.pending: Any = None
        self.expectations = Expectations()
        self.blocked_since: float | None = None
        self.since = IDLE
        self.quiet = False
        self._quiet_since, self._quiet_passes = time.monotonic(), 0
        self.stalls = 0
        self.last_blocked = NEVER
        self._cpu_seen: float | None = None
        self.blocked = 0.0
        self._beating = False
        self._at_beat = self._at_window = Counters(None, None, None, None)
        self._began = self._window_began = time.monotonic()
        self._window = 0.0
        self._lags = Histogram()
        self._between_beats = Histogram()
        self._lags_lock = threading.RLock()  # a signal handler or finalizer may run in between
        self.victims = 0
        self._rates: tuple[float | None, float | None, float | None] = (None, None, None)
        self._lag: LagStats | None = None

    @property
    def gone(self) -> bool:
        """Whether the loop is closed or garbage-collected."""
        loop = self.ref()
        return loop is None or loop.is_closed()

    def started(self, *, in_callback: bool = False) -> None:
        """Record that the loop is about to run, or is running a callback (``in_callback``); on its thread."""
        self.thread, self.greenlet = ThreadFacts.here(), greenlets.here()
        self._baselines.clear()
        # No file is read on the loop's thread: the watcher adds the run queue at its first tick.
        clocks = self.thread.clocks(files=False)
        idle = self.probe.counters(clocks.at).idle or 0.0
        self._baselines.append(Baseline(clocks, NEVER, idle, idle))
        self.probe.running(True)
        if self._beating:
            self.heart.resume()
        elif self._has_heart:
            self._beating = True
            self.heart.start(in_callback=in_callback)
        self.is_running = True

    @property
    def baseline(self) -> Baseline | None:
        """The clocks last read outside a block, None if there are none."""
        return self._baselines[-1] if self._baselines else None

    def baseline_by(self, latest: float) -> Baseline | None:
        """Return the clocks last read by ``latest``, else the earliest ones, None if there are none."""
        known = list(self._baselines)  # the watcher may be adding to it
        before = [item for item in known if item.clocks.at <= latest]
        return before[-1] if before else next(iter(known), None)

    def computed(self) -> float:
        """Return the processor seconds of its thread since the last call, 0 where they are unknown."""
        now = None if self.thread is None else self.thread.cpu()
        before, self._cpu_seen = self._cpu_seen, now
        return 0.0 if now is None or before is None else max(now - before, 0.0)

    def note_clocks(self, clocks: Clocks, idle: float) -> None:
        """Keep clocks read at the end of a block: the next one may follow without a pause."""
        last = self.baseline
        if last is None or clocks.at - last.clocks.at >= APART:
            self._baselines.append(Baseline(clocks, clocks.at, idle, idle))

    def renew_baseline(self, now: float, idle: float, pace: float = 1.0) -> None:
        """Read the clocks of the loop's thread while it is not blocked; in the watcher's thread.

        Args:
            now: ``time.monotonic`` seconds.
            idle: seconds that the loop has waited so far.
            pace: factor for the time between two readings of the run queue.
        """
        thread, before = self.thread, self.baseline
        if thread is None:
            return
        if before is None or now - before.run_queue_at >= SCHEDULER_EVERY * pace:
            clocks = thread.clocks()
            if before is not None and before.run_queue_at == NEVER:
                before.clocks = before.clocks._replace(run_queue=clocks.run_queue, runs=clocks.runs)
                before.run_queue_at, before.run_queue_idle = now, idle
            self._baselines.append(Baseline(clocks, now, idle, idle))
        else:
            clocks = Clocks(now, thread.cpu(), time.process_time(), *before.clocks[3:])
            self._baselines.append(Baseline(clocks, before.run_queue_at, idle, before.run_queue_idle))

    def stopped(self) -> None:
        """Record that the loop stops running; on its thread."""
        self.is_running = False
        self.probe.running(False)

    def detach(self) -> None:
        """Stop the heartbeat and detach the probe, which leaves the loop as it was."""
        self.is_running = False
        self.heart.stop()
        self.probe.detach()

    def abandon(self) -> None:
        """Detach in a forked child, without waiting for any lock."""
        self.heart.stop()
        self.probe.abandon()

    def _utilization_since_beat(self) -> float | None:
        if self.greenlet is None:
            self.greenlet = greenlets.here()  # the program may have loaded greenlet since
        now = time.monotonic()
        before, self._at_beat = self._at_beat, self.probe.counters(now)
        share = utilization(before, self._at_beat)
        # The heartbeat itself makes some passes.
        rate = _rate((before.passes or 0) + OWN_PASSES, self._at_beat.passes, now - self.heart.last)
        return 1.0 if share is not None and rate is not None and rate > BUSY_PASSES else share

    def is_quiet(self, now: float) -> bool:
        """Whether the loop has made next to no passes recently; renewed once a second."""
        passes = self.probe.counters(now).passes
        if now - self._quiet_since >= QUIET_SPELL:
            self.quiet = passes is not None and passes - self._quiet_passes <= QUIET_PASSES * (now - self._quiet_since)
            self._quiet_since, self._quiet_passes = now, passes or 0
        return self.quiet

    @property
    def is_blind(self) -> bool:
        """Whether the probe of an asyncio loop sees no passes: another selector, or another ``select``, is in use.

        A pass has room for one heartbeat; if two have run since the pass began, it is long over.
        """
        return self.probe.traits.dates_passes and self.heart.before_last > self.since

    @property
    def rests(self) -> bool:
        """Whether the loop was quiet and waited at the last tick, and has no episode."""
        return self.quiet and self.since == IDLE and not self.episodes

    def count(self, block: Block) -> None:
        """Count a finished stall; in the watcher's thread.

        The heartbeat of an idle loop may have missed it: then a lag is recorded for a heartbeat due where, on average,
        the first one of a busy loop is.
        """
        length = block.end - block.start
        self.stalls += 1
        self.last_blocked = block.end
        self.blocked += length
        self.victims += block.victims or 0
        if self._has_heart and not self.heart.was_due(block.start, block.end):
            with self._lags_lock:
                self._between_beats.record(max(length - self.heart.interval / 2, 0.0))

    def window_is_over(self, now: float) -> bool:
        """Whether it is time for :meth:`end_window`."""
        return now - self._window_began >= (WINDOW if self._window else FIRST_WINDOW)

    def end_window(self, now: float) -> None:
        """Close the window of statistics and begin the next; in the watcher's thread."""
        counters = self.probe.counters(now)
        before, self._at_window = self._at_window, counters
        self._window, self._window_began = now - self._window_began, now
        self._rates = (
            utilization(before, counters),
            _rate(before.passes or 0, counters.passes, self._window),
            _rate(before.callbacks or 0, counters.callbacks, self._window),
        )
        with self._lags_lock:
            window, between, self._between_beats = self.heart.take_window(), self._between_beats, Histogram()
            window.add(between)
            self._lags.add(window)
        self._lag = window.stats()

    def open_episode(self, key: float) -> Episode:
        """Return the episode of the block under ``key``, a new one if there is none."""
        return self.episodes.get(key) or self.episodes.setdefault(key, Episode(os.urandom(5).hex()))

    def close_episode(self, block: Block) -> Episode:
        """Remove and return the episode of ``block``: the one under its key, else one sampled while it lasted.

        A block that only a late heartbeat proved has a key of its own.
        """
        self.finished = block.key
        own = self.episodes.pop(block.key, None)
        if own is not None and own.samples:
            return own
        for key, episode in list(self.episodes.items()):
            if any(block.start <= sample.at <= block.end for sample in episode.samples):
                found = self.episodes.pop(key)
                found.id = found.id if own is None else own.id  # already given to its waiters
                return found
        return own or Episode(os.urandom(5).hex())

    def expire_episodes(self, now: float) -> None:
        """Drop the episodes of callbacks that ended below the threshold, a while after their end.

        Not at once: the probe returns a longer block only when the events that waited for it are counted, and ticks
        may follow each other at once.
        """
        since = self.probe.busy_since(now) if self.is_running else IDLE
        for key, episode in list(self.episodes.items()):
            if key != since and episode.ended is None:
                episode.ended = now
            elif key != since and episode.ended is not None and now - episode.ended > FORGET_AFTER:
                self.episodes.pop(key, None)

    def case_of(self, key: float, stall_id: str | None = None) -> Case:
        """Return the case of the block under ``key``, the same for all callers; also after the block was passed on.

        Args:
            key: of the block.
            stall_id: id of the stall that the block is passed on as; None for callers before that.
        """
        with self._cases_lock:
            latest = self.latest_case
            if latest is not None and latest.key == key:
                return latest
            if stall_id is None:
                stall_id = self.open_episode(key).id
            self.latest_case = case = Case(key, stall_id)
            return case

    def reading(self, now: float) -> LoopReading:
        """Return its statistics for metrics at ``now``, ``time.monotonic`` seconds; from any thread."""
        watched_for = max(now - self._began, 0.0)
        return LoopReading(self.key, self.stats(now), self.lags(), self.callbacks(now), self.victims, watched_for)

    def lags(self) -> Histogram:
        """Return the histogram of heartbeat lags since the loop was first watched; from any thread."""
        with self._lags_lock:
            found = self._lags.copy()
            found.add(self.heart.window.copy())
            found.add(self._between_beats)
        return found

    def callbacks(self, now: float) -> int | None:
        """Return the number of callbacks run since the loop was first watched, None where they are not counted."""
        return self.probe.counters(now).callbacks

    def stats(self, now: float) -> LoopStats:
        """Return the loop's public statistics."""
        counters = self.probe.counters(now)
        blocked_for = now - self.blocked_since if self.blocked_since is not None else 0.0
        share, passes, callbacks = self._rates
        return LoopStats(
            name=self.name,
            kind=self.probe.kind,
            running=self.is_running,
            window=self._window,
            utilization=share,
            busy=counters.busy,
            idle=counters.idle,
            passes=counters.passes,
            passes_per_s=passes,
            callbacks_per_s=callbacks,
            lag=self._lag,
            stalls=self.stalls,
            blocked=self.blocked,
            blocked_for=max(blocked_for, 0.0),
            expected=self.expectations.stats(),
        )


def utilization(before: Counters, after: Counters) -> float | None:
    """Return busy / (busy + idle) between two readings, None if unknown."""
    if after.busy is None or after.idle is None:
        return None
    busy, idle = after.busy - (before.busy or 0.0), after.idle - (before.idle or 0.0)
    return min(max(busy / (busy + idle), 0.0), 1.0) if busy + idle > 0 else None


def _rate(before: int, after: int | None, seconds: float) -> float | None:
    return None if after is None or seconds <= 0 else (after - before) / seconds

"""Measures how late the watcher thread wakes up, and why: no processor, or the GIL held, and by which thread."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Collection, Mapping
from types import FrameType
from typing import NamedTuple

from loopwatch.core.dataclasses import dataclass
from loopwatch.system import threads as facts
from loopwatch.watch.lapse import Waited
from loopwatch.watch.probes.base import Block
from loopwatch.watch.stacks import RawStack, take

LATE = 0.015
"""Seconds: a watcher at least this late was kept from running, and searches for the cause."""
THREADS_EVERY, OWN_EVERY = 1.0, 0.05
"""Seconds between two readings of all threads' clocks, and of the scheduler's account of the watcher, on time."""
SEARCH_EVERY = 0.05
"""Seconds between two searches for the thread that holds the GIL, while a loop may be waiting for the GIL."""
KEPT_FOR = 0.5
"""Seconds for which a thread that was found before the watcher's tick is kept."""
MIN_HOG = 0.05
"""Share of the time for which the busiest other thread must have used a processor to count as the hog: one of several
threads that compute at once has the GIL only in its turn."""


FORGOTTEN_AFTER = 60.0
"""Seconds after which a lateness, and the stack kept with it, is dropped."""


class Hog(NamedTuple):
    """The other thread that used most processor time since the clocks were last read.

    Attributes:
        stack: its stack, None if there is no other thread.
        cpu: processor seconds it used.
    """

    stack: RawStack | None
    cpu: float


@dataclass(slots=True)
class Lateness:
    """One delay of the watcher: due at ``planned``, it ran at ``actual`` (``time.monotonic`` seconds).

    Attributes:
        starved: seconds of it that the watcher's thread waited for a processor.
        runs: how many times the watcher was given a processor meanwhile, None if unknown: a thread that waits for the
            GIL wakes up once each switch interval, a stopped one never.
        held: seconds of it that some thread must have kept the GIL; 0 where the wait for a processor is unknown.
        hog: the other thread that used most processor time meanwhile.
    """

    planned: float
    actual: float
    starved: float
    runs: int | None
    held: float
    hog: Hog

    @property
    def seconds(self) -> float:
        """Length of the delay."""
        return self.actual - self.planned

    def share_in(self, block: Block) -> float:
        """Return the share of the delay that lies in ``block``, 0 to 1."""
        inside = max(min(self.actual, block.end) - max(self.planned, block.start), 0.0)
        return inside / self.seconds if self.seconds > 0 else 0.0


class Hindrance(NamedTuple):
    """The delays of the watcher during one block, and their causes.

    Attributes:
        late: seconds of its delays of at least :data:`LATE`.
        starved: seconds of its delays in which it waited for a processor.
        runs: how many times it was given a processor in its delays, None if unknown.
        hog: the other threads' work, None if it does not stand out: the stack of the thread that used most processor
            time in one delay, and the sum over all delays of the busiest thread's processor time.
        throttled: seconds that the cgroup was throttled by its quota, None if it has none.
    """

    late: float
    starved: float
    runs: int | None
    hog: Hog | None
    throttled: float | None


class Contention:
    """Keeps the clocks and delays that explain a late watcher; ``renew`` and ``note`` run in the watcher's thread."""

    def __init__(self) -> None:
        self._late: deque[Lateness] = deque(maxlen=64)
        self._threads: dict[facts.ThreadId, float] = {}
        self._threads_at = 0.0
        self._kept, self._kept_at = Hog(None, 0.0), 0.0
        self._own: facts.Scheduled | None = None
        self._own_at = 0.0
        self._throttled: deque[tuple[float, float | None]] = deque([(0.0, None)], maxlen=16)

    def renew(self, now: float, pace: float) -> None:
        """Read the clocks that later readings are compared with, unless they were read recently.

        Args:
            now: ``time.monotonic`` seconds.
            pace: factor for the time between two readings, 1 or more.
        """
        read_at, throttled = self._throttled[-1]
        # An existing quota may be used up at any time; whether there is one seldom changes.
        if now - read_at >= pace * (THREADS_EVERY if throttled is None else OWN_EVERY):
            self._throttled.append((now, facts.throttled()))
        if now - self._threads_at >= pace * THREADS_EVERY:
            self._threads_at = now
            if threading.active_count() > 2:
                self._threads = facts.thread_clocks()
        if now - self._own_at >= pace * OWN_EVERY:
            self.waited(now)
        while self._late and now - self._late[0].actual > FORGOTTEN_AFTER:
            self._late.popleft()

    def searched_lately(self, now: float) -> bool:
        """Whether all threads' clocks were read so recently that a new search would show nothing new."""
        return now - self._threads_at < SEARCH_EVERY

    def find_hog(
        self, frames: Mapping[int, FrameType], innocent: Collection[int | None], max_frames: int, now: float
    ) -> Hog:
        """Return the thread outside ``innocent`` that used most processor time since the clocks were last read.

        Args:
            frames: innermost frame of every thread, from :func:`sys._current_frames`.
            innocent: idents of threads to skip.
            max_frames: frames kept of its stack.
            now: ``time.monotonic`` seconds.
        """
        found, kept = self._busiest(frames, innocent, max_frames, now), self.take_kept(now)
        return kept if kept.cpu > found.cpu else found

    def take_kept(self, now: float) -> Hog:
        """Return the hog that was found a moment before ``now``, once; no hog if none was."""
        kept, self._kept = self._kept, Hog(None, 0.0)
        return kept if now - self._kept_at < KEPT_FOR else Hog(None, 0.0)

    def keep_hog(
        self, frames: Mapping[int, FrameType], innocent: Collection[int | None], max_frames: int, now: float
    ) -> None:
        """Search for that thread now, and keep it for :meth:`find_hog`: by then it may have ended."""
        found = self._busiest(frames, innocent, max_frames, now)
        if found.cpu > self._kept.cpu or now - self._kept_at >= KEPT_FOR:
            self._kept, self._kept_at = found, now

    def _busiest(
        self, frames: Mapping[int, FrameType], innocent: Collection[int | None], max_frames: int, now: float
    ) -> Hog:
        clocks, before = facts.thread_clocks(), self._threads
        self._threads, self._threads_at = clocks, now
        # Where not all threads were read, one without an earlier reading is not charged with its whole lifetime.
        first = 0.0 if len(clocks) < facts.MAX_THREADS else None
        used = {
            thread[0]: cpu - earlier
            for thread, cpu in clocks.items()
            if thread[0] in frames and thread[0] not in innocent and (earlier := before.get(thread, first)) is not None
        }
        ident = max(used, key=lambda ident: used[ident], default=None)
        if ident is None:
            return Hog(None, 0.0)
        return Hog(take(frames[ident], None, max_frames)[0], used[ident])

    @property
    def own(self) -> facts.Scheduled | None:
        """The scheduler's account of the watcher's thread, as of the last reading."""
        return self._own

    def waited(self, now: float) -> Waited:
        """Return what the watcher's thread went through since the last call; reads one file."""
        before, self._own = self._own, facts.scheduled(threading.get_native_id())
        self._own_at = now
        return Waited.between(before, self._own)

    def note(self, hog: Hog, planned: float, now: float, waited: Waited) -> Lateness:
        """Record that the watcher, due at ``planned``, could not run until ``now``, and what it ``waited`` for."""
        starved = held = 0.0
        if waited.run_queue is not None:
            starved = min(waited.run_queue, now - planned)
            # The holder of the GIL releases it one switch interval after the request, at the end of its call.
            held = max(now - planned - starved - 2 * sys.getswitchinterval(), 0.0)
        late = Lateness(planned, now, starved, waited.runs, held, hog)
        self._late.append(late)
        return late

    def during(self, block: Block) -> Hindrance:
        """Return the watcher's delays during ``block``, which has just ended, and their causes; from any thread."""
        late = [entry for entry in list(self._late) if entry.actual > block.start and entry.planned < block.end]
        notable = [entry for entry in late if entry.seconds >= LATE]
        until = min(max((entry.actual for entry in late), default=block.end), block.end)
        cpu = sum(entry.hog.cpu for entry in late)
        runs = [entry.runs for entry in notable if entry.runs is not None]
        stands_out = bool(late) and cpu >= MIN_HOG * (until - block.start)
        busiest = max(late, key=lambda entry: entry.hog.cpu).hog.stack if stands_out else None
        return Hindrance(
            late=sum(entry.seconds * entry.share_in(block) for entry in notable),
            starved=sum(entry.starved * entry.share_in(block) for entry in notable),
            runs=sum(runs) if runs else None,
            hog=Hog(busiest, cpu) if stands_out else None,
            throttled=self._throttled_in(block),
        )

    def _throttled_in(self, block: Block) -> float | None:
        known = list(self._throttled)
        before = next((value for at, value in reversed(known) if at <= block.start), known[0][1])
        if before is None or (now := facts.throttled()) is None:
            return None
        return min(max(now - before, 0.0), block.end - block.start)

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
from loopwatch.watch.probes.base import Block
from loopwatch.watch.stacks import RawStack, take

LATE = 0.015
"""s: a watcher later than this was kept from running, and asks who did it."""
THREADS_EVERY, OWN_EVERY = 1.0, 0.2
"""s between two readings of all threads' clocks, and of the watcher's own run queue, while nobody is late."""
SEARCH_EVERY = 0.05
"""s between two searches for the thread that holds the GIL, while a loop waits for what may be the GIL."""
MIN_HOG = 0.2
"""Share of the time for which the busiest other thread must have had a processor for it to be called the hog."""


FORGOTTEN_AFTER = 60.0
"""s after which a lateness, and the stack that was kept with it, is dropped."""


class Hog(NamedTuple):
    """The other thread that used most of a processor since the clocks were last read.

    Attributes:
        stack: what it was doing, None if there is no other thread.
        cpu: processor seconds it used.
    """

    stack: RawStack | None
    cpu: float


@dataclass(slots=True)
class Lateness:
    """The watcher wanted to run from ``planned`` on, and did at ``actual`` (``time.monotonic`` seconds).

    Attributes:
        starved: s of it that the watcher's own thread waited for a processor.
        held: s of it that somebody must have kept the GIL; 0 where it is not known what it waited for a processor.
        hog: who used a processor meanwhile.
    """

    planned: float
    actual: float
    starved: float
    held: float
    hog: Hog

    @property
    def seconds(self) -> float:
        """How late it was."""
        return self.actual - self.planned

    def share_in(self, block: Block) -> float:
        """Return the share of it that lies in ``block``, 0 to 1."""
        inside = max(min(self.actual, block.end) - max(self.planned, block.start), 0.0)
        return inside / self.seconds if self.seconds > 0 else 0.0


class Hindrance(NamedTuple):
    """What kept the watcher from running during one block.

    Attributes:
        late: s in which it wanted to run and could not, where that was notable.
        starved: s of it that it waited for a processor.
        hog: the other threads' work, None if it does not stand out: the stack of the one that used most at a time, and
            what the busiest used each time, together.
        throttled: s that the cgroup was held back by its quota, None if it has none.
    """

    late: float
    starved: float
    hog: Hog | None
    throttled: float | None


class Contention:
    """Keeps what is needed to tell afterwards why the watcher was late; renewed and noted in the watcher's thread."""

    def __init__(self) -> None:
        self._late: deque[Lateness] = deque(maxlen=64)
        self._threads: dict[facts.ThreadId, float] = {}
        self._threads_at = 0.0
        self._own_run_queue: float | None = None
        self._own_at = 0.0
        self._throttled: deque[tuple[float, float | None]] = deque([(0.0, None)], maxlen=16)

    def renew(self, now: float, pace: float) -> None:
        """Read the clocks from which later differences are taken, unless they were read lately.

        Args:
            now: ``time.monotonic`` seconds.
            pace: factor for the time between two readings, above 1 while nothing happens.
        """
        read_at, throttled = self._throttled[-1]
        # A quota that is there may be used up at any time; that there is one seldom changes.
        if now - read_at >= pace * (THREADS_EVERY if throttled is None else OWN_EVERY):
            self._throttled.append((now, facts.throttled()))
        if now - self._threads_at >= pace * THREADS_EVERY:
            self._threads_at = now
            if threading.active_count() > 2:
                self._threads = facts.thread_clocks()
        if now - self._own_at >= pace * OWN_EVERY:
            self._read_own(now)
        while self._late and now - self._late[0].actual > FORGOTTEN_AFTER:
            self._late.popleft()

    def searched_lately(self, now: float) -> bool:
        """Whether all threads' clocks were read a moment ago, so that to do it again would tell nothing new."""
        return now - self._threads_at < SEARCH_EVERY

    def find_hog(
        self, frames: Mapping[int, FrameType], innocent: Collection[int | None], max_frames: int, now: float
    ) -> Hog:
        """Return which thread that is not ``innocent`` used most of a processor since the clocks were last read.

        Args:
            frames: innermost frame of every thread, from :func:`sys._current_frames`.
            innocent: idents of threads that are not asked.
            max_frames: frames kept of its stack.
            now: ``time.monotonic`` seconds.
        """
        clocks, before = facts.thread_clocks(), self._threads
        self._threads, self._threads_at = clocks, now
        # A thread that was not among those that were asked is not charged with its whole life.
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

    def note(self, hog: Hog, planned: float, now: float) -> Lateness:
        """Keep that the watcher, due at ``planned``, could not run until ``now``; one file is read for it."""
        before = self._own_run_queue
        self._read_own(now)
        after = self._own_run_queue
        starved = held = 0.0
        if before is not None and after is not None:
            starved = min(max(after - before, 0.0), now - planned)
            # Whoever holds the GIL gives it away one switch interval after it was asked for, at the end of its call.
            held = max(now - planned - starved - 2 * sys.getswitchinterval(), 0.0)
        late = Lateness(planned, now, starved, held, hog)
        self._late.append(late)
        return late

    def during(self, block: Block) -> Hindrance:
        """Return what kept the watcher from running during ``block``, which has just ended; from any thread."""
        late = [entry for entry in list(self._late) if entry.actual > block.start and entry.planned < block.end]
        notable = [entry for entry in late if entry.seconds >= LATE]
        until = min(max((entry.actual for entry in late), default=block.end), block.end)
        cpu = sum(entry.hog.cpu for entry in late)
        stands_out = bool(late) and cpu >= MIN_HOG * (until - block.start)
        busiest = max(late, key=lambda entry: entry.hog.cpu).hog.stack if stands_out else None
        return Hindrance(
            late=sum(entry.seconds * entry.share_in(block) for entry in notable),
            starved=sum(entry.starved * entry.share_in(block) for entry in notable),
            hog=Hog(busiest, cpu) if stands_out else None,
            throttled=self._throttled_in(block),
        )

    def _throttled_in(self, block: Block) -> float | None:
        known, now = list(self._throttled), facts.throttled()
        before = next((value for at, value in reversed(known) if at <= block.start), known[0][1])
        if before is None or now is None:
            return None
        return min(max(now - before, 0.0), block.end - block.start)

    def _read_own(self, now: float) -> None:
        own = facts.scheduled(threading.get_native_id())
        self._own_run_queue, self._own_at = None if own is None else own.run_queue, now

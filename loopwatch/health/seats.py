"""One record (seat) per thread of a pool, with its current task: written by that thread, read by any."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Generic, TypeVar

from loopwatch.system import threads

MOST_GONE = 64
"""Most ended threads whose seats are kept; of further ones only count and CPU time are."""


class Seat:
    """The seat of one thread of a pool.

    Args:
        watched: the :class:`Watched` of the pool.
        thread: held weakly.
        born: when it was first seen, ``time.monotonic`` seconds.
    """

    __slots__ = ("born", "cpu", "done", "io", "item", "moved_at", "moved_cpu", "since", "thread", "watched")

    def __init__(self, watched: Any, thread: threading.Thread, born: float) -> None:
        self.watched, self.born = watched, born
        self.thread = weakref.ref(thread)
        self.item: Any = None
        """Its current task, None while it has none."""
        self.since = 0.0
        self.done = 0
        self.cpu = 0.0
        self.moved_at, self.moved_cpu, self.io = born, -1.0, -1

    def still_for(self, now: float, native_id: int, cpu: float) -> float:
        """Return the seconds for which the thread was seen to use neither CPU nor I/O."""
        if cpu > self.moved_cpu:
            self.moved_at, self.moved_cpu = now, cpu
        else:
            done = _io_of(native_id)
            if done > self.io >= 0:
                self.moved_at = now
            self.io = done
        return max(now - max(self.moved_at, self.since), 0.0)


S = TypeVar("S", bound=Seat)


class Seats(Generic[S]):
    """The seats of one pool.

    Args:
        watched: the :class:`Watched` of the pool.
        kind: class of the seats.

    Example:
        >>> seats, me = Seats(None), threading.current_thread()
        >>> seats.of(me, 0.0) is seats.of(me, 1.0), seats.count, seats.living() == [me]
        (True, 1, True)
    """

    def __init__(self, watched: Any, kind: type[S] = Seat) -> None:  # type: ignore[assignment]
        self._watched, self._kind = watched, kind
        self._by_id: dict[int, S] = {}
        self._gone: list[S] = []
        self._sweep_at = MOST_GONE
        self._gone_before = 0
        self._cpu_before = 0.0

    def of(self, thread: threading.Thread, now: float) -> S:
        """Return the seat of ``thread``, creating it if it has none."""
        key = id(thread)
        seat = self._by_id.get(key)
        if seat is not None and seat.thread() is thread:
            return seat
        if seat is not None:  # of a collected thread whose id was reused
            self._retire(key, seat)
        if len(self._by_id) >= self._sweep_at:
            for old, gone in self._by_id.copy().items():
                if gone.thread() is None:
                    self._retire(old, gone)
            self._sweep_at = 2 * len(self._by_id) + MOST_GONE
        return self._by_id.setdefault(key, self._kind(self._watched, thread, now))

    def _retire(self, key: int, seat: S) -> None:
        if self._by_id.pop(key, None) is seat:
            self._gone.append(seat)
        if len(self._gone) > MOST_GONE:
            oldest = self._gone.pop(0)
            self._gone_before += 1
            self._cpu_before += oldest.cpu

    def all(self) -> list[S]:
        """Return all seats, including the latest ones of ended threads."""
        return [*self._gone.copy(), *self._by_id.copy().values()]

    def living(self) -> list[threading.Thread]:
        """Return the threads that are alive."""
        found = (seat.thread() for seat in self._by_id.copy().values())
        return [thread for thread in found if thread is not None and thread.is_alive()]

    @property
    def count(self) -> int:
        """Number of threads so far."""
        return self._gone_before + len(self._gone) + len(self._by_id)

    @property
    def cpu(self) -> float:
        """CPU seconds of all threads so far."""
        return self._cpu_before + sum(seat.cpu for seat in self.all())


def _io_of(native_id: int) -> int:
    """Return the I/O of a thread of this process, calls plus bytes; -1 where the system does not report it."""
    text = threads.read_kernel(f"/proc/self/task/{native_id}/io")
    try:
        return -1 if text is None else sum(int(line.rpartition(" ")[2]) for line in text.splitlines())
    except ValueError:
        return -1

"""Priority queue of waiting calls, and the limit of its size. Independent of workers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import Counter, deque
from typing import Any

from loopwatch.errors import ConfigError
from loopwatch.workers.call import Call
from loopwatch.workers.options import CallOptions

NOWHERE, IN_LINE, ASIDE = range(3)
"""State of a call in the queue; ``ASIDE`` while its function is at its ``max_concurrency``."""

SPARE = 100
"""Calls that were given up and may stay in a heap until it is compacted."""

_Entry = tuple[int, int, Call]


class CallQueue:
    """Waiting calls in the order in which they run: by priority, then first come, first served.

    A call whose function is at its ``max_concurrency`` is set aside until one of that function has ended.
    """

    def __init__(self) -> None:
        self._line: list[_Entry] = []
        self._aside: dict[Any, list[_Entry]] = {}
        self._running: Counter[Any] = Counter()
        self._count = [0, 0, 0]
        self._last, self._first = itertools.count(1), itertools.count(-1, -1)

    def __len__(self) -> int:
        return self.in_line + self._count[ASIDE]

    @property
    def in_line(self) -> int:
        """Calls that could run if a worker were free."""
        return self._count[IN_LINE]

    def add(self, call: Call, *, first: bool = False) -> None:
        """Queue ``call`` behind, or with ``first`` before, all others of its priority."""
        self._put(call, IN_LINE)
        order = next(self._first) if first else next(self._last)
        heapq.heappush(self._line, (-call.options.priority, order, call))

    def next(self) -> Call | None:
        """Take the next call to run, None if there is none; it counts as running until :meth:`ended`."""
        while self._line:
            entry = heapq.heappop(self._line)
            call = entry[2]
            if call.waits != IN_LINE:
                continue  # it was given up
            if self.is_at_limit(call):
                self._put(call, ASIDE)
                heapq.heappush(self._aside.setdefault(call.function, []), entry)
                continue
            self._put(call, NOWHERE)
            if call.options.max_concurrency is not None:
                self._running[call.function] += 1
            return call
        return None

    def is_at_limit(self, call: Call) -> bool:
        """Whether the function of ``call`` is at its ``max_concurrency``."""
        limit = call.options.max_concurrency
        return limit is not None and self._running.get(call.function, 0) >= limit

    def ended(self, call: Call) -> None:
        """Record that ``call`` no longer runs, so that another of its function may."""
        if call.options.max_concurrency is None:
            return
        self._running[call.function] -= 1
        if not self._running[call.function]:
            del self._running[call.function]
        self._bring_back(call.function)

    def discard(self, call: Call) -> None:
        """Remove a waiting call that was given up."""
        was_in_line = call.waits == IN_LINE
        self._put(call, NOWHERE)
        if was_in_line and call.options.max_concurrency is not None:
            self._bring_back(call.function)  # it may have had the turn of one that had ended
        # Entries of calls that were given up only take memory.
        if not self.in_line:
            self._line.clear()
        elif len(self._line) > 2 * self.in_line + SPARE:
            self._line = _still(self._line, IN_LINE)
        aside = self._aside.get(call.function, [])
        if len(aside) > SPARE and len(aside) > 2 * self._count[ASIDE]:
            self._aside[call.function] = _still(aside, ASIDE)

    def _bring_back(self, function: Any) -> None:
        """Put the next call of ``function`` that was set aside in line again."""
        aside = self._aside.get(function, [])
        while aside:
            entry = heapq.heappop(aside)
            if entry[2].waits == ASIDE:
                self._put(entry[2], IN_LINE)
                heapq.heappush(self._line, entry)
                break
        if not aside:
            self._aside.pop(function, None)

    def clear(self) -> list[Call]:
        """Remove and return all waiting calls, in order."""
        entries = [*self._line, *(entry for aside in self._aside.values() for entry in aside)]
        waiting = [entry[2] for entry in sorted(entries) if entry[2].waits != NOWHERE]
        for call in waiting:
            self._put(call, NOWHERE)
        self._line.clear()
        self._aside.clear()
        return waiting

    def _put(self, call: Call, where: int) -> None:
        self._count[call.waits] -= 1
        self._count[where] += 1
        call.waits = where


def _still(entries: list[_Entry], where: int) -> list[_Entry]:
    """Return a heap of the entries whose calls are still in state ``where``."""
    kept = [entry for entry in entries if entry[2].waits == where]
    heapq.heapify(kept)
    return kept


def check_call(function: Any, options: CallOptions) -> None:
    """Reject a function that cannot be called, or whose calls cannot be counted for ``max_concurrency``.

    Raises:
        ConfigError: the function is rejected.
    """
    if not callable(function):
        raise ConfigError(f"function={function!r}: must be callable")
    if options.max_concurrency is None:
        return
    try:
        hash(function)
    except TypeError:
        raise ConfigError(f"function={function!r}: must be hashable for max_concurrency to count its calls") from None


class Room:
    """The ``max_queue`` limit; waiters for a slot get one in order of arrival.

    Args:
        limit: number of slots; None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._left: float = math.inf if limit is None else limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a slot; return whether one was free."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Wait for a slot and take it."""
        if self.take():  # one was freed since
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.exception() is None:
                self.give()
            raise

    def give(self) -> None:
        """Free a slot; the longest waiter gets it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._left += 1

    def refuse(self, error: Exception) -> None:
        """Fail all waiters with ``error``."""
        for place in self._waiting:
            if not place.done():
                place.set_exception(type(error)(*error.args))
        self._waiting.clear()

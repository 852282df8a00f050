"""Reads a selector loop of asyncio: its ``selector.select`` is timed, on the instance, and nothing else is touched.

A pass of the loop (``BaseEventLoop._run_once``) lies between the return of one ``select`` and the next call of it, so
its length is exact. Which callback runs is not noted on the loop: the watcher reads it from the frames of
``Handle._run`` and ``_run_once`` while it blocks (see :mod:`loopwatch.stacks`), which costs the loop nothing.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from loopwatch._patches import Patch, PatchSet
from loopwatch.probes.probe import IDLE, IDLING, Activity, Block, Counters, Loop

MARK_EVERY = 0.01
"""s: clocks are read at most this often, so that a block's processor time is known to this."""

POLL_GRACE = 0.005
"""s: the first poll after a block returns at once if anything waited; it is not waited for longer than this."""

MAX_COUNTED = 10_000
"""Waiting timers are counted up to this number."""


class Cell:
    """What the timed ``select`` notes; written by the loop's thread, read by the watcher's."""

    __slots__ = (
        "awaiting_events",
        "blocks",
        "busy_since",
        "idle",
        "limit",
        "loop",
        "mark",
        "mark_due",
        "passes",
        "ready",
        "sleep_limit",
    )

    def __init__(self, loop: Loop, limit: float) -> None:
        self.loop = weakref.ref(loop)
        self.ready = getattr(loop, "_ready", ())
        self.limit = limit
        self.sleep_limit = limit
        self.busy_since = IDLE
        self.idle = 0.0
        self.passes = 0
        self.blocks: deque[Block] = deque(maxlen=1000)
        self.awaiting_events: Block | None = None
        self.mark: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self.mark_due = 0.0

    def set_limit(self, limit: float) -> None:
        self.limit = limit
        self.sleep_limit = limit

    def take_mark(self, now: float) -> None:
        """Read the clocks that later tell how much processor time a block took."""
        self.mark = (now, time.thread_time(), time.process_time())
        self.mark_due = now + MARK_EVERY

    def end_pass(self, now: float) -> None:
        """A pass was long: keep it with what only this thread can know cheaply, at this moment."""
        since = self.busy_since
        block = Block(since, since, now, shared=True, victims=len(self.ready) + self._due_timers(now))
        self._read_clocks(block, now)
        self.awaiting_events = block
        self.sleep_limit = -1.0  # has the next select report its events
        self.blocks.append(block)

    def end_sleep(self, timeout: float | None, start: float, end: float, events: int) -> None:
        """``select`` returned: late, or the first time after a long pass."""
        self.sleep_limit = self.limit
        if self.awaiting_events is not None:
            self.awaiting_events.victims = (self.awaiting_events.victims or 0) + events
            self.awaiting_events = None
        due = start + max(timeout, 0.0) if timeout is not None else end
        if end - due >= self.limit:
            # It may have been due earlier, by an event: at any time since ``start``.
            early = due - start if events else 0.0
            block = Block(due, due, end, uncertainty=early, asleep=True, victims=events + self._due_timers(end))
            self._read_clocks(block, end)
            block.window = end - self.mark[0] - (due - start)  # the sleep it was meant to have is not part of it
            self.blocks.append(block)

    def _read_clocks(self, block: Block, now: float) -> None:
        """Note what was used of the processor since the last mark, which lies at most 10 ms of work before."""
        marked, cpu, process_cpu = self.mark
        block.window = now - marked
        block.cpu = time.thread_time() - cpu
        block.process_cpu = time.process_time() - process_cpu

    def _due_timers(self, now: float) -> int:
        """Count the timers that are due, walking only that part of the heap."""
        heap = getattr(self.loop(), "_scheduled", ())
        due, todo = 0, [0]
        while todo and due < MAX_COUNTED:
            index = todo.pop()
            if index < len(heap) and heap[index]._when <= now:
                due += not heap[index]._cancelled
                todo += (2 * index + 1, 2 * index + 2)
        return due


def timed_select(cell: Cell, original: Callable[[float | None], Any], patch: Patch) -> Callable[[float | None], Any]:
    """Return a ``select`` that notes in ``cell`` when the loop waits and when it works."""

    def select(timeout: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> Any:
        start = clock()
        if start - cell.busy_since >= cell.limit:
            cell.end_pass(start)
        cell.busy_since = IDLE
        events = original(timeout)
        end = clock()
        cell.idle += end - start
        cell.passes += 1
        if end - start >= cell.sleep_limit:
            cell.end_sleep(timeout, start, end, len(events))
        if end >= cell.mark_due:
            cell.take_mark(end)
        cell.busy_since = end if patch.active else IDLE
        return events

    return select


class AsyncioProbe:
    """The probe of one selector loop.

    Args:
        loop: a loop with ``_selector`` (:class:`asyncio.SelectorEventLoop` and what derives from it).
        limit: s, blocks at least this long are reported.
        patches: where the replacement of ``select`` is kept.

    Raises:
        AttributeError, TypeError: the loop has no selector, or one whose ``select`` cannot be replaced.
    """

    kind = "asyncio"
    on_beat = None

    def __init__(self, loop: Loop, limit: float, patches: PatchSet) -> None:
        self._patches = patches
        self._ran = 0.0
        self._started: float | None = None
        cell = Cell(loop, limit)
        self._patch = patches.replace(
            loop._selector, "select", lambda original, patch: timed_select(cell, original, patch), cell
        )
        self._cell: Cell = self._patch.state
        self._cell.set_limit(limit)

    @staticmethod
    def reads(loop: Loop) -> bool:
        """Whether ``loop`` is of this kind."""
        return callable(getattr(getattr(loop, "_selector", None), "select", None)) and hasattr(loop, "_run_once")

    def activity(self, now: float) -> Activity:
        since = self._cell.busy_since
        return IDLING if since == IDLE else Activity(since, since)

    def finished(self) -> list[Block]:
        cell = self._cell
        done = []
        while cell.blocks:
            block = cell.blocks[0]
            if block is cell.awaiting_events and time.monotonic() - block.end < POLL_GRACE:
                break  # the first poll after it, which counts the events that waited, is not over yet
            done.append(cell.blocks.popleft())
        return done

    def counters(self, now: float) -> Counters:
        ran = self._ran + (now - self._started if self._started is not None else 0.0)
        idle = self._cell.idle
        return Counters(max(ran - idle, 0.0), idle, self._cell.passes, None)

    def cut(self, now: float) -> None:
        cell = self._cell
        if cell.busy_since != IDLE:
            if now - cell.busy_since >= cell.limit:
                cell.end_pass(now)
            cell.take_mark(now)
            cell.busy_since = now

    def set_limit(self, limit: float) -> None:
        self._cell.set_limit(limit)

    def running(self, running: bool) -> None:
        now = time.monotonic()
        if running:
            self._started = now
            self._cell.take_mark(now)
            self._cell.busy_since = now
        elif self._started is not None:
            self.cut(now)
            self._cell.busy_since = IDLE
            self._ran += now - self._started
            self._started = None

    def detach(self) -> None:
        self._patches.undo(self._patch)
        self._cell.busy_since = IDLE
        self._cell.limit = self._cell.sleep_limit = IDLE

    def abandon(self) -> None:
        self.detach()

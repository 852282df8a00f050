"""Assigns queued calls to workers; handles timeouts, crashes, retries. Everything runs on the loop's thread.

A call is sent only to a worker that can begin it soon, so that little is lost when one dies: see
:meth:`Dispatcher._depth`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from pathlib import Path

from loopwatch.core import log
from loopwatch.core.originals import time
from loopwatch.errors import OffloadError, PoolClosed, TaskTimeout, WorkerCrashed
from loopwatch.events import PoolEvent
from loopwatch.health.states import crash_reason
from loopwatch.workers import protocol, worker
from loopwatch.workers.call import Call
from loopwatch.workers.call_queue import NOWHERE, CallQueue, Room
from loopwatch.workers.connection import BUSY, IDLE, Connection
from loopwatch.workers.options import PoolOptions
from loopwatch.workers.protocol import LOG, SKIPPED, Frame
from loopwatch.workers.results import Results
from loopwatch.workers.stats import PoolCounts
from loopwatch.workers.supervisor import STUCK, Supervisor, exit_words, stuck

SHORT = 0.001
"""Seconds: calls with a shorter mean run time are sent ahead, so that a worker need not wait for the next one."""
MOST_AHEAD = worker.SKIPS
"""Maximum number of calls that one worker has."""
MOST_LOST = 3
"""Times that a worker may die when a call is next, before the call is considered the cause."""


class Dispatcher:
    """Sends the calls of one pool to its workers; its supervisor's :class:`~loopwatch.workers.supervisor.Employer`.

    Args:
        options: of the pool.
        figures: statistics of the pool.
        loop: the loop on whose thread everything runs.
        pool: kept alive as long as the workers.
    """

    def __init__(
        self, options: PoolOptions, figures: PoolCounts, loop: asyncio.AbstractEventLoop, pool: object
    ) -> None:
        self._pool = pool
        self.room = Room(options.max_queue)
        self.call_queue = CallQueue()
        self.preparing = 0
        """Calls that wait for room, or are being pickled."""
        self.quiet = asyncio.Event()
        """Set while no call waits or runs."""
        self.quiet.set()
        self.supervisor = Supervisor(self, options, figures.counts, loop)
        self.results = Results(loop, figures, self.on_change)
        self._options, self._stats, self._loop = options, figures, loop
        self._ready: list[asyncio.Future[None]] = []
        self._stuck_timer: asyncio.TimerHandle | None = None
        self._oom_seen = _oom_kills()
        self._pid = os.getpid()

    def accept(self, call: Call) -> None:
        """Send a pickled call to a free worker, or queue it."""
        self._stats.counts["submitted"] += 1
        call.future.given_up = functools.partial(self._given_up, call)
        if not self.call_queue and call.options.max_concurrency is None:
            connection = self.supervisor.free(self._depth())
            if connection is not None:  # it need not be queued
                self._send(self.supervisor, connection, call)
                if self.quiet.is_set() or len(connection.calls) > 1:
                    self._note_load()
                return
        self.call_queue.add(call)
        self.dispatch()

    async def ready(self) -> None:
        """Wait until a worker can take calls."""
        if not any(connection.accepts for connection in self.supervisor.connections):
            waiting = self._loop.create_future()
            self._ready.append(waiting)
            self.supervisor.start_missing()
            await waiting

    def refuse_all(self) -> None:
        """Fail all waiting and running calls: the pool is closed."""
        error = PoolClosed(f"{self._options.name} was closed")
        for connection in self.supervisor.connections:
            for call in connection.calls.values():
                if call is not None and not call.future.done():
                    self.results.fail(call, _again(error))
                    call.future.exception()  # mark it as retrieved: the caller may never run again
        self.on_nobody(error)

    def end_trips(self) -> None:
        """End the spans of calls whose callers will get no result; a forked child leaves them to its parent."""
        if os.getpid() == self._pid:
            error = PoolClosed(f"the loop of {self._options.name} was closed")
            calls = [
                call
                for connection in self.supervisor.connections
                for call in connection.calls.values()
                if call is not None
            ]
            for call in (*calls, *self.call_queue.clear()):
                call.end_trip(error)

    def shut(self) -> None:
        """Set ``quiet`` and cancel the timer: the pool is closed."""
        self.quiet.set()
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()

    # -- scheduling -----------------------------------------------------------------------------------------------

    def _depth(self) -> int:
        """Return how many calls a worker may have: without ``prefetch``, more than one only if they are very short."""
        if self._options.prefetch is not None:
            return min(self._options.prefetch, MOST_AHEAD)
        run = self._stats.mean_run
        return 1 if run >= SHORT else min(MOST_AHEAD, 1 + int(SHORT / max(run, SHORT / 10)))

    def dispatch(self) -> None:
        """Send queued calls to workers that can take them; start workers if there are too few."""
        if self.call_queue.in_line:
            supervisor, depth = self.supervisor, self._depth()
            while self.call_queue.in_line and (connection := supervisor.free(depth)) is not None:
                call = self.call_queue.next()
                if call is None:
                    break
                self._send(supervisor, connection, call)
            if self.call_queue.in_line:
                supervisor.start_missing()
        self._note_load()

    def _note_load(self) -> None:
        """Update ``quiet``, emit ``drained``; schedule the return of calls that wait behind a long one."""
        most = 0
        for connection in self.supervisor.connections:
            if len(connection.calls) > most:  # noqa: PLR1730 - twice as fast
                most = len(connection.calls)
        if most > 1 and self._stuck_timer is None and not self.call_queue.in_line and self.supervisor.may_take_more():
            self._stuck_timer = self._loop.call_later(STUCK, self._take_back)
        if most or self.call_queue or self.preparing or self.results:
            if self.quiet.is_set():
                self.quiet.clear()
        elif not self.quiet.is_set():
            self.quiet.set()
            if self._options.on_event is not None:
                self.on_event("drained", None)

    def _send(self, supervisor: Supervisor, connection: Connection, call: Call) -> None:
        self._give_room(call)
        was_idle = connection.state is IDLE
        connection.state = BUSY
        connection.give(call)
        if connection.first is call:
            self._begin(call)
        if was_idle and self._options.on_event is not None:  # the callback may submit and cancel
            self.on_event("busy", connection.pid)
        limit = self._options.max_tasks_per_worker
        if limit is not None and connection.accepts and connection.done + len(connection.calls) >= limit:
            supervisor.retire(connection, "it has done what one worker may")

    def _begin(self, call: Call) -> None:
        """Start the timeout of ``call``, which the worker can begin now."""
        call.begun = time.perf_counter()
        if call.options.timeout is not None:
            call.timer = self._loop.call_later(call.options.timeout, self._timed_out, call)
        if self._options.max_memory_per_worker is not None:
            self.supervisor.watch_memory()

    def _take_back(self) -> None:
        """Take back calls that wait behind a long one, for workers that are free."""
        self._stuck_timer = None
        supervisor = self.supervisor
        if self.call_queue.in_line or not supervisor.may_take_more():
            return
        taken = []
        for connection in supervisor.connections:
            if stuck(connection):
                for call in list(connection.calls.values())[1:]:
                    if call is not None and not call.future.done():
                        connection.skip(call)
                        taken.append((connection, call))
        # A turn later it is visible which of them the worker has begun in the meantime.
        self._loop.call_soon(self._move, taken)

    def _move(self, taken: list[tuple[Connection, Call]]) -> None:
        for connection, call in reversed(taken):
            waits = call.connection is connection and call.number in connection.calls and not connection.has_begun(call)
            if waits and not call.future.done():
                connection.calls[call.number] = None
                self._wait_again(call)
        self.dispatch()

    def _wait_again(self, call: Call) -> None:
        """Queue a sent call again, before all others of its priority."""
        self.call_queue.ended(call)
        call.connection = call.begun = None
        self.call_queue.add(call, first=True)

    # -- results --------------------------------------------------------------------------------------------------

    def on_frame(self, connection: Connection, frame: Frame) -> None:
        """Handle a frame from a worker."""
        head = frame.head
        if head.kind == LOG:
            self.results.relay(frame)
            return
        received = connection.take(head.descriptors) if head.descriptors else []
        call = connection.calls.pop(head.id, None)
        if head.kind != SKIPPED:
            connection.done += 1
        if call is not None:
            self.call_queue.ended(call)
            if call.timer is not None:
                call.stop_clock()
            if head.run and call.begun is not None:
                created = call.created
                self._stats.ran(head.run / 1e9, call.begun - created, time.perf_counter() - created)
            if call.trip is not None and head.began:
                call.trip.ran(head.began, head.run, head.cpu)
        self._go_on(connection)
        if call is None or call.future.done():
            for descriptor in received:
                os.close(descriptor)
        elif head.kind == SKIPPED:  # it was to be taken back, but looked as if it had been begun
            call.connection = call.begun = None
            self.call_queue.add(call, first=True)
        else:
            self.results.take(call, frame, received)
        if head.flags & protocol.PLEASE_RECYCLE and connection.accepts:
            self.supervisor.retire(connection, "it has grown beyond max_memory_per_worker")
        self.dispatch()

    def _go_on(self, connection: Connection) -> None:
        """Begin the worker's next call, or mark the worker idle."""
        self.supervisor.failures = 0
        if connection.calls:
            following = connection.first
            if following is not None:
                self._begin(following)
        elif connection.state is BUSY:
            self.supervisor.rest(connection)

    # -- cancellations, timeouts and crashes ----------------------------------------------------------------------

    def _given_up(self, call: Call) -> None:
        """Handle the cancellation of a call by its caller."""
        self._stats.counts["cancelled"] += 1
        call.end_trip(asyncio.CancelledError())
        call.stop_clock()
        call.payload = None
        self._give_room(call)
        if call.waits != NOWHERE:
            self.call_queue.discard(call)
        elif isinstance(connection := call.connection, Connection) and call.number in connection.calls:
            connection.skip(call)
        if not self._loop.is_closed():
            # A turn later it is visible whether the worker has begun it in the meantime.
            self._loop.call_soon(self._end_given_up, call)

    def _end_given_up(self, call: Call) -> None:
        if isinstance(connection := call.connection, Connection) and connection.is_in(call):
            self.supervisor.kill(connection, "the call it ran was cancelled")
        self.dispatch()

    def _timed_out(self, call: Call) -> None:
        call.timer = None
        connection = call.connection
        if not isinstance(connection, Connection):
            return  # it waits
        connection.look()
        if call.number not in connection.calls or connection.started > call.number or call.future.done():
            return  # it ended in time
        if connection.finished == call.number:
            return  # it ended in time, and its result is in transit
        self._stats.counts["timed_out"] += 1
        words = f"{call.name} ran longer than {call.options.timeout:g} s"
        self.results.fail(call, TaskTimeout(f"{words}; worker {connection.pid} was killed"))
        self.supervisor.kill(connection, words)

    def _give_room(self, call: Call) -> None:
        """Free the call's queue slot, if it has one."""
        if call.has_room:
            call.has_room = False
            self.room.give()

    def on_lost(self, connection: Connection, code: int | None) -> None:
        """Fail or retry the call that the worker ran, and queue the others again."""
        again, first = [], True
        for call in connection.calls.values():
            if call is None:
                continue
            call.stop_clock()
            begun = connection.has_begun(call)
            call.attempts += begun
            call.lost += first and not begun
            first = False
            if call.future.done():
                self.call_queue.ended(call)
            elif begun and call.attempts > call.options.retries:
                self.call_queue.ended(call)
                self._crash(call, connection, code, "while it ran")
            elif call.lost >= MOST_LOST:
                self.call_queue.ended(call)
                self._crash(call, connection, code, f"as {MOST_LOST - 1} others did before they could run")
            else:
                self._stats.counts["retried"] += begun
                if call.trip is not None:
                    call.trip.lost(connection.pid)
                again.append(call)
        for call in reversed(again):
            self._wait_again(call)
        connection.calls.clear()

    def _crash(self, call: Call, connection: Connection, code: int | None, when: str) -> None:
        self._stats.counts["crashed"] += 1
        call.crashed = call.attempts > 0
        oom = code == -9 and connection.cause is None and _oom_kills() > self._oom_seen
        reason = f": {connection.cause}" if connection.cause else " (out of memory)" if oom else ""
        words = f"worker {connection.pid} died {when} {call.name} ({exit_words(code)}){reason}"
        self.results.fail(call, WorkerCrashed(words, connection.pid, code, oom_killed=oom or connection.over_memory))

    def on_nobody(self, error: OffloadError) -> None:
        """Fail waiting calls: there is no worker to run them."""
        for call in self.call_queue.clear():
            self._give_room(call)
            self.results.fail(call, _again(error))
        for waiting in self._ready:
            if not waiting.done():
                waiting.set_exception(_again(error))
        self._ready.clear()
        self._loop.call_soon(self.dispatch)

    # -- callbacks of the supervisor ------------------------------------------------------------------------------

    def wanted(self) -> int:
        """Return how many workers could be busy now."""
        busy = sum(connection.accepts and bool(connection.calls) for connection in self.supervisor.connections)
        return max(busy + self.call_queue.in_line, bool(self._ready))

    def on_change(self) -> None:
        """Dispatch after a worker came or went; wake the waiters of :meth:`ready`."""
        if any(connection.accepts for connection in self.supervisor.connections):
            for waiting in self._ready:
                if not waiting.done():
                    waiting.set_result(None)
            self._ready.clear()
        self.dispatch()

    def on_crash(self, code: int | None) -> None:
        """Count a worker that died unexpectedly, by reason."""
        kills = _oom_kills() if code == -9 else self._oom_seen
        self._stats.died(crash_reason(code, kills > self._oom_seen))
        self._oom_seen = kills

    def on_event(self, kind: str, pid: int | None, detail: str = "") -> None:
        """Call the user's ``on_event``."""
        callback = self._options.on_event
        if callback is None:
            return
        try:
            callback(PoolEvent(kind, self._options.name, pid, detail, time.time()))
        except Exception as exc:  # noqa: BLE001 - code of the program
            log.write(logging.ERROR, "loopwatch: on_event of %s failed", self._options.name, error=exc)


def _again(error: OffloadError) -> OffloadError:
    """Return a copy of the error for each recipient, as each adds its traceback."""
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again


def _oom_kills() -> int:
    """Return how many processes of this cgroup the OOM killer has killed; 0 where that cannot be read."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
                key, value = line.split()
                if key == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0

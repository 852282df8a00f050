"""Starts, counts, replaces and kills the workers of one pool. The dispatcher decides which calls they run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from loopwatch.core.originals import time
from loopwatch.core.threads.untraced import UntracedThread
from loopwatch.errors import OffloadError
from loopwatch.workers import descriptor_passing, launch, pickling, protocol, tracing
from loopwatch.workers.connection import IDLE, Connection, State
from loopwatch.workers.options import PoolOptions
from loopwatch.workers.output import Output
from loopwatch.workers.protocol import Frame, Kind
from loopwatch.workers.worker import RemoteTraceback, resident

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
"""Seconds between two attempts to start workers that fail."""
MOST_DOUBLED = 10
"""Consecutive failures after which that time does not grow; a power of two beyond 1,023 is no float."""
MOST_CHANCE = 2
"""Consecutive workers that may die, for no known reason, before their first call; no call fails because of these."""
START_TIMEOUT = 60.0
"""Seconds that a worker may take to get ready."""
MEMORY_EVERY = 0.2
"""Seconds between two checks of the memory of busy workers, if it is limited."""
STUCK = 0.01
"""Seconds: nothing more is sent to a worker that has been running one call for so long."""


class Employer(Protocol):
    """The interface that a supervisor reports to; called on the loop's thread only."""

    def wanted(self) -> int:
        """Return how many workers could be busy now."""

    def on_frame(self, connection: Connection, frame: Frame) -> None:
        """Handle a frame from a worker, other than ``READY``."""

    def on_crash(self, code: int | None) -> None:
        """Handle the unexpected death of a worker."""

    def on_lost(self, connection: Connection, code: int | None) -> None:
        """Handle the end of a worker; its calls are in ``connection.calls``."""

    def on_change(self) -> None:
        """Dispatch again: a worker has become ready, or has gone."""

    def on_nobody(self, error: OffloadError) -> None:
        """Handle that there is no worker, and none can be started for now."""

    def on_event(self, kind: str, pid: int | None, detail: str = "") -> None:
        """Report an event that the user may want to know."""


class Supervisor:
    """Starts workers, replaces them, and ends them.

    Args:
        employer: receives their frames and events.
        options: of the pool.
        counts: the counters ``started`` and ``recycled``.
        loop: the loop on whose thread everything runs.
    """

    def __init__(
        self, employer: Employer, options: PoolOptions, counts: Counter[str], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.connections: list[Connection] = []
        self.failures = 0
        """Consecutive workers that failed to start or ended before their first call."""
        self._employer, self._options, self._counts, self._loop = employer, options, counts, loop
        self._most, self._least = options.most, options.least
        self._launcher = launch.launcher(options.start_method, options.preload)
        self._output = Output(loop, options.prefix) if options.prefix_output is not False else None
        self._starting = 0
        self._failure: OffloadError | None = None
        self._retry_at = 0.0
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._leaving = self._ending = False
        self._pid = os.getpid()
        self._gone = asyncio.Event()
        self._alive = 0.0

    @property
    def alive(self) -> float:
        """Seconds that workers have lived, in total."""
        now = time.monotonic()
        return self._alive + sum(now - connection.started_at for connection in list(self.connections))

    def free(self, depth: int) -> Connection | None:
        """Return the worker that can begin a call soonest, None if each has ``depth`` calls or is stuck in one."""
        best = None
        for connection in self.connections:
            if not connection.accepts:
                continue
            if connection.state is IDLE:
                return connection
            if (
                len(connection.calls) < depth
                and (best is None or len(connection.calls) < len(best.calls))
                and not stuck(connection)
            ):
                best = connection
        return best

    def may_take_more(self) -> bool:
        """Whether a worker is idle, or another may be started."""
        return self._living() < self._most or any(connection.state is State.IDLE for connection in self.connections)

    def _living(self) -> int:
        return sum(connection.state is not State.STOPPING for connection in self.connections) + self._starting

    # -- starting -------------------------------------------------------------------------------------------------

    def start_missing(self) -> None:
        """Start the missing workers, now or when the back-off is over."""
        living = self._living()
        if self._ending or living >= self._most:
            return
        least = 0 if self._leaving else self._least
        missing = min(max(least, self._employer.wanted()), self._most) - living
        delay = self._retry_at - time.monotonic()
        if missing > 0 and delay <= 0:
            self._start(missing)
        elif missing > 0 and self._failure is not None and not living:
            self._employer.on_nobody(self._failure)
        elif missing > 0:
            self._later(delay, self.start_missing)

    def _start(self, count: int) -> None:
        self._starting += count
        arguments = (weakref.ref(self), self._loop, self._launcher, self._options, count)
        try:
            UntracedThread(functools.partial(_start_workers, *arguments), "loopwatch-starter").start()
        except RuntimeError as exc:  # the system allows no more threads
            self._loop.call_soon(self.on_not_started, count, exc)

    def on_started(self, launched: launch.Launched, setup: bytes, prepare: list[pickling.Payload]) -> None:
        """Register a worker process that was started, and send its setup."""
        self._starting -= 1
        if self._ending:
            launched.close()
            self._note_gone()
            return
        connection = Connection(launched, self._loop, self._on_frame, self._on_death, self._launcher)
        self.connections.append(connection)
        self._counts["started"] += 1
        self._employer.on_event("started", connection.pid)
        connection.timer = self._loop.call_later(
            START_TIMEOUT, self.kill, connection, f"it was not ready after {START_TIMEOUT:g} s"
        )
        theirs = descriptor_passing.NONE if self._output is None else self._output.tap(connection.pid)
        connection.send(protocol.frame(Kind.SETUP, 0, setup, descriptors=len(theirs)), theirs)
        for each in prepare:
            frame = protocol.frame(Kind.PREPARE, 0, each.pickle, each.buffers, descriptors=len(each.descriptors))
            connection.send(frame, each.descriptors)

    def on_not_started(self, count: int, exc: BaseException) -> None:
        """Handle that ``count`` workers could not be started."""
        self._starting -= count
        if isinstance(exc, OffloadError):
            error = exc
        else:
            error = OffloadError(f"no worker of {self._options.name} could be started: {exc or repr(exc)}")
            error.__cause__ = exc
        self._on_failed_start(error)
        self._note_gone()

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        if frame.head.kind != Kind.READY:
            self._employer.on_frame(connection, frame)
        elif frame.head.id:  # it ends by itself
            try:
                words, where = pickle.loads(frame.pickle)
            except Exception as exc:
                raise protocol.BrokenFrame(f"its failure cannot be read: {exc}") from exc
            connection.failure = OffloadError(
                f"worker {connection.pid} of {self._options.name} could not get ready: {words}"
            )
            connection.failure.__cause__ = RemoteTraceback(where)
        elif connection.state is State.STARTING:
            self._failure = None
            if connection.timer is not None:
                connection.timer.cancel()
            self.rest(connection)
            self._employer.on_event("ready", connection.pid)
            self._employer.on_change()

    def _on_failed_start(self, error: OffloadError) -> None:
        if self._ending:
            return
        self._failure = error
        self._back_off(FIRST_BACKOFF)
        self._employer.on_event("failed", None, str(error))
        if self._living():
            self.start_missing()
        else:
            self._employer.on_nobody(error)

    def _back_off(self, first: float) -> None:
        """Exponential back-off for worker starts; ``first`` is the first pause, in seconds."""
        pause = min(FIRST_BACKOFF * 2 ** min(self.failures, MOST_DOUBLED), LONGEST_BACKOFF) if self.failures else first
        self.failures += 1
        self._retry_at = time.monotonic() + pause

    # -- running --------------------------------------------------------------------------------------------------

    def rest(self, connection: Connection) -> None:
        """Mark a worker idle; schedule the end of workers beyond the minimum."""
        connection.state = State.IDLE
        connection.idle_since = time.monotonic()
        timeout = self._options.idle_timeout
        if timeout is not None and len(self.connections) > self._least:
            self._later(timeout, self._shrink)

    def retire(self, connection: Connection, why: str) -> None:
        """Replace a worker once it has finished the calls that it was sent."""
        self._counts["recycled"] += 1
        connection.stop()
        self._employer.on_event("recycled", connection.pid, why)
        self.start_missing()

    def kill(self, connection: Connection, why: str) -> None:
        """Kill a worker now."""
        if connection.cause is None:
            connection.kill(why)
            self._employer.on_event("killed", connection.pid, why)

    def watch_memory(self) -> None:
        """Check the memory of busy workers as long as there are any, if it is limited."""
        if self._options.max_memory_per_worker is not None:
            self._later(MEMORY_EVERY, self._check_memory)

    def _check_memory(self) -> None:
        limit = self._options.max_memory_per_worker
        busy = [connection for connection in self.connections if connection.calls and connection.accepts]
        if limit is None or not busy:
            return
        for connection in busy:
            used = resident(connection.pid)
            if used > 2 * limit:
                connection.over_memory = True
                self.kill(connection, f"it used {used:,} bytes, more than twice max_memory_per_worker={limit:,}")
        self.watch_memory()

    def _shrink(self) -> None:
        timeout = self._options.idle_timeout
        if timeout is None or self._ending:
            return
        now, ends = time.monotonic(), []
        living = [connection for connection in self.connections if connection.state is not State.STOPPING]
        for connection in living[self._least :]:
            if connection.state is State.IDLE and connection.accepts:
                ends.append(connection.idle_since + timeout)
                if ends[-1] <= now + 0.001:
                    ends.pop()
                    connection.stop()
        if ends:
            self._later(min(ends) - now, self._shrink)

    def _later(self, delay: float, act: Callable[[], None]) -> None:
        """Call ``act`` after ``delay`` seconds, unless that is scheduled already."""
        if act not in self._timers:
            self._timers[act] = self._loop.call_later(delay, self._due, act)

    def _due(self, act: Callable[[], None]) -> None:
        del self._timers[act]
        act()

    # -- ending ---------------------------------------------------------------------------------------------------

    def _on_death(self, connection: Connection, code: int | None) -> None:
        self.connections.remove(connection)
        self._alive += time.monotonic() - connection.started_at
        self._employer.on_lost(connection, code)
        chance = connection.cause is None and connection.failure is None and self.failures < MOST_CHANCE
        if connection.state is State.STARTING and not chance:
            error = connection.failure or OffloadError(
                f"worker {connection.pid} of {self._options.name} ended before it was ready: "
                f"{connection.cause or exit_words(code)}"
            )
            self._on_failed_start(error)
        elif connection.cause is not None or code == 0:
            self._employer.on_event("stopped", connection.pid, connection.cause or "")
        else:
            self._employer.on_crash(code)
            self._employer.on_event("crashed", connection.pid, exit_words(code))
            if not connection.started:
                self._back_off(0.0)
        self.start_missing()
        self._employer.on_change()
        self._note_gone()

    def _note_gone(self) -> None:
        if self._ending and not self.connections and not self._starting:
            self._gone.set()

    def leave(self) -> None:
        """Keep only the workers that are needed for waiting calls."""
        self._leaving = True

    async def end(self) -> None:
        """End all workers, idle ones by request, the others by force; wait until they are gone."""
        self.end_soon()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), launch.ENDS_WITHIN)
        for connection in self.connections:
            self.kill(connection, "it did not end")
        closed = asyncio.Event()
        loop, launcher = self._loop, self._launcher

        def close() -> None:
            launcher.close()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(closed.set)

        try:
            UntracedThread(close, "loopwatch-closer").start()
        except RuntimeError:  # as above
            close()
        await closed.wait()
        await self._gone.wait()
        if self._output is not None:
            await self._output.close()

    def end_soon(self) -> None:
        """Ask or force all workers to end."""
        self._ending = True
        for connection in self.connections:
            if connection.state is State.IDLE and connection.accepts:
                connection.stop()
            elif connection.state is not State.STOPPING or connection.calls:
                self.kill(connection, "the pool was closed")
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._note_gone()

    def owns_loop(self) -> bool:
        """Whether the loop may be touched: it does not run, and this is no forked child, which shares its selector."""
        return not self._loop.is_closed() and not self._loop.is_running() and os.getpid() == self._pid

    def abandon(self) -> None:
        """Release everything without the loop: it is closed, or the interpreter ends."""
        self._ending = True
        for connection in self.connections:
            if self.owns_loop():
                connection.detach()
            connection.release()
        self.connections.clear()
        if self._output is not None:
            self._output.abandon(owns_loop=self.owns_loop())
        self._launcher.close()


def stuck(connection: Connection) -> bool:
    """Whether a worker has been running one call for :data:`STUCK` seconds or longer."""
    first = connection.first
    return first is not None and first.begun is not None and time.perf_counter() - first.begun >= STUCK


def exit_words(code: int | None) -> str:
    """Describe how a process ended."""
    return "exit code unknown" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"


def _start_workers(
    crew_ref: weakref.ref[Supervisor],
    loop: asyncio.AbstractEventLoop,
    launcher: launch.Launcher,
    options: PoolOptions,
    count: int,
) -> None:
    """Start workers one after the other; blocking, so it runs in a thread."""
    for number in range(count):
        launched: launch.Launched | None = None
        report: tuple[Any, ...]
        try:
            setup, prepare = _setup(options)
            launched = launcher.start()
            report = ("on_started", launched, setup, prepare)
        except BaseException as exc:  # noqa: BLE001 - reported to the pool
            report = ("on_not_started", count - number, exc)
        supervisor = crew_ref()
        try:
            if supervisor is None:
                raise RuntimeError("nobody needs it")
            loop.call_soon_threadsafe(getattr(supervisor, report[0]), *report[1:])
        except RuntimeError:  # or the loop is closed
            if launched is not None:
                launched.close()
            return
        if launched is None:
            return
        del supervisor, report


def _setup(options: PoolOptions) -> tuple[bytes, list[pickling.Payload]]:
    """Return the pickled setup of a worker, and the pickled calls that it runs before anything else."""
    by_value = not launch.main_is_importable()
    traced = tracing.is_used()
    if traced:
        tracing.prepare()
    calls = ((options.initializer, options.initargs), (options.warmup, ()))
    prepare = [pickling.encode(each, by_value=by_value) for each in calls if each[0] is not None]
    setup = {
        "main": launch.main_data(),
        "env": dict(options.env),
        "nice": options.nice,
        "max_memory": options.max_memory_per_worker,
        "by_value": by_value,
        "traced": traced,
        "log_level": logging.getLogger().getEffectiveLevel() if options.forward_logs else None,
        "to_prepare": len(prepare),
    }
    return pickle.dumps(setup), prepare

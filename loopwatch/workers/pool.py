"""The managed pool: who runs what, when, and what happens if it does not work out. Everything is on the loop's thread.

What a call goes through: :meth:`WorkerPool.submit` pickles it, in turns if it is large; it waits in the backlog; the
dispatcher sends it to a worker; the answer is unpickled, in turns if it is large; its future is set. A call is sent
only to a worker that can begin it soon, so that little is lost when one dies: see :meth:`WorkerPool._depth`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import logging
import os
import pickle
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from loopwatch.errors import (
    ConfigError,
    NotPicklable,
    OffloadError,
    PoolClosed,
    QueueFull,
    TaskTimeout,
    WorkerCrashed,
)
from loopwatch.events import PoolEvent, PoolStats, WorkerStats
from loopwatch.probes.histogram import Histogram
from loopwatch.workers import launch, payload, wire, worker
from loopwatch.workers.backlog import NOWHERE, Backlog, Room
from loopwatch.workers.calls import Call, blame, in_turns
from loopwatch.workers.crew import STUCK, Crew, exit_words, stuck
from loopwatch.workers.link import Link, State
from loopwatch.workers.options import CallOptions, PoolOptions, changed, check_count, pool_options
from loopwatch.workers.wire import Frame, Kind
from loopwatch.workers.worker import RemoteTraceback, resident

T = TypeVar("T")
log = logging.getLogger("loopwatch")

SHORT = 0.001
"""s: calls that take less on average are sent ahead, so that a worker need not wait for the next one."""
MOST_AHEAD = worker.SKIPS
"""Calls that one worker has at most."""
MOST_LOST = 3
"""Times that a worker may die when a call is next before that is held to be the call's doing."""
SMOOTHING = 0.1
"""Weight of the newest call in the mean run time."""


class _Bound:
    """A pool with options for its calls."""

    def __init__(self, pool: WorkerPool, options: CallOptions) -> None:
        self._pool, self._options = pool, options

    def options(self, **changes: Any) -> _Bound:
        """Return the same with further options: see :class:`CallOptions`."""
        return _Bound(self._pool, changed(self._options, changes))

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`WorkerPool.run`, with these options."""
        return await self._pool.submit(function, args, kwargs, self._options)

    def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        in_flight: int | None = None,
    ) -> AsyncIterator[Any]:
        """As :meth:`WorkerPool.map`, with these options."""
        return self._pool._map(self._options, function, iterables, ordered=ordered, in_flight=in_flight)


class WorkerPool:
    """Worker processes for functions that would hold the event loop.

    Belongs to the loop in which it is first used. Functions and arguments are pickled; with the extra
    ``loopwatch[closures]`` also lambdas and closures. A coroutine function is run on an event loop of the worker.

    Args:
        workers: processes at most; None for as many as processors may be used (affinity and cgroup).
        min_workers: processes that are kept; None for all. Others are started when calls wait.
        idle_timeout: s after which a worker beyond ``min_workers`` that has nothing to do is ended; None for never.
        max_queue: calls that may wait; None for no limit.
        name: for figures and logs.
        start_method: ``forkserver`` or ``spawn``. A running program is never forked.
        preload: modules that the fork server imports once for all workers.
        initializer, initargs: called in each worker before anything else.
        warmup: called in each worker after that, such as a first small computation.
        max_tasks_per_worker: calls after which a worker is replaced.
        max_memory_per_worker: bytes of resident memory above which a worker is replaced between two calls, and a call
            is ended that uses twice as much.
        nice: added to the niceness of the workers, 0 to 19.
        env: environment variables that the workers have beside the parent's.
        prefetch: calls that a worker has at most; None lets the pool send short ones ahead.
        context: context variables that travel with each call, or their ``module:name``.
        forward_logs: whether what is logged in a worker is handled by the parent's logging.
        on_event: called with each :class:`~loopwatch.events.PoolEvent`, on the loop's thread.

    Raises:
        ConfigError: a value that cannot be used.

    Example:
        >>> import asyncio, math, loopwatch
        >>> async def main():
        ...     async with loopwatch.WorkerPool(workers=1) as pool:
        ...         return await pool.run(math.factorial, 5)
        >>> asyncio.run(main())
        120
    """

    def __init__(self, workers: int | None = None, **options: Any) -> None:
        self._options: PoolOptions = pool_options(workers=workers, **options)
        self.name = self._options.name
        self._defaults = CallOptions()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._crew: Crew | None = None
        self._backlog = Backlog()
        self._room = Room(self._options.max_queue)
        self._preparing = 0
        self._decoding: set[asyncio.Task[Any]] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._ready: list[asyncio.Future[None]] = []
        self._closing = self._closed = False
        self._by_value = False
        self._mean_run = SHORT
        self._counts: Counter[str] = Counter()
        self._wait, self._run_times = Histogram(), Histogram()
        self._longest_encode = self._longest_decode = 0.0
        self._busy = 0.0
        self._stuck_timer: asyncio.TimerHandle | None = None

    # -- calls ----------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``function(*args, **kwargs)`` in a worker and return its result.

        Raises:
            whatever the function raises, with the worker's traceback as its cause.
            WorkerCrashed: the worker died during the call.
            NotPicklable: the function, an argument or the result cannot be sent.
            QueueFull, PoolClosed: it was not taken.
        """
        result: T = await self.submit(function, args, kwargs, self._defaults)
        return result

    def options(self, **options: Any) -> _Bound:
        """Return the pool with options for its calls: see :class:`CallOptions`.

        Example:
            ``await pool.options(timeout=2, retries=1).run(function, argument)``
        """
        return _Bound(self, changed(self._defaults, options))

    def map(
        self,
        function: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        in_flight: int | None = None,
    ) -> AsyncIterator[T]:
        """Run ``function`` for the items of the iterables, as ``map`` does; an asynchronous iterator of the results.

        Args:
            function: what is called.
            iterables: read no further than is needed to keep the workers busy.
            ordered: results in the order of the items, else as they come.
            in_flight: calls under way at most; None for twice the workers.
        """
        return self._map(self._defaults, function, iterables, ordered=ordered, in_flight=in_flight)

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Begin a call: see :class:`~loopwatch.workers.backend.Backend`. It raises, or its future, as :meth:`run`."""
        loop = self._own_loop()
        if self._closing:
            raise PoolClosed(f"{self.name} is closed")
        if not callable(function):
            raise ConfigError(f"function={function!r}: must be callable")
        if options.max_concurrency is not None:
            _check_hashable(function)
        call = Call(function, options, loop.create_future())
        call.has_room = self._room.take()
        if not call.has_room and options.on_full == "raise":
            words = f"{len(self._backlog)} calls wait, max_queue={self._options.max_queue}"
            self.on_event("queue_full", None, words)
            raise QueueFull(f"{self.name}: {words}; raise it or use on_full='wait'")
        pack = functools.partial(payload.encode_call, function, args, kwargs, self._extras(), by_value=self._by_value)
        if not call.has_room or any(map(payload.is_large, (*args, *kwargs.values()))):
            return loop.create_task(self._prepare(call, pack, args, kwargs))
        began = time.perf_counter()
        try:
            call.payload = pack()
        except BaseException as exc:
            self._room.give()
            if isinstance(exc, NotPicklable):
                raise blame(function, args, kwargs, exc) from exc.__cause__
            raise
        finally:
            self._encoded(time.perf_counter() - began)
        self._accept(call)
        return call.future

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Give up a call; its worker is killed if it has begun."""
        future.cancel()

    async def _prepare(
        self, call: Call, pack: Callable[[], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Wait for room, pickle a call in turns, and await its result."""
        self._preparing += 1
        try:
            if not call.has_room:
                await self._room.wait()
                call.has_room = True
            packed = pack()
            call.payload = packed if isinstance(packed, payload.Payload) else await in_turns(packed, self._encoded)
            if self._closing:
                raise PoolClosed(f"{self.name} was closed")
        except BaseException as exc:
            if call.has_room:
                self._room.give()
            if isinstance(exc, NotPicklable):
                raise blame(call.function, args, kwargs, exc) from exc.__cause__
            raise
        finally:
            self._preparing -= 1
            self._dispatch()
        self._accept(call)
        return await call.future

    def _extras(self) -> list[tuple[str, str, Any]] | None:
        """Return the context variables that travel along, and their values."""
        if not self._options.context:
            return None
        return [
            (each.module, each.name, each.variable.get())
            for each in self._options.context
            if each.variable.get(_UNSET) is not _UNSET
        ]

    def _encoded(self, seconds: float) -> None:
        self._longest_encode = max(self._longest_encode, seconds)

    def _accept(self, call: Call) -> None:
        self._counts["submitted"] += 1
        call.future.add_done_callback(functools.partial(self._given_up, call))
        self._backlog.add(call)
        self._dispatch()

    async def _map(
        self,
        options: CallOptions,
        function: Any,
        iterables: tuple[Iterable[Any], ...],
        *,
        ordered: bool,
        in_flight: int | None,
    ) -> AsyncIterator[Any]:
        if in_flight is not None:
            check_count("in_flight", in_flight, 1, "8")
        most = in_flight or 2 * self._options.most
        options = changed(options, {"on_full": "wait"})  # it is this loop that goes too fast, not the caller
        items = zip(*iterables, strict=False)
        pending: deque[asyncio.Future[Any]] = deque()
        try:
            while True:
                for args in itertools.islice(items, max(most - len(pending), 0)):
                    pending.append(self.submit(function, args, {}, options))
                if not pending:
                    return
                if ordered:
                    yield await pending.popleft()
                else:
                    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for future in done:
                        pending.remove(future)
                        yield future.result()
        finally:
            for future in pending:
                future.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    # -- scheduling -----------------------------------------------------------------------------------------------

    def _depth(self) -> int:
        """Return how many calls a worker may have: more than one only if they are over in no time."""
        if self._options.prefetch is not None:
            return min(self._options.prefetch, MOST_AHEAD)
        return 1 if self._mean_run >= SHORT else min(MOST_AHEAD, 1 + int(SHORT / max(self._mean_run, SHORT / 10)))

    def _dispatch(self) -> None:
        """Send calls to workers that can take them; have workers started if there are too few."""
        crew = self._crew
        if crew is None:
            return
        depth = self._depth()
        while self._backlog.in_line and (link := crew.free(depth)) is not None:
            call = self._backlog.next()
            if call is None:
                break
            self._send(crew, link, call)
        if self._backlog.in_line:
            crew.staff()
        elif self._stuck_timer is None and any(len(link.calls) > 1 for link in crew.links) and crew.may_take_more():
            self._stuck_timer = self._own_loop().call_later(STUCK, self._take_back)
        is_quiet = not (self._backlog or self._preparing or self._decoding or any(link.calls for link in crew.links))
        if is_quiet and not self._quiet.is_set():
            self._quiet.set()
            self.on_event("drained", None)
        elif not is_quiet:
            self._quiet.clear()

    def _send(self, crew: Crew, link: Link, call: Call) -> None:
        self._give_room(call)
        if link.state is State.IDLE:
            link.state = State.BUSY
            self.on_event("busy", link.pid)
        link.give(call)
        if link.first is call:
            self._begin(call)
        limit = self._options.max_tasks_per_worker
        if limit is not None and link.done + len(link.calls) >= limit:
            crew.retire(link, "it has done what one worker may")

    def _begin(self, call: Call) -> None:
        """The worker can begin ``call`` now: its time runs."""
        call.begun = time.perf_counter()
        if call.options.timeout is not None:
            call.timer = self._own_loop().call_later(call.options.timeout, self._timed_out, call)
        if self._crew is not None:
            self._crew.watch_memory()

    def _take_back(self) -> None:
        """Give calls that wait behind a long one to workers that are free."""
        self._stuck_timer = None
        crew = self._crew
        if crew is None or self._backlog.in_line or not crew.may_take_more():
            return
        taken = []
        for link in crew.links:
            if stuck(link):
                for call in list(link.calls.values())[1:]:
                    if call is not None and not call.future.done():
                        link.skip(call)
                        taken.append((link, call))
        # A turn later what the worker had begun in the meantime is visible.
        self._own_loop().call_soon(self._move, taken)

    def _move(self, taken: list[tuple[Link, Call]]) -> None:
        for link, call in reversed(taken):
            if call.link is link and call.number in link.calls and not link.runs(call) and not call.future.done():
                link.calls[call.number] = None
                self._wait_again(call)
        self._dispatch()

    def _wait_again(self, call: Call) -> None:
        """A call that was sent and not begun is sent anew."""
        self._backlog.ended(call)
        call.link = None
        self._backlog.add(call, first=True)

    # -- answers --------------------------------------------------------------------------------------------------

    def on_frame(self, link: Link, frame: Frame) -> None:
        """A worker has sent something; part of what a :class:`~loopwatch.workers.crew.Employer` is told."""
        head = frame.head
        if head.kind == Kind.LOG:
            self._relay(frame)
            return
        received = [link.received.popleft() for _ in range(head.descriptors)]
        call = link.calls.pop(head.id, None)
        if head.kind != Kind.SKIPPED:
            link.done += 1
        if call is not None:
            self._backlog.ended(call)
            call.stop_clock()
            self._measure(call, head)
        self._go_on(link)
        if call is None or head.kind == Kind.SKIPPED or call.future.done():
            for descriptor in received:
                os.close(descriptor)
        elif head.flags & wire.SLICED:
            self._decode_in_turns(call, payload.decode_sliced(frame.pickle, frame.buffers, received))
        else:
            self._decode(call, frame, received)
        if head.flags & wire.PLEASE_RECYCLE and link.accepts and self._crew is not None:
            self._crew.retire(link, "it has grown beyond max_memory_per_worker")
        self._dispatch()

    def _measure(self, call: Call, head: wire.Head) -> None:
        if head.kind in (Kind.RESULT, Kind.ERROR):
            seconds = head.run / 1e9
            self._busy += seconds
            self._run_times.record(seconds)
            if call.begun is not None:
                self._wait.record(call.begun - call.created)
            self._mean_run += SMOOTHING * (seconds - self._mean_run)

    def _go_on(self, link: Link) -> None:
        """The worker goes on with the next call, or rests."""
        assert self._crew is not None
        self._crew.failures = 0
        following = link.first
        if following is not None:
            self._begin(following)
        elif not link.calls and link.state is State.BUSY:
            self._crew.rest(link)

    def _decode(self, call: Call, frame: Frame, received: list[int]) -> None:
        began = time.perf_counter()
        try:
            value = payload.decode(frame.pickle, frame.buffers, received)
            if frame.head.kind != Kind.RESULT:
                what, where = value
                value = what if frame.head.kind == Kind.ERROR else NotPicklable(what)
                value.__cause__ = RemoteTraceback(where)
        except BaseException as exc:  # noqa: BLE001 - the program's own __setstate__ and the like
            self._fail(call, _unreadable(exc))
        else:
            (self._succeed if frame.head.kind == Kind.RESULT else self._fail)(call, value)
        finally:
            self._decoded(time.perf_counter() - began)

    def _decode_in_turns(self, call: Call, steps: Generator[None, None, Any]) -> None:
        task = self._own_loop().create_task(_readable(in_turns(steps, self._decoded)))
        self._decoding.add(task)
        task.add_done_callback(functools.partial(self._on_decoded, call))
        call.future.add_done_callback(lambda _: task.cancel())

    def _on_decoded(self, call: Call, task: asyncio.Task[Any]) -> None:
        self._decoding.discard(task)
        if task.cancelled():
            call.future.cancel()
        elif (error := task.exception()) is not None:
            self._fail(call, error)
        else:
            self._succeed(call, task.result())
        self._dispatch()

    def _decoded(self, seconds: float) -> None:
        self._longest_decode = max(self._longest_decode, seconds)

    def _succeed(self, call: Call, value: Any) -> None:
        call.payload = None
        if not call.future.done():
            self._counts["completed"] += 1
            call.future.set_result(value)

    def _fail(self, call: Call, error: BaseException) -> None:
        call.payload = None
        if not call.future.done():
            self._counts["failed"] += 1
            call.future.set_exception(error)

    def _relay(self, frame: Frame) -> None:
        """Hand a log record of a worker to the logger of the same name here."""
        try:
            record = logging.makeLogRecord(pickle.loads(frame.pickle))
            target = logging.getLogger(record.name)
            if target.isEnabledFor(record.levelno):
                target.handle(record)
        except Exception:  # noqa: BLE001 - a record that cannot be rebuilt, or a handler that fails
            self._counts["logs_lost"] += 1

    # -- calls that do not end as they should ---------------------------------------------------------------------

    def _given_up(self, call: Call, future: asyncio.Future[Any]) -> None:
        """The caller may not want the result any more."""
        if not future.cancelled():
            return
        self._counts["cancelled"] += 1
        call.stop_clock()
        call.payload = None
        self._give_room(call)
        if call.waits != NOWHERE:
            self._backlog.discard(call)
        elif call.link is not None and call.number in call.link.calls:
            call.link.skip(call)
        loop = self._loop
        if loop is not None and not loop.is_closed():
            # A turn later it is visible whether the worker has begun it in the meantime.
            loop.call_soon(self._end_given_up, call)

    def _end_given_up(self, call: Call) -> None:
        if call.link is not None and self._crew is not None and call.link.runs(call):
            self._crew.kill(call.link, "the call it ran was cancelled")
        self._dispatch()

    def _timed_out(self, call: Call) -> None:
        call.timer = None
        link = call.link
        if link is None or self._crew is None or call.future.done():
            return
        self._counts["timed_out"] += 1
        words = f"{call.name} ran longer than {call.options.timeout:g} s"
        self._fail(call, TaskTimeout(f"{words}; worker {link.pid} was killed"))
        self._crew.kill(link, words)

    def _give_room(self, call: Call) -> None:
        """The call needs no place in the queue any more."""
        if call.has_room:
            call.has_room = False
            self._room.give()

    def on_lost(self, link: Link, code: int | None) -> None:
        """Fail what the worker ran, and send the rest to others."""
        again, first = [], True
        for call in link.calls.values():
            if call is None:
                continue
            call.stop_clock()
            begun = link.runs(call)
            call.attempts += begun
            call.lost += first and not begun
            first = False
            if call.future.done():
                self._backlog.ended(call)
            elif call.attempts > call.options.retries if begun else call.lost >= MOST_LOST:
                self._backlog.ended(call)
                self._crash(call, link, code)
            else:
                self._counts["retried"] += begun
                again.append(call)
        for call in reversed(again):
            self._wait_again(call)
        link.calls.clear()

    def _crash(self, call: Call, link: Link, code: int | None) -> None:
        self._counts["crashed"] += 1
        oom = code == -9 and link.cause is None and _oom_kills() > self._counts["oom_seen"]
        reason = f": {link.cause}" if link.cause else " (out of memory)" if oom else ""
        words = f"worker {link.pid} died while it ran {call.name} ({exit_words(code)}){reason}"
        self._fail(call, WorkerCrashed(words, link.pid, code, oom_killed=oom or link.over_memory))

    def on_nobody(self, error: OffloadError) -> None:
        """Refuse what waits: there is nobody to do it."""
        for call in self._backlog.clear():
            self._give_room(call)
            self._fail(call, _again(error))
        for waiting in self._ready:
            if not waiting.done():
                waiting.set_exception(_again(error))
        self._ready.clear()
        if self._loop is not None:
            self._loop.call_soon(self._dispatch)

    # -- the pool -------------------------------------------------------------------------------------------------

    def wanted(self) -> int:
        """Return how many workers could be busy now."""
        links = self._links
        busy = sum(link.accepts and bool(link.calls) for link in links)
        return max(busy + self._backlog.in_line, bool(self._ready))

    def on_change(self) -> None:
        """A worker has come or gone."""
        if any(link.accepts for link in self._links):
            for waiting in self._ready:
                if not waiting.done():
                    waiting.set_result(None)
            self._ready.clear()
        self._dispatch()

    @property
    def _links(self) -> list[Link]:
        return [] if self._crew is None else self._crew.links

    @property
    def closed(self) -> bool:
        """Whether it takes no calls any more."""
        return self._closing

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, which is the pool's; open the pool in the first."""
        running = asyncio.get_running_loop()
        loop = self._loop
        if running is loop:
            return running
        if self._closing:
            raise PoolClosed(f"{self.name} is closed")
        if loop is None:
            self._open(running)
        elif loop.is_closed():
            self.abandon()
            raise PoolClosed(f"the loop of {self.name} is closed: use a pool within one run of a loop")
        else:
            raise PoolClosed(f"{self.name} belongs to another event loop: use a pool of its own in each")
        return running

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        worker.refuse_while_preparing()
        if os.name == "nt":
            raise OffloadError("WorkerPool needs Unix sockets between processes: on Windows use @offload(to='thread')")
        self._loop = loop
        self._by_value = not launch.main_is_importable()
        self._counts["oom_seen"] = _oom_kills()
        self._crew = Crew(self, self._options, self._counts, loop)
        _POOLS.add(self)
        self._crew.staff()

    async def ready(self) -> None:
        """Wait until a worker can take calls.

        Raises:
            OffloadError: none could be started, with the worker's traceback as its cause.
        """
        loop = self._own_loop()
        if self._closing or self._crew is None:
            raise PoolClosed(f"{self.name} is closed")
        if not any(link.accepts for link in self._crew.links):
            waiting = loop.create_future()
            self._ready.append(waiting)
            self._crew.staff()
            await waiting

    async def drain(self) -> None:
        """Wait until no call waits or runs."""
        self._own_loop()
        self._dispatch()
        await self._quiet.wait()

    async def close(self, *, force: bool = False) -> None:
        """Take no more calls, wait for those that were taken, and end the workers; a second call does nothing.

        Args:
            force: do not wait: calls that wait or run fail with :class:`PoolClosed`, and their workers are killed.
        """
        if self._crew is None or self._closed or (self._loop is not None and self._loop.is_closed()):
            self.abandon()
            return
        self._own_loop()
        self._closing = True
        error = PoolClosed(f"{self.name} was closed")
        self._room.refuse(error)
        self._crew.leave()
        if not force:
            self._dispatch()
            await self._quiet.wait()
        for link in self._crew.links:
            for call in link.calls.values():
                if call is not None:
                    self._fail(call, _again(error))
        self.on_nobody(error)
        try:
            await self._crew.end()
        finally:
            self._shut()

    def _shut(self) -> None:
        self._closed = self._closing = True
        self._quiet.set()
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
        _POOLS.discard(self)

    def abandon(self) -> None:
        """Let go of everything without the loop; the workers are killed by the kernel."""
        self._shut()
        if self._crew is not None:
            self._crew.abandon()

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except BaseException:
            await self.close(force=True)
            raise
        return self

    async def __aexit__(self, kind: object, exc: object, where: object) -> None:
        await self.close(force=kind is not None)

    def stats(self) -> PoolStats:
        """Return the pool's figures."""
        now = time.monotonic()
        running = sum(
            call is not None and not call.future.done() for link in self._links for call in link.calls.values()
        )
        alive = 0.0 if self._crew is None else self._crew.alive
        return PoolStats(
            name=self.name,
            workers=tuple(
                WorkerStats(link.pid, link.state, len(link.calls), link.done, now - link.started_at, resident(link.pid))
                for link in self._links
            ),
            queued=len(self._backlog),
            running=running + len(self._decoding),
            **{name: self._counts[name] for name in _COUNTED},
            wait=self._wait.stats() if self._wait.count else None,
            run=self._run_times.stats() if self._run_times.count else None,
            longest_encode=self._longest_encode,
            longest_decode=self._longest_decode,
            utilization=min(self._busy / alive, 1.0) if alive > 0 else 0.0,
        )

    def on_event(self, kind: str, pid: int | None, detail: str = "") -> None:
        """Tell the user's ``on_event``."""
        told = self._options.on_event
        if told is None:
            return
        try:
            told(PoolEvent(kind, self.name, pid, detail, time.time()))
        except Exception:
            log.exception("loopwatch: on_event of %s failed", self.name)


_COUNTED = (
    "submitted", "completed", "failed", "cancelled", "timed_out", "crashed", "retried", "started", "recycled",
)  # fmt: skip
_UNSET: Any = object()
_POOLS: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _check_hashable(function: Any) -> None:
    try:
        hash(function)
    except TypeError:
        raise ConfigError(f"function={function!r}: must be hashable for max_concurrency to count its calls") from None


def _again(error: OffloadError) -> OffloadError:
    """Return an error of one's own for each who is to get it: each adds its traceback."""
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again


def _unreadable(exc: BaseException) -> OffloadError:
    error = OffloadError(f"the result cannot be unpickled here: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error


async def _readable(value: Awaitable[Any]) -> Any:
    try:
        return await value
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # a task would have SystemExit end the program
        raise _unreadable(exc) from exc


def _oom_kills() -> int:
    """Return how many processes of this cgroup the kernel has killed for memory; 0 where that cannot be read."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            for line in Path(path).read_text().splitlines():
                key, value = line.split()
                if key == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0


def open_pools() -> list[WorkerPool]:
    """Return the pools of this process that have been used and not closed."""
    return list(_POOLS)


def _abandon_all() -> None:
    for pool in list(_POOLS):
        with contextlib.suppress(Exception):
            pool.abandon()


atexit.register(_abandon_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)

"""The managed pool: who runs what, when, and what happens if it does not work out. Everything is on the loop's thread.

What a call goes through: :meth:`WorkerPool.run` pickles it, in slices if it is large; it waits in the queue; the
dispatcher sends it to a worker; the answer is unpickled, in slices if it is large; its future is set. A call is sent
only to a worker that can begin it soon, so that little is lost when one dies: see :meth:`WorkerPool._depth`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import heapq
import itertools
import logging
import os
import pickle
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
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
from loopwatch.workers.link import Link, State
from loopwatch.workers.options import CallOptions, PoolOptions, changed
from loopwatch.workers.wire import Frame, Kind
from loopwatch.workers.worker import RemoteTraceback, resident

T = TypeVar("T")
log = logging.getLogger("loopwatch")

SHORT = 0.001
"""s: calls that take less on average are sent ahead, so that a worker need not wait for the next one."""
MOST_AHEAD = worker.SKIPS
"""Calls that one worker has at most."""
STUCK = 0.01
"""s: a call sent ahead is taken back if the one before it takes longer and another worker is free."""
TURN = 0.001
"""s of one turn of the loop that one call is pickled or unpickled for."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
"""s between two attempts to start workers that fail."""
MEMORY_EVERY = 0.2
"""s between two looks at the memory of busy workers, if it is limited."""
START_TIMEOUT = 60.0
"""s that a worker may take to get ready."""
SMOOTHING = 0.1
"""Weight of the newest call in the mean run time."""


class _Call:
    """One call on its way."""

    __slots__ = (
        "attempts", "begun", "created", "descriptors", "function", "future", "id", "link", "options", "parts",
        "seconds", "span", "timer",
    )  # fmt: skip

    def __init__(self, id: int, future: asyncio.Future[Any], function: Any, options: CallOptions) -> None:
        self.id = id
        self.future = future
        self.function = function
        self.options = options
        self.parts: list[memoryview] = []
        self.descriptors: list[int] = []
        self.created = time.perf_counter()
        self.begun: float | None = None
        self.seconds = 0.0
        self.attempts = 0
        self.link: Link | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.span: Any = None


class _Bound:
    """A pool with options for its calls."""

    def __init__(self, pool: WorkerPool, options: CallOptions) -> None:
        self._pool, self._options = pool, options

    def options(self, **changes: Any) -> _Bound:
        """Return the same with further options: see :class:`CallOptions`."""
        return _Bound(self._pool, changed(self._options, changes))

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`WorkerPool.run`, with these options."""
        return await self._pool._run(self._options, function, args, kwargs)

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
        try:
            self._options = PoolOptions(workers=workers, **options)
        except TypeError:
            known = {*PoolOptions.__dataclass_fields__}
            unknown = next(iter(set(options) - known), None)
            if unknown is None:
                raise
            raise ConfigError(
                f"{unknown}={options[unknown]!r}: unknown; known are {', '.join(sorted(known))}"
            ) from None
        self.name = self._options.name
        self._defaults = CallOptions()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._launcher: launch.Launcher | None = None
        self._links: list[Link] = []
        self._starting = 0
        self._queue: list[tuple[int, int, _Call]] = []
        self._queued = 0
        self._ids = itertools.count(1)
        self._turn = itertools.count(1)
        self._front = itertools.count(-1, -1)
        self._room: deque[asyncio.Future[None]] = deque()
        self._running_of: Counter[Any] = Counter()
        self._parked: dict[Any, deque[_Call]] = {}
        self._idle = asyncio.Event()
        self._ready: list[asyncio.Future[None]] = []
        self._closing = self._closed = False
        self._failures = 0
        self._failure: OffloadError | None = None
        self._retry_at = 0.0
        self._mean_run = SHORT
        self._counts: Counter[str] = Counter()
        self._wait, self._run_times = Histogram(), Histogram()
        self._longest_encode = self._longest_decode = 0.0
        self._busy = self._alive = 0.0
        self._stuck_timer: asyncio.TimerHandle | None = None
        self._memory_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._in_decoding = 0
        self._main: dict[str, object] | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        _POOLS.add(self)

    # -- calls ----------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``function(*args, **kwargs)`` in a worker and return its result.

        Raises:
            whatever the function raises, with the worker's traceback as its cause.
            WorkerCrashed: the worker died during the call.
            NotPicklable: the function, an argument or the result cannot be sent.
            QueueFull, PoolClosed: it was not taken.
        """
        result: T = await self._run(self._defaults, function, args, kwargs)
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

    async def _run(self, options: CallOptions, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        loop = self._own_loop()
        if not callable(function):
            raise ConfigError(f"function={function!r}: must be callable")
        call = _Call(next(self._ids), loop.create_future(), function, options)
        await self._make_room(options)
        await self._encode(call, args, kwargs)
        if self._closing:
            raise PoolClosed(f"{self.name} was closed")
        self._counts["submitted"] += 1
        call.future.add_done_callback(functools.partial(self._given_up, call))
        self._enqueue(call)
        self._dispatch()
        return await call.future

    async def _map(
        self,
        options: CallOptions,
        function: Any,
        iterables: tuple[Iterable[Any], ...],
        *,
        ordered: bool,
        in_flight: int | None,
    ) -> AsyncIterator[Any]:
        if in_flight is not None and (not isinstance(in_flight, int) or in_flight < 1):
            raise ConfigError(f"in_flight={in_flight!r}: must be a whole number of at least 1, or None")
        most = in_flight or 2 * self._options.most
        items = zip(*iterables, strict=False)
        pending: deque[asyncio.Task[Any]] = deque()
        loop = self._own_loop()
        try:
            while True:
                for args in itertools.islice(items, max(most - len(pending), 0)):
                    pending.append(loop.create_task(self._run(options, function, args, {})))
                if not pending:
                    return
                if ordered:
                    yield await pending.popleft()
                else:
                    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        pending.remove(task)
                        yield task.result()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _make_room(self, options: CallOptions) -> None:
        """Wait, or refuse, where as many calls wait as may."""
        limit = self._options.max_queue
        while limit is not None and self._queued >= limit and not self._free():
            if options.on_full == "raise":
                self._event("queue_full", None, f"{self._queued} calls wait")
                raise QueueFull(
                    f"{self.name}: {self._queued} calls wait, max_queue={limit}; raise it or use on_full='wait'"
                )
            room = self._own_loop().create_future()
            self._room.append(room)
            try:
                await room
            finally:
                with contextlib.suppress(ValueError):
                    self._room.remove(room)
            if self._closing:
                raise PoolClosed(f"{self.name} was closed")

    def _free(self) -> bool:
        return any(link.state is State.IDLE for link in self._links) and not self._queued

    async def _encode(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        began = time.perf_counter()
        extras = self._extras()
        by_value = not launch.main_is_importable()
        large = [value for value in (*args, *kwargs.values()) if payload.is_large(value)]
        large = [value for value in large if not payload.refers_to_itself(value)]
        if large and not by_value:
            packed = await self._encode_large(call, args, kwargs, extras, large)
        else:
            wrapped = {key: payload.wrap(value) for key, value in kwargs.items()} if kwargs else kwargs
            message = (call.function, tuple(map(payload.wrap, args)), wrapped, extras)
            try:
                packed = payload.encode(message, by_value=by_value)
            except NotPicklable as exc:
                raise self._blame(call.function, args, kwargs, exc) from exc.__cause__
            call.seconds = time.perf_counter() - began
            self._longest_encode = max(self._longest_encode, call.seconds)
        call.parts = wire.frame(
            Kind.CALL, call.id, packed.pickle, packed.buffers, flags=packed.flags, descriptors=len(packed.descriptors)
        )
        call.descriptors = [os.dup(each) for each in packed.descriptors]

    async def _encode_large(
        self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any], extras: Any, large: list[Any]
    ) -> payload.Payload:
        """Encode a call with large containers, a slice a turn."""
        index = {id(value): number for number, value in reversed(list(enumerate(large)))}
        containers = [value for number, value in enumerate(large) if index[id(value)] == number]
        place = {id(value): payload.Sliced(number) for number, value in enumerate(containers)}
        message = (
            call.function,
            tuple(place.get(id(value)) or payload.wrap(value) for value in args),
            {key: place.get(id(value)) or payload.wrap(value) for key, value in kwargs.items()},
            extras,
        )
        steps = payload.encode_sliced(message, containers)
        try:
            return await self._in_turns(steps, call)  # type: ignore[no-any-return]
        except NotPicklable as exc:
            raise self._blame(call.function, args, kwargs, exc) from exc.__cause__

    async def _in_turns(self, steps: Any, call: _Call) -> Any:
        began = time.perf_counter()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            finally:
                now = time.perf_counter()
                self._longest_encode = max(self._longest_encode, now - began)
            if now - began >= TURN:
                call.seconds += now - began
                await asyncio.sleep(0)
                began = time.perf_counter()

    def _blame(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], exc: NotPicklable) -> NotPicklable:
        """Return an error that names what it is that cannot be pickled."""
        named = [("the function", function), *((f"argument {number + 1}", value) for number, value in enumerate(args))]
        for name, value in (*named, *((f"argument {key!r}", value) for key, value in kwargs.items())):
            try:
                payload.encode(value)
            except NotPicklable as own:
                kind = f"{type(value).__module__}.{type(value).__qualname__}"
                return NotPicklable(f"{name} ({kind}) cannot be sent to a worker: {own}")
        return exc

    def _extras(self) -> Any:
        if not self._options.context:
            return None
        return [
            (each.module, each.name, each.variable.get())
            for each in self._options.context
            if each.variable.get(_UNSET) is not _UNSET
        ]

    # -- scheduling -----------------------------------------------------------------------------------------------

    def _enqueue(self, call: _Call, *, first: bool = False) -> None:
        call.link = None
        self._queued += 1
        order = next(self._front) if first else next(self._turn)
        heapq.heappush(self._queue, (-call.options.priority, order, call))

    def _next(self) -> _Call | None:
        """Take the call that is to run next, past those whose function is running as often as it may."""
        while self._queue:
            call = heapq.heappop(self._queue)[2]
            if call.future.done():
                continue
            limit = call.options.max_concurrency
            if limit is not None and self._running_of[call.function] >= limit:
                self._parked.setdefault(call.function, deque()).append(call)
                continue
            self._queued -= 1
            return call
        return None

    def _depth(self) -> int:
        """Return how many calls a worker may have: more than one only if they are over in no time."""
        if self._options.prefetch is not None:
            return min(self._options.prefetch, MOST_AHEAD)
        return 1 if self._mean_run >= SHORT else min(MOST_AHEAD, 1 + int(SHORT / max(self._mean_run, SHORT / 10)))

    def _dispatch(self) -> None:
        """Send calls to workers that can take them; start workers if there are too few."""
        if self._queue:
            depth = self._depth()
            while self._queue:
                link = self._least_busy(depth)
                if link is None:
                    break
                call = self._next()
                if call is None:
                    break
                self._send(link, call)
            if self._queued:
                self._grow()
        elif self._stuck_timer is None and any(len(link.calls) > 1 for link in self._links):
            self._stuck_timer = self._own_loop().call_later(STUCK, self._take_back)
        while self._room and (self._options.max_queue is None or self._queued < self._options.max_queue):
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                break
        if not self._queued and not self._in_decoding and not any(link.calls for link in self._links):
            if not self._idle.is_set():
                self._idle.set()
                self._event("drained", None)
        elif self._idle.is_set():
            self._idle.clear()

    def _least_busy(self, depth: int) -> Link | None:
        best = None
        for link in self._links:
            if link.state is State.IDLE:
                return link
            takes_more = link.state is State.BUSY and link.cause is None and len(link.calls) < depth
            if takes_more and (best is None or len(link.calls) < len(best.calls)):
                best = link
        return best

    def _send(self, link: Link, call: _Call) -> None:
        call.link = link
        if link.state is State.IDLE:
            link.state = State.BUSY
            self._event("busy", link.pid)
        if not link.calls:
            self._begin(call)
        link.calls[call.id] = call
        self._running_of[call.function] += 1
        link.send(call.parts, call.descriptors)
        limit = self._options.max_tasks_per_worker
        if limit is not None and link.done + len(link.calls) >= limit:
            self._retire(link, "it has done what one worker may")

    def _begin(self, call: _Call) -> None:
        """The worker can begin ``call`` now: its time runs."""
        call.begun = time.perf_counter()
        if call.options.timeout is not None:
            call.timer = self._own_loop().call_later(call.options.timeout, self._timed_out, call)
        if self._options.max_memory_per_worker is not None and self._memory_timer is None:
            self._memory_timer = self._own_loop().call_later(MEMORY_EVERY, self._check_memory)

    def _take_back(self) -> None:
        """Give calls that wait behind a long one to workers that are free."""
        self._stuck_timer = None
        if self._queue or not any(link.state is State.IDLE for link in self._links):
            self._dispatch()
            return
        now, taken = time.perf_counter(), []
        for link in self._links:
            waiting = list(link.calls.values())
            if len(waiting) > 1 and waiting[0].begun is not None and now - waiting[0].begun >= STUCK:
                for call in waiting[1:]:
                    link.skip(call.id)
                    taken.append((link, call))
        # A turn later what the worker had begun in the meantime is visible.
        self._own_loop().call_soon(self._move, taken)

    def _move(self, taken: list[tuple[Link, _Call]]) -> None:
        for link, call in taken:
            if call.link is link and call.id in link.calls and link.started != call.id and not call.future.done():
                del link.calls[call.id]
                self._running_of[call.function] -= 1
                self._enqueue(call)
        self._dispatch()

    # -- answers --------------------------------------------------------------------------------------------------

    def _on_frame(self, link: Link, frame: Frame) -> None:
        head = frame.head
        kind = head.kind
        if kind == Kind.LOG:
            self._relay(frame)
            return
        if kind == Kind.READY:
            self._on_ready(link, frame)
            return
        received = [link.received.popleft() for _ in range(head.descriptors)]
        call: _Call | None = link.calls.pop(head.id, None)
        if call is not None:
            self._answered(link, call, head)
        if call is None or kind == Kind.SKIPPED or call.future.done():
            for descriptor in received:
                os.close(descriptor)
        elif kind == Kind.RESULT and head.flags & wire.SLICED:
            self._in_decoding += 1
            self._decode_on(call, payload.decode_sliced(frame.pickle, frame.buffers, received))
        else:
            self._resolve(call, kind, frame, received)
        if head.flags & wire.PLEASE_RECYCLE and link.state in (State.IDLE, State.BUSY):
            self._retire(link, "it has grown beyond max_memory_per_worker")
        self._dispatch()

    def _answered(self, link: Link, call: _Call, head: wire.Head) -> None:
        """Book an answer; the worker goes on with the next call."""
        link.done += 1
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        self._release(call)
        if head.kind in (Kind.RESULT, Kind.ERROR):
            seconds = head.run / 1e9
            self._busy += seconds
            self._run_times.record(seconds)
            if call.begun is not None:
                self._wait.record(call.begun - call.created)
            self._mean_run += SMOOTHING * (seconds - self._mean_run)
        if link.calls:
            self._begin(next(iter(link.calls.values())))
        elif link.state is State.BUSY:
            link.state = State.IDLE
            link.idle_since = time.monotonic()
            self._watch_idle()

    def _release(self, call: _Call) -> None:
        """The call runs no longer: others of its function may."""
        self._running_of[call.function] -= 1
        if not self._running_of[call.function]:
            del self._running_of[call.function]
        parked = self._parked.get(call.function)
        if parked:
            waiting = parked.popleft()
            if not parked:
                del self._parked[call.function]
            heapq.heappush(self._queue, (-waiting.options.priority, next(self._front), waiting))

    def _resolve(self, call: _Call, kind: int, frame: Frame, received: list[int]) -> None:
        began = time.perf_counter()
        try:
            value = payload.decode(frame.pickle, frame.buffers, received)
        except BaseException as exc:  # noqa: BLE001 - the program's own __setstate__ and the like
            error = OffloadError(f"the result cannot be unpickled here: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._fail(call, error)
            return
        finally:
            self._longest_decode = max(self._longest_decode, time.perf_counter() - began)
        if kind == Kind.RESULT:
            self._succeed(call, value)
            return
        what, where = value
        error = what if kind == Kind.ERROR else NotPicklable(what)
        error.__cause__ = RemoteTraceback(where)
        self._fail(call, error)

    def _decode_on(self, call: _Call, steps: Any) -> None:
        """Unpickle a large result for a turn, and go on in the next."""
        began = time.perf_counter()
        try:
            while time.perf_counter() - began < TURN:
                next(steps)
        except StopIteration as end:
            self._in_decoding -= 1
            self._succeed(call, end.value)
            self._dispatch()
        except BaseException as exc:  # noqa: BLE001 - as above
            self._in_decoding -= 1
            error = OffloadError(f"the result cannot be unpickled here: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._fail(call, error)
            self._dispatch()
        else:
            if call.future.done():
                self._in_decoding -= 1
                steps.close()
                self._dispatch()
            else:
                self._own_loop().call_soon(self._decode_on, call, steps)
        finally:
            self._longest_decode = max(self._longest_decode, time.perf_counter() - began)

    def _succeed(self, call: _Call, value: Any) -> None:
        self._let_go(call)
        if not call.future.done():
            self._counts["completed"] += 1
            call.future.set_result(value)

    def _fail(self, call: _Call, error: BaseException) -> None:
        self._let_go(call)
        if not call.future.done():
            self._counts["failed"] += 1
            call.future.set_exception(error)

    def _let_go(self, call: _Call) -> None:
        call.parts = []
        while call.descriptors:
            os.close(call.descriptors.pop())

    def _relay(self, frame: Frame) -> None:
        """Hand a log record of a worker to the logger of the same name here."""
        try:
            record = logging.makeLogRecord(pickle.loads(frame.pickle))
            target = logging.getLogger(record.name)
            if target.isEnabledFor(record.levelno):
                target.handle(record)
        except Exception:  # noqa: BLE001 - a record that cannot be rebuilt, or a handler that fails
            self._counts["logs_lost"] += 1

    # -- calls that are given up ----------------------------------------------------------------------------------

    def _given_up(self, call: _Call, future: asyncio.Future[Any]) -> None:
        """The caller does not want the result any more."""
        if not future.cancelled():
            return
        self._counts["cancelled"] += 1
        link = call.link
        if call.timer is not None:
            call.timer.cancel()
        if link is None or call.id not in link.calls:
            if link is None:
                self._queued -= 1
                parked = self._parked.get(call.function)
                if parked and call in parked:
                    parked.remove(call)
            self._let_go(call)
            if not self._own_loop().is_closed():
                self._own_loop().call_soon(self._dispatch)
            return
        link.skip(call.id)
        self._own_loop().call_soon(self._kill_if_begun, link, call)

    def _kill_if_begun(self, link: Link, call: _Call) -> None:
        if call.id in link.calls and link.started == call.id:
            self._kill(link, "the call it ran was cancelled")

    def _timed_out(self, call: _Call) -> None:
        link = call.link
        call.timer = None
        if link is None or call.future.done() or call.id not in link.calls:
            return
        self._counts["timed_out"] += 1
        self._fail(
            call,
            TaskTimeout(
                f"{_name(call.function)} ran longer than {call.options.timeout:g} s; worker {link.pid} was killed"
            ),
        )
        self._kill(link, f"a call ran longer than {call.options.timeout:g} s")

    def _check_memory(self) -> None:
        self._memory_timer = None
        limit = self._options.max_memory_per_worker
        busy = [link for link in self._links if link.calls and link.cause is None]
        if limit is None or not busy:
            return
        for link in busy:
            used = resident(link.pid)
            if used > 2 * limit:
                call = next(iter(link.calls.values()))
                words = f"{_name(call.function)} used {used:,} bytes, more than twice max_memory_per_worker={limit:,}"
                self._counts["crashed"] += 1
                self._fail(call, WorkerCrashed(f"{words}; worker {link.pid} was killed", link.pid, -9, oom_killed=True))
                self._kill(link, words)
        self._memory_timer = self._own_loop().call_later(MEMORY_EVERY, self._check_memory)

    def _kill(self, link: Link, why: str) -> None:
        self._event("killed", link.pid, why)
        link.kill(why)

    # -- workers --------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Start a worker for the calls that wait, if there may be more."""
        living = sum(link.state is not State.STOPPING for link in self._links) + self._starting
        wanted = min(max(self._options.least, min(self._queued, self._options.most)), self._options.most) - living
        if wanted > 0:
            self._start(wanted)

    def _start(self, count: int) -> None:
        """Have ``count`` workers started by a thread, unless the last attempt has just failed."""
        loop = self._own_loop()
        if self._closing or (delay := self._retry_at - time.monotonic()) > 0:
            if not self._closing and not self._starting and self._failure is not None:
                self._refuse_all(self._failure)
            return
        del delay
        self._starting += count
        if self._launcher is None:
            self._launcher = launch.launcher(self._options.start_method, self._options.preload)
        arguments = (weakref.ref(self), loop, self._launcher, count, self._lock)
        threading.Thread(target=_start_workers, args=arguments, name="loopwatch-starter", daemon=True).start()

    def _on_started(self, launched: launch.Launched, setup: bytes) -> None:
        self._starting -= 1
        if self._closed:
            launched.channel.close()
            os.close(launched.lifeline)
            launched.shared.close()
            return
        assert self._launcher is not None
        link = Link(launched, self._own_loop(), self._on_frame, self._on_death, self._launcher.exit_code)
        self._links.append(link)
        self._counts["started"] += 1
        self._event("started", link.pid)
        link.send(wire.frame(Kind.SETUP, 0, setup))
        self._own_loop().call_later(START_TIMEOUT, self._check_started, link)

    def _check_started(self, link: Link) -> None:
        if link.state is State.STARTING:
            self._kill(link, f"it was not ready after {START_TIMEOUT:g} s")

    def _setup(self) -> bytes:
        """Return what a worker is told first; in the starter's thread."""
        if self._main is None:
            self._main = launch.main_data()
        options = self._options
        prepared = [
            None
            if function is None
            else bytes(payload.encode((function, args), by_value=not launch.main_is_importable()).pickle)
            for function, args in ((options.initializer, options.initargs), (options.warmup, ()))
        ]
        return pickle.dumps(
            {
                "main": self._main,
                "env": dict(options.env),
                "nice": options.nice,
                "max_memory": options.max_memory_per_worker,
                "by_value": not launch.main_is_importable(),
                "log_level": logging.getLogger().getEffectiveLevel() if options.forward_logs else None,
                "initializer": prepared[0],
                "warmup": prepared[1],
            }
        )

    def _on_not_started(self, count: int, exc: BaseException) -> None:
        self._starting -= count
        if not self._closed:
            error = exc if isinstance(exc, OffloadError) else OffloadError(f"no worker could be started: {exc}")
            if error is not exc:
                error.__cause__ = exc
            self._on_failed_start(error)

    def _on_ready(self, link: Link, frame: Frame) -> None:
        if frame.head.id:
            words, where = pickle.loads(frame.pickle)
            error = OffloadError(f"worker {link.pid} of {self.name} could not get ready: {words}")
            error.__cause__ = RemoteTraceback(where)
            link.cause = "it could not get ready"
            self._on_failed_start(error)
            return
        self._failures, self._failure = 0, None
        link.state = State.IDLE
        link.idle_since = time.monotonic()
        self._event("ready", link.pid)
        for waiting in self._ready:
            if not waiting.done():
                waiting.set_result(None)
        self._ready.clear()
        self._watch_idle()
        self._dispatch()

    def _on_failed_start(self, error: OffloadError) -> None:
        """Back off, and refuse what waits if nobody is there to do it."""
        self._failures += 1
        self._failure = error
        backoff = min(FIRST_BACKOFF * 2 ** (self._failures - 1), LONGEST_BACKOFF)
        self._retry_at = time.monotonic() + backoff
        self._event("failed", None, str(error))
        if not any(link.state in (State.IDLE, State.BUSY, State.STOPPING) for link in self._links):
            self._refuse_all(error)
        for waiting in self._ready:
            if not waiting.done():
                waiting.set_exception(error)
        self._ready.clear()

    def _refuse_all(self, error: OffloadError) -> None:
        calls = [call for _, _, call in self._queue] + [call for parked in self._parked.values() for call in parked]
        self._queue.clear()
        self._parked.clear()
        for call in calls:
            if not call.future.done():
                self._queued -= 1
                again = type(error)(str(error))
                again.__cause__ = error.__cause__
                self._fail(call, again)
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        if not self._closed:
            self._own_loop().call_soon(self._dispatch)

    def _retire(self, link: Link, why: str) -> None:
        """Replace a worker once it has done what it was sent."""
        self._counts["recycled"] += 1
        self._event("recycled", link.pid, why)
        link.stop()
        if not self._closing:
            self._start(1)

    def _watch_idle(self) -> None:
        options = self._options
        if self._idle_timer is None and options.idle_timeout is not None and len(self._links) > options.least:
            self._idle_timer = self._own_loop().call_later(options.idle_timeout, self._shrink)

    def _shrink(self) -> None:
        self._idle_timer = None
        timeout = self._options.idle_timeout
        if timeout is None or self._closing:
            return
        now = time.monotonic()
        living = [link for link in self._links if link.state is not State.STOPPING]
        for link in living[self._options.least :]:
            if link.state is State.IDLE and now - link.idle_since >= timeout * 0.99:
                link.stop()
        if any(link.state is State.IDLE for link in self._links):
            self._watch_idle()

    def _on_death(self, link: Link, code: int | None) -> None:
        self._links.remove(link)
        self._alive += time.monotonic() - link.started_at
        begun, again = link.started, []
        for call in link.calls.values():
            self._running_of[call.function] -= 1
            if call.timer is not None:
                call.timer.cancel()
                call.timer = None
            if call.future.done():
                self._let_go(call)
            elif call.id != begun or call.attempts < call.options.retries:
                again.append(call)
            else:
                self._crash(call, link, code)
        link.calls.clear()
        for call in reversed(again):
            if call.id == begun:
                call.attempts += 1
                self._counts["retried"] += 1
            self._enqueue(call, first=True)
        self._note_death(link, code)
        if self._closing:
            self._dispatch()
            return
        if link.state is State.DEAD and self._failure is None:
            missing = self._options.least - len(self._links) - self._starting
            if missing > 0:
                self._start(missing)
        self._dispatch()

    def _note_death(self, link: Link, code: int | None) -> None:
        if link.done == 0 and link.cause is None and link.idle_since == 0.0:
            self._on_failed_start(
                OffloadError(f"worker {link.pid} of {self.name} ended ({_exit(code)}) before it was ready")
            )
        elif link.cause is None and code != 0:
            self._event("crashed", link.pid, _exit(code))
        else:
            self._event("stopped", link.pid, link.cause or "")

    def _crash(self, call: _Call, link: Link, code: int | None) -> None:
        self._counts["crashed"] += 1
        oom = code == -9 and link.cause is None and _oom_kills() > self._counts["oom_seen"]
        reason = f": {link.cause}" if link.cause else " (out of memory)" if oom else ""
        words = f"worker {link.pid} died while it ran {_name(call.function)} ({_exit(code)}){reason}"
        self._fail(call, WorkerCrashed(words, link.pid, code, oom_killed=oom))

    # -- the pool -------------------------------------------------------------------------------------------------

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the pool's loop; refuse any other, and what comes too late."""
        loop = self._loop
        if loop is None:
            loop = self._open()
        elif self._closed or self._closing:
            if asyncio._get_running_loop() is not loop or self._closed:
                raise PoolClosed(f"{self.name} is closed")
        elif asyncio._get_running_loop() is not loop and not loop.is_closed():
            raise PoolClosed(f"{self.name} belongs to another event loop: use a pool of its own in each")
        elif loop.is_closed():
            self.abandon()
            raise PoolClosed(f"the loop of {self.name} is closed: use a pool within one run of a loop")
        return loop

    def _open(self) -> asyncio.AbstractEventLoop:
        if worker.PREPARING:
            raise OffloadError(
                "a worker is importing this program's main module, which uses a pool at once: "
                "put what starts the program under  if __name__ == '__main__':"
            )
        if self._closed:
            raise PoolClosed(f"{self.name} is closed")
        if os.name == "nt":
            raise OffloadError("WorkerPool needs Unix sockets between processes: on Windows use @offload(to='thread')")
        self._loop = asyncio.get_running_loop()
        self._counts["oom_seen"] = _oom_kills()
        if self._options.least:
            self._start(self._options.least)
        return self._loop

    async def ready(self) -> None:
        """Wait until a worker can take calls.

        Raises:
            OffloadError: none could be started, with the worker's traceback as its cause.
        """
        loop = self._own_loop()
        if any(link.state in (State.IDLE, State.BUSY) for link in self._links):
            return
        if not self._starting and not self._links:
            self._start(1)
        waiting = loop.create_future()
        self._ready.append(waiting)
        await waiting

    async def drain(self) -> None:
        """Wait until no call waits or runs."""
        self._own_loop()
        self._dispatch()
        await self._idle.wait()

    async def close(self, *, force: bool = False) -> None:
        """Take no more calls, wait for those that were taken, and end the workers; a second call does nothing.

        Args:
            force: do not wait: calls that wait or run fail with :class:`PoolClosed`, and their workers are killed.
        """
        if self._closed or self._loop is None:
            self._closed = self._closing = True
            return
        loop = self._own_loop()
        if not force and not self._closing:
            self._closing = True
            for room in self._room:
                if not room.done():
                    room.set_result(None)
            self._dispatch()
            with contextlib.suppress(PoolClosed):
                await self._idle.wait()
        self._closing = True
        self._end_all(PoolClosed(f"{self.name} was closed"))
        ends = loop.time() + 1.0
        while self._links or self._starting:
            if loop.time() >= ends:
                for link in self._links:
                    link.kill("it did not end")
            await asyncio.sleep(0.002)
        self._shut()
        if self._launcher is not None:
            await loop.run_in_executor(None, self._launcher.close)

    def _end_all(self, error: PoolClosed) -> None:
        """Refuse what waits or runs, and end the workers: those that run something by force."""
        for link in list(self._links):
            busy = bool(link.calls)
            for call in link.calls.values():
                self._fail(call, PoolClosed(str(error)))
            if link.state is State.IDLE:
                link.stop()
            elif link.state is not State.STOPPING or busy:
                link.kill("the pool was closed")
        self._refuse_all(error)
        for waiting in self._ready:
            if not waiting.done():
                waiting.set_exception(PoolClosed(str(error)))

    def _shut(self) -> None:
        self._closed = self._closing = True
        self._idle.set()
        for timer in (self._stuck_timer, self._memory_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._ready.clear()
        _POOLS.discard(self)

    def abandon(self) -> None:
        """Let go of everything without the loop; the workers are killed by the kernel."""
        self._shut()
        for link in self._links:
            link.abandon()
        self._links.clear()
        if self._launcher is not None and self._pid == os.getpid():
            self._launcher.close()

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
        counts = self._counts
        alive = self._alive + sum(now - link.started_at for link in self._links)
        return PoolStats(
            name=self.name,
            workers=tuple(
                WorkerStats(link.pid, link.state, len(link.calls), link.done, now - link.started_at, resident(link.pid))
                for link in self._links
            ),
            queued=self._queued,
            running=sum(len(link.calls) for link in self._links),
            **{name: counts[name] for name in _COUNTED},
            wait=self._wait.stats() if self._wait.count else None,
            run=self._run_times.stats() if self._run_times.count else None,
            longest_encode=self._longest_encode,
            longest_decode=self._longest_decode,
            utilization=min(self._busy / alive, 1.0) if alive > 0 else 0.0,
        )

    def _event(self, kind: str, pid: int | None, detail: str = "") -> None:
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


def _start_workers(
    pool_ref: weakref.ref[WorkerPool],
    loop: asyncio.AbstractEventLoop,
    launcher: launch.Launcher,
    count: int,
    lock: threading.Lock,
) -> None:
    """Start workers one after the other; in a thread, as it blocks."""
    for number in range(count):
        launched: launch.Launched | None = None
        try:
            pool = pool_ref()
            if pool is None:
                return
            setup = pool._setup()
            with lock:
                launched = launcher.start()
            loop.call_soon_threadsafe(pool._on_started, launched, setup)
        except BaseException as exc:  # noqa: BLE001 - told to the pool
            if launched is not None:  # the loop is closed
                launched.channel.close()
                os.close(launched.lifeline)
                launched.shared.close()
            with contextlib.suppress(RuntimeError):
                pool = pool_ref()
                if pool is not None:
                    loop.call_soon_threadsafe(pool._on_not_started, count - number, exc)
            return
        finally:
            pool = None


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


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _exit(code: int | None) -> str:
    return "exit code unknown" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"


def _abandon_all() -> None:
    for pool in list(_POOLS):
        with contextlib.suppress(Exception):
            pool.abandon()


atexit.register(_abandon_all)
if hasattr(os, "register_at_fork"):
    # A forked child that kept the lifelines open would keep the workers alive after this process has died.
    os.register_at_fork(after_in_child=_abandon_all)

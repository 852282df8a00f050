"""``WorkerPool``, the public class of the managed worker pool.

The path of a call: :meth:`WorkerPool.submit` pickles it, in slices if it is large; it waits in the call queue; the
dispatcher sends it to a worker; its result is unpickled, in slices if it is large; its future is set.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

from loopwatch.core.originals import time
from loopwatch.core.process_state import living
from loopwatch.errors import NotPicklable, OffloadError, PoolClosed, QueueFull
from loopwatch.events import PoolStats
from loopwatch.health.naming import origin
from loopwatch.health.records import PoolReading
from loopwatch.workers import launch, pickling, tracing, worker
from loopwatch.workers.call import Call, Outcome, blame, in_turns
from loopwatch.workers.call_queue import check_call
from loopwatch.workers.dispatcher import Dispatcher
from loopwatch.workers.options import CallOptions, PoolOptions, changed, check_count, pool_options
from loopwatch.workers.settings import settings
from loopwatch.workers.stats import PoolCounts

T = TypeVar("T")


class _Bound:
    """A pool with options for its calls."""

    def __init__(self, pool: WorkerPool, options: CallOptions) -> None:
        self._pool, self._options = pool, options

    def options(self, **changes: Any) -> _Bound:
        """Return a copy with further options: see :class:`CallOptions`."""
        return _Bound(self._pool, changed(self._options, changes))

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`WorkerPool.run`, with these options."""
        self._pool._stats.spent.calls += 1
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
    """Worker processes for functions that would block the event loop.

    Belongs to the loop in which it is first used. Functions and arguments are pickled; with the extra
    ``loopwatch[closures]`` also lambdas and closures. A coroutine function runs on an event loop of the worker.

    Args:
        workers: processes at most; None for one per usable processor (affinity and cgroup).
        min_workers: processes that are kept; None for all. Others are started when calls wait.
        idle_timeout: seconds after which an idle worker beyond ``min_workers`` is ended; None for never.
        max_queue: calls that may wait; None for no limit.
        name: in statistics and logs.
        start_method: ``forkserver`` or ``spawn``. A running program is never forked.
        preload: modules that the fork server imports once for all workers.
        initializer, initargs: called in each worker before anything else.
        warmup: called in each worker after that, such as a first small computation.
        max_tasks_per_worker: calls after which a worker is replaced.
        max_memory_per_worker: bytes of resident memory above which a worker is replaced between two calls; a call that
            uses twice as much is ended.
        nice: added to the niceness of the workers, 0 to 19.
        env: environment variables of the workers in addition to the parent's.
        prefetch: calls that a worker has at most; None lets the pool send short ones ahead.
        context: context variables that are passed with each call, or their ``module:name``.
        forward_logs: whether log records of a worker are handled by the parent's logging.
        prefix_output: begin each line that workers and their child processes write to standard output or error with
            ``[name pid] ``, or with a str, such as ``"{name}/{pid}: "`` or ``""``. The lines then go through this
            process; an unfinished line is written when its worker ends, one longer than 1 MB is split.
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
        self._stats = PoolCounts()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatcher: Dispatcher | None = None
        self._closing = self._closed = False
        self._by_value = False
        self._place = origin().place

    # -- calls ----------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``function(*args, **kwargs)`` in a worker and return its result.

        Raises:
            Exception: raised by the function, with the worker's traceback as its cause.
            WorkerCrashed: the worker died during the call.
            NotPicklable: the function, an argument or the result cannot be sent.
            QueueFull, PoolClosed: the call was not accepted.
        """
        self._stats.spent.calls += 1
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
        """Run ``function`` for the items of the iterables, as ``map`` does; return an async iterator of the results.

        Args:
            function: the function to call.
            iterables: read no further than is needed to keep the workers busy.
            ordered: results in the order of the items, else as they complete.
            in_flight: calls in flight at most; None for twice the workers.
        """
        return self._map(self._defaults, function, iterables, ordered=ordered, in_flight=in_flight)

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Submit a call: see :class:`~loopwatch.workers.backend.Backend`. It, or its future, raises as :meth:`run`."""
        begin = functools.partial(self._submit, function, args, kwargs, options)
        return tracing.traced(function, self.name, begin)

    def _submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        trip: tracing.Trip | None,
    ) -> asyncio.Future[Any]:
        dispatcher = self._opened()
        if self._closing:
            raise PoolClosed(f"{self.name} is closed")
        check_call(function, options)
        loop = asyncio.get_running_loop()
        call = Call(function, options, Outcome(loop=loop))
        call.trip = trip
        call.has_room = dispatcher.room.take()
        if not call.has_room and options.on_full == "raise":
            words = f"{len(dispatcher.call_queue)} calls wait, max_queue={self._options.max_queue}"
            dispatcher.on_event("queue_full", None, words)
            raise QueueFull(f"{self.name}: {words}; raise it or use on_full='wait'")
        extras = self._extras(trip)
        if not call.has_room or pickling.has_large(args) or (kwargs and pickling.has_large(kwargs.values())):
            pack = functools.partial(pickling.encode_call, function, args, kwargs, extras, by_value=self._by_value)
            dispatcher.preparing += 1
            task = loop.create_task(self._prepare(dispatcher, call, pack, args, kwargs))
            task.add_done_callback(functools.partial(self._never_began, dispatcher, call))
            return task
        began = time.perf_counter()
        try:
            call.payload = pickling.encode_call(function, args, kwargs, extras, by_value=self._by_value)
        except BaseException as exc:
            dispatcher.room.give()
            if isinstance(exc, NotPicklable):
                raise blame(function, args, kwargs, exc) from exc.__cause__
            raise
        finally:
            self._held(call)(time.perf_counter() - began)
        dispatcher.accept(call)
        return call.future

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Cancel a call; its worker is killed if it has begun."""
        future.cancel()

    async def _prepare(
        self,
        dispatcher: Dispatcher,
        call: Call,
        pack: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Wait for room, pickle a call in slices, and await its result."""
        try:
            if not call.has_room:
                await dispatcher.room.wait()
                call.has_room = True
            held = self._held(call)
            began = time.perf_counter()
            packed = pack()
            held(time.perf_counter() - began)
            call.payload = packed if isinstance(packed, pickling.Payload) else await in_turns(packed, held)
            if self._closing:
                raise PoolClosed(f"{self.name} was closed")
        except BaseException as exc:  # noqa: BLE001 - raised again below
            error = blame(call.function, args, kwargs, exc) if isinstance(exc, NotPicklable) else exc
            try:
                self._not_prepared(dispatcher, call, error)
                if error is exc:
                    raise
                raise error from exc.__cause__
            finally:
                del error  # it refers to this frame
        call.is_prepared = True
        dispatcher.preparing -= 1
        dispatcher.accept(call)
        return await call.future

    def _never_began(self, dispatcher: Dispatcher, call: Call, task: asyncio.Task[Any]) -> None:
        """Clean up after a task that was cancelled before its first step, which runs none of its code."""
        if task.cancelled():
            self._not_prepared(dispatcher, call, asyncio.CancelledError())

    def _not_prepared(self, dispatcher: Dispatcher, call: Call, error: BaseException) -> None:
        if call.is_prepared:
            return
        call.is_prepared = True
        call.end_trip(error)
        if call.has_room:
            dispatcher.room.give()
        dispatcher.preparing -= 1
        dispatcher.dispatch()

    def _held(self, call: Call) -> Callable[[float], None]:
        """Return the callback for the seconds that pickling ``call`` blocked the loop."""
        return self._stats.encoded if call.trip is None else call.trip.encoding(self._stats.encoded)

    def _extras(self, trip: tracing.Trip | None) -> tuple[list[tuple[str, str, Any]], Any] | None:
        """Return the context variables to pass, with their values, and the trace context; None without either."""
        if trip is None and not self._options.context:
            return None
        variables = [
            (each.module, each.name, each.variable.get())
            for each in self._options.context
            if each.variable.get(_UNSET) is not _UNSET
        ]
        return variables, None if trip is None else trip.carrier

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
        options = changed(options, {"on_full": "wait"})  # the loop below submits too fast, not the caller
        items = zip(*iterables, strict=False)
        pending: deque[asyncio.Future[Any]] = deque()
        try:
            while True:
                for args in itertools.islice(items, max(most - len(pending), 0)):
                    self._stats.spent.calls += 1
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

    # -- lifetime -------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it accepts no more calls."""
        return self._closing

    def _opened(self) -> Dispatcher:
        """Return the dispatcher, which is made on first use and belongs to the loop of that use."""
        loop = self._loop
        if self._dispatcher is not None and asyncio._get_running_loop() is loop:
            return self._dispatcher
        if self._closing:
            raise PoolClosed(f"{self.name} is closed")
        if loop is None:
            return self._open(asyncio.get_running_loop())
        if loop.is_closed():
            self.abandon()
            raise PoolClosed(f"the loop of {self.name} is closed: use a pool within one run of a loop")
        raise PoolClosed(f"{self.name} belongs to another event loop: use a pool of its own in each")

    def _open(self, loop: asyncio.AbstractEventLoop) -> Dispatcher:
        worker.refuse_while_preparing()
        if os.name == "nt":
            raise OffloadError("WorkerPool needs Unix sockets between processes: on Windows use @offload(to='thread')")
        self._loop = loop
        self._by_value = not launch.main_is_importable()
        self._dispatcher = Dispatcher(self._options, self._stats, loop, self)
        living(WorkerPool).add(self)
        if settings.opened is not None:
            settings.opened(self)
        self._dispatcher.supervisor.start_missing()
        return self._dispatcher

    async def ready(self) -> None:
        """Wait until a worker can take calls.

        Raises:
            OffloadError: no worker could be started, with the worker's traceback as its cause.
        """
        dispatcher = self._opened()
        if self._closing:
            raise PoolClosed(f"{self.name} is closed")
        await dispatcher.ready()

    async def drain(self) -> None:
        """Wait until no call waits or runs."""
        dispatcher = self._opened()
        dispatcher.dispatch()
        await dispatcher.quiet.wait()

    async def close(self, *, force: bool = False) -> None:
        """Accept no more calls, wait for the accepted ones, and end the workers; a second call does nothing.

        Args:
            force: do not wait: waiting and running calls fail with :class:`PoolClosed`, and their workers are killed.
        """
        if self._closed or self._loop is None or self._loop.is_closed():
            self.abandon()
            return
        dispatcher = self._opened()
        self._closing = True
        dispatcher.room.refuse(PoolClosed(f"{self.name} was closed"))
        dispatcher.supervisor.leave()
        if not force:
            dispatcher.dispatch()
            await dispatcher.quiet.wait()
        dispatcher.refuse_all()
        try:
            await dispatcher.supervisor.end()
        finally:
            self._shut()

    def _shut(self) -> None:
        self._closed = self._closing = True
        living(WorkerPool).discard(self)
        if self._dispatcher is not None:
            self._dispatcher.shut()

    def abandon(self) -> None:
        """Release everything without the loop; the kernel kills the workers."""
        self._shut()
        if self._dispatcher is not None:
            if self._dispatcher.supervisor.owns_loop():
                self._dispatcher.refuse_all()
            else:
                self._dispatcher.end_trips()
            self._dispatcher.supervisor.abandon()

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
        """Return the pool's statistics; callable from any thread."""
        return self.reading().stats

    def reading(self) -> PoolReading:
        """Return the statistics, and how long calls waited and ran; callable from any thread."""
        common: dict[str, Any] = {"max_workers": self._options.most, "created_at": self._place, "closed": self._closing}
        found = self._dispatcher
        if found is None:
            return self._stats.reading(self.name, **common)
        return self._stats.reading(
            self.name,
            found.supervisor.connections,
            found.supervisor.alive,
            queued=len(found.call_queue),
            decoding=len(found.results),
            **common,
        )


_UNSET: Any = object()


def open_pools() -> list[WorkerPool]:
    """Return the pools of this process that have been used and not closed."""
    return list(living(WorkerPool))


def _abandon_all() -> None:
    for pool in list(living(WorkerPool)):
        with contextlib.suppress(Exception):
            pool.abandon()


atexit.register(_abandon_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)

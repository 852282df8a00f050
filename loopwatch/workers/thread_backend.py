"""Threads for functions that wait, or whose C code releases the GIL: the same queue and options as the worker pool.

A thread cannot be killed: a call that times out or is cancelled goes on in its thread, without effect; only a coroutine
is cancelled there. Such a thread takes no further call and does not count: another is started in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import os
import queue
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from loopwatch.core import log
from loopwatch.core.histogram import Histogram
from loopwatch.core.originals import time
from loopwatch.core.process_state import living
from loopwatch.errors import OffloadError, PoolClosed, QueueFull, TaskTimeout
from loopwatch.events import PoolStats
from loopwatch.workers import tracing
from loopwatch.workers.call import Call, Outcome
from loopwatch.workers.call_queue import NOWHERE, CallQueue, Room, check_call
from loopwatch.workers.options import CallOptions, check_count, usable_cpus
from loopwatch.workers.totals import CallTotals, totals_of
from loopwatch.workers.worker import undecorated

IDLE_FOR = 10.0
"""Seconds after which an idle thread ends."""
MOST_LEFT = 100
"""Threads that may still run calls that were given up; with more, none is started in place of another."""


class ThreadCall(Call):
    """A call in a thread; everything but its future and its timer is changed under the backend's lock only."""

    __slots__ = ("ended", "loop", "over", "sent", "spent", "thread")

    def __init__(
        self, function: Any, options: CallOptions, loop: asyncio.AbstractEventLoop, sent: Any, spent: CallTotals
    ) -> None:
        super().__init__(function, options, Outcome(loop=loop))
        self.loop, self.spent = loop, spent
        self.sent = sent
        """The call as :meth:`ThreadBackend._pack` has packed it for its thread."""
        self.thread: _Thread | None = None
        self.ended: float | None = None
        """When its run ended, by the clock of ``begun``."""
        self.over = False
        """Whether it has ended, or its result is not wanted any more."""

    def settle(self, result: Any, error: BaseException | None, *, even_if_unheard: bool = False) -> None:
        """Set the future, on its loop's thread; if that loop is closed, nothing waits."""
        if asyncio._get_running_loop() is self.loop:
            self._settle(result, error, even_if_unheard)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._settle, result, error, even_if_unheard)

    def _settle(self, result: Any, error: BaseException | None, even_if_unheard: bool) -> None:
        self.stop_clock()
        if self.ended is not None:
            self.spent.trip += time.perf_counter() - self.ended
        if self.future.done():
            return
        if self.trip is not None and self.begun is not None and self.ended is not None:
            self.trip.ran(int(self.begun * 1e9), int((self.ended - self.begun) * 1e9), None)
        self.end_trip(error)
        if error is None:
            self.future.set_result(result)
            return
        self.future.set_exception(error)
        if even_if_unheard:
            self.future.exception()  # mark it as retrieved: the caller may never run again


class Errand:
    """A call as a thread runs it: in the context of its caller, a coroutine to its end on a loop of the thread."""

    __slots__ = ("_args", "_function", "_kwargs", "_loop", "_stopped", "_task", "context")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self.context = contextvars.copy_context()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def run(self) -> Any:
        """Run the call in this thread."""
        return self.context.run(self._run)

    def _run(self) -> Any:
        result = self._function(*self._args, **self._kwargs)
        if not inspect.iscoroutine(result):
            return result
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            return runner.run(self._finish(result))

    async def _finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        self._task = asyncio.current_task()
        if self._stopped:
            self._cancel()
        return await coroutine

    def stop(self) -> None:
        """Cancel it if it is a coroutine; callable from any thread."""
        self._stopped = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended
                self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _Thread(threading.Thread):
    """A thread, the call that it runs, and the inbox for its next call; None there ends it."""

    def __init__(self, work: Callable[[_Thread], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.inbox: queue.SimpleQueue[ThreadCall | None] = queue.SimpleQueue()
        self.call: ThreadCall | None = None
        self.since = time.perf_counter()

    def run(self) -> None:
        """Run the calls of the inbox."""
        self._work(self)


def in_own_thread() -> bool:
    """Whether this thread belongs to a backend: a call to a thread runs inline here, or all threads might wait."""
    return isinstance(threading.current_thread(), _Thread)


class ThreadBackend:
    """Runs calls in its own threads; usable from the loops of any threads, several at once too.

    Context variables are copied into the thread. A coroutine function runs on a loop there, and is cancelled there when
    its call is given up. ``retries`` have no effect: a thread does not die. With ``max_concurrency``, a call that timed
    out or was cancelled counts until it has really ended: the limit always holds.

    Args:
        threads: at most; None for the usable processors and four more, 32 at most.
        max_queue: calls that may wait for a thread; None for no limit.
        name: in statistics and thread names.

    Raises:
        ConfigError: a value that cannot be used.

    Example:
        >>> from loopwatch import offload
        >>> @offload(to=ThreadBackend(threads=4, name="disk"))
        ... def read(path): return open(path).read()
    """

    _idle_for = IDLE_FOR

    def __init__(self, threads: int | None = None, *, max_queue: int | None = None, name: str = "threads") -> None:
        for what, value in (("threads", threads), ("max_queue", max_queue)):
            if value is not None:
                check_count(what, value, 1, "8")
        self.name = name
        self._most = threads or min(32, usable_cpus() + 4)
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._call_queue, self._room = CallQueue(), Room(max_queue)
        self._outside: OrderedDict[ThreadCall, None] = OrderedDict()
        """Calls that wait for room, in order of arrival."""
        self._supervisor: set[_Thread] = set()
        """Threads that count as workers."""
        self._left: set[_Thread] = set()
        """Threads whose calls were given up, and which do not count."""
        self._idle: list[_Thread] = []
        self._closed = False
        self._closers: list[asyncio.Future[None]] = []
        self._counts: Counter[str] = Counter()
        self._waits, self._runs = Histogram(), Histogram()
        self._busy = self._lived = 0.0
        self._totals = totals_of(self, "thread")
        living(ThreadBackend).add(self)

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Submit a call: see :class:`~loopwatch.workers.backend.Backend`.

        Raises:
            QueueFull, PoolClosed: the call was not accepted.
        """
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
        check_call(function, options)
        if self._closed:
            raise PoolClosed(f"{self.name} is closed")
        sent = self._pack(function, args, kwargs, trip)
        call = ThreadCall(function, options, asyncio.get_running_loop(), sent, self._totals)
        call.trip = trip
        with self._lock:
            if self._closed:
                raise PoolClosed(f"{self.name} is closed")
            call.has_room = self._room.take()
            if call.has_room or (self._has_free() and not self._call_queue.is_at_limit(call)):
                self._accept(call)
                self._dispatch()
            elif options.on_full == "wait":
                self._outside[call] = None
            else:
                words = f"{len(self._call_queue)} calls wait, max_queue={self._max_queue}"
                raise QueueFull(f"{self.name}: {words}; raise it or use on_full='wait'")
        call.future.add_done_callback(functools.partial(self._given_up, call))
        return call.future

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Cancel a call: one that has begun goes on in its thread, without effect."""
        future.cancel()

    # -- how a thread runs a call: overridden by other backends ---------------------------------------------------

    def _pack(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], trip: tracing.Trip | None
    ) -> Any:
        """Return a call in the form that its thread runs; called in the thread that submits it."""
        errand = Errand(undecorated(function), args, kwargs)
        if trip is not None:
            trip.enter(errand.context)
        return errand

    @contextlib.contextmanager
    def _place(self) -> Iterator[Callable[[Any], Any]]:
        """Context manager of one thread, from its first call to its end; yields the function that runs its calls."""
        yield Errand.run

    def _stop(self, sent: Any) -> None:
        """Stop a call that runs in a thread, if that is possible."""
        if isinstance(sent, Errand):
            sent.stop()

    # -- scheduling; under the lock -------------------------------------------------------------------------------

    def _has_free(self) -> bool:
        return bool(self._idle) or (len(self._supervisor) < self._most and len(self._left) < MOST_LEFT)

    def _accept(self, call: ThreadCall) -> None:
        self._counts["submitted"] += 1
        self._call_queue.add(call)

    def _give_room(self, call: ThreadCall) -> None:
        """Free the call's queue slot, if it has one; calls that wait for room get it."""
        if call.has_room:
            call.has_room = False
            self._room.give()
        while self._outside and self._room.take():
            waiting, _ = self._outside.popitem(last=False)
            waiting.has_room = True
            self._accept(waiting)

    def _dispatch(self) -> None:
        """Assign calls to free threads, and end idle threads that will never get another."""
        while self._call_queue.in_line and self._has_free():
            call = self._call_queue.next()
            if not isinstance(call, ThreadCall):
                break
            thread = self._idle.pop() if self._idle else _Thread(self._work, f"loopwatch-{self.name}")
            thread.call, call.thread = call, thread
            thread.inbox.put(call)
            if thread not in self._supervisor and not self._start(thread, call):
                break
            self._give_room(call)
        if self._closed:
            while self._idle:
                self._idle.pop().inbox.put(None)

    def _start(self, thread: _Thread, call: ThreadCall) -> bool:
        """Start a thread; if the system has none to give, leave ``call`` to the others, or fail waiting calls."""
        try:
            thread.start()
        except RuntimeError as exc:  # RLIMIT_NPROC is reached, or the interpreter is about to end
            self._call_queue.ended(call)
            call.thread = None
            self._call_queue.add(call, first=True)
            while not self._supervisor and (waiting := self._call_queue.clear()):  # calls that wait for room come next
                self._refuse(OffloadError(f"{self.name}: no thread could be started: {exc}"), waiting)
            return False
        self._supervisor.add(thread)
        self._counts["started"] += 1
        return True

    def _refuse(self, error: OffloadError, calls: list[Any]) -> None:
        """Fail calls that were taken out of the queue."""
        for call in calls:
            call.over = True
            call.sent = None
            self._counts["failed"] += 1
            call.settle(None, type(error)(*error.args), even_if_unheard=True)
            self._give_room(call)

    def _leave(self, call: ThreadCall) -> bool:
        """Give up a call; return whether it was not over by itself."""
        if call.over:
            return False
        call.over = True
        thread = call.thread
        if thread is not None:
            if call.begun is not None:
                self._busy += time.perf_counter() - call.begun
            self._stop(call.sent)
            self._left.add(thread)
            self._off(thread)
        elif call.waits != NOWHERE:
            call.sent = None
            self._call_queue.discard(call)
            self._give_room(call)
        return True

    def _off(self, thread: _Thread) -> None:
        """Stop counting a thread as a worker."""
        if thread not in self._supervisor:
            return
        self._supervisor.discard(thread)
        self._lived += time.perf_counter() - thread.since
        self._dispatch()
        if not self._supervisor:
            for closer in self._closers:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    closer.get_loop().call_soon_threadsafe(_wake, closer)
            self._closers.clear()

    # -- in the threads -------------------------------------------------------------------------------------------

    def _work(self, thread: _Thread) -> None:
        try:
            with contextlib.ExitStack() as stack:
                run: Callable[[Any], Any] | None = None
                while (call := self._await_call(thread)) is not None:
                    result, error = None, None
                    try:
                        if run is None:
                            run = stack.enter_context(self._place())
                        if not call.over:
                            self._begin(call)
                            result = run(call.sent)
                    except BaseException as exc:  # noqa: BLE001 - raised by the call
                        error = for_a_future(exc)
                    if not self._end(thread, call, result, error):
                        return
                    del call, result, error
        except Exception as exc:  # noqa: BLE001 - code of the program
            log.write(
                logging.ERROR, "loopwatch: a thread of %s could not put away what it ran its calls with", self.name,
                error=exc,
            )  # fmt: skip
        finally:
            with self._lock:
                was_left = thread in self._left
                self._left.discard(thread)
                self._off(thread)
                if was_left:
                    self._dispatch()

    def _await_call(self, thread: _Thread) -> ThreadCall | None:
        """Return the next call; None to end the thread."""
        while True:
            try:
                return thread.inbox.get(timeout=self._idle_for)
            except queue.Empty:
                with self._lock:
                    if thread in self._idle:
                        self._idle.remove(thread)
                        return None

    def _begin(self, call: ThreadCall) -> None:
        """Record when the call begins, and start its timeout."""
        call.begun = time.perf_counter()
        if call.options.timeout is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nothing waits
                call.loop.call_soon_threadsafe(self._watch_time, call)

    def _end(self, thread: _Thread, call: ThreadCall, result: Any, error: BaseException | None) -> bool:
        """Record the end of a call; return whether the thread may go on."""
        with self._lock:
            call.sent = None
            self._call_queue.ended(call)
            goes_on = not call.over
            if goes_on:
                call.over, thread.call = True, None
                call.ended = time.perf_counter()
                if call.begun is not None:
                    seconds = call.ended - call.begun
                    self._busy += seconds
                    self._runs.record(seconds)
                    self._waits.record(call.begun - call.created)
                    self._totals.run += seconds
                    self._totals.trip += call.begun - call.created
                self._counts["completed" if error is None else "failed"] += 1
                self._idle.append(thread)
            self._dispatch()
        if goes_on:
            call.settle(result, error)
        return goes_on

    # -- on the caller's loop -------------------------------------------------------------------------------------

    def _watch_time(self, call: ThreadCall) -> None:
        if not call.over and call.begun is not None and call.options.timeout is not None:
            left = call.begun + call.options.timeout - time.perf_counter()
            call.timer = call.loop.call_later(max(left, 0.0), self._timed_out, call)

    def _timed_out(self, call: ThreadCall) -> None:
        call.timer = None
        if call.future.done():
            return
        with self._lock:
            if not self._leave(call):
                return  # it has just ended by itself
            self._counts["timed_out"] += 1
            self._counts["failed"] += 1
        words = f"{call.name} ran longer than {call.options.timeout:g} s"
        error = TaskTimeout(f"{words}; a thread cannot be stopped, a plain function goes on")
        call.end_trip(error)
        call.future.set_exception(error)

    def _given_up(self, call: ThreadCall, future: asyncio.Future[Any]) -> None:
        call.stop_clock()
        if not future.cancelled():
            return
        call.end_trip(asyncio.CancelledError())
        with self._lock:
            if call in self._outside:
                del self._outside[call]
                call.sent = None
            elif self._leave(call):
                self._counts["cancelled"] += 1

    # -- lifetime -------------------------------------------------------------------------------------------------

    async def close(self, *, force: bool = False) -> None:
        """Accept no more calls, wait for the accepted ones, and end the threads; a second call does nothing new.

        Calls that wait for room fail with :class:`PoolClosed`.

        Args:
            force: do not wait: waiting and running calls fail with :class:`PoolClosed`; running ones go on in their
                threads.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        error = PoolClosed(f"{self.name} was closed")
        with self._lock:
            self._closed = True
            for call in self._outside:
                call.settle(None, PoolClosed(*error.args), even_if_unheard=True)
            self._outside.clear()
            if force:
                self._refuse(error, self._call_queue.clear())
                for running in [thread.call for thread in self._supervisor]:
                    if running is not None and self._leave(running):
                        self._counts["failed"] += 1
                        running.settle(None, PoolClosed(*error.args), even_if_unheard=True)
            self._dispatch()
            if not self._supervisor:  # all allowed threads still run calls that were given up
                self._refuse(error, self._call_queue.clear())
            if self._supervisor:
                self._closers.append(ended)
            else:
                ended.set_result(None)
        await ended

    def dismiss(self) -> list[threading.Thread]:
        """Accept no more calls; return the idle threads, which are about to end."""
        with self._lock:
            self._closed = True
            idle: list[threading.Thread] = [*self._idle]
            self._dispatch()
        return idle

    def forget(self) -> None:
        """Reset in a forked child, which has none of the threads."""
        self._lock = threading.Lock()
        self._closed = True
        self._call_queue = CallQueue()
        self._supervisor.clear()
        for kept in (self._outside, self._left, self._idle, self._closers):
            kept.clear()

    def stats(self) -> PoolStats:
        """Return the statistics; ``started`` counts threads; timed-out and cancelled calls do not count as running."""
        with self._lock:
            now = time.perf_counter()
            running = [thread.call for thread in self._supervisor if thread.call is not None]
            busy = self._busy + sum(now - call.begun for call in running if call.begun is not None)
            lived = self._lived + sum(now - thread.since for thread in self._supervisor)
            return PoolStats(
                name=self.name,
                queued=len(self._call_queue),
                running=len(running),
                submitted=self._counts["submitted"],
                completed=self._counts["completed"],
                failed=self._counts["failed"],
                cancelled=self._counts["cancelled"],
                timed_out=self._counts["timed_out"],
                started=self._counts["started"],
                wait=self._waits.stats() if self._waits.count else None,
                run=self._runs.stats() if self._runs.count else None,
                utilization=min(busy / lived, 1.0) if lived > 0 else 0.0,
            )


def _forget_all() -> None:
    for backend in list(living(ThreadBackend)):
        backend.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _wake(closer: asyncio.Future[None]) -> None:
    if not closer.done():
        closer.set_result(None)


def for_a_future(exc: BaseException) -> BaseException:
    """Return an exception that a future may get: one that would end the program or confuse its loop is wrapped."""
    if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        return exc
    error = OffloadError(f"the call raised {type(exc).__qualname__}: {exc}")
    error.__cause__ = exc
    return error

"""Threads for functions that wait, or whose C code gives up the GIL: the same queue and options as the worker pool.

A thread cannot be killed: a call that times out goes on in its thread, which takes no further call when it ends and is
replaced meanwhile. Any loop of any thread may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import inspect
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from loopwatch.errors import OffloadError, PoolClosed, QueueFull, TaskTimeout
from loopwatch.events import PoolStats
from loopwatch.probes.histogram import Histogram
from loopwatch.workers.options import CallOptions, check_count, usable_cpus

IDLE_FOR = 10.0
"""s after which a thread with nothing to do ends."""


class _Call:
    """One call; ``state`` is changed under the backend's lock only."""

    __slots__ = (
        "abandoned", "args", "begun", "context", "created", "function", "future", "kwargs", "loop", "options", "timer",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any, options: CallOptions) -> None:
        self.function, self.args, self.kwargs, self.options = function, args, kwargs, options
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.context = contextvars.copy_context()
        self.created = time.perf_counter()
        self.begun: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.abandoned = False


class ThreadBackend:
    """Runs calls in threads of its own.

    Args:
        threads: at most; None for the usable processors and four more, 32 at most.
        max_queue: calls that may wait; None for no limit.
        name: for figures and thread names.
    """

    def __init__(self, threads: int | None = None, *, max_queue: int | None = None, name: str = "threads") -> None:
        for what, value in (("threads", threads), ("max_queue", max_queue)):
            if value is not None:
                check_count(what, value, 1, "8")
        self.name = name
        self._most = threads or min(32, usable_cpus() + 4)
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._queue: list[tuple[int, int, _Call]] = []
        self._order = itertools.count()
        self._parked: dict[Any, deque[_Call]] = {}
        self._running_of: Counter[Any] = Counter()
        self._threads: set[threading.Thread] = set()
        self._waiting = 0
        self._stuck = 0
        self._running = 0
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._wait, self._run_times = Histogram(), Histogram()
        self._busy, self._made = 0.0, time.monotonic()

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Begin a call: see :class:`~loopwatch.workers.backend.Backend`.

        Raises:
            QueueFull, PoolClosed: it was not taken.
        """
        call = _Call(function, args, kwargs, options)
        with self._changed:
            if self._closed:
                raise PoolClosed(f"{self.name} is closed")
            if self._max_queue is not None and self._queued >= self._max_queue and not self._waiting:
                raise QueueFull(f"{self.name}: {self._queued} calls wait, max_queue={self._max_queue}")
            self._counts["submitted"] += 1
            heapq.heappush(self._queue, (-options.priority, next(self._order), call))
            if not self._waiting and len(self._threads) - self._stuck < self._most:
                thread = threading.Thread(target=self._work, name=f"loopwatch-{self.name}", daemon=True)
                self._threads.add(thread)
                self._counts["started"] += 1
                thread.start()
            self._changed.notify()
        call.future.add_done_callback(lambda future: self._given_up(call) if future.cancelled() else None)
        return call.future

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Give up a call: one that has begun goes on in its thread, without effect on anybody."""
        future.cancel()

    @property
    def _queued(self) -> int:
        return len(self._queue) + sum(map(len, self._parked.values()))

    # -- in the threads -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        thread = threading.current_thread()
        try:
            while (call := self._take()) is not None:
                try:
                    result, error = call.context.run(_run, call.function, call.args, call.kwargs), None
                except BaseException as exc:  # noqa: BLE001 - it is the call's
                    result, error = None, _for_a_future(exc)
                if self._finish(call, result, error):
                    return
                del call, result, error
        finally:
            with self._changed:
                self._threads.discard(thread)
                self._changed.notify_all()

    def _take(self) -> _Call | None:
        """Wait for a call that may run; return None to end the thread."""
        with self._changed:
            while True:
                call = self._next()
                if call is not None:
                    call.begun = time.perf_counter()
                    self._wait.record(call.begun - call.created)
                    self._running += 1
                    self._running_of[call.function] += 1
                    if call.options.timeout is not None:
                        with contextlib.suppress(RuntimeError):
                            call.loop.call_soon_threadsafe(self._watch_time, call)
                    return call
                if self._closed:
                    return None
                self._waiting += 1
                came = self._changed.wait(IDLE_FOR)
                self._waiting -= 1
                if not came and not self._queue:
                    return None

    def _next(self) -> _Call | None:
        while self._queue:
            call = heapq.heappop(self._queue)[2]
            if call.future.done():
                continue
            limit = call.options.max_concurrency
            if limit is None or self._running_of[call.function] < limit:
                return call
            self._parked.setdefault(call.function, deque()).append(call)
        return None

    def _finish(self, call: _Call, result: Any, error: BaseException | None) -> bool:
        """Tell the loop; return whether this thread was given up and ends."""
        with self._changed:
            assert call.begun is not None
            seconds = time.perf_counter() - call.begun
            self._busy += seconds
            self._run_times.record(seconds)
            self._running -= 1
            self._running_of[call.function] -= 1
            if not self._running_of[call.function]:
                del self._running_of[call.function]
            parked = self._parked.get(call.function)
            if parked:
                waiting = parked.popleft()
                heapq.heappush(self._queue, (-waiting.options.priority, -next(self._order), waiting))
                if not parked:
                    del self._parked[call.function]
                self._changed.notify()
            self._stuck -= call.abandoned
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
            call.loop.call_soon_threadsafe(self._tell, call, result, error)
        return call.abandoned

    # -- on the caller's loop -------------------------------------------------------------------------------------

    def _watch_time(self, call: _Call) -> None:
        if not call.future.done() and call.begun is not None and call.options.timeout is not None:
            left = call.begun + call.options.timeout - time.perf_counter()
            call.timer = call.loop.call_later(max(left, 0.0), self._timed_out, call)

    def _timed_out(self, call: _Call) -> None:
        if call.future.done():
            return
        self._counts["timed_out"] += 1
        self._counts["failed"] += 1
        self._leave(call)
        name = getattr(call.function, "__qualname__", call.function)
        call.future.set_exception(
            TaskTimeout(f"{name} ran longer than {call.options.timeout:g} s; a thread cannot be stopped, it goes on")
        )

    def _given_up(self, call: _Call) -> None:
        self._counts["cancelled"] += 1
        self._leave(call)

    def _leave(self, call: _Call) -> None:
        """Nobody waits for the call any more: its thread, if it has begun, does not count."""
        if call.timer is not None:
            call.timer.cancel()
        with self._changed:
            if call.begun is not None and not call.abandoned:
                call.abandoned = True
                self._stuck += 1
            self._changed.notify()

    def _tell(self, call: _Call, result: Any, error: BaseException | None) -> None:
        if call.timer is not None:
            call.timer.cancel()
        if call.future.done():
            return
        self._counts["failed" if error is not None else "completed"] += 1
        if error is not None:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)

    # -- the backend ----------------------------------------------------------------------------------------------

    async def close(self, *, force: bool = False) -> None:
        """Take no more calls; wait for those that were taken, unless ``force``: then those that wait fail."""
        with self._changed:
            self._closed = True
            refused = []
            if force:
                refused = [call for _, _, call in self._queue]
                refused += [call for parked in self._parked.values() for call in parked]
                self._queue.clear()
                self._parked.clear()
            self._changed.notify_all()
        for call in refused:
            with contextlib.suppress(RuntimeError):
                call.loop.call_soon_threadsafe(self._tell, call, None, PoolClosed(f"{self.name} was closed"))
        while not force and len(self._threads) > self._stuck:
            await asyncio.sleep(0.001)

    def stats(self) -> PoolStats:
        """Return the figures; ``started`` counts threads."""
        with self._changed:
            seconds = (time.monotonic() - self._made) * self._most
            return PoolStats(
                name=self.name,
                queued=self._queued,
                running=self._running,
                submitted=self._counts["submitted"],
                completed=self._counts["completed"],
                failed=self._counts["failed"],
                cancelled=self._counts["cancelled"],
                timed_out=self._counts["timed_out"],
                started=self._counts["started"],
                wait=self._wait.stats() if self._wait.count else None,
                run=self._run_times.stats() if self._run_times.count else None,
                utilization=min(self._busy / seconds, 1.0),
            )


def _run(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call; a coroutine is run to its end on a loop of this thread."""
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        with asyncio.Runner() as runner:
            return runner.run(result)
    return result


def _for_a_future(exc: BaseException) -> BaseException:
    """Return what a future may be given: what would end the program or confuse its loop is put into words."""
    if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        return exc
    error = OffloadError(f"the call raised {type(exc).__qualname__}: {exc}")
    error.__cause__ = exc
    return error

"""Every backend does what :class:`loopwatch.Backend` says, one that a user has written too."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loopwatch import Backend, OffloadError, PoolClosed, PoolStats, WorkerPool
from loopwatch.workers.interpreters import InterpreterBackend
from loopwatch.workers.options import CallOptions
from loopwatch.workers.thread_backend import ThreadBackend
from tests.workers.backend_conformance import Conformance, gate
from tests.workers.test_interpreters import library, needs_interpreters

__all__ = ["gate", "library"]


class TestWorkerPool(Conformance):
    """Worker processes."""

    def make(self, max_queue: int | None = None) -> Backend:
        return WorkerPool(workers=1, max_queue=max_queue)


class _Threaded(Conformance):
    """What runs goes on in its thread when it is given up."""

    async def strays_end(self, backend: Backend) -> None:
        threads = {thread for thread in threading.enumerate() if thread.name == f"loopwatch-{backend.name}"}
        await backend.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()


class TestThreadBackend(_Threaded):
    """Threads."""

    pickles = False

    def make(self, max_queue: int | None = None) -> Backend:
        return ThreadBackend(1, max_queue=max_queue)


@needs_interpreters
@pytest.mark.usefixtures("library")
class TestInterpreterBackend(_Threaded):
    """Interpreters of their own."""

    def make(self, max_queue: int | None = None) -> Backend:
        return InterpreterBackend(1, max_queue=max_queue)


class Executed:
    """A user's own: one thread of an executor; options mean nothing, coroutines run there."""

    name = "executor"

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1)
        self.counts: Counter[str] = Counter()
        self.running = 0
        self.closed = False

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        if self.closed:
            raise PoolClosed(f"{self.name} is closed")
        self.counts["submitted"] += 1
        future = asyncio.get_running_loop().run_in_executor(self.executor, self._run, function, args, kwargs)
        future.add_done_callback(self._count)
        return future

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.running += 1
        try:
            result = function(*args, **kwargs)
            return asyncio.run(result) if asyncio.iscoroutine(result) else result
        except (SystemExit, KeyboardInterrupt, StopIteration) as exc:
            raise OffloadError(f"the call raised {type(exc).__name__}") from exc
        finally:
            self.running -= 1

    def _count(self, future: asyncio.Future[Any]) -> None:
        kind = "cancelled" if future.cancelled() else "failed" if future.exception() is not None else "completed"
        self.counts[kind] += 1

    def cancel(self, future: asyncio.Future[Any]) -> None:
        future.cancel()

    async def close(self, *, force: bool = False) -> None:
        self.closed = True
        await asyncio.to_thread(self.executor.shutdown, cancel_futures=force)

    def stats(self) -> PoolStats:
        over = sum(self.counts[kind] for kind in ("completed", "failed", "cancelled"))
        queued = self.counts["submitted"] - over - self.running
        return PoolStats(self.name, queued=queued, running=self.running, **self.counts)


class TestOwn(Conformance):
    """What a user has written in a few lines."""

    pickles = knows_options = unwraps = False

    def make(self, max_queue: int | None = None) -> Backend:
        return Executed()

"""An offload backend of your own: one thread of an executor. Any engine works like this: Ray, Dask, a GPU server.

python examples/own_backend.py
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import loopwatch
from loopwatch import CallOptions, OffloadError, PoolClosed, PoolStats


class OneThread:
    """A :class:`loopwatch.Backend` without time-outs and priorities; coroutine functions run in the thread."""

    name = "one-thread"

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._counts: Counter[str] = Counter()
        self._running = 0
        self._closed = False

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Submit a call; ``options`` are those of ``@offload``, most of which have no effect here."""
        if options.timeout is not None:
            raise loopwatch.ConfigError(f"timeout={options.timeout!r}: {self.name} cannot end a call")
        if self._closed:
            raise PoolClosed(f"{self.name} is closed")
        self._counts["submitted"] += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._run, function, args, kwargs)
        future.add_done_callback(self._count)
        return future

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._running += 1
        try:
            result = function(*args, **kwargs)
            return asyncio.run(result) if asyncio.iscoroutine(result) else result
        except (SystemExit, KeyboardInterrupt, StopIteration) as exc:  # these would end the program or its loop
            raise OffloadError(f"the call raised {type(exc).__name__}") from exc
        finally:
            self._running -= 1

    def _count(self, future: asyncio.Future[Any]) -> None:
        kind = "cancelled" if future.cancelled() else "failed" if future.exception() is not None else "completed"
        self._counts[kind] += 1

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Cancel a waiting call; a running one goes on."""
        future.cancel()

    async def close(self, *, force: bool = False) -> None:
        """End after the accepted calls; with ``force``, cancel the waiting ones."""
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=force)

    def stats(self) -> PoolStats:
        """Return the numbers of waiting, running and finished calls."""
        over = sum(self._counts[kind] for kind in ("completed", "failed", "cancelled"))
        queued = self._counts["submitted"] - over - self._running
        return PoolStats(self.name, queued=queued, running=self._running, **self._counts)


async def main() -> None:
    """Run one function there."""
    backend = OneThread()

    @loopwatch.offload(to=backend)
    def checksum(data: bytes) -> int:
        return sum(data)

    print(await checksum(b"abc"), backend.stats().completed)
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main())

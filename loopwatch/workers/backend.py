"""The ``Backend`` protocol: the interface of any engine that runs offloaded calls: a pool, threads, a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from loopwatch.events import PoolStats
from loopwatch.workers.options import CallOptions


@runtime_checkable
class Backend(Protocol):
    """Runs calls elsewhere; an instance is passed to ``@offload(to=...)``.

    What every backend guarantees, be it threads or a cluster:

    *It never blocks the loop.* :meth:`submit` starts nothing slow and waits for nothing; connecting, starting and
    waiting for room happen elsewhere while the future is pending. Pickling may happen within it.

    *A future is set once, on its loop's thread.* Other threads pass results on with ``loop.call_soon_threadsafe``; if
    that loop is closed by then (a RuntimeError), nothing waits any more. A future that its caller has cancelled stays
    as it is. A caller that goes away cancels the future: the resources of the call are freed as by :meth:`cancel`,
    without a call of it.

    *The function's own exception reaches the caller*, with the remote traceback as its cause. One that would end the
    program or confuse its loop (``SystemExit``, ``KeyboardInterrupt``, ``StopIteration``) is wrapped in an
    :class:`OffloadError`. The engine's own errors become those of :mod:`loopwatch.errors`: :class:`NotPicklable`, which
    names the object, :class:`QueueFull`, :class:`PoolClosed` (these may be raised by ``submit`` or by the future),
    :class:`WorkerCrashed` where the call may have begun and its end is unknown, :class:`TaskTimeout`,
    :class:`OffloadError` for all others.

    *A call is run once*, unless ``options.retries`` allow more: not again even if a connection was lost.

    *Functions are pickled by name.* ``@offload`` passes a stand-in that pickles by reference and unpickles to the plain
    function. An engine that is given a function made by ``@offload`` runs the plain function: unpickled in a process
    that sets ``loopwatch.workers.worker.here.is_worker``, it runs inline by itself, which also keeps calls of other
    offloaded functions from starting engines there.

    *It keeps its own statistics*: :meth:`stats` counts every accepted call exactly once (``submitted`` is ``queued``,
    ``running``, ``completed``, ``failed`` and ``cancelled`` together). Statistics per function are kept by
    ``@offload``.

    Attributes:
        name: in statistics, decisions and messages.

    Example:
        A backend over any executor, without support for options::

            class Executed:
                name = "executor"

                def __init__(self, executor):
                    self.executor, self.counts = executor, collections.Counter()

                def submit(self, function, args, kwargs, options):
                    self.counts["submitted"] += 1
                    call = functools.partial(function, *args, **kwargs)
                    return asyncio.get_running_loop().run_in_executor(self.executor, call)

                def cancel(self, future):
                    future.cancel()

                async def close(self, *, force=False):
                    await asyncio.to_thread(self.executor.shutdown, cancel_futures=force)

                def stats(self):
                    return loopwatch.PoolStats(self.name, **self.counts)
    """

    name: str

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Submit a call; return a future of the running loop.

        Args:
            function: a plain function, or a coroutine function, which runs to its end on a loop at the destination.
            args, kwargs: its arguments; if they are pickled at all, the caller may change them once this returns.
            options: how the call runs. ``timeout`` counts from when the function begins; ``priority`` orders waiting
                calls, first come, first served within one; ``max_concurrency`` limits the running calls of equal
                functions; ``on_full`` selects whether a full queue raises at once or the future waits for room. An
                engine ignores, and documents, options that it does not support.

        Raises:
            QueueFull, PoolClosed, NotPicklable: the call was not accepted, and is not counted.
        """

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Cancel a call, as ``future.cancel()`` does: a waiting call never runs and frees its queue slot at once.

        A running call is stopped if that is possible, and has no effect otherwise. A future that is done or already
        cancelled is left alone.
        """

    async def close(self, *, force: bool = False) -> None:
        """Accept no more calls; return when the accepted calls are over and their workers are gone.

        May be called again, also concurrently. Calls that wait for room fail with :class:`PoolClosed`; with ``force``,
        so do all waiting and running calls, and nothing that cannot be stopped is waited for.
        """

    def stats(self) -> PoolStats:
        """Return the statistics since creation; callable from any thread, before the first call and after closing."""

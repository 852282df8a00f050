"""The ``Backend`` protocol: the interface of whatever runs offloaded calls, be it a pool, threads or a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from loopwatch.events import PoolStats
from loopwatch.workers.options import CallOptions


@runtime_checkable
class Backend(Protocol):
    """Runs calls somewhere else: give an instance to ``@offload(to=...)``.

    What any engine has to do, be it threads or a cluster:

    *It never holds the loop.* :meth:`submit` starts nothing that takes long and waits for nobody; connecting, starting
    and waiting for room happen elsewhere while the future is pending. Pickling may happen within it.

    *A future is set once, on its loop's thread.* What another thread learns is handed over by
    ``loop.call_soon_threadsafe``; that loop may be closed by then (a RuntimeError), and nobody waits any more. A future
    that its caller has cancelled stays as it is. A caller that goes away cancels the future: what it holds is freed
    as by :meth:`cancel`, without a call of it.

    *What the function raises arrives as itself*, its cause the traceback of where it ran. What would end the program
    or confuse its loop (``SystemExit``, ``KeyboardInterrupt``, ``StopIteration``) is put into an :class:`OffloadError`.
    The engine's own errors become those of :mod:`loopwatch.errors`: :class:`NotPicklable` that names what it is,
    :class:`QueueFull`, :class:`PoolClosed` (these may be raised by ``submit`` or by the future),
    :class:`WorkerCrashed` where the call may have begun and its end is unknown, :class:`TaskTimeout`,
    :class:`OffloadError` for all others.

    *A call is run once*, unless ``options.retries`` allow more: not even if a connection was lost.

    *Functions travel by name.* ``@offload`` passes a stand-in that pickles by reference, and is the plain function
    where it is unpickled. An engine that is given what ``@offload`` has made runs the plain function: unpickled in a
    process that sets ``loopwatch.workers.worker.here.is_worker``, it runs inline by itself, which also keeps calls of
    other offloaded functions from starting engines there.

    *It counts for itself*: :meth:`stats` holds every call that was taken exactly once (``submitted`` is ``queued``,
    ``running``, ``completed``, ``failed`` and ``cancelled`` together). What ``@offload`` shows per function, it counts.

    Attributes:
        name: for figures, decisions and messages.

    Example:
        An engine that knows no options, made of any executor::

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
        """Begin a call; return a future of the running loop.

        Args:
            function: a plain function, or a coroutine function, which runs to its end on a loop over there.
            args, kwargs: its arguments; they are the caller's again when this returns, if they are pickled at all.
            options: how it is to run. ``timeout`` counts from when the function begins; ``priority`` orders what waits,
                first come, first served within one; ``max_concurrency`` limits the calls of equal functions that run;
                ``on_full`` says whether a full queue raises at once or has the future wait for room. What an engine
                does not know it ignores, and documents.

        Raises:
            QueueFull, PoolClosed, NotPicklable: the call was not taken, and is not counted.
        """

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Give up a call, as ``future.cancel()`` does: one that waits never runs and frees its place at once.

        One that runs is stopped if that is possible, and has no effect on anybody otherwise. A future that is done, or
        is cancelled already, is left alone.
        """

    async def close(self, *, force: bool = False) -> None:
        """Take no more calls, and return when those that were taken are over and what ran them is gone.

        May be called again, at the same time too. Calls that wait for room fail with :class:`PoolClosed`; with
        ``force``, so do all that wait or run, and nothing is waited for that cannot be stopped.
        """

    def stats(self) -> PoolStats:
        """Return the figures since it was made; any thread may ask, before the first call and after closing too."""

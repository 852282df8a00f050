"""What runs a call that was offloaded: the one interface that pools, threads and distributed engines share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from loopwatch.events import PoolStats
from loopwatch.workers.options import CallOptions


@runtime_checkable
class Backend(Protocol):
    """Runs calls somewhere else.

    An implementation maps its own errors to those of :mod:`loopwatch.errors`: :class:`WorkerCrashed` where the call may
    have begun, :class:`TaskTimeout`, :class:`QueueFull`, :class:`PoolClosed`, :class:`NotPicklable`. What the function
    raises arrives as itself.

    Attributes:
        name: for figures and decisions.
    """

    name: str

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> asyncio.Future[Any]:
        """Begin a call; return a future of the running loop.

        Args:
            function: a plain function, or a coroutine function.
            args, kwargs: its arguments.
            options: time-out, retries, priority; what an engine does not know it ignores, and documents.
        """

    def cancel(self, future: asyncio.Future[Any]) -> None:
        """Give up a call: free what it holds, at once if that is possible."""

    async def close(self, *, force: bool = False) -> None:
        """Take no more calls; wait for those under way unless ``force``."""

    def stats(self) -> PoolStats:
        """Return the figures."""

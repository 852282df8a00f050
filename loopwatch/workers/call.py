"""One submitted call: its future, pickled message and timer; pickles a large one in slices between loop turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from loopwatch.core.originals import time
from loopwatch.errors import NotPicklable
from loopwatch.workers import pickling
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pickling import Payload

if TYPE_CHECKING:
    from loopwatch.workers.tracing import Trip

TURN = 0.001
"""Seconds of one loop turn in which one call is pickled or unpickled."""


class Outcome(asyncio.Future[Any]):
    """The future of a call; calls ``given_up`` as soon as it is cancelled.

    A done callback of the future would do so too, at the cost of one loop callback for each call that ends well.
    """

    given_up: Callable[[], None] | None = None

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the future, and call ``given_up``."""
        cancelled = super().cancel(msg)
        given_up, self.given_up = self.given_up, None
        if cancelled and given_up is not None:
            given_up()
        return cancelled


class Carrier(Protocol):
    """The connection of the worker that has a call, as far as the call is concerned."""

    @property
    def pid(self) -> int:
        """The worker's process id."""


class Call:
    """A submitted call and its state."""

    __slots__ = (
        "attempts",
        "begun",
        "connection",
        "crashed",
        "created",
        "function",
        "future",
        "has_room",
        "is_prepared",
        "lost",
        "number",
        "options",
        "payload",
        "timer",
        "trip",
        "waits",
    )  # fmt: skip

    def __init__(self, function: Any, options: CallOptions, future: Outcome) -> None:
        self.function, self.options, self.future = function, options, future
        self.payload: Payload | None = None
        self.created = time.perf_counter()
        self.begun: float | None = None
        self.attempts = 0
        """Times that its worker died while running it."""
        self.crashed = False
        """Whether the last of these exceeded its retries."""
        self.lost = 0
        """Times that its worker died before beginning it, although it was next."""
        self.waits = 0
        """Its state in the queue: see :mod:`loopwatch.workers.call_queue`."""
        self.has_room = False
        """Whether it occupies one of the ``max_queue`` slots."""
        self.is_prepared = False
        """Whether its preparation in slices is over, or was given up."""
        self.connection: Carrier | None = None
        self.number = 0
        """Its id on ``connection``."""
        self.timer: asyncio.TimerHandle | None = None
        self.trip: Trip | None = None
        """Its span, if it is traced."""

    @property
    def name(self) -> str:
        """Name of the function, for messages."""
        return name_of(self.function)

    def stop_clock(self) -> None:
        """Cancel its timer, if it has one."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def end_trip(self, error: BaseException | None = None) -> None:
        """End its span, if it has one; ``error`` is raised for its caller instead of a result."""
        if self.trip is not None:
            pid = self.connection.pid if self.connection is not None else None
            self.trip.end(error, pid=pid, attempts=self.attempts + (not self.crashed), begun=self.begun)


def name_of(function: Any) -> str:
    """Return the name of a function for messages."""
    return getattr(function, "__qualname__", None) or repr(function)


async def in_turns(steps: Generator[None, None, Any], held: Callable[[float], None]) -> Any:
    """Run a generator to its end, for :data:`TURN` seconds per loop turn, and return its value.

    Args:
        steps: the generator.
        held: called with the seconds that each turn took.
    """
    while True:
        began = time.perf_counter()
        try:
            while time.perf_counter() - began < TURN:
                next(steps)
        except StopIteration as end:
            return end.value
        finally:
            held(time.perf_counter() - began)
        await asyncio.sleep(0)


def blame(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], exc: NotPicklable) -> NotPicklable:
    """Return an error that names the object that cannot be pickled."""
    named = [("the function", function), *((f"argument {number + 1}", value) for number, value in enumerate(args))]
    for name, value in (*named, *((f"argument {key!r}", value) for key, value in kwargs.items())):
        try:
            pickling.encode(value)
        except NotPicklable as own:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return NotPicklable(f"{name} ({kind}) cannot be sent to a worker: {own}")
    return exc

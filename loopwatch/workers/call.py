"""One submitted call: its future, payload and timer; runs pickling of a large one in slices between loop turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

from loopwatch.core.originals import time
from loopwatch.errors import NotPicklable
from loopwatch.workers import pickling
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pickling import Payload

if TYPE_CHECKING:
    from loopwatch.workers.connection import Connection
    from loopwatch.workers.tracing import Trip

TURN = 0.001
"""s of one turn of the loop that one call is pickled or unpickled for."""


class Outcome(asyncio.Future[Any]):
    """What a call comes to: tells at once that nobody waits for it any more.

    A callback of the future would do so too, at the price of a callback of the loop for each call that ends well.
    """

    given_up: Callable[[], None] | None = None

    def cancel(self, msg: Any = None) -> bool:
        """Cancel it."""
        cancelled = super().cancel(msg)
        given_up, self.given_up = self.given_up, None
        if cancelled and given_up is not None:
            given_up()
        return cancelled


class Call:
    """One call on its way."""

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
        """Times that its worker died while it ran."""
        self.crashed = False
        """Whether the last of them was one too many."""
        self.lost = 0
        """Times that its worker died before it could begin, although it was next."""
        self.waits = 0
        """See :mod:`loopwatch.workers.call_queue`."""
        self.has_room = False
        """Whether it takes one of the ``max_queue`` places."""
        self.is_prepared = False
        """Whether its preparation in turns is over, or was given up."""
        self.connection: Connection | None = None
        self.number = 0
        """What ``connection`` knows it by."""
        self.timer: asyncio.TimerHandle | None = None
        self.trip: Trip | None = None
        """Its span, if it is traced."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return name_of(self.function)

    def stop_clock(self) -> None:
        """Its time is over."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def end_trip(self, error: BaseException | None = None) -> None:
        """End its span, if it has one: this is what its caller gets."""
        if self.trip is not None:
            pid = self.connection.pid if self.connection is not None else None
            self.trip.end(error, pid=pid, attempts=self.attempts + (not self.crashed), begun=self.begun)


def name_of(function: Any) -> str:
    """Return what to call a function in messages."""
    return getattr(function, "__qualname__", None) or repr(function)


async def in_turns(steps: Generator[None, None, Any], held: Callable[[float], None]) -> Any:
    """Run a generator to its end, for :data:`TURN` a turn of the loop, and return its value.

    Args:
        steps: what to run.
        held: told for how many s each turn took.
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
    """Return an error that names what it is that cannot be pickled."""
    named = [("the function", function), *((f"argument {number + 1}", value) for number, value in enumerate(args))]
    for name, value in (*named, *((f"argument {key!r}", value) for key, value in kwargs.items())):
        try:
            pickling.encode(value)
        except NotPicklable as own:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return NotPicklable(f"{name} ({kind}) cannot be sent to a worker: {own}")
    return exc

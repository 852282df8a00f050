"""Unpickles the results of workers, at once or in slices over several turns of the loop, and sets their futures."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.signals import raised_by_handler
from loopwatch.errors import NotPicklable, OffloadError
from loopwatch.workers import pickling, protocol
from loopwatch.workers.call import Call, in_turns
from loopwatch.workers.protocol import ERROR, RESULT, Frame
from loopwatch.workers.stats import PoolCounts
from loopwatch.workers.worker import RemoteTraceback


class Results:
    """Sets the futures of calls from the frames of workers.

    Args:
        loop: of the pool.
        figures: statistics of the pool.
        on_done: called after the future of a result that took several turns is set.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, figures: PoolCounts, on_done: Callable[[], None]) -> None:
        self._loop, self._figures, self._on_done = loop, figures, on_done
        self._decoding: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Number of results that are being unpickled."""
        return len(self._decoding)

    def take(self, call: Call, frame: Frame, received: list[int]) -> None:
        """Resolve ``call`` with a worker's frame and the descriptors that came with it."""
        if frame.head.flags & protocol.SLICED:
            self._decode_in_turns(call, pickling.decode_sliced(frame.pickle, frame.buffers, received))
        else:
            self._decode(call, frame, received)

    def _decode(self, call: Call, frame: Frame, received: list[int]) -> None:
        answer = self.succeed if frame.head.kind == RESULT else self.fail
        began = time.perf_counter()
        try:
            value = pickling.decode(frame.pickle, frame.buffers, received)
            if frame.head.kind != RESULT:
                what, where = value
                value = what if frame.head.kind == ERROR else NotPicklable(what)
                value.__cause__ = RemoteTraceback(where)
        except BaseException as exc:  # noqa: BLE001 - the program's own __setstate__ and the like
            value, answer = _unreadable(exc), self.fail
        self._held(call)(time.perf_counter() - began)
        answer(call, value)
        del value  # it may refer to this frame

    def _held(self, call: Call) -> Callable[[float], None]:
        """Return the callback for the seconds that unpickling the result of ``call`` blocked the loop."""
        return self._figures.decoded if call.trip is None else call.trip.decoding(self._figures.decoded)

    def _decode_in_turns(self, call: Call, steps: Generator[None, None, Any]) -> None:
        task = self._loop.create_task(_readable(in_turns(steps, self._held(call))))
        self._decoding.add(task)
        task.add_done_callback(functools.partial(self._on_decoded, call))
        call.future.add_done_callback(lambda _: task.cancel())

    def _on_decoded(self, call: Call, task: asyncio.Task[Any]) -> None:
        self._decoding.discard(task)
        if task.cancelled():
            call.future.cancel()
        elif (error := task.exception()) is not None:
            self.fail(call, error)
        else:
            self.succeed(call, task.result())
        self._on_done()

    def succeed(self, call: Call, value: Any) -> None:
        """Set the result of a call."""
        call.payload = None
        if call.trip is not None:
            call.end_trip()
        if not call.future.done():
            self._figures.counts["completed"] += 1
            call.future.given_up = None
            call.future.set_result(value)

    def fail(self, call: Call, error: BaseException) -> None:
        """Set the exception of a call."""
        call.payload = None
        call.end_trip(error)
        if not call.future.done():
            self._figures.failed(error)
            call.future.given_up = None
            call.future.set_exception(error)

    def relay(self, frame: Frame) -> None:
        """Pass a worker's log record to the logger of the same name in this process."""
        try:
            fields = pickle.loads(frame.pickle)
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt) or raised_by_handler(exc):
                raise
            self._figures.counts["logs_lost"] += 1
            return
        try:
            record = logging.makeLogRecord(fields)
            target = logging.getLogger(record.name)
            if target.isEnabledFor(record.levelno):
                target.handle(record)
        except Exception:  # noqa: BLE001 - a record that cannot be rebuilt, or a handler that fails
            self._figures.counts["logs_lost"] += 1


def _unreadable(exc: BaseException) -> OffloadError:
    error = OffloadError(f"the result cannot be unpickled here: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error


async def _readable(value: Awaitable[Any]) -> Any:
    try:
        return await value
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # SystemExit in a task would end the program
        raise _unreadable(exc) from exc

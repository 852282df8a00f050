"""Lets a plain function, called without ``await`` somewhere inside a coroutine, suspend the task that runs it.

Each step of a bridged coroutine runs in a greenlet, a second stack of the same thread. A plain function deep inside may
switch back to the loop's stack and hand it a future, as ``await`` would do; when that is done the task is stepped again
and the function goes on where it was. Greenlets are kept and used again, so that a step costs two switches.

SQLAlchemy's asyncio layer works the same way, and may be at work within a step: its greenlets return to the one that
made them, whenever that is. A greenlet that somebody refers to after the step therefore stays with its coroutine.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any, cast

import greenlet

KEPT = 32
"""Idle greenlets kept by one thread."""
_RUNS, _YIELDED, _RETURNED, _RAISED = range(4)


class _Seat:
    """What a stepper and those that switch to it tell each other; it does not refer to the stepper.

    Attributes:
        hub: the greenlet that waits for the end of the step, which is that of the loop; None while nobody does.
        owner: id of the task that the step belongs to; another one may be run within it, by an eager start.
        state: ``_RUNS`` in the midst of a step (which waits, if it has switched to the hub), else how the last ended.
        out: what the step yielded, returned or raised, or the future that its plain function waits for.
    """

    __slots__ = ("hub", "out", "owner", "state")

    def __init__(self) -> None:
        self.hub: greenlet.greenlet | None = None
        self.owner = 0
        self.state = _YIELDED
        self.out: Any = None


class _Stepper(greenlet.greenlet):  # type: ignore[misc]
    """Runs one step of a coroutine after the other, of whichever coroutine is next.

    Args:
        hub: the greenlet that runs now. One that is made within a step of another is not used again by others:
            the interpreter has it begin as deep in its recursion limit as it was made.
    """

    def __init__(self, hub: greenlet.greenlet) -> None:
        self.seat = _Seat()
        self.is_nested = isinstance(hub, _Stepper)
        # A child of another stepper would keep that one.
        super().__init__(functools.partial(_steps, self.seat), hub.parent if self.is_nested else hub)


class _Idle(threading.local):
    """The greenlets of this thread that have nothing to do."""

    def __init__(self) -> None:
        self.steppers: list[_Stepper] = []


_idle = _Idle()


def _steps(seat: _Seat, step: Any, value: Any) -> None:
    """Run steps; the watcher finds the loop's own stack through ``seat`` (see :mod:`loopwatch.watch.stacks`).

    Nothing here refers to the greenlet itself: it could never be freed, for what is suspended is not collected.
    """
    while True:
        try:
            out, state = step(value), _YIELDED
        except StopIteration as end:
            out, state = end.value, _RETURNED
        except greenlet.GreenletExit:  # nobody refers to us any more
            raise
        except BaseException as exc:  # noqa: BLE001 - raised again where the step was asked for
            out, state = exc, _RAISED
        seat.out, seat.state = out, state
        step = value = out = None
        if seat.hub is None:  # it was dropped while it waited, and has come to its end nevertheless
            return
        step, value = seat.hub.switch()


class Bridged(Coroutine[Any, Any, Any]):
    """A coroutine within which plain functions may wait: see :func:`wait`.

    Whatever asks for attributes of the coroutine (names, frame, code) gets them.

    Args:
        coroutine: what to run.
    """

    __slots__ = ("__weakref__", "_coroutine", "_owner", "_stepper")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._owner = 0
        """The id of the task that runs it, from its first step on."""
        self._stepper: _Stepper | None = None
        """The greenlet in which a plain function waits, or to which greenlets of others may return."""

    def send(self, value: Any) -> Any:
        """Run one step."""
        return self._step(self._coroutine.send, value, None)

    def __next__(self) -> Any:
        return self._step(self._coroutine.send, None, None)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Run one step that begins with an exception: at the ``await``, or at the plain function that waits."""
        error = kind if isinstance(kind, BaseException) else value if value is not None else kind()
        if traceback is not None:
            error = error.with_traceback(traceback)
        return self._step(self._coroutine.throw, error, error)

    def close(self) -> None:
        """End it, as a coroutine is ended."""
        if self._stepper is None or self._stepper.seat.state != _RUNS:
            self._coroutine.close()
            return
        try:
            self.throw(GeneratorExit())
        except (GeneratorExit, StopIteration):
            return
        raise RuntimeError("coroutine ignored GeneratorExit")

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def _step(self, step: Any, value: Any, error: BaseException | None) -> Any:
        hub = greenlet.getcurrent()
        stepper, self._stepper = self._stepper, None
        if stepper is None:
            idle = _idle.steppers
            stepper = idle.pop() if idle and not isinstance(hub, _Stepper) else _Stepper(hub)
        seat = stepper.seat
        seat.hub, seat.owner = hub, self._owner or self._owned()
        if seat.state != _RUNS:
            seat.state = _RUNS
            # A step runs in the context of its task, and what it sets there is to stay.
            stepper.gr_context = hub.gr_context
            stepper.switch(step, value)
        elif error is None:
            stepper.switch(value)
        else:
            stepper.throw(error)
        out, state = seat.out, seat.state
        seat.out = seat.hub = None
        if state == _RUNS:
            self._stepper = stepper
            return out
        stepper.gr_context = None
        if sys.getrefcount(stepper) > _OWN_REFERENCES:
            if state == _YIELDED:
                self._stepper = stepper
            else:  # what returns to it from now on falls through to the loop's own
                _end(stepper, hub)
        elif len(_idle.steppers) < KEPT and not stepper.is_nested:
            _idle.steppers.append(stepper)
        if state == _YIELDED:
            return out
        if state == _RETURNED:
            raise StopIteration(out)
        try:
            raise out
        finally:
            del out, value, error

    def _owned(self) -> int:
        self._owner = _current_task()
        return self._owner


def _end(stepper: _Stepper, hub: greenlet.greenlet) -> None:
    root, stepper.parent = stepper.parent, hub
    stepper.throw(greenlet.GreenletExit)
    stepper.parent = root


def _own_references() -> int:
    """Count the references to a greenlet that nobody but a step knows of."""

    async def nothing() -> None: ...

    for _ in Bridged(nothing()):
        pass
    stepper = _idle.steppers.pop()
    return sys.getrefcount(stepper)


def _current_task() -> int:
    return 0 if asyncio._get_running_loop() is None else id(asyncio.current_task())


def is_open() -> bool:
    """Whether a plain function that is called here may wait."""
    stepper = greenlet.getcurrent()
    if not isinstance(stepper, _Stepper) or stepper.seat.hub is None:
        return False
    return stepper.seat.owner == _current_task() != 0  # there is none where another library than asyncio runs it


def is_in_own_context() -> bool:
    """Whether the context is that of the task, and not one that ``Context.run`` has entered, and nobody else may."""
    stepper = greenlet.getcurrent()
    hub = stepper.seat.hub if isinstance(stepper, _Stepper) else None
    return hub is not None and stepper.gr_context is hub.gr_context


def wait(awaitable: Awaitable[Any]) -> Any:
    """Wait for ``awaitable`` from within a plain function: its task is suspended, the loop goes on.

    Raises:
        RuntimeError: not inside a bridged coroutine: see :func:`is_open`.
        whatever the awaitable raises, and what is thrown into the task meanwhile, such as CancelledError.
    """
    if not is_open():
        raise RuntimeError("a plain function can wait only inside a bridged coroutine")
    seat: _Seat = greenlet.getcurrent().seat
    steps: Any = awaitable.__await__()
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                seat.out = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            value = error = None
            try:
                value = cast("greenlet.greenlet", seat.hub).switch()
            except greenlet.GreenletExit:
                steps.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - it is for the awaitable
                error = exc
    finally:
        del error


_OWN_REFERENCES = sys.maxsize
"""Of a greenlet after a step; it has more if somebody else knows of it."""
_OWN_REFERENCES = _own_references()

"""Lets a plain function inside a coroutine suspend the task that runs it, without ``await``.

Each step of a bridged coroutine runs in a greenlet, a second stack of the same thread. A plain function deep inside may
switch back to the loop's stack and yield a future, as ``await`` would do; when that is done, the next step of the task
resumes the function. Greenlets are reused, so that a step costs two switches.

SQLAlchemy's asyncio layer works the same way, and may be active within a step: its greenlets return to the one that
created them, whenever that is. A greenlet that is still referenced after the step therefore stays with its coroutine.
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
"""Idle greenlets kept per thread."""
_RUNS, _YIELDED, _RETURNED, _RAISED = range(4)


class _Seat:
    """State shared by a stepper and the greenlets that switch to it; it does not refer to the stepper.

    Attributes:
        hub: the greenlet that waits for the end of the step, which is the loop's; None while there is none.
        owner: id of the task that the step belongs to; an eager start may run another task within it.
        state: ``_RUNS`` during a step (suspended, if it has switched to the hub), else how the last step ended.
        out: value that the step yielded, returned or raised, or the future that its plain function waits for.
    """

    __slots__ = ("hub", "out", "owner", "state")

    def __init__(self) -> None:
        self.hub: greenlet.greenlet | None = None
        self.owner = 0
        self.state = _YIELDED
        self.out: Any = None


class _Stepper(greenlet.greenlet):  # type: ignore[misc]
    """A greenlet that runs steps of coroutines, one after the other, of any coroutine.

    Args:
        hub: the current greenlet. A stepper created within a step of another is not reused: the interpreter starts it
            at the recursion depth at which it was created.
    """

    def __init__(self, hub: greenlet.greenlet) -> None:
        self.seat = _Seat()
        self.is_nested = isinstance(hub, _Stepper)
        # A child of another stepper would keep that one alive.
        super().__init__(functools.partial(_steps, self.seat), hub.parent if self.is_nested else hub)


class _Idle(threading.local):
    """The idle greenlets of this thread."""

    def __init__(self) -> None:
        self.steppers: list[_Stepper] = []


_idle = _Idle()


def _steps(seat: _Seat, step: Any, value: Any) -> None:
    """Run steps; the watcher finds the loop's own stack through ``seat`` (see :mod:`loopwatch.watch.stacks`).

    Nothing here refers to the greenlet itself, which then could never be freed: suspended frames are not collected.
    """
    while True:
        try:
            out, state = step(value), _YIELDED
        except StopIteration as end:
            out, state = end.value, _RETURNED
        except greenlet.GreenletExit:  # no reference to this greenlet is left
            raise
        except BaseException as exc:  # noqa: BLE001 - raised again by Bridged._step()
            out, state = exc, _RAISED
        seat.out, seat.state = out, state
        step = value = out = None
        if seat.hub is None:  # dropped while suspended, but it ran to its end
            return
        step, value = seat.hub.switch()


class Bridged(Coroutine[Any, Any, Any]):
    """A coroutine in which plain functions may wait: see :func:`wait`.

    It has the attributes of the coroutine (names, frame, code).

    Args:
        coroutine: the coroutine to run.
    """

    __slots__ = ("__weakref__", "_coroutine", "_owner", "_stepper")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._owner = 0
        """Id of the task that runs it, from its first step on."""
        self._stepper: _Stepper | None = None
        """Greenlet in which a plain function waits, or to which foreign greenlets may return."""

    def send(self, value: Any) -> Any:
        """Run one step."""
        return self._step(self._coroutine.send, value, None)

    def __next__(self) -> Any:
        return self._step(self._coroutine.send, None, None)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Run one step that begins with an exception: at the ``await``, or in the waiting plain function."""
        error = kind if isinstance(kind, BaseException) else value if value is not None else kind()
        if traceback is not None:
            error = error.with_traceback(traceback)
        return self._step(self._coroutine.throw, error, error)

    def close(self) -> None:
        """Close it, as ``coroutine.close()`` does."""
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
            # A step runs in the context of its task, and its changes there persist.
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
            else:  # later returns to it fall through to the loop's greenlet
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
    """Count the references to a greenlet that only a step refers to."""

    async def nothing() -> None: ...

    for _ in Bridged(nothing()):
        pass
    stepper = _idle.steppers.pop()
    return sys.getrefcount(stepper)


def _current_task() -> int:
    return 0 if asyncio._get_running_loop() is None else id(asyncio.current_task())


def is_open() -> bool:
    """Whether a plain function called here may wait."""
    stepper = greenlet.getcurrent()
    if not isinstance(stepper, _Stepper) or stepper.seat.hub is None:
        return False
    return stepper.seat.owner == _current_task() != 0  # 0: not run by asyncio


def is_in_own_context() -> bool:
    """Whether the context is the task's own.

    One entered by ``Context.run`` could be entered by no other task meanwhile.
    """
    stepper = greenlet.getcurrent()
    hub = stepper.seat.hub if isinstance(stepper, _Stepper) else None
    return hub is not None and stepper.gr_context is hub.gr_context


def wait(awaitable: Awaitable[Any]) -> Any:
    """Wait for ``awaitable`` in a plain function: its task is suspended, the loop goes on.

    Raises:
        RuntimeError: not inside a bridged coroutine: see :func:`is_open`.
        any exception of the awaitable, or thrown into the task meanwhile, such as CancelledError.
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
            except BaseException as exc:  # noqa: BLE001 - thrown into the awaitable
                error = exc
    finally:
        del error


_OWN_REFERENCES = sys.maxsize
"""References to a greenlet after a step; more if it is referenced elsewhere."""
_OWN_REFERENCES = _own_references()

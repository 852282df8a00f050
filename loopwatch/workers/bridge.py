"""Lets a plain function, called without ``await`` somewhere inside a coroutine, suspend the task that runs it.

Each step of a bridged coroutine runs in a greenlet, a second stack of the same thread. A plain function deep inside may
switch back to the loop's stack and hand it a future, as ``await`` would do; when that is done the task is stepped again
and the function goes on where it was. Greenlets are kept and used again, so that a step costs two switches.
SQLAlchemy's asyncio layer works the same way.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Coroutine
from typing import Any

import greenlet

KEPT = 32
"""Idle greenlets kept by one thread."""
_RUNS, _YIELDED, _RETURNED, _RAISED = range(4)


class _Stepper(greenlet.greenlet):  # type: ignore[misc]
    """Runs one step of a coroutine after the other, of whichever coroutine is next.

    Attributes:
        hub: the greenlet that waits for the end of the step, which is that of the loop.
        state: ``_RUNS`` in the midst of a step (which waits, if it has switched to the hub), else how the last ended.
        out: what the step yielded, returned or raised, or the future that its plain function waits for.
    """

    hub: greenlet.greenlet
    state: int
    out: Any


class _Idle(threading.local):
    """The greenlets of this thread that have nothing to do."""

    def __init__(self) -> None:
        self.steppers: list[_Stepper] = []


_idle = _Idle()


def _steps(step: Any, value: Any) -> None:
    """Run steps; the watcher finds the loop's own stack through ``stepper`` (see :mod:`loopwatch.stacks`)."""
    stepper: Any = greenlet.getcurrent()
    while True:
        try:
            out, state = step(value), _YIELDED
        except StopIteration as end:
            out, state = end.value, _RETURNED
        except greenlet.GreenletExit:  # nobody refers to us any more
            raise
        except BaseException as exc:  # noqa: BLE001 - raised again where the step was asked for
            out, state = exc, _RAISED
        stepper.out, stepper.state = out, state
        step = value = out = None
        step, value = stepper.hub.switch()


class Bridged(Coroutine[Any, Any, Any]):
    """A coroutine within which plain functions may wait: see :func:`wait`.

    Whatever asks for attributes of the coroutine (names, frame, code) gets them.

    Args:
        coroutine: what to run.
    """

    __slots__ = ("__weakref__", "_coroutine", "_stepper")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._stepper: _Stepper | None = None
        """The greenlet in which a plain function waits."""

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
        if self._stepper is None:
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
        stepper = self._stepper
        if stepper is None:
            idle = _idle.steppers
            stepper = idle.pop() if idle else _Stepper(_steps)
            stepper.hub, stepper.state = hub, _RUNS
            # A step runs in the context of its task, and what it sets there is to stay.
            stepper.gr_context = hub.gr_context
            stepper.switch(step, value)
        else:
            self._stepper = None
            stepper.hub = hub
            if error is None:
                stepper.switch(value)
            else:
                stepper.throw(error)
        out, state = stepper.out, stepper.state
        stepper.out = None
        if state == _RUNS:
            self._stepper = stepper
            return out
        stepper.gr_context = None
        if len(_idle.steppers) < KEPT:
            _idle.steppers.append(stepper)
        if state == _YIELDED:
            return out
        if state == _RETURNED:
            raise StopIteration(out)
        try:
            raise out
        finally:
            del out, value, error


def is_open() -> bool:
    """Whether a plain function that is called here may wait."""
    return isinstance(greenlet.getcurrent(), _Stepper)


def wait(awaitable: Awaitable[Any]) -> Any:
    """Wait for ``awaitable`` from within a plain function: its task is suspended, the loop goes on.

    Raises:
        RuntimeError: not inside a bridged coroutine: see :func:`is_open`.
        whatever the awaitable raises, and what is thrown into the task meanwhile, such as CancelledError.
    """
    stepper = greenlet.getcurrent()
    if not isinstance(stepper, _Stepper):
        raise RuntimeError("a plain function can wait only inside a bridged coroutine")
    steps: Any = awaitable.__await__()
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                stepper.out = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            value = error = None
            try:
                value = stepper.hub.switch()
            except greenlet.GreenletExit:
                steps.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - it is for the awaitable
                error = exc
    finally:
        del error

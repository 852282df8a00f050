"""Runs actions that read files or wait off the thread of an event loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from loopwatch.core.originals import release_gil, time
from loopwatch.core.threads.untraced import UntracedThread

Result = TypeVar("Result")

_OWN = __file__.removesuffix("core/off_loop.py")
_AROUND = (_OWN + "demo", _OWN + "integrations/", _OWN + "testing.py")
"""Agent code that calls the program without holding a lock; so do the wrappers of :mod:`loopwatch.core.unseen`."""

STEP = 5e-5
"""Seconds between two checks of a condition."""


def running_loop() -> Any:
    """Return the event loop that the calling thread runs, None if it runs none; does not import asyncio."""
    events = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()


def wait_until(happened: Callable[[], bool], timeout: float = float("inf")) -> bool:
    """Wait until another thread makes ``happened()`` true; return False if ``timeout`` seconds pass before that.

    A lock would need fewer wake-ups, but waiting for it is a blocking call where a loop runs.
    """
    ends = time.monotonic() + timeout
    while not happened():
        if time.monotonic() >= ends:
            return False
        release_gil(STEP)
    return True


def _has_interrupted_us() -> bool:
    """Return whether code of the program that interrupted the agent is calling: a signal handler or a finalizer."""
    frame: FrameType | None = sys._getframe(2)
    foreign = False
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OWN) or file.startswith(_AROUND):  # or an unseen wrapper: its name begins with "<"
            foreign = True
        elif foreign:
            return True
        frame = frame.f_back
    return False


def off_loop(action: Callable[[], Result]) -> Result:
    """Return ``action()``; where the calling thread runs a loop, it is called in a separate thread.

    The caller still waits for the result. But detectors of blocking calls make ``open``, ``os.stat`` and the like raise
    where a loop runs: they must not take the agent's file access for the program's, nor its wait, which only releases
    the GIL. If a signal handler of the program has interrupted the agent, ``action`` is called in the same thread:
    another one would wait for ever for a lock that the interrupted code holds.

    Raises:
        BaseException: what ``action`` raises.

    Example:
        >>> off_loop(lambda: 6 * 7)
        42
    """
    if running_loop() is None or _has_interrupted_us():
        return action()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as exc:  # noqa: BLE001 - raised in the caller's thread
            errors.append(exc)

    try:
        thread = UntracedThread(run, "loopwatch-call")
        thread.start()
    except RuntimeError:  # at exit, at the thread limit, in a sub-interpreter without daemon threads
        return action()
    wait_until(lambda: not thread.is_alive())
    if errors:
        raise errors[0]
    return results[0]

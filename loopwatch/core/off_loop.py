"""Runs what reads files, or waits, off the thread of an event loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from loopwatch.core.originals import release_gil, time
from loopwatch.core.untraced import UntracedThread

Result = TypeVar("Result")

_OWN = __file__.removesuffix("core/off_loop.py")
_AROUND = (_OWN + "demo", _OWN + "integrations/", _OWN + "testing.py")
"""Code that calls the program, and holds nothing meanwhile; as do the wrappers that go unseen."""

STEP = 5e-5
"""s between two looks whether it is done."""


def running_loop() -> Any:
    """Return the event loop that the calling thread runs, None if it runs none; asyncio is not imported for it."""
    events = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()


def wait_until(happened: Callable[[], bool], timeout: float = float("inf")) -> bool:
    """Wait for what another thread does; return whether it ``happened`` within ``timeout`` s.

    A lock would be waited for in fewer wake-ups, but that is a blocking call where a loop runs.
    """
    ends = time.monotonic() + timeout
    while not happened():
        if time.monotonic() >= ends:
            return False
        release_gil(STEP)
    return True


def _has_interrupted_us() -> bool:
    """Return whether the program called from within code of ours, which only its signal handlers and finalizers do."""
    frame: FrameType | None = sys._getframe(2)
    foreign = False
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OWN) or file.startswith(_AROUND):  # or a wrapper that goes unseen: "<" is before it
            foreign = True
        elif foreign:
            return True
        frame = frame.f_back
    return False


def off_loop(action: Callable[[], Result]) -> Result:
    """Return what ``action`` returns; where the calling thread runs a loop, it is called in a thread of its own.

    The caller waits all the same, as it wants the result. But detectors of blocking calls replace ``open``, ``os.stat``
    and their like by functions that raise where a loop runs: they must not take our files for the program's, nor our
    wait, which only releases the GIL. A signal handler of the program that has interrupted code of ours calls it in
    its own thread: another one would wait for ever for a lock which that code holds.

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
    except RuntimeError:  # at exit, without a thread left, in a sub-interpreter without daemons
        return action()
    wait_until(lambda: not thread.is_alive())
    if errors:
        raise errors[0]
    return results[0]

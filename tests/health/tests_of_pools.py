"""Helpers shared by the tests of pools."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from loopwatch.core.faults import Faults
from loopwatch.core.threads.fork_pause import ForkPause
from loopwatch.health.monitor import Monitor


def until(happened: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds, with a generous timeout."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def held_for_fork(monitor: Monitor) -> Callable[[], object]:
    """Stop the monitor's thread as before a fork; return a function that starts it again."""
    pause = ForkPause(Faults())
    return pause.begin(monitor.thread, (), contextlib.nullcontext(), monitor.process_hooks.when_forked, int)


class Gate:
    """A file that releases the tasks waiting for it. Enter it after their pool, whose exit waits for them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "go"

    def __str__(self) -> str:
        return str(self._file)

    def open(self) -> None:
        """Release the waiting tasks."""
        self._file.touch()

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

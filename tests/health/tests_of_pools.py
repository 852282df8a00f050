"""What tests of pools have in common."""

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
    """Wait until something has happened, generously."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def held_for_fork(monitor: Monitor) -> Callable[[], object]:
    """Stop the monitor's thread as before a fork; return what starts it again."""
    pause = ForkPause(Faults())
    return pause.begin(monitor.thread, (), contextlib.nullcontext(), monitor.process_hooks.when_forked)


class Gate:
    """A file that lets tasks go on which wait for it; to be entered after their pool, whose end waits for them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "go"

    def __str__(self) -> str:
        return str(self._file)

    def open(self) -> None:
        """Let them go on."""
        self._file.touch()

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

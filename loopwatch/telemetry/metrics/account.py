"""The interface that exporters read from: the current points of all metrics, and exemplars (stalls with a trace)."""

from __future__ import annotations

from collections.abc import Callable

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.off_loop import running_loop
from loopwatch.core.originals import time
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Reading

Pause = Callable[[], None]


Read = Callable[[Pause], Reading | None]


NAP = 0.0001
"""Seconds of one GIL yield; long enough for a thread that waits for the GIL to get it."""


@dataclass(frozen=True, slots=True)
class Account:
    """The source of all exported metrics.

    Attributes:
        read: returns all current points, None if there are none; from any thread. Calls its argument between parts of
            the work, to yield the GIL.
        exemplars: stalls that belong to traces.
    """

    read: Read
    exemplars: Exemplars


EMPTY = Account(lambda _pause: None, Exemplars())


def nap_off_the_loop() -> None:
    """Yield the GIL for a moment, so that no loop waits long for it; does nothing on the thread of a running loop."""
    if running_loop() is None:
        time.sleep(NAP)

"""The interpreter's clocks and sleeps, unaffected by programs and tests that replace them.

Home Assistant and blockbuster make ``time.sleep`` raise on a loop's thread; freezegun and time-machine stop the clocks;
tests replace ``time.monotonic``. Measurements must not depend on that: ``time`` here is a private, newly made copy of
the interpreter's module, so the order of imports does not matter.
"""

from __future__ import annotations

import importlib.util
import select
import sys
from importlib.machinery import BuiltinImporter

_CLOCK_REALTIME_COARSE = 5
"""``include/uapi/linux/time.h``: the time of day as of the last timer interrupt."""
_COARSE_LAG = 0.05
"""Maximum lag of the coarse clock in seconds (timer interrupts come every 1 to 10 ms), with a margin."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import time as time  # noqa: PLC0414 - exported
else:
    _spec = BuiltinImporter.find_spec("time")
    time = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(time)

_time_of_day = time.time
_select, _sleep = select.select, time.sleep


def wall_clock() -> float:
    """Return the time of day in seconds since the epoch, even while a test library fakes it.

    time-machine replaces ``time.time`` in C, for every copy of the module. It leaves Linux' coarse clock alone, which
    is used if the two disagree; on other systems the faked time is returned.
    """
    now = _time_of_day()
    if sys.platform == "linux":
        coarse = time.clock_gettime(_CLOCK_REALTIME_COARSE)
        if abs(now - coarse) > _COARSE_LAG:
            return coarse
    return now


time.time = wall_clock


def release_gil(seconds: float) -> None:
    """Release the GIL for ``seconds``, so that a waiting thread gets it; for a loop's thread.

    Uses ``select(2)`` without descriptors, which has microsecond resolution and which no tool treats as a blocking
    call: ``time.sleep`` raises an audit event (``time_sleep`` in CPython's Modules/timemodule.c), by which detectors of
    blocking calls take it for the program's.
    """
    if sys.platform == "win32":  # select() needs a socket there
        _sleep(seconds)
    else:
        _select((), (), (), seconds)

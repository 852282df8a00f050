"""Functions of the interpreter that programs and their tests replace, as the interpreter made them.

Home Assistant and blockbuster replace ``time.sleep`` by a function that raises on a loop's thread; freezegun and
time-machine stop the clocks; tests set ``time.monotonic`` to what they like. What measures a program must not depend on
them: ``time`` here is a copy of the interpreter's module that nobody else holds, made anew, so that it does not matter
who was imported first.
"""

from __future__ import annotations

import importlib.util
import select
import sys
from importlib.machinery import BuiltinImporter

_CLOCK_REALTIME_COARSE = 5
"""``include/uapi/linux/time.h``: the time of day as of the last timer interrupt."""
_COARSE_LAG = 0.05
"""s that the coarse clock lags behind at most (a timer interrupt is 1 to 10 ms), and some more."""

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
    """Return the time of day in s since the epoch, also while a test library pretends another one.

    time-machine replaces what ``time.time`` is in C, for every copy of the module. It leaves Linux' coarse clock alone,
    which is used if the two do not agree; elsewhere its time is believed.
    """
    now = _time_of_day()
    if sys.platform == "linux":
        coarse = time.clock_gettime(_CLOCK_REALTIME_COARSE)
        if abs(now - coarse) > _COARSE_LAG:
            return coarse
    return now


time.time = wall_clock


def release_gil(seconds: float) -> None:
    """Release the GIL for ``seconds``, so that a thread that waits for it gets it; for a loop's thread.

    By ``select(2)`` without descriptors, which counts in microseconds and is nobody's idea of a blocking call:
    ``time.sleep`` raises an audit event (``time_sleep`` in CPython's Modules/timemodule.c), from which detectors of
    blocking calls take it for the program's.
    """
    if sys.platform == "win32":  # select() wants a socket there
        _sleep(seconds)
    else:
        _select((), (), (), seconds)

"""How long a call ran, and how much of that its thread used a processor, on a machine that others use too."""

from __future__ import annotations

import sys
import threading
from typing import NamedTuple

from loopwatch.core.originals import time
from loopwatch.system.threads import scheduled


class Clocks(NamedTuple):
    """The clocks of this thread at one moment.

    Attributes:
        at: ``time.perf_counter`` s.
        cpu: processor s of the thread.
        waits: how often it has given up the processor by itself; -1 where the system does not say.
        starved: s that it has waited for a processor; None if that was not read.
    """

    at: float
    cpu: float
    waits: int
    starved: float | None


def read(*, exact: bool = True) -> Clocks:
    """Read the clocks; with the wait for a processor (a file of ``/proc``, some us) if it is to be ``exact``."""
    waits = -1
    if sys.platform == "linux":
        import resource

        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    found = scheduled(threading.get_native_id()) if exact and sys.platform == "linux" else None
    return Clocks(time.perf_counter(), time.thread_time(), waits, None if found is None else found.run_queue)


def used(began: Clocks) -> tuple[float, float]:
    """Return s and processor s since ``began``; time without a processor does not count where it is known.

    If the thread never waited by itself it has computed all the time, even if it did not get a processor for it.
    """
    now = read(exact=began.starved is not None)
    starved = (now.starved or 0.0) - (began.starved or 0.0) if began.starved is not None else 0.0
    run = max(now.at - began.at - starved, 0.0)
    return run, run if now.waits == began.waits >= 0 else min(now.cpu - began.cpu, run)

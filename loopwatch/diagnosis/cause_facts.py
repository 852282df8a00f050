"""The facts of each cause, one entry a cause: words, remedy, and what follows from it. Pure data.

A new cause is a name in :class:`loopwatch.Cause`, its rule in :mod:`loopwatch.diagnosis.cause` (with new evidence also
in ``events.Evidence`` and :mod:`loopwatch.watch.assemble`), an entry here, its colour in ``report/page/style.css``, its
row in the README, and its advice in the panels "Blocked time by cause".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from loopwatch.events import Cause


class Facts(NamedTuple):
    """What follows from one cause.

    Attributes:
        doing: what the loop was doing, as a log line says it: "blocked 312 ms by f: ...".
        why: the same as a sentence for the demo.
        remedy: what to do where no more is known of the call; ``{call}``, ``{offload}`` and ``{cure}`` are filled in.
        is_of_call: whether the remedy may depend on the call that blocked; False: it was not what blocked the loop.
        has_culprit: whether a function of the program is to blame.
        is_whole_pass: whether it holds the whole pass of the loop, and not one callback of it.
        is_offloadable: whether running the function off the loop cures it.
        keeps_gil: whether the call keeps the GIL, so that a thread would not help; None if unknown.
    """

    doing: str
    why: str
    remedy: str
    is_of_call: bool = True
    has_culprit: bool = True
    is_whole_pass: bool = False
    is_offloadable: bool = False
    keeps_gil: bool | None = None


CAUSES: Mapping[Cause, Facts] = MappingProxyType(
    {
        Cause.PYTHON: Facts(
            doing="running Python code",
            why="it ran Python code",
            remedy="Move the computing part of {call} to {offload}, or let the loop breathe "
            "with await asyncio.sleep(0) between pieces.",
            is_offloadable=True,
            keeps_gil=True,
        ),
        Cause.NATIVE_GIL: Facts(
            doing="inside C code that keeps the GIL",
            why="C code that keeps the GIL; no other Python thread could run either",
            remedy="Move the native part of {call} to {offload}: it keeps the GIL, so a thread would not help.",
            is_offloadable=True,
            keeps_gil=True,
        ),
        Cause.NATIVE: Facts(
            doing="inside C code",
            why="C code that gives up the GIL; other threads went on, the loop could not",
            remedy="Move the native part of {call} to {offload}: it gives up the GIL, so a thread is enough.",
            is_offloadable=True,
            keeps_gil=False,
        ),
        Cause.IO: Facts(
            doing="waiting for I/O",
            why="it waited for a disk, the network or another process",
            remedy="Replace the blocking call in {call} with its asyncio counterpart, or run it through {offload}.",
            is_offloadable=True,
        ),
        Cause.SLEEP: Facts(
            doing="sleeping",
            why="it slept",
            remedy="Replace the sleep in {call} with await asyncio.sleep(), or run it through {offload}.",
            is_offloadable=True,
        ),
        Cause.LOCK: Facts(
            doing="waiting for a lock",
            why="it waited for a lock that another thread held",
            remedy="Replace the lock that {call} waits for with its asyncio counterpart, or wait through {offload}.",
        ),
        Cause.GIL: Facts(
            doing="waiting for the GIL, held by another thread",
            why="another thread held the GIL",
            remedy="Another thread held the GIL: run {call} in a ProcessPoolExecutor instead of a thread.",
            is_of_call=False,
            is_whole_pass=True,
        ),
        Cause.GC: Facts(
            doing="in the garbage collector",
            why="the garbage collector ran",
            remedy="The garbage collector stopped the loop: call gc.freeze() after start-up, raise gc.set_threshold() "
            "and keep explicit gc.collect() calls out of requests.",
            is_of_call=False,
        ),
        Cause.STARVED: Facts(
            doing="runnable but given no processor",
            why="it was given no processor; the machine is busy",
            remedy="The loop was given no processor: {cure}.",
            is_of_call=False,
            has_culprit=False,
            is_whole_pass=True,
        ),
        Cause.SUSPENDED: Facts(
            doing="stopped, together with the whole process",
            why="the whole process was stopped",
            remedy="The whole process was stopped: look for SIGSTOP, a debugger, a frozen container "
            "or a paused virtual machine, not for slow code.",
            is_of_call=False,
            has_culprit=False,
            is_whole_pass=True,
        ),
        Cause.OVERLOAD: Facts(
            doing="running too many callbacks in one pass",
            why="no callback was slow, but very many were ready at once",
            remedy="Too many small callbacks were ready at once: bound concurrency with asyncio.Semaphore, "
            "batch the work or add worker processes.",
            is_of_call=False,
            is_whole_pass=True,
        ),
        Cause.UNKNOWN: Facts(
            doing="for an unknown reason",
            why="the evidence does not show why",
            remedy="The evidence does not show why {call} held the loop: time its parts, "
            "then await what waits and move what computes to a process.",
        ),
    }
)
"""Every cause."""


def those(fact: str, value: object = True) -> frozenset[Cause]:
    """Return the causes of which ``fact`` is ``value``.

    Example:
        >>> sorted(those("has_culprit", False))
        [<Cause.STARVED: 'starved'>, <Cause.SUSPENDED: 'suspended'>]
    """
    return frozenset(cause for cause, facts in CAUSES.items() if getattr(facts, fact) == value)

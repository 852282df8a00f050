"""Decides where a function should run (inline, thread, process) from its measurements. Pure and deterministic."""

from __future__ import annotations

from dataclasses import dataclass

from loopwatch.events import Decision

BUDGET = 0.01
"""Seconds that a function may hold the loop: a tenth of what counts as a block."""
RETURN = 0.5
"""Share of the budget that an offloaded function must stay below to run inline again."""
ENOUGH = 3
"""Calls needed to judge a function that was not slow."""
COMPUTES = 0.5
"""Share of processor time in the run time from which a function counts as computing, not waiting."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one function.

    Attributes:
        calls: number of measured calls.
        run: run time in seconds: the mean of the slowest tenth of the latest calls.
        cpu_share: processor time of its thread, as a share of ``run``.
        trip: seconds of one round trip to a worker, without the run time; None if not measured.
        keeps_gil: whether its stalls keep the GIL (``python``, ``native_gil``); None if unknown. False where the
            interpreter has no GIL.
        bound: why it cannot run in another process; empty if it can, or if unknown.
    """

    calls: int = 0
    run: float = 0.0
    cpu_share: float = 1.0
    trip: float | None = None
    keeps_gil: bool | None = None
    bound: str = ""


def decide(measured: Measured, now: Decision, budget: float = BUDGET) -> Decision:
    """Return where the next calls should run.

    Args:
        measured: measurements of the function.
        now: the current decision; an offloaded function runs inline again only when it is clearly cheap.
        budget: seconds that it may hold the loop.

    Example:
        >>> decide(Measured(calls=10, run=0.2, cpu_share=1.0), Decision("inline", "")).to
        'process'
    """
    moved = now.to != "inline"
    if measured.run < (budget * RETURN if moved else budget):
        if measured.calls < ENOUGH and not moved:
            return Decision("inline", f"only {measured.calls} calls were measured, none above {budget * 1e3:g} ms")
        return Decision(
            "inline", f"it takes {_ms(measured.run)}: less than the {budget * 1e3:g} ms that it may hold the loop"
        )
    takes = f"it takes {_ms(measured.run)}"
    if measured.cpu_share < COMPUTES and not measured.keeps_gil:
        return Decision("thread", f"{takes} and waits for {1 - measured.cpu_share:.0%} of that: a thread can wait")
    if measured.keeps_gil is False:
        return Decision("thread", f"{takes} without the GIL: a thread runs beside the loop")
    if measured.bound:
        return Decision("thread", f"{takes}; a process would be better, but {measured.bound}")
    if measured.trip is not None and measured.trip > measured.run and measured.trip > budget:
        return Decision("thread", f"{takes}, and the way to a process and back {_ms(measured.trip)}")
    if measured.keeps_gil is None:
        return Decision("process", f"{takes}: a process runs beside the loop whether or not the call keeps the GIL")
    return Decision("process", f"{takes} and keeps the GIL: only another process can run beside the loop")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"

"""Splits a block into its own part and the time in which the loop's thread had no processor. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum
from typing import NamedTuple

from loopwatch.events import Evidence, Stall
from loopwatch.system.syscalls import RUNNING, kind_of

NOTABLE = 0.2
"""Share of a block that must be without a processor before the block is blamed on that."""
MOST = 0.5
"""Share of the samples that is most of them."""
COMPUTES = 0.25
"""Share of a block with a processor that no thread uses which waits for a lock."""
CLOCKS_APART = 0.02
"""Seconds between the readings of two clocks, at most."""


class Parts(NamedTuple):
    """A block of ``own + starved`` seconds.

    Attributes:
        own: seconds in which the thread had a processor, or did not want one: it would have blocked the loop for as
            long on a free machine.
        starved: seconds in which it was runnable and had none.
        throttled: part of ``starved`` that the processor quota of the container took.
    """

    own: float
    starved: float
    throttled: float

    def within(self, duration: float) -> Parts:
        """Return the parts of a block of ``duration`` seconds, which is a little shorter than the observed span."""
        starved = min(self.starved, duration)
        return Parts(duration - starved, starved, min(self.throttled, starved))


def split(evidence: Evidence) -> Parts:
    """Return the parts of the block of ``evidence``; all of it is its own where the system does not provide the facts.

    A thread has no processor at most while it does not compute, and is not runnable while it is found asleep. Where
    samples find it runnable, and neither it nor another thread computed, it had none, even if the run queue's account
    is too old to tell. The run queue contains the time under a quota (a throttled thread stays runnable); without it,
    the quota's account is an upper bound, as it adds up the processors of the container.

    Example:
        >>> split(Evidence(wall=0.6, cpu=0.35, run_queue=0.21, throttled=0.3))
        Parts(own=0.39, starved=0.21, throttled=0.21)
    """
    wall, waited = _positive(evidence.wall), evidence.run_queue
    waited = max(
        _positive(evidence.throttled if waited is None else waited),
        _positive(evidence.watcher_starved) if evidence.asleep else 0.0,
        _runnable(evidence) - max(_positive(evidence.process_cpu), _positive(evidence.cpu)),
    )
    most = wall - _positive(evidence.cpu)
    if slept(evidence) and not may_want_the_gil(evidence):
        most = min(most, wall - wall * min(_positive(evidence.syscall_share), 1.0))
    starved = min(waited, max(most, 0.0))
    return Parts(wall - starved, starved, min(starved, _positive(evidence.throttled)))


def parts_of(stall: Stall) -> Parts:
    """Return the parts of a recorded stall; its seconds are bounded, as a journal may hold anything."""
    return Parts(0.0, _positive(stall.starved), _positive(stall.throttled)).within(stall.duration)


def total(parts: Iterable[Parts]) -> Parts:
    """Return the sum of the parts of several blocks.

    Example:
        >>> total([Parts(own=0.25, starved=0.5, throttled=0.25), Parts(own=0.75, starved=0.0, throttled=0.0)])
        Parts(own=1.0, starved=0.5, throttled=0.25)
    """
    blocks = list(parts)
    return Parts(*(fsum(block[field] for block in blocks) for field in range(3)))


def _positive(seconds: float | None) -> float:
    """Return ``seconds``, 0 for what is unknown, below 0 or no number."""
    return seconds if seconds is not None and seconds > 0 else 0.0


def is_starved(evidence: Evidence) -> bool:
    """Whether the block would have been none on a free machine: its own part is below the threshold."""
    parts = split(evidence)
    if evidence.threshold is None:
        return parts.starved > 0 and parts.starved >= parts.own
    return parts.own < evidence.threshold and parts.starved >= NOTABLE * evidence.wall > 0


def slept(evidence: Evidence) -> bool:
    """Whether the samples found the thread asleep rather than running."""
    if evidence.samples == 1 and (evidence.gil_wait or 0.0) > 3 * evidence.switch_interval:
        return False  # a single, late sample: the block may have been over by the time the kernel was asked
    keeps_waking = (evidence.runs or 0) * evidence.switch_interval >= 0.3 * evidence.wall  # not in a lock
    runs = _on_its_feet(evidence) >= evidence.wall / 2
    if may_want_the_gil(evidence) and (evidence.samples == 1 or runs or keeps_waking or computes(evidence)):
        return False
    return kind_of(evidence.syscall) in ("sleep", "lock", "io")


def may_want_the_gil(evidence: Evidence) -> bool:
    """Whether it was found in a futex that is not known for a lock: the reader has the GIL, and others wait for it."""
    return kind_of(evidence.syscall) == "lock" and not evidence.lock_wait


def _runnable(evidence: Evidence) -> float:
    """Return the seconds in which the thread ran or was runnable, by several samples that found it so.

    0 where they do not show it, and where the scheduler's account does.
    """
    on_its_feet = evidence.syscall == RUNNING or may_want_the_gil(evidence)
    is_found_so = on_its_feet and evidence.samples > 1 and evidence.syscall_share >= MOST
    return _positive(evidence.wall) * min(evidence.syscall_share, 1.0) if is_found_so and computes(evidence) else 0.0


def computes(evidence: Evidence) -> bool:
    """Whether it used so much processor time that a lock it is found in is more likely to be the GIL.

    Only where the scheduler's account is older than the block, so that it is not known how often the thread was given a
    processor, and how long it waited for one.
    """
    is_old = evidence.run_queue is not None and evidence.runs is None
    return is_old and _positive(evidence.cpu) >= COMPUTES * _positive(evidence.wall) > 0


def _on_its_feet(evidence: Evidence) -> float:
    """Return the seconds in which the thread ran or was runnable, by the kernel's account."""
    return _positive(evidence.cpu) + _positive(evidence.run_queue)


def contradictions(evidence: Evidence) -> tuple[str, ...]:
    """Return what cannot be true together in ``evidence``, in words; no cause follows from such facts.

    Example:
        >>> contradictions(Evidence(wall=0.3, cpu=0.6))
        ('one thread used 0.600 s of processor time within 0.300 s',)
    """
    wall, cpu, found = evidence.wall, evidence.cpu or 0.0, []
    if cpu > 1.25 * wall + CLOCKS_APART:
        found.append(f"one thread used {cpu:.3f} s of processor time within {wall:.3f} s")
    elif evidence.samples >= 3 and slept(evidence) and evidence.syscall_share >= 0.8 and cpu >= 0.8 * wall:
        found.append(f"found in {evidence.syscall} by {evidence.samples} samples, with {cpu:.3f} s of processor time")
    return tuple(found)

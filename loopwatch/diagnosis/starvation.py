"""Says in words how long a block was without a processor, who took it, and what to do about that. Pure."""

from __future__ import annotations

from loopwatch.core.text import timing
from loopwatch.diagnosis.own_part import Parts

WORTH_SAYING, SERIOUS = 0.1, 0.3
"""Shares of a block without a processor from which it is said, and from which the remedy deals with it."""
A_PART = 0.2
"""Share of that time from which the quota, or the neighbours, are named."""
QUOTA, NEIGHBOURS = "CPU limit of the container", "other processes"
"""The names of those two."""


def described(parts: Parts) -> str:
    """Return how much of a block was without a processor and why, "" if it is not worth saying.

    Example:
        >>> described(Parts(own=0.41, starved=0.21, throttled=0.2))
        '210 ms of the 620 ms without a processor (CPU limit of the container)'
    """
    if not is_notable(parts):
        return ""
    by_quota, by_neighbours = _taken_by(parts)
    who = " and ".join([QUOTA] * by_quota + [NEIGHBOURS] * by_neighbours)
    return f"{timing(parts.starved)} of the {timing(parts.own + parts.starved)} without a processor ({who})"


def is_notable(parts: Parts) -> bool:
    """Whether so much of a block, or of several, was without a processor that it is said."""
    return _share(parts) >= WORTH_SAYING


def cure(parts: Parts) -> str:
    """Return what would have given the process a processor, as the end of a sentence.

    Example:
        >>> cure(Parts(own=0.1, starved=0.4, throttled=0.0))
        'run fewer busy processes on this machine, or give this one a processor of its own'
    """
    by_quota, by_neighbours = _taken_by(parts)
    if by_quota and by_neighbours:
        return "raise the CPU limit of the container, and run fewer busy processes on this machine"
    if by_quota:
        return "raise the CPU limit of the container, or run fewer workers in it"
    return "run fewer busy processes on this machine, or give this one a processor of its own"


def advice(parts: Parts) -> str:
    """Return the sentence that is added to the remedy of a block with another cause; "" if there is little to gain.

    Example:
        >>> advice(Parts(own=0.3, starved=0.3, throttled=0.3))
        ' It also had no processor for 300 ms: raise the CPU limit of the container, or run fewer workers in it.'
    """
    if not _share(parts) >= SERIOUS:
        return ""
    return f" It also had no processor for {timing(parts.starved)}: {cure(parts)}."


def _share(parts: Parts) -> float:
    duration = parts.own + parts.starved
    return parts.starved / duration if duration > 0 else 0.0


def _taken_by(parts: Parts) -> tuple[bool, bool]:
    """Return whether the quota, and whether other processes, took a part worth naming."""
    by_quota = parts.throttled >= A_PART * parts.starved > 0
    return by_quota, not by_quota or parts.starved - parts.throttled >= A_PART * parts.starved

"""The median, without :mod:`statistics`, whose import takes 5 ms in every watched process."""

from __future__ import annotations

from collections.abc import Iterable


def median(values: Iterable[float]) -> float:
    """Return the middle one of ``values``, or the mean of the two in the middle.

    Raises:
        ValueError: ``values`` is empty.

    Example:
        >>> median([3, 1, 2]), median([4, 1, 2, 3])
        (2, 2.5)
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("median of no values")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

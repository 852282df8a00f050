"""Bounds the number of series (cardinality), and keeps counters monotonic when series are merged. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from loopwatch.core.histogram import Histogram

Key = tuple[str, ...]
"""Attribute set of a series: the values of its attributes."""

EVER = 16
"""Keys that may ever have a series, as a multiple of those at a time; after that no new key gets one.

Each series stays for ever in the memory of an SDK, and in the database that stores the metrics.
"""
WAITING = 256
"""Keys without a series of their own whose weights are tracked."""
ADVANTAGE = 2.0
"""Factor by which a key must outweigh the lightest key with a series to replace it."""
OVER = -1.0
"""Weight of a key that is over."""
AGAIN = 2
"""Times that a key must have been seen before it gets a series, except for the first keys: those that occur once, such
as a loop that a job runs in a thread of its own, would use up the limit of :data:`EVER`."""


class Places:
    """Decides which keys get a series of their own: the first ones, until heavier ones recur.

    Series change hands only in :meth:`settle`, after everything was collected, so that no count of a key in its own
    series is lost. A replaced key counts under the common name from then on; if it comes back, its series continues
    with its old total.

    Args:
        most: keys with a series at a time, 0 or more.
        common: returns the shared name for a key without a series of its own.
        lasting: whether a series is given up only by keys that are over.

    Attributes:
        shared: the common names in use.

    Example:
        >>> places = Places(1, lambda key: ("other",))
        >>> places.name(("a",), 1.0), places.name(("b",), 5.0), places.name(("b",), 5.0)
        (('a',), ('other',), ('other',))
        >>> places.settle()
        >>> places.name(("b",), 5.0), places.name(("a",), 1.0)
        (('b',), ('other',))
    """

    def __init__(self, most: int, common: Callable[[Key], Key], *, lasting: bool = False) -> None:
        self.most = most
        self._common = common
        self._lasting = lasting
        self.shared: set[Key] = set()
        self._weights: dict[Key, float] = {}
        self._waiting: dict[Key, tuple[float, int]] = {}
        self._ever: set[Key] = set()

    @property
    def taken(self) -> set[Key]:
        """Keys that have a series of their own."""
        return set(self._weights)

    @property
    def is_fresh(self) -> bool:
        """Whether fewer than ``most`` keys have ever had a series."""
        return len(self._ever) < self.most

    @property
    def exported(self) -> list[Key]:
        """All names that are exported now."""
        taken = self.taken
        return [*sorted(taken), *sorted(self.shared - taken)]

    def name(self, key: Key, weight: float) -> Key:
        """Return the series name for ``key``, and add ``weight`` to its claim to a series of its own.

        Args:
            key: attribute set of the event.
            weight: of the event.
        """
        if key in self._weights:
            self._weights[key] = max(self._weights[key], 0.0) + weight
            return key
        before, times = self._waiting.get(key, (0.0, 0))
        if len(self._weights) < self.most and self._may_have_one(key) and (self.is_fresh or times + 1 >= AGAIN):
            self._take(key, before + weight)
            return key
        self._wait(key, before + weight, times + 1)
        return self.known_name(key)

    def known_name(self, key: Key) -> Key:
        """Return the series name for ``key``, without adding to its claim."""
        if key in self._weights:
            return key
        common = self._common(key)
        self.shared.add(common)
        return common

    def leave(self, keys: Iterable[Key]) -> None:
        """Mark ``keys`` as over: each keeps its series until another key needs it."""
        for key in keys:
            if key in self._weights:
                self._weights[key] = OVER

    def settle(self) -> None:
        """Reassign series to heavier keys, after everything was collected."""
        while len(self._weights) > self.most:
            self._leave(min(self._weights, key=self._weights.__getitem__))
        waiting = sorted(self._waiting.items(), key=lambda item: -item[1][0])
        for key, (weight, times) in waiting:
            lightest = min(self._weights, key=self._weights.__getitem__, default=None)
            if lightest is None:
                return
            lighter = self._weights[lightest]
            if lighter != OVER and (self._lasting or weight <= ADVANTAGE * lighter):
                return  # lighter ones do not qualify either
            if self._may_have_one(key) and times >= AGAIN:
                self._leave(lightest)
                self._take(key, weight)

    def _may_have_one(self, key: Key) -> bool:
        return key in self._ever or len(self._ever) < EVER * self.most

    def _take(self, key: Key, weight: float) -> None:
        self._waiting.pop(key, None)
        self._weights[key] = weight
        self._ever.add(key)

    def _leave(self, key: Key) -> None:
        weight = self._weights.pop(key)
        if weight != OVER:
            self._wait(key, weight, AGAIN)

    def _wait(self, key: Key, weight: float, times: int) -> None:
        if key not in self._waiting and len(self._waiting) >= WAITING:
            heavy = sorted(self._waiting.items(), key=lambda item: -item[1][0])
            self._waiting = dict(heavy[: WAITING // 2])
        self._waiting[key] = (weight, times)


class Totals:
    """Sums by series, which never decrease.

    Args:
        width: values of each series.
    """

    def __init__(self, width: int = 1) -> None:
        self._width = width
        self._sums: dict[Key, list[float]] = {}

    def add(self, name: Key, amounts: Iterable[float]) -> None:
        """Add to the series ``name``; negative amounts are ignored."""
        sums = self._sums.setdefault(name, [0] * self._width)
        for at, amount in enumerate(amounts):
            sums[at] += max(amount, 0)

    def of(self, names: Iterable[Key], at: int = 0) -> list[tuple[Key, float]]:
        """Return those of ``names`` that have a series, with their sums."""
        return [(name, self._sums[name][at]) for name in names if name in self._sums]

    @property
    def names(self) -> list[Key]:
        """All series so far."""
        return list(self._sums)


Id = TypeVar("Id", bound=Hashable)


class Growth(Generic[Id]):
    """Computes by how much totals have grown since they were last seen.

    Args:
        kept: keys that are remembered, those seen last: one that was missing for a moment is not counted twice.

    Example:
        >>> growth = Growth[str](10)
        >>> growth.of("pool", (5, 1.0)), growth.of("pool", (7, 1.5)), growth.of("pool", (1, 0.1))
        ([5, 1.0], [2, 0.5], [1, 0.1])
    """

    def __init__(self, kept: int = 1000) -> None:
        self._kept = kept
        self._seen: dict[Id, tuple[float, ...]] = {}

    def of(self, key: Id, totals: tuple[float, ...]) -> list[float]:
        """Return the growth of each of ``totals``; if the first one has decreased, all have restarted from 0."""
        before = self._seen.pop(key, None)
        if before is None and len(self._seen) >= self._kept:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = totals
        if before is None or totals[0] < before[0]:
            return list(totals)
        return [now - then for now, then in zip(totals, before, strict=True)]


class Spans(Generic[Id]):
    """Histograms by series, added up from the growing histograms of single sources.

    Args:
        kept: see :class:`Growth`.
    """

    def __init__(self, kept: int = 1000) -> None:
        self._kept = kept
        self._seen: dict[Id, Histogram] = {}
        self._sums: dict[Key, Histogram] = {}

    def add(self, name: Key, key: Id, total: Histogram) -> None:
        """Add the growth of ``total``, the histogram of ``key``, to the series ``name``."""
        before = self._seen.pop(key, None)
        if before is None and len(self._seen) >= self._kept:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = total
        grown = total if before is None or total.count < before.count else total.since(before)
        self._sums.setdefault(name, Histogram()).add(grown)

    def of(self, names: Iterable[Key]) -> list[tuple[Key, Histogram]]:
        """Return those of ``names`` that have a series, with copies of their histograms."""
        return [(name, self._sums[name].copy()) for name in names if name in self._sums]


def foremost(weights: Mapping[Key, float], most: int) -> set[Key]:
    """Return the ``most`` keys with the greatest weights; of equal ones those that are first in order."""
    return set(sorted(weights, key=lambda key: (-weights[key], key))[:most])

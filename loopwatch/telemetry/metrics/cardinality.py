"""Bounds the number of series (cardinality), and keeps counters monotonic when series are merged. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from loopwatch.core.histogram import Histogram

Key = tuple[str, ...]
"""Values of attributes, which make a series."""

EVER = 16
"""Times as many keys as are told apart at a time may ever have been; afterwards none gives up its place any more.

Each is a series for ever in the memory of an SDK, and of whoever stores what is told.
"""
WAITING = 256
"""Keys that are told together whose weights are known."""
ADVANTAGE = 2.0
"""Times the weight of the lightest that a key needs to take its place."""
OVER = -1.0
"""The weight of a key that is over."""
AGAIN = 2
"""Times that a key must have been seen before it has a place, but for the first ones: those that happen once, such as a
loop that a job runs in a thread of its own, would use up what there can ever be."""


class Places:
    """Decides which keys are told apart: the first ones, until heavier ones come again and again.

    Places change hands only in :meth:`settle`, when everything has been told: so nothing that a key has counted in its
    own series is missed. A key that has given up its place goes on under the common name with what comes from then on;
    the series that it had is found again with its total if the key comes back.

    Args:
        most: keys told apart at a time, 0 or more.
        common: returns the name under which a key is told that has no place of its own.
        lasting: whether a place is given up only by keys that are over.

    Attributes:
        shared: the common names that were used.

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
        """Keys that have a place."""
        return set(self._weights)

    @property
    def is_fresh(self) -> bool:
        """Whether there are places that nobody has had yet."""
        return len(self._ever) < self.most

    @property
    def told(self) -> list[Key]:
        """All names that are told now."""
        taken = self.taken
        return [*sorted(taken), *sorted(self.shared - taken)]

    def name(self, key: Key, weight: float) -> Key:
        """Return under which name ``key`` is told.

        Args:
            key: which has just happened.
            weight: of what has happened.
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
        """Return under which name ``key`` is told, without any claim to a place."""
        if key in self._weights:
            return key
        common = self._common(key)
        self.shared.add(common)
        return common

    def leave(self, keys: Iterable[Key]) -> None:
        """Have ``keys``, which are over, give up their places to the next that come, if any do."""
        for key in keys:
            if key in self._weights:
                self._weights[key] = OVER

    def settle(self) -> None:
        """Have places change hands, now that everything is told."""
        while len(self._weights) > self.most:
            self._leave(min(self._weights, key=self._weights.__getitem__))
        waiting = sorted(self._waiting.items(), key=lambda item: -item[1][0])
        for key, (weight, times) in waiting:
            lightest = min(self._weights, key=self._weights.__getitem__, default=None)
            if lightest is None:
                return
            lighter = self._weights[lightest]
            if lighter != OVER and (self._lasting or weight <= ADVANTAGE * lighter):
                return  # nor do those that are lighter still
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
    """Sums by series, which never go down.

    Args:
        width: values of each series.
    """

    def __init__(self, width: int = 1) -> None:
        self._width = width
        self._sums: dict[Key, list[float]] = {}

    def add(self, name: Key, amounts: Iterable[float]) -> None:
        """Add to the series ``name``; what is less than nothing is not added."""
        sums = self._sums.setdefault(name, [0] * self._width)
        for at, amount in enumerate(amounts):
            sums[at] += max(amount, 0)

    def of(self, names: Iterable[Key], at: int = 0) -> list[tuple[Key, float]]:
        """Return those of ``names`` that have a series, with their sums."""
        return [(name, self._sums[name][at]) for name in names if name in self._sums]

    @property
    def names(self) -> list[Key]:
        """All series that there ever were."""
        return list(self._sums)


Id = TypeVar("Id", bound=Hashable)


class Growth(Generic[Id]):
    """Tells by how much totals have grown since they were last seen.

    Args:
        kept: how many are remembered that are seen no more: one that was missing for a moment does not count twice.

    Example:
        >>> growth = Growth[str](10)
        >>> growth.of("pool", (5, 1.0)), growth.of("pool", (7, 1.5)), growth.of("pool", (1, 0.1))
        ([5, 1.0], [2, 0.5], [1, 0.1])
    """

    def __init__(self, kept: int = 1000) -> None:
        self._kept = kept
        self._seen: dict[Id, tuple[float, ...]] = {}

    def of(self, key: Id, totals: tuple[float, ...]) -> list[float]:
        """Return what each of ``totals`` has grown by; the first one decides whether they began anew."""
        before = self._seen.pop(key, None)
        if before is None and len(self._seen) >= self._kept:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = totals
        if before is None or totals[0] < before[0]:
            return list(totals)
        return [now - then for now, then in zip(totals, before, strict=True)]


class Spans(Generic[Id]):
    """Histograms by series, from histograms of single things that grow.

    Args:
        kept: as of :class:`Growth`.
    """

    def __init__(self, kept: int = 1000) -> None:
        self._kept = kept
        self._seen: dict[Id, Histogram] = {}
        self._sums: dict[Key, Histogram] = {}

    def add(self, name: Key, key: Id, total: Histogram) -> None:
        """Add what ``total``, that of ``key``, has grown by to the series ``name``."""
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

"""Counts the work of loops, stalls, pools and offloaded calls, each within its bounds. Pure: no clock, no files.

The counts of a loop or pool that is gone stay in its series or in that of
:data:`~loopwatch.telemetry.metrics.catalog.OTHER`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from loopwatch.events import DESTINATIONS, LagStats, LoopStats, PoolStats, Snapshot, Stall, WorkerState, culprit_key
from loopwatch.health.records import PoolReading
from loopwatch.telemetry.metrics.attributes import utf8
from loopwatch.telemetry.metrics.cardinality import Growth, Key, Places, Spans, Totals, foremost
from loopwatch.telemetry.metrics.catalog import BY_NAME, MAX_CULPRITS, MAX_LOOPS, MAX_POOLS, OTHER
from loopwatch.telemetry.metrics.records import Point, Spread
from loopwatch.watch.observation import LoopReading

LONGEST = 256
"""Characters of an attribute's value."""
DIRECT = "WorkerPool.run"
"""Function name for calls that were passed to a pool directly."""
UNKNOWN = "unknown"
_MIXED_CULPRITS = 3
"""(loop, cause) sets for culprits without a series of their own; further ones are :data:`OTHER` in all three."""
PENDING = 1000
"""Stalls that wait for the next reading before they are counted."""
QUOTA, NEIGHBOURS = "quota", "neighbours"
"""What took the processor from a loop: the CPU quota of the container, or other threads and processes."""
_SPREAD_POOLS = 4
_STATES = len(WorkerState)
_UNWELL = frozenset({WorkerState.ZOMBIE, WorkerState.ORPHAN, WorkerState.HUNG})


Points = dict[str, tuple[Point, ...]]
Spreads = dict[str, tuple[Spread, ...]]


def key_of(*values: str) -> Key:
    """Return the attribute set of a series, as valid UTF-8 and truncated."""
    return tuple(utf8(str(value)[:LONGEST]) for value in values)


def points_of(found: Iterable[tuple[Key, float]]) -> tuple[Point, ...]:
    """Return a number point for each series."""
    return tuple(Point(name, value) for name, value in found)


def gathered(values: Mapping[Key, float], sets: int) -> tuple[Point, ...]:
    """Return the greatest values, and the sum of the others, in ``sets`` points at most."""
    if len(values) <= sets:
        return points_of(sorted(values.items()))
    own = foremost(values, sets - 1)
    rest = (OTHER,) * len(next(iter(values)))
    return points_of([*sorted((key, values[key]) for key in own), (rest, _sum(values, own))])


def _sum(values: Mapping[Key, float], without: Iterable[Key]) -> float:
    left_out = set(without)
    return sum(value for key, value in values.items() if key not in left_out)


class Counted:
    """Accumulates counts that others keep by key, with a bound on the keys that get a series of their own.

    Args:
        most: keys with a series of their own.
        common: returns the shared name of another key.
    """

    def __init__(self, most: int, common: Callable[[Key], Key]) -> None:
        self._places = Places(most, common)
        self._growth = Growth[Key]()
        self._totals = Totals()

    def count(self, counts: Mapping[Key, float], whose: Key = ()) -> None:
        """Record the current counts.

        Args:
            counts: by key.
            whose: distinguishes the sources, where several count the same key.
        """
        for key, count in counts.items():
            (grown,) = self._growth.of((*whose, *key), (count,))
            if grown > 0:
                self._totals.add(self._places.name(key, grown), (grown,))

    def settle(self) -> None:
        """Finish a collection."""
        self._places.settle()

    def points(self) -> tuple[Point, ...]:
        """Return the totals of the exported series."""
        return points_of(self._totals.of(self._places.exported))


# -- loops ------------------------------------------------------------------------------------------------------------

_LAGS = ("min", "mean", "stddev", "p50", "p90", "p99", "max")
_BUSY, _IDLE, _PASSES, _CALLBACKS, _VICTIMS = range(5)


_IDLE_SHARE = 0.05
"""A loop that is busy for a smaller share of the time cannot replace another in its series."""


class Loops:
    """Stats of loops; the busiest and those that stall have series of their own, until they are over."""

    def __init__(self) -> None:
        self._places = Places(MAX_LOOPS, lambda _key: (OTHER,))
        self._growth = Growth[Hashable]()
        self._blocked = Growth[Hashable]()
        self.busy_share = 0.0
        """Busy share of the busiest loop between the last two readings."""
        self._totals = Totals(5)
        self._has: dict[Key, set[Hashable]] = {}
        self._spans = Spans[Hashable]()

    def name_of(self, loop: str) -> str:
        """Return the series name for the loop of this name."""
        return self._places.known_name(key_of(loop))[0]

    def count(self, loop: LoopReading, *, is_over: bool = False) -> Key:
        """Record the current stats of a loop; return its series name."""
        stats = loop.stats
        figures = (stats.busy, stats.idle, stats.passes, loop.callbacks, loop.victims)
        # The heartbeat's count comes first: if it has decreased, this is another loop.
        grown = self._growth.of(loop.key, (loop.lags.count, *(figure or 0 for figure in figures)))
        busy, idle = grown[1 + _BUSY], grown[1 + _IDLE]
        (blocked,) = self._blocked.of(loop.key, (stats.blocked,))
        works = busy > _IDLE_SHARE * (busy + idle)
        weight = 10 * blocked + (busy if works else 0.0)
        key = key_of(stats.name)
        claims = not is_over or self._places.is_fresh
        name = self._places.name(key, weight) if claims else self._places.known_name(key)
        self._totals.add(name, grown[1:])
        known = self._has.setdefault(name, set())
        known.update(at for at, figure in enumerate(figures) if figure is not None)
        self._spans.add(name, loop.key, loop.lags)
        if stats.busy is None or stats.idle is None:
            self.busy_share = 1.0
        elif busy + idle > 0:
            self.busy_share = max(self.busy_share, busy / (busy + idle))
        return name

    def settle(self) -> None:
        """Finish a collection."""
        self._places.settle()

    def gone(self, loop: LoopReading) -> None:
        """Record the last stats of a loop that is over."""
        self.count(loop, is_over=True)
        self._places.leave([key_of(loop.stats.name)])

    def collect(
        self, loops: Iterable[LoopReading], points: Points, spreads: Spreads, pause: Callable[[], None]
    ) -> None:
        """Add the points of all loops to ``points`` and ``spreads``; calls ``pause`` between parts of the work."""
        self.busy_share = 0.0
        by_name: dict[Key, list[LoopStats]] = {}
        for loop in loops:
            by_name.setdefault(self.count(loop), []).append(loop.stats)
            pause()
        self._collect_now(by_name, points)
        names = self._places.exported
        spreads["asyncio.eventloop.lag"] = tuple(Spread(name, found) for name, found in self._spans.of(names))
        for at, metric in ((_PASSES, "passes"), (_CALLBACKS, "callbacks"), (_VICTIMS, "stall.victims")):
            points[f"asyncio.eventloop.{metric}"] = points_of(self._totals.of(self._with(names, at), at))
        points["asyncio.eventloop.time"] = tuple(
            Point((*name, state), value)
            for at, state in ((_BUSY, "busy"), (_IDLE, "idle"))
            for name, value in self._totals.of(self._with(names, at), at)
        )

    def _with(self, names: Iterable[Key], at: int) -> list[Key]:
        return [name for name in names if at in self._has.get(name, ())]

    def _collect_now(self, by_name: Mapping[Key, list[LoopStats]], points: Points) -> None:
        lags = {name: _worst([each.lag for each in stats if each.lag is not None]) for name, stats in by_name.items()}
        for which in _LAGS:
            points[f"asyncio.eventloop.lag.{which}"] = tuple(
                Point(name, getattr(lag, which)) for name, lag in lags.items() if lag is not None
            )
        shares = {
            name: [each.utilization for each in stats if each.utilization is not None]
            for name, stats in by_name.items()
        }
        points["asyncio.eventloop.utilization"] = tuple(
            Point(name, max(found)) for name, found in shares.items() if found
        )
        points["asyncio.eventloop.blocked_for"] = tuple(
            Point(name, max(each.blocked_for for each in stats)) for name, stats in by_name.items()
        )


def _worst(lags: Sequence[LagStats]) -> LagStats | None:
    """Merge the lag stats of several loops: each value is that of the worst loop, except minimum and mean."""
    if len(lags) < 2:
        return lags[0] if lags else None
    count = sum(each.count for each in lags)
    worst = {which: max(getattr(each, which) for each in lags) for which in ("p50", "p90", "p99", "max", "stddev")}
    mean = sum(each.mean * each.count for each in lags) / count
    return LagStats(count=count, min=min(each.min for each in lags), mean=mean, **worst)


class Stalls:
    """Stalls by loop, cause and culprit.

    Args:
        name_of: returns the series name for a loop.
    """

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self._name_of = name_of
        self._mixed = Places(_MIXED_CULPRITS, lambda _key: (OTHER,) * 3, lasting=True)
        self._places = Places(MAX_CULPRITS, self._common)
        self._totals = Totals(2)
        self._pending: list[tuple[Key, float]] = []
        self._starved = {QUOTA: 0.0, NEIGHBOURS: 0.0}

    @property
    def most(self) -> int:
        """Culprits with a series of their own."""
        return self._places.most

    @most.setter
    def most(self, most: int) -> None:
        self._places.most = min(most, MAX_CULPRITS)

    def _common(self, key: Key) -> Key:
        loop, cause, _ = key
        return self._mixed.name((loop, cause, OTHER), 0.0)

    def count(self, stall: Stall) -> None:
        """Record a stall that is over."""
        self._pending.append((key_of(stall.loop, stall.cause, culprit_key(stall)), stall.duration))
        self._starved[QUOTA] += max(stall.throttled, 0.0)
        self._starved[NEIGHBOURS] += max(stall.starved - stall.throttled, 0.0)
        if len(self._pending) >= PENDING:
            self._count_pending()

    def _count_pending(self) -> None:
        """Count pending stalls: a loop is known only from the first reading after its first stall."""
        pending, self._pending = self._pending, []
        for (loop, cause, culprit), duration in pending:
            name = self._places.name((self._name_of(loop), cause, culprit), duration)
            self._totals.add(name, (1, duration))

    def collect(self, points: Points) -> None:
        """Add the points of all stalls to ``points``."""
        self._count_pending()
        names = self._places.exported
        points["asyncio.eventloop.stalls"] = points_of(self._totals.of(names, 0))
        points["asyncio.eventloop.stall.duration"] = points_of(self._totals.of(names, 1))
        # From 0 on, so that rate() sees the first stall, and rules can distinguish agents without this metric.
        points["asyncio.eventloop.stall.starved"] = points_of(((by,), value) for by, value in self._starved.items())

    def settle(self) -> None:
        """Finish a collection."""
        self._places.settle()


# -- pools ------------------------------------------------------------------------------------------------------------

_REST = (OTHER, OTHER)


_NO_POOL = "children"
"""The kind of child processes that belong to no pool: they have neither tasks nor a queue."""
_TROUBLE = 1000
"""Weight, in tasks, of a worker in trouble, when pools compete for a series."""


def _unwell(pool: PoolStats) -> int:
    return sum(worker.state in _UNWELL for worker in pool.workers) + sum(pool.crashes.values())


class Pools:
    """Stats of pools; those in trouble and those with the most tasks have series of their own, until they are over."""

    def __init__(self) -> None:
        self._places = Places(MAX_POOLS, lambda _key: _REST)
        self._spread_places = Places(_SPREAD_POOLS, lambda _key: _REST)
        self._growth = Growth[Key]()
        self._totals = Totals(3)
        self._waits, self._runs = Spans[Key](), Spans[Key]()
        self._failed = Counted(BY_NAME["loopwatch.pool.failed"].sets - 1, lambda _key: (OTHER,) * 3)
        self._crashes = Counted(BY_NAME["loopwatch.pool.crashes"].sets - 1, lambda _key: (OTHER,) * 3)

    def collect(
        self, pools: Sequence[PoolReading], points: Points, spreads: Spreads, pause: Callable[[], None]
    ) -> None:
        """Add the points of all pools to ``points`` and ``spreads``; calls ``pause`` between parts of the work."""
        by_name: dict[Key, list[PoolStats]] = {}
        alive = {key_of(each.stats.name, each.stats.kind) for each in pools}
        for places in (self._places, self._spread_places):
            places.leave([key for key in places.taken if key not in alive])
        seen: dict[Key, int] = {}
        for each in pools:
            key = key_of(each.stats.name, each.stats.kind)
            seen[key] = seen.get(key, 0) + 1
            by_name.setdefault(self._count(each, key, (*key, str(seen[key]))), []).append(each.stats)
            pause()
        self._collect_now(by_name, points)
        names = self._places.exported
        for at, metric in enumerate(("completed", "started", "cpu.time")):
            series = names if metric != "completed" else [name for name in names if name[1] != _NO_POOL]
            points[f"loopwatch.pool.{metric}"] = points_of(self._totals.of(series, at))
        pause()
        points["loopwatch.pool.failed"] = self._failed.points()
        points["loopwatch.pool.crashes"] = self._crashes.points()
        apart = self._spread_places.exported
        for metric, spans in (("wait", self._waits), ("run", self._runs)):
            spreads[f"loopwatch.pool.task.{metric}"] = tuple(Spread(name, found) for name, found in spans.of(apart))

    def settle(self) -> None:
        """Finish a collection."""
        for part in (self._places, self._spread_places, self._failed, self._crashes):
            part.settle()

    def _count(self, pool: PoolReading, key: Key, own: Key) -> Key:
        """Record the current stats of a pool; return its series name."""
        stats = pool.stats
        taken = max(stats.submitted, stats.completed + stats.failed)
        grown = self._growth.of(own, (taken, stats.completed, stats.started, stats.cpu))
        weight = grown[0] + stats.queued + _TROUBLE * _unwell(stats)
        claims = not stats.closed or self._places.is_fresh
        name = self._places.name(key, weight) if claims else self._places.known_name(key)
        self._totals.add(name, grown[1:])
        if pool.waits.count or pool.runs.count:
            spread = self._spread_places.name(key, grown[0])
            self._waits.add(spread, own, pool.waits)
            self._runs.add(spread, own, pool.runs)
        failures = {(*key, utf8(str(error)[:LONGEST])): float(count) for error, count in stats.failures.items()}
        rest = stats.failed - sum(stats.failures.values())
        if rest > 0:
            failures[(*key, UNKNOWN)] = failures.get((*key, UNKNOWN), 0.0) + rest
        self._failed.count(failures, own)
        crashes = {(*key, utf8(str(why)[:LONGEST])): float(count) for why, count in stats.crashes.items()}
        self._crashes.count(crashes, own)
        return name

    def _collect_now(self, by_name: Mapping[Key, list[PoolStats]], points: Points) -> None:
        def gauge(metric: str, value: Callable[[PoolStats], float | None], *, of_all: bool = False) -> None:
            of = {name: [each for each in stats if of_all or each.kind != _NO_POOL] for name, stats in by_name.items()}
            found = ((name, [value(each) for each in stats]) for name, stats in of.items())
            known = ((name, [each for each in values if each is not None]) for name, values in found)
            points[f"loopwatch.pool.{metric}"] = points_of((name, sum(values)) for name, values in known if values)

        gauge("max_workers", lambda pool: pool.max_workers)
        gauge("queue.depth", lambda pool: pool.queued)
        gauge("in_flight", lambda pool: pool.running)
        gauge("memory", lambda pool: sum(worker.memory for worker in pool.workers), of_all=True)
        shares = {
            name: [each.utilization for each in stats if each.kind != _NO_POOL] for name, stats in by_name.items()
        }
        points["loopwatch.pool.utilization"] = points_of((name, max(found)) for name, found in shares.items() if found)
        points["loopwatch.pool.workers"] = self._workers(by_name)

    @staticmethod
    def _workers(by_name: Mapping[Key, list[PoolStats]]) -> tuple[Point, ...]:
        """Return workers by state; unhealthy ones first, if there is no room for all."""
        counts: dict[Key, float] = {}
        for name, stats in by_name.items():
            for pool in stats:
                for state in (WorkerState.IDLE, WorkerState.BUSY) if pool.workers else ():
                    counts.setdefault((*name, str(state)), 0)  # a graph's line drops to 0 instead of ending
                for worker in pool.workers:
                    counts[(*name, str(worker.state))] = counts.get((*name, str(worker.state)), 0) + 1
        sets = BY_NAME["loopwatch.pool.workers"].sets
        if len(counts) <= sets:
            return points_of(sorted(counts.items()))
        ranked = sorted(counts, key=lambda key: (key[-1] not in _UNWELL, not counts[key], key[0] == OTHER, key))
        own = ranked[: sets - _STATES]
        rest: dict[Key, float] = {}
        for key in ranked[sets - _STATES :]:
            gathered = (*_REST, key[-1])
            rest[gathered] = rest.get(gathered, 0) + counts[key]
        merged = {key: counts[key] + rest.pop(key, 0) for key in own}
        return points_of(sorted({**merged, **rest}.items()))


# -- offloading -------------------------------------------------------------------------------------------------------


class Offload:
    """Stats of calls that run elsewhere, or may."""

    def __init__(self) -> None:
        sets = BY_NAME["loopwatch.offload.calls"].sets
        self._calls = Counted(sets - len(DESTINATIONS), lambda key: (OTHER, key[1]))
        self._growth = Growth[str]()
        self._totals = Totals(2)
        self._saved = 0.0

    def collect(self, snapshot: Snapshot, points: Points) -> None:
        """Add the points of functions that may run elsewhere to ``points``."""
        for function in snapshot.offload:
            counts = {key_of(function.name, place): float(getattr(function, place)) for place in DESTINATIONS}
            self._calls.count(counts, (function.way,))
        for place in snapshot.places:
            self._calls.count({key_of(DIRECT, place.place): float(place.calls)}, ("direct",))
            # A counter cannot go down: only growth of the saved time is added.
            _, run, trip, saved = self._growth.of(place.place, (0, place.run, place.trip, place.saved))
            self._totals.add((place.place,), (run, trip))
            self._saved += max(saved, 0.0)
        points["loopwatch.offload.calls"] = self._calls.points()
        names: list[Key] = [(place,) for place in DESTINATIONS]
        points["loopwatch.offload.run.time"] = points_of(self._totals.of(names, 0))
        points["loopwatch.offload.trip.time"] = points_of(self._totals.of(names[1:], 1))
        if snapshot.places:
            points["loopwatch.offload.saved"] = (Point((), self._saved),)

    def settle(self) -> None:
        """Finish a collection."""
        self._calls.settle()

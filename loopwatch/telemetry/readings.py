"""Points of every metric from what the agent knows, with every bound of the catalog applied. Pure: no clock, no files.

A point of a counter never goes down: what a loop or a pool that is gone has counted stays in its series, or in that of
:data:`~loopwatch.telemetry.catalog.OTHER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loopwatch.events import LagStats, LoopStats, PoolStats, Snapshot, Stall, WorkerState
from loopwatch.pools.reading import PoolReading
from loopwatch.probes.histogram import Histogram
from loopwatch.telemetry.bounds import Growth, Key, Places, Spans, Totals, foremost
from loopwatch.telemetry.catalog import BY_NAME, MAX_CULPRITS, MAX_LOOPS, MAX_POOLS, OTHER
from loopwatch.telemetry.log import culprit_key


@dataclass(frozen=True, slots=True)
class Point:
    """One value.

    Attributes:
        attributes: values of the metric's attributes, in their order in the catalog.
        value: in the metric's unit.
    """

    attributes: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Durations of one series of a histogram since the process started.

    Attributes:
        attributes: as of a :class:`Point`.
        histogram: a copy that nobody writes to.
    """

    attributes: tuple[str, ...]
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment.

    Attributes:
        at: s since the epoch.
        points: of counters and gauges, by name of the metric.
        spreads: of histograms, by name of the metric.
    """

    at: float
    points: Mapping[str, tuple[Point, ...]]
    spreads: Mapping[str, tuple[Spread, ...]]


@dataclass(frozen=True, slots=True)
class LoopReading:
    """One loop at one moment.

    Attributes:
        key: unique among the loops of the process.
        stats: what is told to people.
        lags: how late its heartbeat was since it is watched.
        callbacks: callbacks that it has run since then, None where they are not counted.
        victims: what waited when its stalls ended.
    """

    key: int
    stats: LoopStats
    lags: Histogram
    callbacks: int | None = None
    victims: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What points are made of.

    Attributes:
        snapshot: loops, findings, functions, the agent.
        loops: the loops that are watched.
        pools: pools and child processes.
        collections: (collections, collected, uncollectable) of the garbage collector's generations.
        started_at: of the agent, s since the epoch.
        dropped: what was not told, by signal.
    """

    snapshot: Snapshot
    loops: Sequence[LoopReading] = ()
    pools: Sequence[PoolReading] = ()
    collections: Sequence[tuple[int, int, int]] = ()
    started_at: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)


LONGEST = 256
"""Characters of an attribute's value."""
DIRECT = "WorkerPool.run"
"""What stands for the function of calls that a pool was given directly."""
UNKNOWN = "unknown"
_MIXED_CULPRITS = 3
"""Sets of (loop, cause) for culprits that are not told apart; further ones are told as :data:`OTHER` in all three."""
PENDING = 1000
"""Stalls that wait for the next reading before they are counted."""
_SPREAD_POOLS = 4
_STATES = len(WorkerState)
_UNWELL = frozenset({WorkerState.ZOMBIE, WorkerState.ORPHAN, WorkerState.HUNG})


class Readings:
    """Makes points; keeps what was counted.

    Not safe for several threads at once.

    Args:
        max_culprits: culprits told apart, at most as many as the catalog allows.
    """

    def __init__(self, max_culprits: int = MAX_CULPRITS) -> None:
        self._loops = _Loops()
        self._stalls = _Stalls(self._loops.name_of)
        self._pools = _Pools()
        self._offload = _Offload()
        self._faults = _Counted(BY_NAME["loopwatch.agent.faults"].sets - 1, lambda _key: (OTHER,))
        self._dropped, self._dropped_growth = Totals(), Growth[str]()
        self._cpu = self._cpu_before = self._lag = 0.0
        self.max_culprits = max_culprits

    @property
    def max_culprits(self) -> int:
        """Culprits told apart."""
        return self._stalls.most

    @max_culprits.setter
    def max_culprits(self, most: int) -> None:
        self._stalls.most = most

    def saw(self, stall: Stall) -> None:
        """Count a stall that is over."""
        self._stalls.count(stall)

    def loop_gone(self, loop: LoopReading) -> None:
        """Keep what a loop has counted that is not watched any more."""
        self._loops.count(loop)
        self._loops.gone(loop)

    def read(self, inputs: Inputs, pause: Callable[[], None] = lambda: None) -> Reading:
        """Return all points.

        Args:
            inputs: what they are made of.
            pause: called between parts of the work.
        """
        points: dict[str, tuple[Point, ...]] = {}
        spreads: dict[str, tuple[Spread, ...]] = {}
        self._loops.tell(inputs.loops, points, spreads, pause)
        self._stalls.tell(points)
        pause()
        self._pools.tell(inputs.pools, points, spreads, pause)
        self._offload.tell(inputs.snapshot, points)
        pause()
        self._tell_findings(inputs.snapshot, points)
        self._tell_interpreter(inputs, points)
        self._tell_agent(inputs, points)
        for part in (self._loops, self._stalls, self._pools, self._offload, self._faults):
            part.settle()
        return Reading(
            inputs.snapshot.at,
            {name: found for name, found in points.items() if found},
            {name: found for name, found in spreads.items() if found},
        )

    def _tell_findings(self, snapshot: Snapshot, points: _Points) -> None:
        kinds: dict[Key, float] = {}
        for finding in snapshot.findings:
            kinds[(finding.kind,)] = kinds.get((finding.kind,), 0) + 1
        points["loopwatch.findings"] = _gathered(kinds, BY_NAME["loopwatch.findings"].sets)
        flagged: dict[Key, float] = {}
        for function in snapshot.flagged:
            key = _key(function.name, function.cause, function.remedy)
            flagged[key] = flagged.get(key, 0.0) + function.blocked
        points["loopwatch.flagged"] = _gathered(flagged, BY_NAME["loopwatch.flagged"].sets)

    def _tell_interpreter(self, inputs: Inputs, points: _Points) -> None:
        if inputs.snapshot.tasks is not None:
            points["asyncio.tasks"] = (Point((), inputs.snapshot.tasks),)
        names = ("collections", "collected_objects", "uncollectable_objects")
        for at, name in enumerate(names):
            points[f"cpython.gc.{name}"] = tuple(
                Point((str(generation),), counts[at]) for generation, counts in enumerate(inputs.collections[:3])
            )

    def _tell_agent(self, inputs: Inputs, points: _Points) -> None:
        agent = inputs.snapshot.agent
        spent = max(agent.cpu - self._cpu_before, 0.0)  # of a thread that has ended the clock is not known any more
        self._cpu_before = agent.cpu
        self._cpu += spent
        self._lag += spent * self._loops.busy_share
        points["loopwatch.agent.cpu.time"] = (Point((), self._cpu),)
        points["loopwatch.agent.lag"] = (Point((), self._lag),)
        points["loopwatch.agent.stretch"] = (Point((), agent.stretch),)
        points["loopwatch.agent.state"] = (Point((agent.state,), 1),)
        points["loopwatch.agent.start_time"] = (Point((), inputs.started_at),)
        self._faults.count({_key(part): float(count) for part, count in agent.faults.items()})
        points["loopwatch.agent.faults"] = self._faults.points()
        for signal, count in sorted(inputs.dropped.items())[: BY_NAME["loopwatch.agent.dropped"].sets]:
            self._dropped.add((signal,), self._dropped_growth.of(signal, (count,)))
        points["loopwatch.agent.dropped"] = _points(self._dropped.of(self._dropped.names))


_Points = dict[str, tuple[Point, ...]]
_Spreads = dict[str, tuple[Spread, ...]]


def _key(*values: str) -> Key:
    return tuple(str(value)[:LONGEST] for value in values)


def _points(found: Iterable[tuple[Key, float]]) -> tuple[Point, ...]:
    return tuple(Point(name, value) for name, value in found)


def _gathered(values: Mapping[Key, float], sets: int) -> tuple[Point, ...]:
    """Return the greatest values, and the sum of the others, in ``sets`` points at most."""
    if len(values) <= sets:
        return _points(sorted(values.items()))
    own = foremost(values, sets - 1)
    rest = (OTHER,) * len(next(iter(values)))
    return _points([*sorted((key, values[key]) for key in own), (rest, _sum(values, own))])


def _sum(values: Mapping[Key, float], without: Iterable[Key]) -> float:
    left_out = set(without)
    return sum(value for key, value in values.items() if key not in left_out)


class _Counted:
    """Counts by key that were counted elsewhere, with a bound to the keys that are told apart.

    Args:
        most: keys told apart.
        common: under which name others are told.
    """

    def __init__(self, most: int, common: Callable[[Key], Key]) -> None:
        self._places = Places(most, common)
        self._growth = Growth[Key]()
        self._totals = Totals()

    def count(self, counts: Mapping[Key, float], whose: Key = ()) -> None:
        """Take counts as they are now.

        Args:
            counts: by key.
            whose: tells apart who counted, where several count the same key.
        """
        for key, count in counts.items():
            (grown,) = self._growth.of((*whose, *key), (count,))
            if grown > 0:
                self._totals.add(self._places.name(key, grown), (grown,))

    def settle(self) -> None:
        self._places.settle()

    def points(self) -> tuple[Point, ...]:
        return _points(self._totals.of(self._places.told))


# -- loops ------------------------------------------------------------------------------------------------------------

_LAGS = ("min", "mean", "stddev", "p50", "p90", "p99", "max")
_BUSY, _IDLE, _PASSES, _CALLBACKS, _VICTIMS = range(5)


_IDLE_SHARE = 0.05
"""A loop that is busy for a smaller share of the time has no claim to the place of another."""


class _Loops:
    """Figures of loops; the busiest and those that stall are told apart, until they are over."""

    def __init__(self) -> None:
        self._places = Places(MAX_LOOPS, lambda _key: (OTHER,))
        self._growth = Growth[int]()
        self._blocked = Growth[int]()
        self.busy_share = 0.0
        """Of the busiest loop, between the last two readings."""
        self._totals = Totals(5)
        self._has: dict[Key, set[int]] = {}
        self._spans = Spans[int]()

    def name_of(self, loop: str) -> str:
        """Return under which name the loop with this name is told."""
        return self._places.known_name(_key(loop))[0]

    def count(self, loop: LoopReading) -> Key:
        """Take the figures of a loop as they are now; return under which name it is told."""
        stats = loop.stats
        figures = (stats.busy, stats.idle, stats.passes, loop.callbacks, loop.victims)
        # The heartbeat's count comes first: it tells whether this is another loop.
        grown = self._growth.of(loop.key, (loop.lags.count, *(figure or 0 for figure in figures)))
        busy, idle = grown[1 + _BUSY], grown[1 + _IDLE]
        (blocked,) = self._blocked.of(loop.key, (stats.blocked,))
        works = busy > _IDLE_SHARE * (busy + idle)
        name = self._places.name(_key(stats.name), 10 * blocked + (busy if works else 0.0))
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
        self._places.settle()

    def gone(self, loop: LoopReading) -> None:
        """A loop is over."""
        self._places.leave([_key(loop.stats.name)])

    def tell(self, loops: Iterable[LoopReading], points: _Points, spreads: _Spreads, pause: Callable[[], None]) -> None:
        self.busy_share = 0.0
        by_name: dict[Key, list[LoopStats]] = {}
        for loop in loops:
            by_name.setdefault(self.count(loop), []).append(loop.stats)
            pause()
        self._tell_now(by_name, points)
        names = self._places.told
        spreads["asyncio.eventloop.lag"] = tuple(Spread(name, found) for name, found in self._spans.of(names))
        for at, metric in ((_PASSES, "passes"), (_CALLBACKS, "callbacks"), (_VICTIMS, "stall.victims")):
            points[f"asyncio.eventloop.{metric}"] = _points(self._totals.of(self._with(names, at), at))
        points["asyncio.eventloop.time"] = tuple(
            Point((*name, state), value)
            for at, state in ((_BUSY, "busy"), (_IDLE, "idle"))
            for name, value in self._totals.of(self._with(names, at), at)
        )

    def _with(self, names: Iterable[Key], at: int) -> list[Key]:
        return [name for name in names if at in self._has.get(name, ())]

    def _tell_now(self, by_name: Mapping[Key, list[LoopStats]], points: _Points) -> None:
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
    """Return what stands for several loops: of each figure that of the loop where it is worst."""
    if len(lags) < 2:
        return lags[0] if lags else None
    count = sum(each.count for each in lags)
    worst = {which: max(getattr(each, which) for each in lags) for which in ("p50", "p90", "p99", "max", "stddev")}
    mean = sum(each.mean * each.count for each in lags) / count
    return LagStats(count=count, min=min(each.min for each in lags), mean=mean, **worst)


class _Stalls:
    """Stalls by loop, cause and culprit.

    Args:
        name_of: returns under which name a loop is told.
    """

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self._name_of = name_of
        self._mixed = Places(_MIXED_CULPRITS, lambda _key: (OTHER,) * 3, lasting=True)
        self._places = Places(MAX_CULPRITS, self._common)
        self._totals = Totals(2)
        self._pending: list[tuple[Key, float]] = []

    @property
    def most(self) -> int:
        return self._places.most

    @most.setter
    def most(self, most: int) -> None:
        self._places.most = min(most, MAX_CULPRITS)

    def _common(self, key: Key) -> Key:
        loop, cause, _ = key
        return self._mixed.name((loop, cause, OTHER), 0.0)

    def count(self, stall: Stall) -> None:
        self._pending.append((_key(stall.loop, stall.cause, culprit_key(stall)), stall.duration))
        if len(self._pending) >= PENDING:
            self._count_pending()

    def _count_pending(self) -> None:
        """Count what is pending: a loop is known from the first reading on that comes after its first stall."""
        pending, self._pending = self._pending, []
        for (loop, cause, culprit), duration in pending:
            name = self._places.name((self._name_of(loop), cause, culprit), duration)
            self._totals.add(name, (1, duration))

    def tell(self, points: _Points) -> None:
        self._count_pending()
        names = self._places.told
        points["asyncio.eventloop.stalls"] = _points(self._totals.of(names, 0))
        points["asyncio.eventloop.stall.duration"] = _points(self._totals.of(names, 1))

    def settle(self) -> None:
        self._places.settle()


# -- pools ------------------------------------------------------------------------------------------------------------

_REST = (OTHER, OTHER)


_TROUBLE = 1000
"""Tasks that a worker in trouble counts for, when pools are told apart."""


def _unwell(pool: PoolStats) -> int:
    return sum(worker.state in _UNWELL for worker in pool.workers) + sum(pool.crashes.values())


class _Pools:
    """Figures of pools; those in trouble and those with the most tasks are told apart, until they are over."""

    def __init__(self) -> None:
        self._places = Places(MAX_POOLS, lambda _key: _REST)
        self._spread_places = Places(_SPREAD_POOLS, lambda _key: _REST)
        self._growth = Growth[Key]()
        self._totals = Totals(3)
        self._waits, self._runs = Spans[Key](), Spans[Key]()
        self._failed = _Counted(BY_NAME["loopwatch.pool.failed"].sets - 1, lambda _key: (OTHER,) * 3)
        self._crashes = _Counted(BY_NAME["loopwatch.pool.crashes"].sets - 1, lambda _key: (OTHER,) * 3)

    def tell(self, pools: Sequence[PoolReading], points: _Points, spreads: _Spreads, pause: Callable[[], None]) -> None:
        by_name: dict[Key, list[PoolStats]] = {}
        alive = {_key(each.stats.name, each.stats.kind) for each in pools}
        for places in (self._places, self._spread_places):
            places.leave([key for key in places.taken if key not in alive])
        seen: dict[Key, int] = {}
        for each in pools:
            key = _key(each.stats.name, each.stats.kind)
            seen[key] = seen.get(key, 0) + 1
            by_name.setdefault(self._count(each, key, (*key, str(seen[key]))), []).append(each.stats)
            pause()
        self._tell_now(by_name, points)
        names = self._places.told
        for at, metric in enumerate(("completed", "started", "cpu.time")):
            points[f"loopwatch.pool.{metric}"] = _points(self._totals.of(names, at))
        pause()
        points["loopwatch.pool.failed"] = self._failed.points()
        points["loopwatch.pool.crashes"] = self._crashes.points()
        apart = self._spread_places.told
        for metric, spans in (("wait", self._waits), ("run", self._runs)):
            spreads[f"loopwatch.pool.task.{metric}"] = tuple(Spread(name, found) for name, found in spans.of(apart))

    def settle(self) -> None:
        for part in (self._places, self._spread_places, self._failed, self._crashes):
            part.settle()

    def _count(self, pool: PoolReading, key: Key, own: Key) -> Key:
        """Take the figures of a pool as they are now; return under which name it is told."""
        stats = pool.stats
        taken = max(stats.submitted, stats.completed + stats.failed)
        grown = self._growth.of(own, (taken, stats.completed, stats.started, stats.cpu))
        name = self._places.name(key, grown[0] + stats.queued + _TROUBLE * _unwell(stats))
        self._totals.add(name, grown[1:])
        if pool.waits.count or pool.runs.count:
            spread = self._spread_places.name(key, grown[0])
            self._waits.add(spread, own, pool.waits)
            self._runs.add(spread, own, pool.runs)
        failures = {(*key, str(error)[:LONGEST]): float(count) for error, count in stats.failures.items()}
        rest = stats.failed - sum(stats.failures.values())
        if rest > 0:
            failures[(*key, UNKNOWN)] = failures.get((*key, UNKNOWN), 0.0) + rest
        self._failed.count(failures, own)
        self._crashes.count({(*key, str(why)[:LONGEST]): float(count) for why, count in stats.crashes.items()}, own)
        return name

    def _tell_now(self, by_name: Mapping[Key, list[PoolStats]], points: _Points) -> None:
        def gauge(metric: str, value: Callable[[PoolStats], float | None]) -> None:
            found = ((name, [value(each) for each in stats]) for name, stats in by_name.items())
            known = ((name, [each for each in values if each is not None]) for name, values in found)
            points[f"loopwatch.pool.{metric}"] = _points((name, sum(values)) for name, values in known if values)

        gauge("max_workers", lambda pool: pool.max_workers)
        gauge("queue.depth", lambda pool: pool.queued)
        gauge("in_flight", lambda pool: pool.running)
        gauge("memory", lambda pool: sum(worker.memory for worker in pool.workers))
        points["loopwatch.pool.utilization"] = tuple(
            Point(name, max(each.utilization for each in stats)) for name, stats in by_name.items()
        )
        points["loopwatch.pool.workers"] = self._workers(by_name)

    @staticmethod
    def _workers(by_name: Mapping[Key, list[PoolStats]]) -> tuple[Point, ...]:
        """Return workers by state: those that are unwell first, if there is no room for all."""
        counts: dict[Key, float] = {}
        for name, stats in by_name.items():
            for pool in stats:
                for state in (WorkerState.IDLE, WorkerState.BUSY) if pool.workers else ():
                    counts.setdefault((*name, str(state)), 0)  # a line that drops to 0 rather than ends
                for worker in pool.workers:
                    counts[(*name, str(worker.state))] = counts.get((*name, str(worker.state)), 0) + 1
        sets = BY_NAME["loopwatch.pool.workers"].sets
        if len(counts) <= sets:
            return _points(sorted(counts.items()))
        ranked = sorted(counts, key=lambda key: (key[-1] not in _UNWELL, not counts[key], key[0] == OTHER, key))
        own = ranked[: sets - _STATES]
        rest: dict[Key, float] = {}
        for key in ranked[sets - _STATES :]:
            gathered = (*_REST, key[-1])
            rest[gathered] = rest.get(gathered, 0) + counts[key]
        merged = {key: counts[key] + rest.pop(key, 0) for key in own}
        return _points(sorted({**merged, **rest}.items()))


# -- offloading -------------------------------------------------------------------------------------------------------

_PLACES = ("inline", "thread", "process", "backend")


class _Offload:
    """Figures of calls that run somewhere else, or may."""

    def __init__(self) -> None:
        sets = BY_NAME["loopwatch.offload.calls"].sets
        self._calls = _Counted(sets - len(_PLACES), lambda key: (OTHER, key[1]))
        self._growth = Growth[str]()
        self._totals = Totals(2)
        self._saved = 0.0

    def tell(self, snapshot: Snapshot, points: _Points) -> None:
        for function in snapshot.offload:
            counts = {_key(function.name, place): float(getattr(function, place)) for place in _PLACES}
            self._calls.count(counts, (function.way,))
        for place in snapshot.places:
            self._calls.count({_key(DIRECT, place.place): float(place.calls)}, ("direct",))
            # Backwards it cannot go: what was saved is counted so that it only grows.
            _, run, trip, saved = self._growth.of(place.place, (0, place.run, place.trip, place.saved))
            self._totals.add((place.place,), (run, trip))
            self._saved += max(saved, 0.0)
        points["loopwatch.offload.calls"] = self._calls.points()
        names: list[Key] = [(place,) for place in _PLACES]
        points["loopwatch.offload.run.time"] = _points(self._totals.of(names, 0))
        points["loopwatch.offload.trip.time"] = _points(self._totals.of(names[1:], 1))
        if snapshot.places:
            points["loopwatch.offload.saved"] = (Point((), self._saved),)

    def settle(self) -> None:
        self._calls.settle()

"""Points of every metric from what the agent knows, with every bound of the catalog applied. Pure: no clock, no files.

A point of a counter never goes down: what a loop or a pool that is gone has counted stays in its series, or in that of
:data:`~loopwatch.telemetry.catalog.OTHER`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loopwatch.events import LoopStats, Snapshot, Stall
from loopwatch.pools.reading import PoolReading
from loopwatch.probes.histogram import Histogram
from loopwatch.telemetry.catalog import MAX_CULPRITS


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
        victims: what waited when its stalls ended.
    """

    key: int
    stats: LoopStats
    lags: Histogram
    victims: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What points are made of.

    Attributes:
        snapshot: loops, findings, functions, the agent.
        loops: the loops that are watched.
        pools: pools and child processes.
        collections: (collections, collected, uncollectable) of the garbage collector's generations.
        lag: s by which the agent's threads can have delayed loops.
        started_at: of the agent, s since the epoch.
        dropped: what was not told, by signal.
    """

    snapshot: Snapshot
    loops: Sequence[LoopReading] = ()
    pools: Sequence[PoolReading] = ()
    collections: Sequence[tuple[int, int, int]] = ()
    lag: float = 0.0
    started_at: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)


class Readings:
    """Makes points; keeps what was counted.

    Args:
        max_culprits: culprits told apart, at most as many as the catalog allows.
    """

    def __init__(self, max_culprits: int = MAX_CULPRITS) -> None:
        self.max_culprits = max_culprits

    def saw(self, stall: Stall) -> None:
        """Count a stall that is over."""

    def loop_gone(self, loop: LoopReading) -> None:
        """Keep what a loop has counted that is not watched any more."""

    def read(self, inputs: Inputs) -> Reading:
        """Return all points."""
        agent = inputs.snapshot.agent
        return Reading(inputs.snapshot.at, {"loopwatch.agent.cpu.time": (Point((), agent.cpu),)}, {})

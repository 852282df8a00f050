"""Records of metrics: number points and histogram points of one moment, and the inputs they are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import Snapshot
from loopwatch.health.records import PoolReading
from loopwatch.watch.observation import LoopReading


@dataclass(frozen=True, slots=True)
class Point:
    """A number point: the value of one series.

    Attributes:
        attributes: values of the metric's attributes, in their order in the catalog.
        value: in the metric's unit.
    """

    attributes: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram point: the durations of one series since the process started.

    Attributes:
        attributes: as of a :class:`Point`.
        histogram: a copy that is not modified any more.
    """

    attributes: tuple[str, ...]
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Reading:
    """All metrics at one moment.

    Attributes:
        at: seconds since the epoch.
        points: number points of counters and gauges, by name of the metric.
        spreads: histogram points, by name of the metric.
    """

    at: float
    points: Mapping[str, tuple[Point, ...]]
    spreads: Mapping[str, tuple[Spread, ...]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The values that metrics are computed from.

    Attributes:
        snapshot: loops, findings, functions, the agent.
        loops: the watched loops.
        pools: pools and child processes.
        collections: (collections, collected, uncollectable) of the garbage collector's generations.
        started_at: start of the agent, seconds since the epoch.
        dropped: number of dropped items, by signal.
    """

    snapshot: Snapshot
    loops: Sequence[LoopReading] = ()
    pools: Sequence[PoolReading] = ()
    collections: Sequence[tuple[int, int, int]] = ()
    started_at: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)

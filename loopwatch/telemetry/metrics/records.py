"""Records of metrics: points and histograms (spreads) of one moment, and the inputs they are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import Snapshot
from loopwatch.health.records import PoolReading
from loopwatch.watch.observation import LoopReading


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

"""Computes the points of every metric from a snapshot, within the catalog's bounds. Pure: no clock, no files.

Those of findings, the interpreter and the agent itself are computed here, the others in :mod:`.counters`.

Counters never go down: the counts of a loop or a pool that is gone stay in its series, or in that of
:data:`~loopwatch.telemetry.metrics.catalog.OTHER`.
"""

from __future__ import annotations

from collections.abc import Callable

from loopwatch.events import Snapshot, Stall
from loopwatch.telemetry.metrics.cardinality import Growth, Key, Totals
from loopwatch.telemetry.metrics.catalog import BY_NAME, MAX_CULPRITS, OTHER
from loopwatch.telemetry.metrics.counters import (
    Counted,
    Loops,
    Offload,
    Points,
    Pools,
    Stalls,
    gathered,
    key_of,
    points_of,
)
from loopwatch.telemetry.metrics.records import Inputs, Point, Reading, Spread
from loopwatch.watch.observation import LoopReading


class Collector:
    """Computes points; keeps the counts. Not thread-safe.

    Args:
        max_culprits: culprits with a series of their own, at most as many as the catalog allows.
    """

    def __init__(self, max_culprits: int = MAX_CULPRITS) -> None:
        self._loops = Loops()
        self._stalls = Stalls(self._loops.name_of)
        self._pools = Pools()
        self._offload = Offload()
        self._faults = Counted(BY_NAME["loopwatch.agent.faults"].sets - 1, lambda _key: (OTHER,))
        self._dropped, self._dropped_growth = Totals(), Growth[str]()
        self._cpu = self._cpu_before = self._lag = 0.0
        self.max_culprits = max_culprits

    @property
    def max_culprits(self) -> int:
        """Culprits with a series of their own."""
        return self._stalls.most

    @max_culprits.setter
    def max_culprits(self, most: int) -> None:
        self._stalls.most = most

    def saw(self, stall: Stall) -> None:
        """Count a stall that is over."""
        self._stalls.count(stall)

    def loop_gone(self, loop: LoopReading) -> None:
        """Keep the counts of a loop that is no longer watched."""
        self._loops.gone(loop)

    def read(self, inputs: Inputs, pause: Callable[[], None] = lambda: None) -> Reading:
        """Return all points.

        Args:
            inputs: the values that they are computed from.
            pause: called between parts of the work, to yield the GIL.
        """
        points: dict[str, tuple[Point, ...]] = {}
        spreads: dict[str, tuple[Spread, ...]] = {}
        self._loops.collect(inputs.loops, points, spreads, pause)
        self._stalls.collect(points)
        pause()
        self._pools.collect(inputs.pools, points, spreads, pause)
        self._offload.collect(inputs.snapshot, points)
        pause()
        self._add_findings(inputs.snapshot, points)
        self._add_interpreter(inputs, points)
        self._add_agent(inputs, points)
        for part in (self._loops, self._stalls, self._pools, self._offload, self._faults):
            part.settle()
        return Reading(
            inputs.snapshot.at,
            {name: found for name, found in points.items() if found},
            {name: found for name, found in spreads.items() if found},
        )

    def _add_findings(self, snapshot: Snapshot, points: Points) -> None:
        kinds: dict[Key, float] = {}
        for finding in snapshot.findings:
            kinds[(finding.kind,)] = kinds.get((finding.kind,), 0) + 1
        points["loopwatch.findings"] = gathered(kinds, BY_NAME["loopwatch.findings"].sets)
        flagged: dict[Key, float] = {}
        for function in snapshot.flagged:
            key = key_of(function.name, function.cause, function.remedy)
            flagged[key] = flagged.get(key, 0.0) + function.blocked
        points["loopwatch.flagged"] = gathered(flagged, BY_NAME["loopwatch.flagged"].sets)

    def _add_interpreter(self, inputs: Inputs, points: Points) -> None:
        if inputs.snapshot.tasks is not None:
            points["asyncio.tasks"] = (Point((), inputs.snapshot.tasks),)
        names = ("collections", "collected_objects", "uncollectable_objects")
        for at, name in enumerate(names):
            points[f"cpython.gc.{name}"] = tuple(
                Point((str(generation),), counts[at]) for generation, counts in enumerate(inputs.collections[:3])
            )

    def _add_agent(self, inputs: Inputs, points: Points) -> None:
        agent = inputs.snapshot.agent
        spent = max(agent.cpu - self._cpu_before, 0.0)  # the clock of a thread is lost when it ends
        self._cpu_before = agent.cpu
        self._cpu += spent
        self._lag += spent * self._loops.busy_share
        points["loopwatch.agent.cpu.time"] = (Point((), self._cpu),)
        points["loopwatch.agent.lag"] = (Point((), self._lag),)
        points["loopwatch.agent.stretch"] = (Point((), agent.stretch),)
        points["loopwatch.agent.state"] = (Point((agent.state,), 1),)
        points["loopwatch.agent.start_time"] = (Point((), inputs.started_at),)
        self._faults.count({key_of(part): float(count) for part, count in agent.faults.items()})
        points["loopwatch.agent.faults"] = self._faults.points()
        points["loopwatch.agent.parts_off"] = (Point((), len(agent.switched_off)),)
        for signal, count in sorted(inputs.dropped.items())[: BY_NAME["loopwatch.agent.dropped"].sets]:
            self._dropped.add((signal,), self._dropped_growth.of(signal, (count,)))
        points["loopwatch.agent.dropped"] = points_of(self._dropped.of(self._dropped.names))

"""Every metric that loopwatch tells, in one list: name, unit, kind, attributes with their bounds, buckets, meaning.

Nothing else names a metric. ``docs/metrics.md`` is generated from here. Units are those of UCUM, as OpenTelemetry wants
them; what stands in braces is left out of names in Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_LOOPS = 8
"""Loops told apart, the first that were seen; further ones are told together as :data:`OTHER`."""
MAX_POOLS = 8
"""Pools told apart, those with the most tasks; further ones are told together as :data:`OTHER`."""
MAX_CULPRITS = 20
"""Sets of (loop, cause, culprit) told apart, those with the most blocked time; ``Config.max_culprits`` lowers it."""
MAX_SAMPLES = 600
"""Samples of Prometheus that one process tells at most, whatever happens in it."""
OTHER = "other"
"""The value of an attribute under which everything beyond its bound is told."""

# Attributes.
LOOP = "asyncio.eventloop.name"
LOOP_STATE = "asyncio.eventloop.state"
CAUSE = "loopwatch.cause"
CULPRIT = "loopwatch.culprit"
GENERATION = "cpython.gc.generation"
POOL = "loopwatch.pool.name"
POOL_KIND = "loopwatch.pool.kind"
WORKER_STATE = "loopwatch.worker.state"
ERROR_TYPE = "error.type"
CRASH = "loopwatch.crash.reason"
FINDING = "loopwatch.finding"
FUNCTION = "loopwatch.function"
PLACE = "loopwatch.offload.to"
REMEDY = "loopwatch.remedy"
STATE = "loopwatch.agent.state"
PART = "loopwatch.agent.part"
SIGNAL = "loopwatch.agent.signal"

LAG_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
"""s; a heartbeat is good to a fraction of a millisecond, and a loop that hangs for half a minute has been restarted."""
TASK_BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0)
"""s; from a call that is not worth a trip to one that should be a job of its own."""


class Kind(StrEnum):
    """How values of a metric add up."""

    COUNTER = "counter"
    """Only grows, from 0 when the process starts."""
    GAUGE = "gauge"
    """What is so now."""
    HISTOGRAM = "histogram"
    """How often durations fell between bounds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as OpenTelemetry has it.
        unit: UCUM.
        kind: how its values add up.
        description: one line, sent along.
        attributes: names of its attributes.
        sets: sets of their values at most, those of :data:`OTHER` counted.
        bounds: of a histogram's buckets, in its unit.
        question: of an operator, that it answers.
        is_not: what it does not mean.
        example: with figures.
    """

    name: str
    unit: str
    kind: Kind
    description: str
    attributes: tuple[str, ...] = ()
    sets: int = 1
    bounds: tuple[float, ...] = ()
    question: str = ""
    is_not: str = ""
    example: str = ""

    @property
    def samples(self) -> int:
        """Samples of Prometheus that it is told in at most; a histogram has one a bucket, a count and a sum."""
        return self.sets * (len(self.bounds) + 3 if self.kind is Kind.HISTOGRAM else 1)

    @property
    def prometheus(self) -> str:
        """Name in Prometheus, without a histogram's ``_bucket``, ``_count`` and ``_sum``.

        As the OpenTelemetry specification wants it ("Prometheus and OpenMetrics Compatibility"), and as collectors do.

        Example:
            >>> Metric("asyncio.eventloop.time", "s", Kind.COUNTER, "").prometheus
            'asyncio_eventloop_time_seconds_total'
        """
        suffix = {"s": "_seconds", "By": "_bytes", "1": "_ratio" if self.kind is Kind.GAUGE else ""}.get(self.unit, "")
        name = self.name.replace(".", "_")
        total = "_total" if self.kind is Kind.COUNTER else ""
        return name.removesuffix(suffix) + suffix + total


_LOOPS = MAX_LOOPS + 1
_POOLS = MAX_POOLS + 1
_IN_POOL = (POOL, POOL_KIND)


def _lag(which: str, words: str) -> Metric:
    return Metric(
        f"asyncio.eventloop.lag.{which}", "s", Kind.GAUGE, f"{words} of the event loop in the last window.", (LOOP,), _LOOPS
    )  # fmt: skip


CATALOG: tuple[Metric, ...] = (
    # -- loops
    Metric("asyncio.eventloop.lag", "s", Kind.HISTOGRAM, "How late a timer of the event loop fires.", (LOOP,), _LOOPS, LAG_BOUNDS),
    _lag("min", "Shortest lag"),
    _lag("mean", "Mean lag"),
    _lag("stddev", "Standard deviation of the lag"),
    _lag("p50", "Median lag"),
    _lag("p90", "90th percentile of the lag"),
    _lag("p99", "99th percentile of the lag"),
    _lag("max", "Longest lag"),
    Metric("asyncio.eventloop.utilization", "1", Kind.GAUGE, "Share of the time in which the event loop was busy, in the last window.", (LOOP,), _LOOPS),
    Metric("asyncio.eventloop.time", "s", Kind.COUNTER, "Time that the event loop has spent in a state: busy, idle.", (LOOP, LOOP_STATE), 2 * _LOOPS),
    Metric("asyncio.eventloop.passes", "{pass}", Kind.COUNTER, "Passes of the event loop.", (LOOP,), _LOOPS),
    Metric("asyncio.eventloop.callbacks", "{callback}", Kind.COUNTER, "Callbacks that the event loop has run.", (LOOP,), _LOOPS),
    Metric("asyncio.eventloop.stalls", "{stall}", Kind.COUNTER, "Times that the event loop was held longer than the threshold.", (LOOP, CAUSE, CULPRIT), MAX_CULPRITS + 4),
    Metric("asyncio.eventloop.stall.duration", "s", Kind.COUNTER, "Time for which stalls have held the event loop.", (LOOP, CAUSE, CULPRIT), MAX_CULPRITS + 4),
    Metric("asyncio.eventloop.stall.victims", "{callback}", Kind.COUNTER, "Callbacks, timers and events that waited when stalls ended.", (LOOP,), _LOOPS),
    Metric("asyncio.eventloop.blocked_for", "s", Kind.GAUGE, "For how long the event loop is blocked right now.", (LOOP,), _LOOPS),
    Metric("asyncio.tasks", "{task}", Kind.GAUGE, "Tasks that are alive."),
    Metric("cpython.gc.collections", "{collection}", Kind.COUNTER, "Collections of the garbage collector.", (GENERATION,), 3),
    Metric("cpython.gc.collected_objects", "{object}", Kind.COUNTER, "Objects that the garbage collector has freed.", (GENERATION,), 3),
    Metric("cpython.gc.uncollectable_objects", "{object}", Kind.COUNTER, "Objects that the garbage collector could not free.", (GENERATION,), 3),
    # -- pools and processes
    Metric("loopwatch.pool.workers", "{worker}", Kind.GAUGE, "Workers of a pool by state.", (*_IN_POOL, WORKER_STATE), 40),
    Metric("loopwatch.pool.max_workers", "{worker}", Kind.GAUGE, "Workers that a pool may have.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.queue.depth", "{task}", Kind.GAUGE, "Tasks that wait for a worker.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.in_flight", "{task}", Kind.GAUGE, "Tasks that workers have.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.task.wait", "s", Kind.HISTOGRAM, "How long tasks waited for a worker.", _IN_POOL, 5, TASK_BOUNDS),
    Metric("loopwatch.pool.task.run", "s", Kind.HISTOGRAM, "How long tasks ran.", _IN_POOL, 5, TASK_BOUNDS),
    Metric("loopwatch.pool.completed", "{task}", Kind.COUNTER, "Tasks that returned.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.failed", "{task}", Kind.COUNTER, "Tasks that failed, by type of the exception.", (*_IN_POOL, ERROR_TYPE), 12),
    Metric("loopwatch.pool.crashes", "{worker}", Kind.COUNTER, "Workers that died without being told to, by exit code or signal.", (*_IN_POOL, CRASH), 12),
    Metric("loopwatch.pool.started", "{worker}", Kind.COUNTER, "Workers that were started.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.utilization", "1", Kind.GAUGE, "Share of its workers' time in which a pool ran tasks, in the last window.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.memory", "By", Kind.GAUGE, "Resident memory of a pool's worker processes.", _IN_POOL, _POOLS),
    Metric("loopwatch.pool.cpu.time", "s", Kind.COUNTER, "Processor time of a pool's workers.", _IN_POOL, _POOLS),
    Metric("loopwatch.findings", "{finding}", Kind.GAUGE, "Findings about pools and processes that hold now, by kind.", (FINDING,), 12),
    # -- offloading
    Metric("loopwatch.flagged", "s", Kind.GAUGE, "Time for which a flagged function has blocked loops within the window.", (FUNCTION, CAUSE, REMEDY), 8),
    Metric("loopwatch.offload.calls", "{call}", Kind.COUNTER, "Calls of functions that may run elsewhere, by where they ran.", (FUNCTION, PLACE), 16),
    Metric("loopwatch.offload.run.time", "s", Kind.COUNTER, "Time for which such calls ran.", (PLACE,), 4),
    Metric("loopwatch.offload.trip.time", "s", Kind.COUNTER, "Time that calls which ran elsewhere took on top of their run: pickling, queue, way.", (PLACE,), 3),
    Metric("loopwatch.offload.saved", "s", Kind.COUNTER, "Time for which loops would have been held by calls that ran elsewhere, less what their trips held them."),
    # -- the agent
    Metric("loopwatch.agent.cpu.time", "s", Kind.COUNTER, "Processor time of the agent's own threads."),
    Metric("loopwatch.agent.lag", "s", Kind.COUNTER, "Time by which the agent's threads can have delayed loops: what they ran while one was busy."),
    Metric("loopwatch.agent.stretch", "1", Kind.GAUGE, "Factor by which the agent looks less often, to keep its budget."),
    Metric("loopwatch.agent.state", "{agent}", Kind.GAUGE, "1 for the state in which the agent is.", (STATE,), 1),
    Metric("loopwatch.agent.start_time", "s", Kind.GAUGE, "When this process's agent started, in seconds since the epoch."),
    Metric("loopwatch.agent.faults", "{fault}", Kind.COUNTER, "Faults of the agent by part; a part that fails is switched off.", (PART,), 6),
    Metric("loopwatch.agent.dropped", "{item}", Kind.COUNTER, "What was not told: queue full, a storm of stalls, an export that failed.", (SIGNAL,), 4),
)  # fmt: skip
"""All of them; the sum of their samples is at most :data:`MAX_SAMPLES`."""

BY_NAME = {metric.name: metric for metric in CATALOG}

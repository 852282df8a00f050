"""Every metric that loopwatch exports: name, unit, kind, attributes with their bounds, buckets, meaning.

Values are computed in :mod:`.counters` (loops, stalls, pools, offloading) and :mod:`.collect` (the rest), which look a
metric up by its name here; a panel must show each. ``docs/metrics.md`` is generated from here. Units are those of UCUM,
as OpenTelemetry requires; parts in braces are left out of names in Prometheus.
"""

from __future__ import annotations

from enum import StrEnum

from loopwatch.core.dataclasses import dataclass

MAX_LOOPS = 8
"""Loops with series of their own, the busiest and those that stall; further ones are merged as :data:`OTHER`."""
MAX_POOLS = 8
"""Pools with series of their own, those in trouble or with the most tasks; others are merged as :data:`OTHER`."""
MAX_CULPRITS = 20
"""(loop, cause, culprit) sets with series of their own, of most blocked time; ``Config.max_culprits`` lowers it."""
MAX_SAMPLES = 600
"""Prometheus samples that one process exports at most, whatever happens in it.

Nearly all are taken: a new metric takes attribute sets from another one, or raises this and what the page promises.
"""
OTHER = "other"
"""The attribute value for everything beyond a bound."""

# Attributes.
LOOP = "asyncio.eventloop.name"
LOOP_STATE = "asyncio.eventloop.state"
CAUSE = "loopwatch.cause"
CULPRIT = "loopwatch.culprit"
STARVED_BY = "loopwatch.starved.by"
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
"""Seconds; a heartbeat is good to a fraction of a millisecond, and a loop hanging for half a minute is restarted."""
TASK_BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0)
"""Seconds; from a call not worth a trip to one that should be a job of its own."""


class Kind(StrEnum):
    """How values of a metric add up."""

    COUNTER = "counter"
    """Only grows, from 0 when the process starts."""
    GAUGE = "gauge"
    """The current value."""
    HISTOGRAM = "histogram"
    """How often durations fell between bounds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The definition of one metric.

    Attributes:
        name: in OpenTelemetry.
        unit: UCUM.
        kind: how its values add up.
        description: one line, exported with the metric.
        attributes: names of its attributes.
        sets: attribute sets at most, including those of :data:`OTHER`.
        bounds: of a histogram's buckets, in its unit.
        question: the operator's question that it answers.
        is_not: what it does not mean.
        example: with numbers.
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
        """Prometheus samples that it takes at most; a histogram has one per bucket, a count and a sum."""
        return self.sets * (len(self.bounds) + 3 if self.kind is Kind.HISTOGRAM else 1)

    @property
    def prometheus(self) -> str:
        """Name in Prometheus, without a histogram's ``_bucket``, ``_count`` and ``_sum``.

        As the OpenTelemetry specification requires ("Prometheus and OpenMetrics Compatibility"), and as collectors do.

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


def _lag(which: str, words: str, question: str, is_not: str, example: str) -> Metric:
    return Metric(
        f"asyncio.eventloop.lag.{which}",
        "s",
        Kind.GAUGE,
        f"{words} of the event loop in the last window.",
        (LOOP,),
        _LOOPS,
        question=question,
        is_not=is_not,
        example=example,
    )


LOOPS = (
    Metric(
        "asyncio.eventloop.lag",
        "s",
        Kind.HISTOGRAM,
        "How late a timer of the event loop fires.",
        (LOOP,),
        _LOOPS,
        LAG_BOUNDS,
        question="How long does something that arrives now wait until the loop turns to it?",
        is_not="Not the length of stalls: a probe beats every 50 ms while the loop is busy and once a second while "
        "it is idle, so a block of 300 ms is one value between 250 and 300 ms. A stall that lies between two beats "
        "of an idle loop counts as a value of its length less half a beat; shorter blocks there are missed. Over "
        "OTLP, values are right to 5 percent, and of more than 500 values of a loop in one interval an even "
        "sample of 500 is exported.",
        example="A service with `heartbeat=0.05` records about 20 values a second; with a 200 ms block a minute, one "
        "of its 1,200 values falls into the bucket up to 0.25.",
    ),
    _lag(
        "min",
        "Shortest lag",
        "Is the loop late even at its best?",
        "Not the resolution of timers: an idle machine shows 0.0001 s or less, and uvloop rounds timers to whole "
        "milliseconds.",
        "0.004 means that for a whole window no beat was less than 4 ms late: the loop never rests.",
    ),
    _lag(
        "mean",
        "Mean lag",
        "How late is the loop on average?",
        "Not what most requests wait: one beat that is 2 s late among 199 good ones makes a mean of 0.01.",
        "0.01 with a p50 of 0.0002: few, long blocks. 0.01 with a p50 of 0.009: a loop that is always late.",
    ),
    _lag(
        "stddev",
        "Standard deviation of the lag",
        "Is the loop late evenly, or by fits and starts?",
        "Not a bound of anything; the lag is no bell curve.",
        "A mean of 0.002 with a deviation of 0.03: it is fine but for single blocks of some 100 ms.",
    ),
    _lag(
        "p50",
        "Median lag",
        "How late is the loop usually?",
        "Not the mean of other processes' medians: medians cannot be averaged; use the histogram for a fleet.",
        "0.0002 is a healthy loop; 0.02 is one whose every pass takes some 20 ms.",
    ),
    _lag(
        "p90",
        "90th percentile of the lag",
        "How late is the loop in its worse moments?",
        "Not for fleets, as `p50`; right to 5 percent.",
        "0.05: one beat in ten came 50 ms late or more.",
    ),
    _lag(
        "p99",
        "99th percentile of the lag",
        "How late is the loop in its worst moments?",
        "Not reliable for an idle loop: a window of 10 s then has ten beats, and the 99th percentile is the longest.",
        "0.3 while `p90` is 0.001: rare blocks of about 300 ms; `asyncio.eventloop.stalls` says whose.",
    ),
    _lag(
        "max",
        "Longest lag",
        "What is the longest that somebody waited?",
        "Not the longest block: it is shorter by what was left until the next beat.",
        "4.2: something held the loop for at least 4.2 s within the last window.",
    ),
    Metric(
        "asyncio.eventloop.utilization",
        "1",
        Kind.GAUGE,
        "Share of the time in which the event loop was busy, in the last window.",
        (LOOP,),
        _LOOPS,
        question="How much more can this loop take?",
        is_not="Not the processor's load: a loop that sleeps in `time.sleep` is busy, and one that computes in worker "
        "processes is not. Absent for loops that are neither asyncio's nor uvloop's.",
        example="0.95: the loop waited for 0.5 s of the last 10; what arrives queues, so add processes or offload.",
    ),
    Metric(
        "asyncio.eventloop.time",
        "s",
        Kind.COUNTER,
        "Time that the event loop has spent in a state: busy, idle.",
        (LOOP, LOOP_STATE),
        2 * _LOOPS,
        question="How busy was the loop over any span that I choose?",
        is_not="Not processor time, as `asyncio.eventloop.utilization`; time in which the loop did not run is in "
        "neither.",
        example="busy grew by 18 and idle by 42 within a minute: a utilization of 0.3.",
    ),
    Metric(
        "asyncio.eventloop.passes",
        "{pass}",
        Kind.COUNTER,
        "Passes of the event loop.",
        (LOOP,),
        _LOOPS,
        question="Does the loop turn at all, and how much does it do in one turn?",
        is_not="Not requests: one request takes several passes, and one pass may serve many. A heartbeat makes some "
        "too.",
        example="200 passes a second at a utilization of 1.0: one pass takes 5 ms.",
    ),
    Metric(
        "asyncio.eventloop.callbacks",
        "{callback}",
        Kind.COUNTER,
        "Callbacks that the event loop has run.",
        (LOOP,),
        _LOOPS,
        question="Are there too many small callbacks?",
        is_not="Not counted on loops of asyncio, where that would cost each of them something: absent there. uvloop "
        "counts events of sockets and pipes.",
        example="50,000 a second in 100 passes: 500 callbacks in each pass, and nobody is served in between.",
    ),
    Metric(
        "asyncio.eventloop.stalls",
        "{stall}",
        Kind.COUNTER,
        "Times that the event loop was held longer than the threshold.",
        (LOOP, CAUSE, CULPRIT),
        MAX_CULPRITS + 4,
        question="What blocks the loop, why, and how often?",
        is_not="Not all slow code: only what held the loop for longer than `threshold` at a stretch. Culprits with "
        "the most blocked time have series of their own; `other` has the rest. One that gives up its place to a "
        "heavier one goes on in `other`, so rates are always right, and the total of its own series is found again "
        "when it comes back.",
        example='{loopwatch_cause="io", loopwatch_culprit="app.users:load"} grows by 3 a minute: that function '
        "reads a socket or file on "
        "the loop; its log line names file, line and remedy.",
    ),
    Metric(
        "asyncio.eventloop.stall.duration",
        "s",
        Kind.COUNTER,
        "Time for which stalls have held the event loop.",
        (LOOP, CAUSE, CULPRIT),
        MAX_CULPRITS + 4,
        question="Which culprit costs the most, and what share of the time is the loop blocked?",
        is_not="Not counted before a stall is over: a hang shows in `asyncio.eventloop.blocked_for` until then.",
        example="Grows by 6 within a minute: the loop was blocked for 10 percent of it.",
    ),
    Metric(
        "asyncio.eventloop.stall.victims",
        "{callback}",
        Kind.COUNTER,
        "Callbacks, timers and events that waited when stalls ended.",
        (LOOP,),
        _LOOPS,
        question="Whom do stalls hurt: nobody, or hundreds at a time?",
        is_not="Not requests: one that waits for two timers counts twice, and those that are still in the kernel's "
        "queue of connections are one event.",
        example="300 victims in 3 stalls a minute: every block makes about 100 others late.",
    ),
    Metric(
        "asyncio.eventloop.stall.starved",
        "s",
        Kind.COUNTER,
        "Time of stalls for which the loop's thread was runnable and had no processor, by what took it.",
        (STARVED_BY,),
        2,
        question="How much of the blocked time would a larger CPU limit, or a machine of its own, give back?",
        is_not="Not blocked time on top: it is part of `asyncio.eventloop.stall.duration`, under whatever cause the "
        "stall has. All loops of the process together; a wait for a processor that made no stall is not in it. Both "
        "stay 0 where the kernel does not account for that wait (systems other than Linux). What the CPU quota of "
        "the container did not take counts as `neighbours`, which can be the process's own threads and workers.",
        example='{loopwatch_starved_by="quota"} grows by 6 a minute, {loopwatch_starved_by="neighbours"} by 0.1: '
        "the CPU limit of the container costs 10 percent of the time.",
    ),
    Metric(
        "asyncio.eventloop.blocked_for",
        "s",
        Kind.GAUGE,
        "For how long the event loop is blocked right now.",
        (LOOP,),
        _LOOPS,
        question="Does the loop hang at this moment?",
        is_not="Not history: most scrapes see 0 even where stalls are frequent. A hang that keeps the GIL keeps this "
        "from being exported as well: the target is absent then.",
        example="12.5: nothing has run on this loop for 12.5 s; the log has the stack.",
    ),
    Metric(
        "asyncio.tasks",
        "{task}",
        Kind.GAUGE,
        "Tasks that are alive.",
        question="Do tasks pile up?",
        is_not="Not by loop, and tasks that are done but not collected yet are counted. Absent from Python 3.14 on, "
        "where counting them would mean to walk them.",
        example="Rises from 200 to 20,000 within an hour at the same load: something is awaited that never comes.",
    ),
    Metric(
        "cpython.gc.collections",
        "{collection}",
        Kind.COUNTER,
        "Collections of the garbage collector.",
        (GENERATION,),
        3,
        question="How often does the garbage collector run?",
        is_not="Not how long it took: a stall by it has the cause `gc`.",
        example='generation="2" grows by 6 a minute: a full collection every 10 s.',
    ),
    Metric(
        "cpython.gc.collected_objects",
        "{object}",
        Kind.COUNTER,
        "Objects that the garbage collector has freed.",
        (GENERATION,),
        3,
        question="How much garbage is made in cycles?",
        is_not="Not all objects that are freed: most are without the collector, when nobody refers to them.",
        example="5,000 a second: some code builds cycles for each request.",
    ),
    Metric(
        "cpython.gc.uncollectable_objects",
        "{object}",
        Kind.COUNTER,
        "Objects that the garbage collector could not free.",
        (GENERATION,),
        3,
        question="Does something leak that cannot be freed?",
        is_not="Not any other leak: objects that are still referred to are no garbage.",
        example="Anything above 0 is a bug, most often of a C extension.",
    ),
)
"""Metrics of event loops and the interpreter."""

POOLS = (
    Metric(
        "loopwatch.pool.workers",
        "{worker}",
        Kind.GAUGE,
        "Workers of a pool by state.",
        (*_IN_POOL, WORKER_STATE),
        40,
        question="Are the workers alive, busy, hung, or zombies?",
        is_not="Not a verdict on tasks: a worker is `hung` when it has a task and uses neither processor nor I/O for "
        "`hung_after` seconds, which a task that waits for a slow server does too. States in which there is "
        "no worker are absent but for `idle` and `busy`.",
        example='{loopwatch_pool_name="thumbnails", loopwatch_worker_state="busy"} 4, '
        '{loopwatch_worker_state="idle"} 0, {loopwatch_worker_state="hung"} 1: five workers, none free.',
    ),
    Metric(
        "loopwatch.pool.max_workers",
        "{worker}",
        Kind.GAUGE,
        "Workers that a pool may have.",
        _IN_POOL,
        _POOLS,
        question="Is the pool at its limit?",
        is_not="Not the workers that there are: many pools start theirs when they are needed. Absent where there is no "
        "limit.",
        example="5, with 5 workers busy and a queue: the pool is too small, or its tasks are too slow.",
    ),
    Metric(
        "loopwatch.pool.queue.depth",
        "{task}",
        Kind.GAUGE,
        "Tasks that wait for a worker.",
        _IN_POOL,
        _POOLS,
        question="Does work pile up in front of the workers?",
        is_not="Not those that a worker has already; and a moment's value: `loopwatch.pool.task.wait` has the history.",
        example='120 for {loopwatch_pool_kind="default"}: name lookups and file reads of the whole program wait in '
        "this queue.",
    ),
    Metric(
        "loopwatch.pool.in_flight",
        "{task}",
        Kind.GAUGE,
        "Tasks that workers have.",
        _IN_POOL,
        _POOLS,
        question="How many tasks run right now?",
        is_not="Not always those that run: some pools hand tasks to a worker before it has finished the last one.",
        example="8 with 4 workers: each has one that runs and one that waits with it.",
    ),
    Metric(
        "loopwatch.pool.task.wait",
        "s",
        Kind.HISTOGRAM,
        "How long tasks waited for a worker.",
        _IN_POOL,
        5,
        TASK_BOUNDS,
        question="Is the pool large enough?",
        is_not="No series of its own for more than 4 pools. Over OTLP, values are right to 5 percent, and of more than "
        " 500 tasks of a pool in one interval an even sample of 500 is exported: use "
        "`loopwatch.pool.completed` for rates.",
        example="90 percent below 0.001 and a few up to 10: workers are free but for bursts.",
    ),
    Metric(
        "loopwatch.pool.task.run",
        "s",
        Kind.HISTOGRAM,
        "How long tasks ran.",
        _IN_POOL,
        5,
        TASK_BOUNDS,
        question="How long do tasks take, and are there some that should not be in this pool?",
        is_not="Not processor time; and as `loopwatch.pool.task.wait`.",
        example="Most below 0.001: the trip to another process costs more than the work.",
    ),
    Metric(
        "loopwatch.pool.completed",
        "{task}",
        Kind.COUNTER,
        "Tasks that returned.",
        _IN_POOL,
        _POOLS,
        question="How much gets done?",
        is_not="Not those that failed or were cancelled.",
        example="Grows by 600 a minute: 10 tasks a second.",
    ),
    Metric(
        "loopwatch.pool.failed",
        "{task}",
        Kind.COUNTER,
        "Tasks that failed, by type of the exception.",
        (*_IN_POOL, ERROR_TYPE),
        12,
        question="Do tasks fail that nobody asks about?",
        is_not="Not necessarily an error that somebody sees: a future that is never awaited keeps it to itself, "
        "which is why it is counted here.",
        example='{error_type="ValueError"} grows by 30 a minute while the log is silent: results are not awaited.',
    ),
    Metric(
        "loopwatch.pool.crashes",
        "{worker}",
        Kind.COUNTER,
        "Workers that died without being told to, by exit code or signal.",
        (*_IN_POOL, CRASH),
        12,
        question="Do workers die, and of what?",
        is_not="Not tasks that raise; those are in `loopwatch.pool.failed`.",
        example='{loopwatch_crash_reason="oom"} 3: the kernel killed three workers for want of memory; '
        '{loopwatch_crash_reason="SIGSEGV"}: a bug in '
        "C code.",
    ),
    Metric(
        "loopwatch.pool.started",
        "{worker}",
        Kind.COUNTER,
        "Workers that were started.",
        _IN_POOL,
        _POOLS,
        question="Are workers started again and again?",
        is_not="Not crashes alone: workers that are recycled for their age, and pools that are made for each call, "
        "start some too.",
        example="Grows by 60 a minute for a pool of 4: each worker lives for 4 s.",
    ),
    Metric(
        "loopwatch.pool.utilization",
        "1",
        Kind.GAUGE,
        "Share of its workers' time in which a pool ran tasks, in the last window.",
        _IN_POOL,
        _POOLS,
        question="Is the pool too large or too small?",
        is_not="Not the processor's load: workers that wait for a server are busy.",
        example="0.98 with a queue: too small. 0.02 with 16 workers that take 200 MB each: too large.",
    ),
    Metric(
        "loopwatch.pool.memory",
        "By",
        Kind.GAUGE,
        "Resident memory of a pool's worker processes.",
        _IN_POOL,
        _POOLS,
        question="Do workers leak, and will the container's limit be hit?",
        is_not="Not a sum that can be compared with the limit: pages that processes share are counted in each. 0 for "
        "threads.",
        example="Rises by 100 MB an hour: set `max_tasks` so that workers are recycled, and look for the leak.",
    ),
    Metric(
        "loopwatch.pool.cpu.time",
        "s",
        Kind.COUNTER,
        "Processor time of a pool's workers.",
        _IN_POOL,
        _POOLS,
        question="Do the workers compute, or do they wait?",
        is_not="Not known for threads of pools that are not loopwatch's, nor after a process has gone unseen.",
        example="Grows by 1 a minute while the workers are busy all the time: they wait; threads or async would do.",
    ),
    Metric(
        "loopwatch.findings",
        "{finding}",
        Kind.GAUGE,
        "Findings about pools and processes that hold now, by kind.",
        (FINDING,),
        12,
        question="Is something set up badly?",
        is_not="Not an error: advice with figures, that the log and `agent.snapshot().findings` give in words.",
        example='{loopwatch_finding="cpu-bound-threads"} 1: one thread pool runs Python code that computes.',
    ),
)
"""Metrics of worker pools and child processes."""

OFFLOAD = (
    Metric(
        "loopwatch.flagged",
        "s",
        Kind.GAUGE,
        "Time for which a flagged function has blocked loops within the window.",
        (FUNCTION, CAUSE, REMEDY),
        8,
        question="Which functions keep blocking, and what should be done about each?",
        is_not="Not all culprits: only those of several stalls within `flag_window`, of causes that offloading cures.",
        example='{loopwatch_function="app.images:resize", loopwatch_cause="native_gil"} 4.1: it has blocked for 4.1 '
        "of the last 60 s.",
    ),
    Metric(
        "loopwatch.offload.calls",
        "{call}",
        Kind.COUNTER,
        "Calls of functions that may run elsewhere, by where they ran.",
        (FUNCTION, PLACE),
        16,
        question="Where do calls run, and does the policy move what blocks?",
        is_not="Not all calls of a pool: those that `WorkerPool.run` was given directly stand under that name.",
        example='{loopwatch_function="app:report", loopwatch_offload_to="inline"} stands at 12 and '
        '{loopwatch_offload_to="process"} grows: it was moved.',
    ),
    Metric(
        "loopwatch.offload.run.time",
        "s",
        Kind.COUNTER,
        "Time for which such calls ran.",
        (PLACE,),
        4,
        question="How much work is done elsewhere?",
        is_not="Not processor time; of a coroutine, what it waited is part of it.",
        example='{loopwatch_offload_to="process"} grows by 30 a minute: half a processor\'s worth of work is off '
        "the loop.",
    ),
    Metric(
        "loopwatch.offload.trip.time",
        "s",
        Kind.COUNTER,
        "Time that calls which ran elsewhere took on top of their run: pickling, queue, way.",
        (PLACE,),
        3,
        question="Is the trip worth it?",
        is_not="Not time that loops were held: most of it they serve others meanwhile.",
        example="Grows by 30 a minute while the run time grows by 3: calls are too small, or the queue is too long.",
    ),
    Metric(
        "loopwatch.offload.saved",
        "s",
        Kind.COUNTER,
        "Time for which loops would have been held by calls that ran elsewhere, less what their trips held them.",
        question="Is offloading helping?",
        is_not="Not time that users got back: only if somebody waited for the loop meanwhile.",
        example="Grows by 12 a minute: a fifth of a loop's time was given back.",
    ),
)
"""Metrics of offloaded calls."""

AGENT = (
    Metric(
        "loopwatch.agent.cpu.time",
        "s",
        Kind.COUNTER,
        "Processor time of the agent's own threads.",
        question="What does the agent itself cost?",
        is_not="Not what it does on a loop's own thread, which is a fraction of a microsecond a pass; nor threads that "
        "grpc starts.",
        example="Grows by 0.3 a minute: half a percent of a core; over `cpu_budget` it looks less often by itself.",
    ),
    Metric(
        "loopwatch.agent.lag",
        "s",
        Kind.COUNTER,
        "Time by which the agent's threads can have delayed loops: what they ran while one was busy.",
        question="Does the agent itself make the loop late?",
        is_not="Not measured at the loop: an upper bound, as if all its processor time had kept the GIL from the "
        "busiest loop for the share of the time in which that was busy.",
        example="Grows by 0.1 a minute at a utilization of 0.5: by less than 0.2 percent.",
    ),
    Metric(
        "loopwatch.agent.stretch",
        "1",
        Kind.GAUGE,
        "Factor by which the agent looks less often, to keep its budget.",
        question="Is the agent over its budget?",
        is_not="Not an error: blocks are still found and dated exactly, with fewer samples of their stacks.",
        example="4: it samples a quarter as often as it would.",
    ),
    Metric(
        "loopwatch.agent.state",
        "{agent}",
        Kind.GAUGE,
        "1 for the state in which the agent is.",
        (STATE,),
        1,
        question="Does it watch at all?",
        is_not="Not 0 for other states: those are absent.",
        example='{loopwatch_agent_state="watching"} 1 is well; waiting: no loop runs yet; paused and off: nothing '
        "is watched.",
    ),
    Metric(
        "loopwatch.agent.start_time",
        "s",
        Kind.GAUGE,
        "When this process's agent started, in seconds since the epoch.",
        question="Was the process restarted?",
        is_not="Not the start of the process where the agent is installed later.",
        example="1764000000, then 1764001200: the process was restarted after 20 minutes.",
    ),
    Metric(
        "loopwatch.agent.faults",
        "{fault}",
        Kind.COUNTER,
        "Faults of the agent by part; one that keeps failing is left out for a while.",
        (PART,),
        6,
        question="Has a part of the agent failed?",
        is_not="Not faults of the program.",
        example='{loopwatch_agent_part="journal"} 3: its disk was full; stalls are still logged and exported, but for '
        "a while not written down.",
    ),
    Metric(
        "loopwatch.agent.parts_off",
        "{part}",
        Kind.GAUGE,
        "Parts of the agent that are switched off now.",
        question="Does the agent do all of its work at present?",
        is_not="Not faults: a part is switched off after three within a minute, for 10 s at first and 10 min at most.",
        example="1: a part keeps failing; the counter of faults names it, and the log says why.",
    ),
    Metric(
        "loopwatch.agent.dropped",
        "{item}",
        Kind.COUNTER,
        "What was not emitted: queue full, a storm of stalls, an export that failed.",
        (SIGNAL,),
        4,
        question="Is something missing from what I see?",
        is_not="Not lost figures: metrics are totals, and the next export that succeeds carries all of them.",
        example='{loopwatch_agent_signal="traces"} 500: the collector was away for so long that 500 spans found no '
        "room.",
    ),
)
"""Metrics of the agent itself."""

CATALOG: tuple[Metric, ...] = (*LOOPS, *POOLS, *OFFLOAD, *AGENT)
"""All metrics; the sum of their samples is at most :data:`MAX_SAMPLES`."""

BY_NAME = {metric.name: metric for metric in CATALOG}

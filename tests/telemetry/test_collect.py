"""The collector computes the points of every metric: correct values, bounded series, monotonic counters."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stalls import frame, make_stall

from loopwatch.core.histogram import Histogram
from loopwatch.events import (
    AgentStats,
    Cause,
    Finding,
    FlaggedFunction,
    LagStats,
    LoopStats,
    OffloadStats,
    PlaceStats,
    PoolStats,
    Snapshot,
    WorkerStats,
)
from loopwatch.health.records import PoolReading
from loopwatch.telemetry.metrics.catalog import BY_NAME, MAX_SAMPLES, OTHER, Kind
from loopwatch.telemetry.metrics.collect import Collector
from loopwatch.telemetry.metrics.records import Inputs, Reading
from loopwatch.watch.observation import LoopReading

Values = dict[tuple[str, ...], float]


def snapshot(**fields: Any) -> Snapshot:
    defaults: dict[str, Any] = {"at": 1000.0, "pid": 1, "loops": (), "agent": AgentStats("watching")}
    return Snapshot(**(defaults | fields))


def inputs(*, loops: Any = (), pools: Any = (), dropped: Any = (), **fields: Any) -> Inputs:
    return Inputs(
        snapshot(**fields), loops, pools, [(5, 50, 0), (3, 30, 1), (1, 10, 2)], started_at=900.0, dropped=dict(dropped)
    )


def histogram(*durations: float) -> Histogram:
    found = Histogram()
    for duration in durations:
        found.record(duration)
    return found


def loop(key: int, name: str = "main", *, victims: int = 0, callbacks: int | None = 7, **fields: Any) -> LoopReading:
    defaults: dict[str, Any] = {"kind": "asyncio", "running": True, "busy": 1.0, "idle": 9.0, "passes": 100}
    lags = fields.pop("lags", histogram(0.001, 0.2))
    return LoopReading(key, LoopStats(name, **(defaults | fields)), lags, callbacks, victims)


def pool(name: str, **fields: Any) -> PoolReading:
    waits, runs = fields.pop("waits", Histogram()), fields.pop("runs", Histogram())
    return PoolReading(PoolStats(name, **({"kind": "process"} | fields)), waits, runs)


def values(reading: Reading, name: str) -> Values:
    return {point.attributes: point.value for point in reading.points.get(name, ())}


# -- loops ------------------------------------------------------------------------------------------------------------


def test_points_of_a_loop() -> None:
    """Counters are totals, gauges describe the last window, and the histogram has every heartbeat."""
    lag = LagStats(count=200, min=0.001, mean=0.002, p50=0.003, p90=0.004, p99=0.005, max=0.006, stddev=0.007)
    reading = Collector().read(inputs(loops=[loop(0, lag=lag, utilization=0.25, blocked_for=1.5, victims=3)], tasks=12))
    for which, value in (
        ("min", 0.001), ("mean", 0.002), ("p50", 0.003), ("p90", 0.004), ("p99", 0.005), ("max", 0.006),
        ("stddev", 0.007),
    ):  # fmt: skip
        assert values(reading, f"asyncio.eventloop.lag.{which}") == {("main",): value}
    assert values(reading, "asyncio.eventloop.utilization") == {("main",): 0.25}
    assert values(reading, "asyncio.eventloop.time") == {("main", "busy"): 1.0, ("main", "idle"): 9.0}
    assert values(reading, "asyncio.eventloop.passes") == {("main",): 100}
    assert values(reading, "asyncio.eventloop.callbacks") == {("main",): 7}
    assert values(reading, "asyncio.eventloop.stall.victims") == {("main",): 3}
    assert values(reading, "asyncio.eventloop.blocked_for") == {("main",): 1.5}
    assert values(reading, "asyncio.tasks") == {(): 12}
    assert values(reading, "cpython.gc.collections") == {("0",): 5, ("1",): 3, ("2",): 1}
    assert values(reading, "cpython.gc.uncollectable_objects") == {("0",): 0, ("1",): 1, ("2",): 2}
    (spread,) = reading.spreads["asyncio.eventloop.lag"]
    assert (spread.attributes, spread.histogram.count) == (("main",), 2)
    assert spread.histogram.total == pytest.approx(0.201)


def test_metrics_that_a_loop_cannot_measure_are_absent() -> None:
    """A loop that only has a heartbeat has no utilization, rather than a utilization of 0."""
    bare = loop(0, busy=None, idle=None, passes=None, callbacks=None)
    reading = Collector().read(inputs(loops=[bare]))
    for name in ("utilization", "time", "passes", "callbacks", "lag.p50"):
        assert f"asyncio.eventloop.{name}" not in reading.points
    assert "asyncio.tasks" not in reading.points
    assert values(reading, "asyncio.eventloop.blocked_for") == {("main",): 0.0}


def test_a_closed_loop_keeps_its_counts() -> None:
    """Its last totals stay in its series, a later loop of that name adds to them, and its gauges end."""
    collector = Collector()
    collector.read(inputs(loops=[loop(0, passes=60, blocked_for=1.0)]))
    collector.loop_gone(loop(0, passes=100))
    between = collector.read(inputs())
    assert values(between, "asyncio.eventloop.passes") == {("main",): 100}
    assert values(between, "asyncio.eventloop.blocked_for") == {}
    after = collector.read(inputs(loops=[loop(1, passes=5)]))
    assert values(after, "asyncio.eventloop.passes") == {("main",): 105}
    assert after.spreads["asyncio.eventloop.lag"][0].histogram.count == 4


def test_a_loop_that_lives_between_two_readings_is_counted() -> None:
    """An asyncio.run() of some milliseconds is not lost."""
    collector = Collector()
    for key in range(10):
        collector.loop_gone(loop(key, passes=10))
    assert values(collector.read(inputs()), "asyncio.eventloop.passes") == {("main",): 100}


def test_the_ninth_loop_is_merged_into_other() -> None:
    """The first eight loops keep series of their own; a gauge of the merged series is that of the worst loop."""
    collector = Collector()
    loops = [loop(key, f"loop-{key}", utilization=key / 100, blocked_for=key) for key in range(12)]
    for _ in range(3):
        reading = collector.read(inputs(loops=loops))
        shares = values(reading, "asyncio.eventloop.utilization")
        assert set(shares) == {*((f"loop-{key}",) for key in range(8)), (OTHER,)}
        assert shares[(OTHER,)] == 0.11
        assert values(reading, "asyncio.eventloop.blocked_for")[(OTHER,)] == 11
        assert values(reading, "asyncio.eventloop.passes")[(OTHER,)] == 400


# -- stalls -----------------------------------------------------------------------------------------------------------


def test_the_busiest_loop_gets_a_series() -> None:
    """A busy loop and a stalling loop get series of their own although fifty idle loops came first."""
    collector = Collector()
    idle = [loop(key, f"idle-{key}", busy=0.0, idle=0.0) for key in range(50)]
    collector.read(inputs(loops=idle))
    for second in range(1, 6):
        idle = [loop(key, f"idle-{key}", busy=0.01 * second, idle=0.99 * second) for key in range(50)]
        busy = loop(90, "main", busy=0.8 * second, idle=0.2 * second)
        stalls = loop(91, "jobs", busy=0.01 * second, idle=0.99 * second, blocked=0.2 * second)
        reading = collector.read(inputs(loops=[*idle, busy, stalls]))
    names = {name for (name,) in values(reading, "asyncio.eventloop.blocked_for")}
    assert {"main", "jobs", OTHER} <= names
    assert len([name for name in names if name.startswith("idle-")]) == 6


def test_a_pool_in_trouble_gets_a_series() -> None:
    """A pool whose workers die gets a series of its own although twenty pools with more tasks came first."""
    collector = Collector()
    for second in range(1, 6):
        others = [pool(f"p{n}", submitted=100 * second, completed=100 * second) for n in range(20)]
        bad = pool("bad", submitted=second, completed=0, crashes={"SIGSEGV": second})
        reading = collector.read(inputs(pools=[*others, bad]))
    assert ("bad", "process") in values(reading, "loopwatch.pool.queue.depth")


def test_stalls_by_culprit() -> None:
    """Stalls and blocked seconds are counted by loop, cause and culprit; without a culprit the cause is its name."""
    collector = Collector()
    collector.read(inputs(loops=[loop(0)]))
    for _ in range(3):
        collector.saw(make_stall(culprit=frame("app.users.load"), cause=Cause.IO, duration=0.5))
    collector.saw(make_stall(culprit=None, cause=Cause.STARVED, duration=2.0))
    reading = collector.read(inputs(loops=[loop(0)]))
    load, starved = ("main", "io", "app.users:load"), ("main", "starved", "[starved]")
    assert values(reading, "asyncio.eventloop.stalls") == {load: 3, starved: 1}
    assert values(reading, "asyncio.eventloop.stall.duration") == {load: 1.5, starved: 2.0}


def test_starved_time_by_what_took_the_processor() -> None:
    """Time without a processor is summed over stalls of all causes, the quota's part and the rest apart, from 0 on."""
    collector, name = Collector(), "asyncio.eventloop.stall.starved"
    assert values(collector.read(inputs()), name) == {("quota",): 0.0, ("neighbours",): 0.0}
    collector.saw(make_stall(culprit=None, cause=Cause.STARVED, duration=2.0, starved=1.75, throttled=1.5))
    collector.saw(make_stall(duration=1.0, starved=0.5))
    collector.saw(make_stall(duration=4.0))
    reading = collector.read(inputs(loops=[loop(0)]))
    assert values(reading, name) == {("quota",): 1.5, ("neighbours",): 0.75}
    assert sum(values(reading, "asyncio.eventloop.stall.duration").values()) == 7.0, "it is a part of the duration"
    assert values(collector.read(inputs()), name) == {("quota",): 1.5, ("neighbours",): 0.75}


def test_starved_time_never_decreases() -> None:
    """Impossible numbers from a foreign record, more throttled than starved or below 0, decrease no counter."""
    collector, name = Collector(), "asyncio.eventloop.stall.starved"
    collector.saw(make_stall(starved=0.5, throttled=0.25))
    collector.saw(make_stall(starved=0.1, throttled=0.3))
    collector.saw(make_stall(starved=-1.0, throttled=-1.0))
    assert values(collector.read(inputs()), name) == pytest.approx({("quota",): 0.55, ("neighbours",): 0.25})


def test_ten_thousand_culprits_are_bounded() -> None:
    """Twenty culprits have series, the others are merged by cause; no stall is lost, later heavy culprits get a
    series."""
    collector = Collector()
    collector.read(inputs(loops=[loop(0)]))
    for number in range(10_000):
        collector.saw(make_stall(number, culprit=frame(f"app.m.f{number}"), duration=0.1))
    reading = collector.read(inputs(loops=[loop(0)]))
    stalls = values(reading, "asyncio.eventloop.stalls")
    assert len(stalls) == 21
    assert sum(stalls.values()) == 10_000
    assert stalls[("main", "python", OTHER)] == 9_980
    assert sum(values(reading, "asyncio.eventloop.stall.duration").values()) == pytest.approx(1000.0)
    for _ in range(3):
        for _ in range(2):
            collector.saw(make_stall(culprit=frame("app.m.heavy"), duration=5.0))
        stalls = values(collector.read(inputs(loops=[loop(0)])), "asyncio.eventloop.stalls")
    assert len(stalls) == 21
    assert stalls[("main", "python", "app.m:heavy")] == 4, "the first two were merged into other"
    assert stalls[("main", "python", OTHER)] == 9_982


def test_max_culprits_lowers_the_bound() -> None:
    """``max_culprits`` lowers the bound at run time, down to none, and cannot exceed that of the catalog."""
    collector = Collector(1000)
    assert collector.max_culprits == 20
    collector.max_culprits = 0
    for number in range(5):
        collector.saw(make_stall(culprit=frame(f"app.m.f{number}")))
    assert values(collector.read(inputs()), "asyncio.eventloop.stalls") == {(OTHER, "python", OTHER): 5}


# -- pools ------------------------------------------------------------------------------------------------------------


def worker(state: str, memory: int = 100) -> WorkerStats:
    return WorkerStats(1, state, 0, 0, 1.0, memory)


def test_points_of_a_pool() -> None:
    """Every metric of a pool is exported under its name and kind."""
    one = pool(
        "thumbs", workers=(worker("busy"), worker("busy"), worker("zombie")), queued=4, running=2, submitted=20,
        completed=9, failed=3, failures={"ValueError": 2}, crashes={"SIGKILL": 1}, started=5, utilization=0.5,
        max_workers=8, cpu=2.5, waits=histogram(0.1, 0.2), runs=histogram(1.0),
    )  # fmt: skip
    reading = Collector().read(inputs(pools=[one]))
    key = ("thumbs", "process")
    assert values(reading, "loopwatch.pool.workers") == {(*key, "busy"): 2, (*key, "idle"): 0, (*key, "zombie"): 1}
    assert values(reading, "loopwatch.pool.max_workers") == {key: 8}
    assert values(reading, "loopwatch.pool.queue.depth") == {key: 4}
    assert values(reading, "loopwatch.pool.in_flight") == {key: 2}
    assert values(reading, "loopwatch.pool.completed") == {key: 9}
    assert values(reading, "loopwatch.pool.failed") == {(*key, "ValueError"): 2, (*key, "unknown"): 1}
    assert values(reading, "loopwatch.pool.crashes") == {(*key, "SIGKILL"): 1}
    assert values(reading, "loopwatch.pool.started") == {key: 5}
    assert values(reading, "loopwatch.pool.utilization") == {key: 0.5}
    assert values(reading, "loopwatch.pool.memory") == {key: 300}
    assert values(reading, "loopwatch.pool.cpu.time") == {key: 2.5}
    assert [each.histogram.count for each in reading.spreads["loopwatch.pool.task.wait"]] == [2]
    assert [each.histogram.total for each in reading.spreads["loopwatch.pool.task.run"]] == [1.0]


def test_a_closed_pool_keeps_its_counts() -> None:
    """Its totals stay in its series, and the next pool of that name, which counts from 0 again, adds to them."""
    collector = Collector()
    collector.read(inputs(pools=[pool("p", submitted=10, completed=10)]))
    assert values(collector.read(inputs()), "loopwatch.pool.completed") == {("p", "process"): 10}
    again = collector.read(inputs(pools=[pool("p", submitted=2, completed=2)]))
    assert values(again, "loopwatch.pool.completed") == {("p", "process"): 12}
    assert values(again, "loopwatch.pool.max_workers") == {}, "a pool without a limit exports none"


def test_two_pools_of_one_name_are_merged() -> None:
    """They share a series, with the sums of both."""
    collector = Collector()
    both = [pool("p", submitted=10, completed=10, queued=1), pool("p", submitted=5, completed=5, queued=2)]
    collector.read(inputs(pools=both))
    reading = collector.read(inputs(pools=both))
    assert values(reading, "loopwatch.pool.completed") == {("p", "process"): 15}
    assert values(reading, "loopwatch.pool.queue.depth") == {("p", "process"): 3}


def test_unhealthy_workers_are_exported_first() -> None:
    """If there are more attribute sets than allowed, zombies and hung workers keep their pool's name."""
    states = ("starting", "idle", "busy", "hung", "zombie", "orphan", "stopping", "dead", "unknown")
    pools = [pool(f"p{n}", workers=tuple(worker(state) for state in states), submitted=n + 1) for n in range(9)]
    workers = values(Collector().read(inputs(pools=pools)), "loopwatch.pool.workers")
    assert len(workers) <= BY_NAME["loopwatch.pool.workers"].sets
    assert sum(workers.values()) == 81
    for state in ("hung", "zombie", "orphan"):
        named = [key for key in workers if key[2] == state and key[0] != OTHER]
        assert len(named) == 8


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_points_of_offloading() -> None:
    """Calls are counted by function and destination, seconds by destination, and saved loop time in total."""
    function = OffloadStats("app:resize", "offload", "process", "", calls=9, inline=2, process=7)
    places = (PlaceStats("inline", run=0.5), PlaceStats("process", calls=3, run=4.0, trip=1.0, held=0.2, saved=3.5))
    reading = Collector().read(inputs(offload=(function,), places=places))
    assert values(reading, "loopwatch.offload.calls") == {
        ("app:resize", "inline"): 2, ("app:resize", "process"): 7, ("WorkerPool.run", "process"): 3,
    }  # fmt: skip
    assert values(reading, "loopwatch.offload.run.time") == {("inline",): 0.5, ("process",): 4.0}
    assert values(reading, "loopwatch.offload.trip.time") == {("process",): 1.0}
    assert values(reading, "loopwatch.offload.saved") == {(): 3.5}


def flagged(number: int, blocked: float) -> FlaggedFunction:
    culprit = frame(f"app.m.f{number}")
    return FlaggedFunction(
        f"app.m:f{number}",
        culprit,
        3,
        60.0,
        blocked,
        blocked,
        0,
        Cause.IO,
        ((Cause.IO, 3),),
        ("main",),
        1.0,
        2.0,
        "await",
    )


def test_flagged_functions_and_findings() -> None:
    """The seven functions that blocked longest are exported, and the sum of the others; findings are counts by kind."""
    findings = tuple(Finding(kind, "pool", "text", "remedy") for kind in ("leak", "leak", "churn"))
    reading = Collector().read(inputs(flagged=tuple(flagged(n, float(n)) for n in range(10)), findings=findings))
    found = values(reading, "loopwatch.flagged")
    assert len(found) == 8
    assert found[("app.m:f9", "io", "await")] == 9.0
    assert found[(OTHER, OTHER, OTHER)] == 0.0 + 1.0 + 2.0
    assert values(reading, "loopwatch.findings") == {("leak",): 2, ("churn",): 1}


def test_points_of_the_agent() -> None:
    """The agent's lag is its processor time multiplied by the busy share of the busiest loop."""
    collector = Collector()
    collector.read(inputs(loops=[loop(0, busy=0.0, idle=0.0)]))
    agent = AgentStats("watching", cpu=2.0, stretch=4.0, faults={"journal": 2})
    reading = collector.read(inputs(loops=[loop(0, busy=3.0, idle=1.0)], agent=agent, dropped={"stalls": 5, "logs": 0}))
    assert values(reading, "loopwatch.agent.cpu.time") == {(): 2.0}
    assert values(reading, "loopwatch.agent.lag") == {(): 1.5}
    assert values(reading, "loopwatch.agent.stretch") == {(): 4.0}
    assert values(reading, "loopwatch.agent.state") == {("watching",): 1}
    assert values(reading, "loopwatch.agent.start_time") == {(): 900.0}
    assert values(reading, "loopwatch.agent.faults") == {("journal",): 2}
    assert values(reading, "loopwatch.agent.dropped") == {("stalls",): 5, ("logs",): 0}
    less = collector.read(inputs(agent=AgentStats("off", cpu=0.5)))
    assert values(less, "loopwatch.agent.cpu.time") == {(): 2.0}, "the CPU time of an ended thread is kept"
    more = collector.read(inputs(agent=AgentStats("watching", cpu=0.75)))
    assert values(more, "loopwatch.agent.cpu.time") == {(): 2.25}


# -- whatever happens -------------------------------------------------------------------------------------------------


def samples(reading: Reading) -> int:
    spreads = sum(len(BY_NAME[name].bounds) + 3 for name, found in reading.spreads.items() for _ in found)
    return spreads + sum(map(len, reading.points.values()))


def counters(reading: Reading) -> Values:
    return {
        (name, *point.attributes): point.value
        for name, points in reading.points.items()
        if BY_NAME[name].kind is Kind.COUNTER
        for point in points
    }


def chaos(dice: random.Random, collector: Collector, keys: list[int]) -> Inputs:
    """Return the inputs of a process with dozens of loops, pools and culprits that come and go at random."""
    for number in range(dice.randrange(400)):
        culprit = frame(f"app.m.f{dice.randrange(10_000)}")
        stall = make_stall(
            number, loop=f"loop-{dice.randrange(50)}", culprit=culprit, cause=dice.choice(list(Cause)),
            duration=dice.choice((0.1, 0.5, 30.0)), starved=dice.choice((0.0, 0.1)), throttled=dice.choice((0.0, 0.05)),
        )  # fmt: skip
        collector.saw(stall)
    keys[0] += dice.randrange(3)
    loops = [
        loop(keys[0] + n, f"loop-{(keys[0] + n) % 60}", passes=dice.randrange(10**6), lags=histogram(0.1),
             utilization=0.5, lag=LagStats(1, 0, 0, 0, 0, 0, 0))
        for n in range(dice.randrange(51))
    ]  # fmt: skip
    for each in loops[: dice.randrange(5)]:
        collector.loop_gone(each)
    states = ("idle", "busy", "hung", "zombie", "orphan", "starting", "dead", "unknown")
    pools = [
        pool(
            f"pool-{dice.randrange(300)}", kind=dice.choice(("process", "thread", "other")),
            workers=tuple(worker(dice.choice(states)) for _ in range(dice.randrange(4))),
            submitted=dice.randrange(1000), completed=dice.randrange(1000), started=dice.randrange(9), failed=40,
            failures={f"Error{dice.randrange(90)}": dice.randrange(40)}, crashes={f"exit {dice.randrange(99)}": 1},
            max_workers=dice.choice((None, 4)), waits=histogram(0.1), runs=histogram(0.2),
        )
        for _ in range(dice.randrange(201))
    ]  # fmt: skip
    return inputs(
        loops=loops,
        pools=pools,
        tasks=1,
        flagged=tuple(flagged(n, 1.0) for n in range(dice.randrange(40))),
        findings=tuple(Finding(f"kind-{n}", "s", "t", "r") for n in range(dice.randrange(40))),
        offload=tuple(
            OffloadStats(f"app:f{dice.randrange(99)}", "offload", "process", "", inline=dice.randrange(9), thread=1)
            for _ in range(dice.randrange(60))
        ),
        places=tuple(
            PlaceStats(place, 1, 1.0, 1.0, 1.0, dice.random()) for place in ("inline", "thread", "process", "backend")
        ),
        agent=AgentStats("watching", cpu=dice.random(), faults={f"part-{n}": 1 for n in range(dice.randrange(30))}),
        dropped={name: dice.randrange(5) for name in ("stalls", "metrics", "traces", "logs", "more")},
    )  # fmt: skip


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_series_are_bounded_and_counters_monotonic_under_random_load(seed: int) -> None:
    """There are at most 600 samples, each metric keeps its bound, no counter decreases, and no series is duplicated."""
    dice, collector, keys = random.Random(seed), Collector(), [0]
    highest: Values = {}
    for _ in range(12):
        reading = collector.read(chaos(dice, collector, keys))
        assert samples(reading) < MAX_SAMPLES
        for name, points in (*reading.points.items(), *reading.spreads.items()):
            series = [point.attributes for point in points]
            assert len(series) == len(set(series)) <= BY_NAME[name].sets, name
            assert all(len(each) == len(BY_NAME[name].attributes) for each in series), name
        for series, value in counters(reading).items():
            assert value >= highest.get(series, 0), series
            highest[series] = value


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_no_event_is_lost_under_random_load(seed: int) -> None:
    """The increases of all series add up to the number of stalls, tasks and passes that happened."""
    dice, collector, keys = random.Random(seed), Collector(), itertools.count()
    seen: Values = {}
    stalls = tasks = passes = 0
    pools: dict[str, int] = {}
    for _ in range(15):
        for _ in range(dice.randrange(300)):
            stalls += 1
            collector.saw(make_stall(culprit=frame(f"app.m.f{dice.randrange(60)}"), duration=dice.expovariate(1)))
        for _ in range(dice.randrange(6)):
            number = dice.randrange(1, 1000)
            passes += number
            collector.loop_gone(loop(next(keys), f"loop-{dice.randrange(20)}", passes=number))
        for name in [f"pool-{dice.randrange(30)}" for _ in range(20)]:
            grown = dice.randrange(50)
            tasks += grown
            pools[name] = pools.get(name, 0) + grown
        alive = [pool(name, submitted=count, completed=count) for name, count in pools.items()]
        for series, value in counters(collector.read(inputs(pools=alive))).items():
            seen[series] = max(seen.get(series, 0), value)
    assert sum(value for series, value in seen.items() if series[0] == "asyncio.eventloop.stalls") == stalls
    assert sum(value for series, value in seen.items() if series[0] == "loopwatch.pool.completed") == tasks
    assert sum(value for series, value in seen.items() if series[0] == "asyncio.eventloop.passes") == passes

"""Finding rules for pools: each rule fires where it should, with the right values, and stays silent elsewhere."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.core.histogram import Histogram
from loopwatch.events import Finding, PoolStats, WorkerState, WorkerStats
from loopwatch.health.finding_rules import NEGLECT_WINDOW, RULES, Kinds
from loopwatch.health.findings import CLEAR_AFTER, FindingTracker
from loopwatch.health.records import End, PoolReading

MIB = 1 << 20
POLL = 2.0
Round = Callable[[float], Iterable[PoolReading]]


def worker(pid: int, state: WorkerState = WorkerState.BUSY, memory: int = 50 * MIB, **others: Any) -> WorkerStats:
    return WorkerStats(pid, state, int(state is WorkerState.BUSY), others.pop("done", 0), 100.0, memory, **others)


def workers(busy: int, idle: int = 0) -> tuple[WorkerStats, ...]:
    states = [WorkerState.BUSY] * busy + [WorkerState.IDLE] * idle
    return tuple(worker(100 + n, state) for n, state in enumerate(states))


def pool(run: float = 0.0, number: int = 0, **stats: Any) -> PoolReading:
    runs = Histogram()
    runs.total = run
    return PoolReading(
        PoolStats(**{"name": "pool", "kind": "process", "created_at": "app.py:1 in main", **stats}), runs, runs, number
    )


def advised(
    round_of: Round,
    seconds: float = 60.0,
    *,
    cpus: float = 4,
    affinity: float | None = None,
    ends: Callable[[float], list[End]] = lambda _now: [],
    gil_wait: float | None = None,
    advisor: FindingTracker | None = None,
    start: float = 0.0,
) -> list[Finding]:
    """Return the findings after ``seconds`` of polls; time begins at ``start``."""
    advisor, found = advisor or FindingTracker(), ()
    for n in range(int(seconds / POLL) + 1):
        now = start + n * POLL
        found = advisor.update(
            round_of(now), 1000 + now, cpus, ends(now), affinity=affinity, gil_wait=gil_wait, at=5e9 + now
        )
    return list(found)


def kinds(findings: Iterable[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def only(findings: list[Finding], kind: str) -> Finding:
    assert kinds(findings) == [kind]
    (finding,) = findings
    assert finding.text and finding.remedy.endswith(".") and finding.at >= 5e9
    assert all(math.isfinite(value) for value in finding.evidence.values())
    return finding


def test_a_healthy_program_has_no_findings() -> None:
    """Nothing is found in a process pool as large as the processors, waiting threads, and a queue that drains."""
    chance = random.Random(7)

    def round_of(now: float) -> list[PoolReading]:
        return [
            pool(
                workers=workers(3, 1), max_workers=4, cpu=2.9 * now + 1, task_cpu=2.8 * now, run=3 * now,
                completed=int(now * 20), submitted=int(now * 20), queued=chance.randrange(40), encoding=now * 0.01,
            ),
            pool(
                name="threads", kind="thread", workers=workers(5), cpu=0.1 * now + 1, task_cpu=0.1 * now, run=5 * now,
                completed=int(now), failed=int(now * 0.2), failures={"TimeoutError": int(now * 0.2)},
            ),
            pool(name="default", kind="default", workers=workers(2, 3), max_workers=6, completed=int(now)),
            pool(name="children", kind="children", workers=(worker(9, WorkerState.ZOMBIE),)),
        ]  # fmt: skip

    assert advised(round_of, 1200, gil_wait=0.0001) == []


# -- oversubscribed


def computing(count: int, cores: float) -> Round:
    return lambda now: [
        pool(
            workers=workers(count),
            max_workers=count,
            cpu=cores * now + 1,
            completed=int(now),
            task_cpu=cores * now,
            run=count * now,
        )
    ]


def test_more_workers_compute_than_there_are_processors() -> None:
    """Eight busy workers on two saturated processors are a finding."""
    found = only(advised(computing(8, 2.0), cpus=2), Kinds.OVERSUBSCRIBED)
    assert found.subject == "pool"
    assert "CPU limit" not in found.text + found.remedy
    assert (found.evidence["busy"], found.evidence["cpus"]) == (8, 2)
    assert found.evidence["cores"] == pytest.approx(2.0, rel=0.01)
    assert (
        "8.0 busy worker processes want 2.0 processors at a time, of 2" in found.text
        and "max_workers=2" in found.remedy
    )


@pytest.mark.parametrize(("count", "cores", "cpus"), [(2, 2.0, 2), (8, 6.0, 8), (8, 1.4, 2), (2, 1.5, 1.5)])
def test_not_oversubscribed(count: int, cores: float, cpus: float) -> None:
    """No finding for as many workers as processors, for more that mostly wait, or for hardly more than the quota."""
    assert Kinds.OVERSUBSCRIBED not in kinds(advised(computing(count, cores), cpus=cpus))


def test_several_pools_share_the_processors() -> None:
    """Two pools that together exceed four processors are a finding, which names the larger one."""

    def round_of(now: float) -> list[PoolReading]:
        one = pool(
            name="one", workers=workers(2), cpu=1.6 * now + 1, task_cpu=1.6 * now, run=2 * now, completed=int(now)
        )
        two = pool(
            name="two", workers=workers(4), cpu=2.4 * now + 1, task_cpu=2.4 * now, run=4 * now, completed=int(now)
        )
        return [one, two]

    assert only(advised(round_of, cpus=4), Kinds.OVERSUBSCRIBED).subject == "two"


def throttled(count: int, cores: float, starved: float | None = None, most: int | None = None) -> Round:
    """Return rounds of ``count`` busy workers that use ``cores`` and lack ``starved`` processors together."""
    lacking = max(count - cores, 0.0) if starved is None else starved

    def round_of(now: float) -> list[PoolReading]:
        busy = tuple(worker(100 + n, starved=lacking / count * now) for n in range(count))
        return [
            pool(
                workers=busy,
                max_workers=most or count,
                cpu=cores * now + 1,
                completed=int(now),
                task_cpu=cores * now,
                run=count * now,
            )
        ]

    return round_of


@pytest.mark.parametrize(
    ("count", "limit", "affinity", "text", "remedy"),
    [
        (
            2,
            0.6,
            8,
            "2.0 busy worker processes want 2.0 processors at a time; the CPU limit of the container allows 0.6; each "
            "lacks one for 70% of its time",
            "Raise the CPU limit of the container to 2, or give the pool max_workers=1: ",
        ),
        (
            4,
            1.9,
            8,
            "4.0 busy worker processes want 4.0 processors at a time; the CPU limit of the container allows 1.9; each "
            "lacks one for 52% of its time",
            "Raise the CPU limit of the container to 4, or give the pool max_workers=2: ",
        ),
        (
            6,
            2.0,
            4,
            "6.0 busy worker processes want 6.0 processors at a time; the CPU limit of the container allows 2; each "
            "lacks one for 67% of its time",
            "Raise the CPU limit of the container to 4, or give the pool max_workers=2: ",
        ),
        (
            2,
            0.05,
            8,
            "2.0 busy worker processes want 2.0 processors at a time; the CPU limit of the container allows 0.05; each "
            "lacks one for 98% of its time",
            "Raise the CPU limit of the container to 2, or give the pool max_workers=1: ",
        ),
    ],
)
def test_more_workers_than_the_cpu_limit_feeds(count: int, limit: float, affinity: int, text: str, remedy: str) -> None:
    """Under a CPU limit of the container, the finding says so, and which limit or how many workers fit."""
    found = only(advised(throttled(count, limit), cpus=limit, affinity=affinity), Kinds.OVERSUBSCRIBED)
    assert found.text == f"{text} (made at app.py:1 in main)"
    assert found.remedy.startswith(remedy) and "stand still" in found.remedy
    expected = {"busy": count, "cpus": limit, "affinity": affinity, "cores": limit, "wanted": count}
    expected |= {"starved": count - limit, "max_workers": count}
    assert found.evidence == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("rounds", "limit"),
    [
        (throttled(1, 0.6), 0.6),  # one worker that uses the limit up by itself
        (throttled(1, 0.05), 0.05),
        (throttled(2, 0.3, starved=0.1), 0.6),  # two that mostly wait
        (throttled(2, 1.5), 1.5),  # hardly more than the limit
        (throttled(3, 2.5), 2.5),
    ],
)
def test_as_many_workers_as_the_cpu_limit_feeds(rounds: Round, limit: float) -> None:
    """No finding for one worker, however small the limit is, nor for workers that it feeds nearly."""
    assert Kinds.OVERSUBSCRIBED not in kinds(advised(rounds, cpus=limit, affinity=8))


def test_a_second_worker_that_is_busy_half_of_the_time() -> None:
    """Under 0.6 processors, 1.6 busy workers on average are too many, 1.4 are not."""

    def rounds(every: int) -> Round:
        def round_of(now: float) -> list[PoolReading]:
            second = WorkerState.IDLE if int(now / POLL) % every == 0 else WorkerState.BUSY
            pair = (worker(100, starved=0.7 * now), worker(101, second, starved=0.4 * now))
            return [pool(workers=pair, cpu=0.6 * now + 1, task_cpu=0.6 * now, run=1.5 * now, completed=int(now))]

        return round_of

    assert kinds(advised(rounds(3), cpus=0.6, affinity=8)) == [Kinds.OVERSUBSCRIBED]
    assert kinds(advised(rounds(2), cpus=0.6, affinity=8)) == []


def test_a_cpu_limit_without_known_starvation() -> None:
    """Where the time without a processor is unknown, workers that use up the limit are too many, of any number."""
    found = only(advised(computing(2, 0.6), cpus=0.6, affinity=8), Kinds.OVERSUBSCRIBED)
    assert "lacks" not in found.text and "allows 0.6" in found.text
    assert found.remedy.startswith("Raise the CPU limit of the container to 2, or give the pool max_workers=1: ")


def test_several_pools_share_the_cpu_limit() -> None:
    """Two pools of one worker each exceed a limit of 0.6: one pool's size is no advice then."""

    def round_of(now: float) -> list[PoolReading]:
        return [
            pool(
                name=name, workers=(worker(pid, starved=0.7 * now),), max_workers=1, cpu=0.3 * now + 1,
                task_cpu=0.3 * now, run=now, completed=int(now),
            )
            for pid, name in enumerate(("one", "two"))
        ]  # fmt: skip

    found = only(advised(round_of, cpus=0.6, affinity=8), Kinds.OVERSUBSCRIBED)
    assert found.remedy.startswith("Raise the CPU limit of the container to 2, or give the pools one worker together: ")


@pytest.mark.parametrize("cpus", [2, 8])
def test_workers_starved_of_processor_time(cpus: float) -> None:
    """Workers that hardly run on a busy machine are not I/O-bound, but they may be too many."""

    def round_of(now: float) -> list[PoolReading]:
        starving = tuple(worker(n, starved=0.7 * now) for n in range(6))
        return [pool(workers=starving, cpu=0.5 * now + 1, task_cpu=0.5 * now, run=6 * now, completed=int(10 * now))]

    found = advised(round_of, cpus=cpus)
    if cpus == 8:
        assert found == []
    else:
        assert only(found, Kinds.OVERSUBSCRIBED).evidence["wanted"] == pytest.approx(4.7, rel=0.01)


# -- io-bound-processes


def test_processes_that_wait() -> None:
    """Calls that compute for 2 % of their time, as measured in the workers, are I/O-bound."""
    found = only(
        advised(lambda now: [pool(workers=workers(4), run=4 * now, task_cpu=0.08 * now, completed=int(4 * now))]),
        Kinds.IO_BOUND,
    )
    assert found.evidence["cpu_share"] == pytest.approx(0.02, rel=0.01)
    assert found.evidence["memory"] == 200 * MIB
    assert "compute for 2% of their time" in found.text and "threads" in found.remedy


def test_processes_that_wait_by_their_clocks() -> None:
    """Where calls are not measured, the workers' own processor time decides."""
    found = advised(lambda now: [pool(workers=workers(4), cpu=0.1 * now + 1, completed=int(4 * now))])
    assert only(found, Kinds.IO_BOUND).evidence["cpu_share"] == pytest.approx(0.025, rel=0.05)


@pytest.mark.parametrize(
    "stats",
    [
        {"task_cpu": 3.0, "cpu": 3.5, "run": 4.0},  # they compute
        {"task_cpu": 1.0, "cpu": 1.2, "run": 4.0},  # in part
        {},  # their processor time is unknown
    ],
)
def test_processes_that_compute(stats: dict[str, float]) -> None:
    """No finding if calls compute for a quarter of the time or more, or if that is unknown."""
    rates = dict(stats)

    def round_of(now: float) -> list[PoolReading]:
        return [pool(workers=workers(4), completed=int(4 * now), **{name: rate * now for name, rate in rates.items()})]

    assert advised(round_of) == []


def test_a_long_call_that_computes_is_not_taken_for_waiting() -> None:
    """A call of ten minutes, counted with its processor time only when it ends, is not I/O-bound."""

    def round_of(now: float) -> list[PoolReading]:
        over = int(now / 600)
        return [pool(workers=workers(1), cpu=now + 1, task_cpu=600.0 * over, run=600.0 * over, completed=over)]

    assert advised(round_of, 1300) == []


# -- cpu-bound-threads


def in_threads(kind: str, cores: float, busy: int = 2) -> Round:
    return lambda now: [
        pool(
            kind=kind,
            workers=workers(busy),
            max_workers=8,
            cpu=cores * now + 1,
            task_cpu=cores * now,
            run=busy * cores * now,
            completed=int(9 * now),
        )
    ]


@pytest.mark.parametrize(
    ("kind", "words"), [("thread", "the thread pool pool"), ("default", "the loop's default executor")]
)
def test_threads_that_compute_in_python(kind: str, words: str) -> None:
    """Threads that use a whole processor while other threads wait for the GIL are CPU-bound."""
    found = only(advised(in_threads(kind, 0.95), gil_wait=0.005), Kinds.CPU_BOUND)
    assert found.evidence["gil_wait"] == 0.005 and found.evidence["cores"] == pytest.approx(0.95, rel=0.01)
    assert words in found.text and "waits 5 ms for it" in found.text and "@loopwatch.offload" in found.remedy


@pytest.mark.parametrize(("cores", "gil_wait"), [(0.95, 0.0001), (1.9, 0.0), (0.1, 0.005), (0.95, None)])
def test_threads_that_do_not_compute_in_python(cores: float, gil_wait: float | None) -> None:
    """No finding for C code that releases the GIL, little work while another thread has it, or an unknown wait."""
    assert advised(in_threads("thread", cores), gil_wait=gil_wait) == []


# -- starved-executor


def default(busy: int, queued: int) -> PoolReading:
    busy_workers = tuple(worker(n, task="app:slow", running_for=20.0 + n) for n in range(busy))
    return pool(name="default", kind="default", workers=busy_workers, max_workers=6, queued=queued, completed=7)


def test_a_starved_default_executor() -> None:
    """Every thread busy while calls wait, for more than a moment, is a finding."""
    found = only(advised(lambda now: [default(6, 4)], 6), Kinds.STARVED)
    assert found.evidence == {"busy": 6.0, "max_workers": 6.0, "queued": 4.0, "longest": 25.0}
    assert "all 6 threads of the default executor are busy with app:slow and 4 calls wait" in found.text


@pytest.mark.parametrize(("busy", "queued"), [(6, 0), (5, 3)])
def test_a_busy_default_executor(busy: int, queued: int) -> None:
    """No finding if all threads are busy but no call waits, or if calls wait for a thread that is about to start."""
    assert advised(lambda now: [default(busy, queued)]) == []


def test_a_burst_does_not_starve() -> None:
    """No finding if all threads are busy at every second poll only."""
    assert advised(lambda now: [default(6, 4 if int(now / POLL) % 2 else 0)]) == []


# -- pool-per-call


def made(count: int, each: int = 1, **stats: Any) -> list[PoolReading]:
    known = {"closed": True, "submitted": each, "completed": each, "max_workers": 2, **stats}
    return [pool(name=f"pool #{n}", number=n, **known) for n in range(count)]


def test_a_pool_for_each_call() -> None:
    """Seven pools made at one line within a minute, with one call each, are a finding; closed pools stay listed."""

    def round_of(now: float) -> list[PoolReading]:
        closed = {"closed": True, "submitted": 1, "completed": 1, "max_workers": 2}
        return [pool(number=n, **closed) for n in range(7) if n * 2 <= now <= n * 2 + 10]

    found = only(advised(round_of, 14), Kinds.PER_CALL)
    assert found.subject == "app.py:1 in main"
    assert (found.evidence["pools"], found.evidence["calls_each"]) == (7, 1)
    assert advised(lambda now: made(6) if now == 0 else [], 2)[0].evidence["pools"] == 6


@pytest.mark.parametrize(
    "readings",
    [
        made(4),  # a few
        made(9, 500),  # each was put to use
        made(9, closed=False, workers=workers(1)),  # they are kept
        [pool(name=f"pool #{n}", created_at=f"app.py:{n} in main", closed=True, submitted=1) for n in range(9)],
        made(9, created_at=""),  # the place is unknown
        made(9, kind="thread", run=0.2),  # for work that is worth it
        made(9, run=5.0),
        made(9, kind="thread", created_at="/venv/lib/python3.12/site-packages/asgiref/sync.py:363 in __call__"),
    ],
)
def test_pools_that_are_put_to_use(readings: list[PoolReading]) -> None:
    """No finding for few pools, long-lived or well-used ones, several places, or threads that a library makes."""
    assert advised(lambda now: readings if now == 0 else [], 4) == []


def test_a_pool_of_processes_for_each_call_of_a_library() -> None:
    """A pool of processes for each call is a finding even where a library makes it."""
    place = "/venv/lib/python3.12/site-packages/shop/orders.py:3 in total"
    found = only(advised(lambda now: made(9, created_at=place) if now == 0 else [], 4), Kinds.PER_CALL)
    assert (found.subject, found.evidence["pools"]) == (place, 9)


def end(at: float, reason: str | None = None, **known: Any) -> End:
    known = {"lived": 0.3, "place": "app.py:9 in resize", "name": "Process-1", **known}
    return End(1, 1000 + at, reason=reason, **known)


def test_a_process_for_each_call() -> None:
    """Twelve forks of this program within a minute, each of which lived 0.3 seconds, are a finding."""
    found = only(
        advised(lambda now: [], 24, ends=lambda now: [end(n * 2) for n in range(12) if n * 2 <= now]), Kinds.PER_CALL
    )
    assert (found.evidence["processes"], found.evidence["lived"]) == (12, 0.3)


@pytest.mark.parametrize(
    "known", [{"executes": True, "name": "ffmpeg"}, {"lived": 300.0}, {"lived": 2.0}, {"place": ""}]
)
def test_processes_that_are_jobs(known: dict[str, Any]) -> None:
    """No finding for other programs, long-lived processes, or unknown places."""
    assert advised(lambda now: [], 24, ends=lambda now: [end(n, **known) for n in range(20) if n <= now]) == []


# -- costly-payloads


def test_pickling_that_costs_more_than_the_work() -> None:
    """20 ms of pickling for 4 ms of work, ten times a second, is a finding."""

    def round_of(now: float) -> list[PoolReading]:
        return [
            pool(workers=workers(1), completed=int(10 * now), run=0.04 * now, encoding=0.15 * now, decoding=0.05 * now)
        ]

    found = only(advised(round_of), Kinds.PAYLOADS)
    assert found.evidence["pickling"] == pytest.approx(0.02, rel=0.02)
    assert found.evidence["run"] == pytest.approx(0.004, rel=0.02)
    assert "pickling takes 20.0 ms a call" in found.text and "SharedBuffer" in found.remedy


@pytest.mark.parametrize(("pickling", "run"), [(0.2, 0.5), (0.01, 0.001), (0.19, None)])
def test_pickling_that_is_worth_it(pickling: float, run: float | None) -> None:
    """No finding if pickling takes less than the work, is negligible, or there are few calls."""
    rate = 0.05 if run is None else 10

    def round_of(now: float) -> list[PoolReading]:
        return [pool(workers=workers(0), completed=int(rate * now), run=(run or 0.0) * now, encoding=pickling * now)]

    assert advised(round_of) == []


# -- memory-growth


def growing(size: Callable[[float], float]) -> Round:
    return lambda now: [
        pool(
            workers=(worker(7, memory=int(size(now) * MIB), done=int(now * 10)), worker(8)),
            task_cpu=now,
            run=now,
            completed=int(10 * now),
        )
    ]


def test_memory_that_grows_without_bound() -> None:
    """A quarter of a MiB a second for ten minutes is a finding with the worker, the slope and the number of calls."""
    found = only(advised(growing(lambda now: 60 + now / 4), 600), Kinds.MEMORY)
    assert found.evidence["pid"] == 7
    assert found.evidence["slope"] == pytest.approx(MIB / 4, rel=0.01)
    assert found.evidence["calls"] == pytest.approx(found.evidence["span"] * 10, rel=0.01)
    assert "26 KiB a call" in found.text and "max_tasks_per_child" in found.remedy


@pytest.mark.parametrize(
    "size",
    [
        lambda now: 60 + 400 * (1 - math.exp(-now / 60)),  # a warm-up
        lambda now: 60 + min(now, 90) * 3,  # a cache that is full
        lambda now: 60 + 20 * math.sin(now / 10) + now / 100,  # a garbage collector
        lambda now: 60 + (now % 120),  # given back now and then
        lambda now: 60 + now / 60,  # hardly any
        lambda now: 60 + (200 if now > 300 else 0),  # one large call
    ],
)
def test_memory_that_levels_off(size: Callable[[float], float]) -> None:
    """No finding in an hour if memory stays bounded."""
    advisor = FindingTracker()
    for start in range(0, 3600, 60):
        assert advised(growing(size), 58, advisor=advisor, start=start) == []


def test_memory_growth_starts_over_with_a_new_worker() -> None:
    """No finding for workers that are replaced before they have grown much."""

    def round_of(now: float) -> list[PoolReading]:
        life, age = divmod(now, 150)
        grown = worker(int(life) + 1, memory=int((60 + age) * MIB))
        return [pool(workers=(grown,), task_cpu=now, run=now, completed=int(now))]

    assert advised(round_of, 1200) == []


# -- neglected-errors


def test_unretrieved_errors() -> None:
    """Unretrieved errors are a finding at once; retrieved ones are none."""
    found = advised(lambda now: [pool(kind="thread", failed=2, neglected=2, failures={"ValueError": 2})], 2)
    assert only(found, Kinds.ERRORS).evidence == {"neglected": 2.0, "failed": 2.0}
    assert "2 calls of pool failed and nobody asked for their result (ValueError)" in found[0].text
    assert advised(lambda now: [pool(kind="thread", failed=9, neglected=0, failures={"ValueError": 9})]) == []


def test_unretrieved_errors_expire() -> None:
    """The finding stays for a while after the last unretrieved error, and comes back with the next one."""

    def round_of(later: int) -> Round:
        return lambda now: [pool(kind="thread", failed=9, neglected=2 if now < 1000 else later)]

    assert only(advised(round_of(2), NEGLECT_WINDOW - 10), Kinds.ERRORS).evidence["neglected"] == 2
    assert advised(round_of(2), 1010) == []
    assert only(advised(round_of(3), 1010), Kinds.ERRORS).evidence["neglected"] == 3


@pytest.mark.parametrize("kind", ["default", "thread", "process", "loopwatch", "other"])
def test_failed_calls_whose_errors_are_retrieved(kind: str) -> None:
    """No finding if every call fails and its error is retrieved, as when a queue is polled."""

    def failing(now: float) -> list[PoolReading]:
        neglected = None if kind in ("loopwatch", "other") else 0
        return [pool(kind=kind, neglected=neglected, failed=int(6 * now), failures={"_queue.Empty": int(6 * now)})]

    assert advised(failing) == []


# -- crash-loop


def test_workers_that_die_again_and_again() -> None:
    """Three crashes in one pool that replaces its workers are a finding."""
    found = only(advised(lambda now: [pool(crashes={"SIGSEGV": int(now / 20)}, workers=workers(1))], 60), Kinds.CRASHES)
    assert found.evidence == {"crashes": 3.0, "SIGSEGV": 3.0, "window": 300.0}
    assert "PYTHONFAULTHANDLER" in found.remedy


def test_pools_that_break_again_and_again() -> None:
    """Crashes are added up over executors of one name: each breaks with its first crash and is made anew."""

    def round_of(now: float) -> list[PoolReading]:
        if int(now) % 20 == 0 and now > 0:
            return [
                pool(
                    name=f"pool #{int(now / 20)}",
                    number=int(now / 20),
                    crashes={"SIGKILL": 1},
                    closed=True,
                    submitted=50,
                )
            ]
        return [
            pool(
                name=f"pool #{int(now / 20) + 1}",
                number=int(now / 20) + 1,
                workers=workers(1),
                submitted=int(now % 20) * 9,
            )
        ]

    assert only(advised(round_of, 66), Kinds.CRASHES).evidence["crashes"] == 3


def test_children_that_die_again_and_again() -> None:
    """Killed workers of a supervisor are a crash loop; exit codes of other programs and requested ends are not."""
    died = [end(n * 10, "SIGKILL", name="gunicorn", lived=9.0) for n in range(3)]
    found = only(advised(lambda now: [], 30, ends=lambda now: died), Kinds.CRASHES)
    assert found.subject == "gunicorn" and "SIGKILL" in found.text
    exits = [end(n * 10, "exit 1", name="grep", executes=True) for n in range(9)]
    assert advised(lambda now: [], 30, ends=lambda now: exits) == []
    requests = [end(n * 10, "SIGTERM", name="gunicorn") for n in range(9)]
    assert advised(lambda now: [], 30, ends=lambda now: requests) == []
    recycled = [end(n * 10, "exit 155", name="celery") for n in range(9)]
    assert advised(lambda now: [], 30, ends=lambda now: recycled) == []
    elsewhere = [end(n * 10, "SIGKILL", place=f"app.py:{n} in main") for n in range(5)]
    assert advised(lambda now: [], 30, ends=lambda now: elsewhere) == []


def test_a_pool_that_stays_closed_is_one_pool() -> None:
    """A closed pool that is still listed for a minute counts as one pool with one crash."""
    over = pool(crashes={"SIGKILL": 1}, closed=True, submitted=1)
    assert advised(lambda now: [over], 60) == []


def test_crashes_far_apart_are_none() -> None:
    """One crash in three minutes is no crash loop."""
    assert advised(lambda now: [pool(crashes={"oom": int(now / 180)}, workers=workers(1))], 1800) == []


# -- queue-growth


def queue(depth: Callable[[float], float]) -> Round:
    return lambda now: [
        pool(
            workers=workers(2),
            queued=int(depth(now)),
            completed=int(3 * now),
            task_cpu=2 * now,
            run=2 * now,
            cpu=2 * now + 1,
        )
    ]


def test_a_queue_that_grows_without_end() -> None:
    """A queue that gains five calls a second is a finding."""
    found = only(advised(queue(lambda now: 5 * now), 60), Kinds.QUEUE)
    assert found.evidence["growth"] == pytest.approx(5, rel=0.05)
    assert (found.evidence["queued"], found.evidence["wait"]) == (300, pytest.approx(100, rel=0.05))


@pytest.mark.parametrize(
    "depth",
    [
        lambda now: max(2000 - 3 * now, 0),  # a batch that is worked off
        lambda now: 100 + 50 * math.sin(now / 5),  # comes and goes
        lambda now: 50 * (int(now / 20) % 3),  # batches
        lambda now: 500,  # full and bounded
        lambda now: now / 10,  # hardly any
    ],
)
def test_queues_that_come_and_go(depth: Callable[[float], float]) -> None:
    """No finding for batches, waves, or a full bounded queue."""
    advisor = FindingTracker()
    for start in range(0, 600, 20):
        assert advised(queue(depth), 18, advisor=advisor, start=start) == []


# -- zombies


DEAD = tuple(worker(n, WorkerState.ZOMBIE, reason="sh; it has exited; made at app.py:5 in run") for n in range(3))


def children(**stats: Any) -> list[PoolReading]:
    return [pool(name="children", kind="children", **stats)]


def test_zombies_that_pile_up() -> None:
    """Three zombies that exited long before another process was started are a finding with where they were made."""
    found = only(advised(lambda now: children(workers=DEAD, started=3 + (now > 20)), 30), Kinds.ZOMBIES)
    assert found.evidence == {"zombies": 3.0} and "made at app.py:5 in run" in found.text


@pytest.mark.parametrize(
    "round_of",
    [
        lambda now: children(workers=DEAD, started=9),  # started together and reaped in turn
        lambda now: children(workers=DEAD, started=9 + int(min(now, 8))),  # the last ones are started a little later
        lambda now: children(workers=DEAD[:2], started=int(now)),  # only a few
        lambda now: children(workers=DEAD if now % 16 else (), started=int(now)),  # reaped now and then
    ],
)
def test_zombies_that_are_reaped_late(round_of: Round) -> None:
    """No finding if a program starts many processes and then waits for each, however long that takes."""
    assert advised(round_of, 600) == []


# -- all together


def test_a_finding_begins_and_ends_late_and_stays_meanwhile() -> None:
    """A finding keeps the time at which it was found, and ends only some time after its cause."""
    advisor = FindingTracker()

    def starved(now: float) -> list[PoolReading]:
        return [default(6, 4)]

    def fine(now: float) -> list[PoolReading]:
        return [default(2, 0)]

    assert advised(starved, 2, advisor=advisor) == []
    first = only(advised(starved, 2, advisor=advisor, start=4), Kinds.STARVED)
    again = only(advised(fine, CLEAR_AFTER - 4, advisor=advisor, start=8), Kinds.STARVED)
    assert again.at == first.at == 5e9 + 4
    assert advised(fine, 8, advisor=advisor, start=8 + CLEAR_AFTER) == []


def test_names_of_rules_are_few_and_fit_for_a_metric() -> None:
    """There are twelve kinds of findings, in lower case with hyphens."""
    names = [name for key, name in vars(Kinds).items() if key.isupper()]
    assert len(names) == len(set(names)) == 12
    assert {rule.kind for rule in RULES} == set(names)
    assert all(name == name.lower() and name.replace("-", "").isalpha() for name in names)


@given(
    st.lists(
        st.builds(
            pool,
            run=st.floats(0, 1e6),
            name=st.sampled_from("ab"),
            kind=st.sampled_from(["process", "thread", "default", "children", "loopwatch"]),
            workers=st.lists(
                st.builds(worker, st.integers(1, 3), st.sampled_from(WorkerState), st.integers(0, 1 << 40)), max_size=3
            ).map(tuple),
            queued=st.integers(0, 10**6),
            submitted=st.integers(0, 10),
            completed=st.integers(0, 10**6),
            cpu=st.floats(0, 1e6),
            task_cpu=st.none() | st.floats(0, 1e6),
            encoding=st.none() | st.floats(0, 1e6),
            closed=st.booleans(),
            max_workers=st.none() | st.integers(0, 9),
            failures=st.dictionaries(st.sampled_from(["KeyError", "ValueError"]), st.integers(0, 10**6)),
            crashes=st.dictionaries(st.sampled_from(["oom", "exit 3"]), st.integers(0, 10**6)),
            neglected=st.none() | st.integers(0, 3),
        ),
        max_size=60,
    ),
    st.floats(0, 600),
)
def test_rules_accept_any_stats(readings: list[PoolReading], step: float) -> None:
    """No rule fails and all evidence is finite whatever pools report, even counters that fall."""
    advisor = FindingTracker()
    for n, reading in enumerate(readings):
        for found in advisor.update([reading], n * step, 2, gil_wait=0.005, at=1.0):
            assert all(math.isfinite(value) for value in found.evidence.values())
            assert found.kind in vars(Kinds).values()

"""decide(): the evidence of each kind of blocker gives its cause, and inconclusive evidence gives none."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.diagnosis.cause import MOST, MUCH, SOME, decide
from loopwatch.diagnosis.own_part import contradictions, split
from loopwatch.events import Cause, Evidence
from loopwatch.system.syscalls import kind_of

# Each row as measured for a block of 0.3 seconds or more; see the table of evidence in the documentation.
SEEN: dict[str, tuple[Evidence, Cause]] = {
    "time.sleep": (
        Evidence(0.3, cpu=0.0, process_cpu=0.001, run_queue=0.0, gil_wait=0.0001, samples=9, moving=0.0,
                 syscall="clock_nanosleep", syscall_share=1.0, wait_channel="hrtimer_nanosleep", call="time.sleep"),
        Cause.SLEEP,
    ),
    "Python loop": (
        Evidence(0.3, cpu=0.29, process_cpu=0.295, run_queue=0.005, watcher_late=0.0, gil_wait=0.005, samples=9,
                 moving=0.9, syscall="running", syscall_share=1.0),
        Cause.PYTHON,
    ),
    "json.loads": (
        Evidence(0.5, cpu=0.49, process_cpu=0.49, run_queue=0.0, watcher_late=0.49, gil_wait=0.45, samples=1,
                 syscall="running", syscall_share=1.0, call="json.loads"),
        Cause.NATIVE_GIL,
    ),
    "re.match": (
        Evidence(0.4, cpu=0.4, process_cpu=0.4, watcher_late=0.39, gil_wait=0.39, samples=1, syscall="running",
                 syscall_share=1.0, call="re.match"),
        Cause.NATIVE_GIL,
    ),
    "gc.collect": (
        Evidence(0.4, cpu=0.4, process_cpu=0.4, gc=0.39, watcher_late=0.39, gil_wait=0.39, samples=1,
                 syscall="running", syscall_share=1.0, call="gc.collect"),
        Cause.GC,
    ),
    "pbkdf2": (
        Evidence(0.3, cpu=0.3, process_cpu=0.301, run_queue=0.0, gil_wait=0.0001, samples=9, moving=0.0,
                 syscall="running", syscall_share=1.0, call="hashlib.pbkdf2_hmac"),
        Cause.NATIVE,
    ),
    "sqlite": (
        Evidence(0.6, cpu=0.6, process_cpu=0.6, gil_wait=0.0002, samples=14, moving=0.1, syscall="running",
                 syscall_share=0.9, call=".execute"),
        Cause.NATIVE,
    ),
    "socket recv": (
        Evidence(0.3, cpu=0.0, process_cpu=0.001, gil_wait=0.0001, samples=9, moving=0.0, syscall="recvfrom",
                 syscall_share=1.0, wait_channel="wait_woken", call=".recv"),
        Cause.IO,
    ),
    "subprocess wait": (
        Evidence(0.4, cpu=0.001, process_cpu=0.002, gil_wait=0.0001, samples=11, moving=0.0, syscall="wait4",
                 syscall_share=0.95, wait_channel="do_wait", call="os.waitpid"),
        Cause.IO,
    ),
    "lock.acquire": (
        Evidence(0.3, cpu=0.0, process_cpu=0.001, gil_wait=0.0001, samples=9, moving=0.0, syscall="futex",
                 syscall_share=1.0, wait_channel="futex_do_wait", lock_wait=True, call=".acquire"),
        Cause.LOCK,
    ),
    "another thread computes in C": (
        Evidence(0.5, cpu=0.001, process_cpu=0.49, watcher_late=0.48, gil_wait=0.48, samples=1, syscall="futex",
                 syscall_share=1.0, wait_channel="futex_do_wait", hog=0.97),
        Cause.GIL,
    ),
    "another thread computes in Python": (
        Evidence(0.5, cpu=0.02, process_cpu=0.5, gil_wait=0.005, samples=12, moving=0.1, syscall="futex",
                 syscall_share=0.9, hog=0.9),
        Cause.GIL,
    ),
    "SIGSTOP": (
        Evidence(0.6, cpu=0.0, process_cpu=0.0, run_queue=0.001, watcher_late=0.59, watcher_starved=0.0, samples=1,
                 gil_wait=0.58, asleep=True),
        Cause.SUSPENDED,
    ),
    "throttled cgroup": (
        Evidence(0.5, cpu=0.1, process_cpu=0.1, run_queue=0.38, throttled=0.39, watcher_late=0.2,
                 watcher_starved=0.2, gil_wait=0.01, samples=8, moving=0.7, syscall="running", syscall_share=1.0),
        Cause.STARVED,
    ),
    "busy host": (
        Evidence(0.5, cpu=0.2, process_cpu=0.2, run_queue=0.29, gil_wait=0.01, samples=8, moving=0.7,
                 syscall="running", syscall_share=1.0),
        Cause.STARVED,
    ),
    "300 callbacks of 1 ms": (
        Evidence(0.3, cpu=0.29, process_cpu=0.29, gil_wait=0.005, samples=9, moving=1.0, syscall="running",
                 syscall_share=1.0, callbacks=9, longest_callback=0.06, dominant_callback=0.0, threshold=0.1),
        Cause.OVERLOAD,
    ),
    "nothing": (Evidence(0.3), Cause.UNKNOWN),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_measured_blocker_gives_its_cause(name: str) -> None:
    """Each measured blocker is recognised by its evidence."""
    evidence, cause = SEEN[name]
    assert decide(evidence) is cause


def test_every_cause_is_reachable() -> None:
    """Every cause is given by some evidence."""
    assert {cause for _, cause in SEEN.values()} == set(Cause)


@pytest.mark.parametrize("name", SEEN)
def test_verdict_is_replayed_from_json(name: str) -> None:
    """The evidence of a journal gives the verdict that was written beside it."""
    evidence, cause = SEEN[name]
    assert decide(Evidence.from_dict(json.loads(json.dumps(evidence.to_dict())))) is cause


PORTABLE = {
    "time.sleep": Cause.SLEEP,
    "Python loop": Cause.PYTHON,
    "json.loads": Cause.NATIVE_GIL,
    "gc.collect": Cause.GC,
    "pbkdf2": Cause.NATIVE,
    "socket recv": Cause.UNKNOWN,
    "subprocess wait": Cause.IO,
    "lock.acquire": Cause.LOCK,
    "another thread computes in C": Cause.GIL,
    "another thread computes in Python": Cause.GIL,
    "SIGSTOP": Cause.SUSPENDED,
    "300 callbacks of 1 ms": Cause.OVERLOAD,
}


@pytest.mark.parametrize("name", PORTABLE)
def test_without_proc(name: str) -> None:
    """Without /proc, clocks and the name of the call still give the cause, or "unknown"."""
    evidence, _ = SEEN[name]
    bare = dataclasses.replace(
        evidence, syscall=None, syscall_share=0.0, wait_channel=None, run_queue=None, throttled=None
    )
    assert decide(bare) is PORTABLE[name]


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        ("time.sleep", Cause.SLEEP),
        ("socket.create_connection", Cause.IO),
        ("select.select", Cause.IO),
        ("ssl.wrap_socket", Cause.IO),
        ("subprocess.run", Cause.IO),
        ("os.fsync", Cause.IO),
        ("io.open", Cause.IO),
        ("sockets_of_mine.recv", Cause.UNKNOWN),
        (".recv", Cause.UNKNOWN),
        (None, Cause.UNKNOWN),
    ],
)
def test_by_the_name_of_the_call(call: str | None, cause: Cause) -> None:
    """Without a system call the name of the call decides; a name that only looks similar does not."""
    assert decide(Evidence(0.3, cpu=0.0, process_cpu=0.001, call=call, gil_wait=0.0, samples=5)) is cause


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        # A rule precedes another if its facts also match the other's.
        ("throttled cgroup", "Python loop"),
        ("SIGSTOP", "another thread computes in C"),
        ("gc.collect", "json.loads"),
        ("300 callbacks of 1 ms", "Python loop"),
        ("another thread computes in C", "lock.acquire"),
        ("json.loads", "pbkdf2"),
    ],
)
def test_order_of_rules(stronger: str, weaker: str) -> None:
    """The evidence that distinguishes the stronger cause wins when it is added to that of the weaker one."""
    base, evidence = Evidence(SEEN[stronger][0].wall), SEEN[stronger][0]
    distinguishing = {
        field.name: getattr(evidence, field.name)
        for field in dataclasses.fields(Evidence)
        if getattr(evidence, field.name) != getattr(base, field.name)
    }
    assert decide(dataclasses.replace(SEEN[weaker][0], wall=evidence.wall, **distinguishing)) is SEEN[stronger][1]


def test_gil_is_not_blamed_for_a_lock() -> None:
    """A thread known to wait for a lock waits for the lock, even while another thread computes."""
    busy = SEEN["another thread computes in Python"][0]
    assert decide(dataclasses.replace(busy, lock_wait=True)) is Cause.LOCK


def test_gil_is_not_blamed_without_a_waiter() -> None:
    """Another thread that computes without the GIL (its CPU time rises without GIL waiters) does not excuse a recv."""
    evidence = dataclasses.replace(SEEN["socket recv"][0], process_cpu=0.3)
    assert decide(evidence) is Cause.IO


def test_gc_callback_inside_the_call_is_no_collector_stall() -> None:
    """A collection inside a call of C code that holds the GIL is not a collector stall (before 3.12)."""
    evidence = dataclasses.replace(SEEN["pbkdf2"][0], in_call=0.6)
    assert decide(evidence) is Cause.NATIVE_GIL


@pytest.mark.parametrize(("moving", "cause"), [(1 / 3, Cause.NATIVE_GIL), (0.5, Cause.PYTHON)])
def test_a_call_with_collections_may_end_between_two_samples(moving: float, cause: Cause) -> None:
    """Collections let the watcher into ``json.loads``; one new position in four samples is the end of that call."""
    evidence = Evidence(
        wall=0.343, cpu=0.287, process_cpu=0.292, run_queue=0.062, watcher_late=0.205, watcher_runs=41, gil_wait=0.0052,
        samples=4, moving=moving, syscall="running", syscall_share=0.75, callbacks=1, in_call=0.75, call=".scan_once",
        threshold=0.1, switch_interval=0.005,
    )  # fmt: skip
    assert decide(evidence) is cause


BOUNDARIES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("half of it waiting for a processor", "busy host", {"run_queue": 0.25, "runs": 9},
     {"run_queue": 0.2499, "runs": 9}),
    ("half of it throttled", "throttled cgroup", {"run_queue": None, "throttled": 0.25},
     {"run_queue": None, "throttled": 0.2499}),
    ("half of it collecting", "gc.collect", {"gc": 0.2}, {"gc": 0.1999}),
    ("nothing ran for a tenth of it", "SIGSTOP", {"process_cpu": 0.0598}, {"process_cpu": 0.06}),
    ("watcher kept from running for half of it", "SIGSTOP", {"run_queue": 0.0, "watcher_late": 0.3, "asleep": False},
     {"run_queue": 0.0, "watcher_late": 0.2999, "asleep": False}),
    ("others used two fifths", "another thread computes in C", {"cpu": 0.0, "process_cpu": 0.2},
     {"cpu": 0.0, "process_cpu": 0.1999}),
    ("its own CPU below half", "another thread computes in C", {"cpu": 0.2499, "process_cpu": 0.6},
     {"cpu": 0.25, "process_cpu": 0.6}),
    ("watcher late for two fifths", "json.loads", {"watcher_late": 0.2}, {"watcher_late": 0.1999, "gil_wait": None}),
    ("position moves in three of ten", "Python loop", {"moving": 0.3, "gil_wait": 0.0},
     {"moving": 0.29, "gil_wait": 0.0}),
    ("half a switch interval to get the GIL", "Python loop", {"moving": 0.0, "gil_wait": 0.0025},
     {"moving": 0.0, "gil_wait": 0.00249}),
    ("its own CPU is half", "Python loop", {"run_queue": 0.0, "runs": 9, "cpu": 0.15, "process_cpu": 0.15},
     {"run_queue": 0.0, "runs": 9, "cpu": 0.1499, "process_cpu": 0.1499}),
    ("half of what it was given", "Python loop", {"run_queue": 0.1, "runs": 9, "cpu": 0.1, "process_cpu": 0.1},
     {"run_queue": 0.1, "runs": 9, "cpu": 0.0999, "process_cpu": 0.0999}),
    ("half of the samples in the call", "socket recv", {"syscall_share": 0.5},
     {"syscall_share": 0.499, "wait_channel": None}),
    ("own CPU below half", "time.sleep", {"cpu": 0.1499}, {"cpu": 0.15}),
    ("longest callback below the threshold", "300 callbacks of 1 ms",
     {"callbacks": 3, "longest_callback": 0.0999}, {"callbacks": 3, "longest_callback": 0.1}),
    ("three callbacks", "300 callbacks of 1 ms", {"callbacks": 3}, {"callbacks": 2}),
    ("five callbacks, none surely long", "300 callbacks of 1 ms",
     {"callbacks": 5, "longest_callback": 0.15, "dominant_callback": 0.0499},
     {"callbacks": 5, "longest_callback": 0.15, "dominant_callback": 0.05}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "name", "inside", "outside"), BOUNDARIES, ids=[row[0] for row in BOUNDARIES])
def test_boundaries(what: str, name: str, inside: dict[str, Any], outside: dict[str, Any]) -> None:
    """Each limit is inclusive as documented: at it the cause holds, just beyond it another one does."""
    evidence, cause = SEEN[name]
    assert decide(dataclasses.replace(evidence, **inside)) is cause
    assert decide(dataclasses.replace(evidence, **outside)) is not cause


def test_limits_are_as_documented() -> None:
    """A cause must fill half of the span; loss of the GIL counts from two fifths on."""
    assert (MOST, MUCH) == (0.5, 0.4)


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(0.0),
        Evidence(-1.0, cpu=-1.0),
        Evidence(0.3, cpu=0.1, process_cpu=0.1, samples=9, syscall="running", syscall_share=1.0, gil_wait=0.0),
        Evidence(0.3, cpu=0.3, process_cpu=0.3, samples=0, gil_wait=None),
        Evidence(0.3, cpu=0.0, process_cpu=0.0, samples=4, syscall="recvfrom", syscall_share=0.4, gil_wait=0.0),
        Evidence(0.3, cpu=0.0, process_cpu=0.001, samples=4, syscall="epoll_wait", syscall_share=1.0, asleep=True),
        Evidence(0.3, cpu=0.6, process_cpu=0.6, samples=4, gil_wait=0.005, moving=1.0),
        Evidence(0.3, cpu=0.29, process_cpu=0.29, samples=4, syscall="recvfrom", syscall_share=1.0, gil_wait=0.005),
        Evidence(0.3, samples=1, syscall="running", syscall_share=1.0),
    ],
)
def test_empty_or_contradictory_evidence_proves_nothing(evidence: Evidence) -> None:
    """Missing or contradictory evidence is "unknown", never a guess."""
    assert decide(evidence) is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("syscall", "kind"),
    [
        (None, ""),
        ("running", "running"),
        ("clock_nanosleep", "sleep"),
        ("nanosleep", "sleep"),
        ("pause", "sleep"),
        ("futex", "lock"),
        ("futex_waitv", "lock"),
        ("read", "io"),
        ("wait4", "io"),
        ("syscall 999", "io"),
    ],
)
def test_kinds_of_system_calls(syscall: str | None, kind: str) -> None:
    """A system call is a sleep, a lock or I/O; an unknown one that blocks counts as I/O."""
    assert kind_of(syscall) == kind


_numbers = st.floats(-10, 10) | st.sampled_from([0.0, 0.1, 0.3, float("inf"), float("nan")])
_by_hint: dict[Any, st.SearchStrategy[Any]] = {
    float: _numbers,
    float | None: st.none() | _numbers,
    int: st.integers(-1, 300),
    int | None: st.none() | st.integers(-1, 300),
    bool: st.booleans(),
    str | None: st.none()
    | st.sampled_from(["running", "futex", "recvfrom", "clock_nanosleep", "time.sleep", ".acquire", "os.read", ""]),
}
_any_evidence = st.builds(Evidence, **{name: _by_hint[hint] for name, hint in typing.get_type_hints(Evidence).items()})


@given(_any_evidence)
def test_any_evidence_gives_a_cause(evidence: Evidence) -> None:
    """Whatever the facts, however impossible, there is a verdict and no exception, and it is the same each time."""
    cause = decide(evidence)
    assert isinstance(cause, Cause)
    assert decide(evidence) is cause


@given(_any_evidence, st.floats(0.01, 100))
def test_causes_of_waiting_are_proven(evidence: Evidence, wall: float) -> None:
    """No sleep, lock or I/O is claimed for a loop that slept in its own poll or used a processor for half the time."""
    found = dataclasses.replace(evidence, wall=wall)
    if decide(found) in (Cause.SLEEP, Cause.LOCK, Cause.IO):
        assert not (found.asleep and found.syscall in (None, "running", "epoll_wait"))
        assert found.cpu is None or not found.cpu / wall >= MOST


def _positive(seconds: float | None) -> float:
    return seconds if seconds is not None and seconds > 0 else 0.0


@given(_any_evidence, st.floats(0.01, 100))
def test_no_verdict_is_excluded_by_its_own_facts(evidence: Evidence, wall: float) -> None:
    """Whatever the facts: each cause stands only where they permit it."""
    found = dataclasses.replace(evidence, wall=wall, switch_interval=0.005)
    cause, parts, cpu = decide(found), split(found), _positive(found.cpu)
    kept_waking = found.watcher_runs is not None and found.watcher_runs * 0.005 >= SOME * found.watcher_late
    if cause is Cause.STARVED:
        assert parts.starved > 0
        assert found.threshold is None or parts.own < found.threshold
    elif cause is Cause.SUSPENDED:
        assert not kept_waking
        assert not cpu > MOST * wall
    elif cause in (Cause.PYTHON, Cause.NATIVE, Cause.NATIVE_GIL):
        assert cpu >= MOST * parts.own - 1e-9 or (cause is Cause.NATIVE_GIL and kept_waking)
    elif cause is Cause.GIL:
        assert not cpu > MOST * parts.own + 1e-9
    elif cause is Cause.GC:
        assert found.gc >= MOST * parts.own - 1e-9
    if contradictions(found):
        assert cause is Cause.UNKNOWN


@given(_any_evidence, st.floats(0.01, 100))
def test_parts_add_up(evidence: Evidence, wall: float) -> None:
    """The own part and the time without a processor make up the block; the latter is at most what was not computed."""
    found = dataclasses.replace(evidence, wall=wall)
    parts = split(found)
    assert parts.own + parts.starved == pytest.approx(wall)
    assert 0 <= parts.throttled <= parts.starved <= max(wall - _positive(found.cpu), 0.0)
    shorter = parts.within(wall / 2)
    assert shorter.own + shorter.starved == pytest.approx(wall / 2)
    assert 0 <= shorter.throttled <= shorter.starved <= wall / 2


OWN_PART: list[tuple[str, dict[str, Any], Cause]] = [
    ("plain Python on a busy host", {"run_queue": 0.3, "gil_wait": 0.006, "moving": 0.9}, Cause.PYTHON),
    ("one call in a throttled container", {"run_queue": 0.3, "throttled": 0.5, "watcher_late": 0.55,
     "watcher_starved": 0.1, "gil_wait": 0.25, "samples": 1}, Cause.NATIVE_GIL),
    ("C code without the GIL, watcher starved too", {"run_queue": 0.3, "watcher_late": 0.2, "watcher_starved": 0.2,
     "gil_wait": 0.0001, "call": "zlib.compress"}, Cause.NATIVE),
    ("Python code that lost GIL and processor", {"run_queue": 0.3, "gil_wait": 0.0001, "call": "time.monotonic"},
     Cause.PYTHON),
    ("short on a free machine", {"cpu": 0.08, "process_cpu": 0.08, "run_queue": 0.51}, Cause.STARVED),
    ("a run queue that cannot be true", {"cpu": 0.57, "process_cpu": 0.57, "run_queue": 0.55, "gil_wait": 0.005,
     "moving": 0.9}, Cause.PYTHON),
    ("a collection on a busy host", {"run_queue": 0.3, "gc": 0.25}, Cause.GC),
]  # fmt: skip


@pytest.mark.parametrize(("what", "facts", "cause"), OWN_PART, ids=[row[0] for row in OWN_PART])
def test_cause_of_the_own_part(what: str, facts: dict[str, Any], cause: Cause) -> None:
    """A block that would have been one on a free machine has the cause of its own part; only others are starved."""
    base = {"cpu": 0.29, "process_cpu": 0.29, "samples": 6, "syscall": "running", "syscall_share": 1.0}
    assert decide(Evidence(0.6, threshold=0.1, **{**base, **facts})) is cause  # type: ignore[arg-type]


def test_six_threads_that_compute_are_gil_before_starved() -> None:
    """Threads that fight for the GIL also take the processors from each other: the GIL is what the loop waited for."""
    fight = Evidence(0.5, cpu=0.01, process_cpu=0.5, run_queue=0.4, gil_wait=0.02, samples=4, syscall="futex",
                     syscall_share=0.5, watcher_late=0.3, watcher_starved=0.1, threshold=0.1)  # fmt: skip
    assert decide(fight) is Cause.GIL
    asleep = dataclasses.replace(fight, samples=0, gil_wait=None, syscall=None, asleep=True, watcher_late=0.0, runs=200)
    assert decide(asleep) is Cause.GIL, "it kept waking, as a thread that waits for the GIL does"
    assert decide(dataclasses.replace(asleep, runs=3)) is not Cause.GIL
    started = dataclasses.replace(fight, runs=90, lock_wait=True, syscall_share=1.0, run_queue=0.01)
    assert decide(started) is Cause.GIL, "a lock that the holder of the GIL cannot release"
    assert decide(dataclasses.replace(started, runs=3, watcher_late=0.0, gil_wait=0.0)) is Cause.LOCK
    without_the_gil = dataclasses.replace(fight, process_cpu=1.0, syscall="running", syscall_share=1.0, gil_wait=0.0)
    assert decide(dataclasses.replace(without_the_gil, watcher_late=0.0)) is Cause.STARVED


def test_short_waits_for_a_disk_are_no_lock() -> None:
    """A thread that wakes hundreds of times is in no lock: between its calls it wants the GIL, which the reader has."""
    synced = Evidence(0.306, cpu=0.116, process_cpu=0.131, run_queue=0.001, runs=385, samples=8, gil_wait=0.0,
                      moving=0.57, syscall="futex", syscall_share=0.75, wait_channel="futex_do_wait", call=".write",
                      threshold=0.1)  # fmt: skip
    assert decide(synced) is Cause.IO
    assert decide(dataclasses.replace(synced, runs=3)) is Cause.LOCK


def test_work_under_an_old_account_of_the_run_queue() -> None:
    """A thread that computed, and that samples find awake or wanting the GIL, waited for a processor meanwhile, not for
    I/O or for a lock, where the scheduler's account is older than the block."""
    awake = Evidence(0.0617, cpu=0.027, process_cpu=0.0279, run_queue=0.001, samples=3, gil_wait=0.008, moving=0.0,
                     syscall="running", syscall_share=0.67, wait_channel="futex_do_wait", call="time.monotonic",
                     threshold=0.02)  # fmt: skip
    assert decide(awake) is Cause.PYTHON
    assert split(awake).starved == pytest.approx(0.67 * 0.0617 - 0.0279)
    assert decide(dataclasses.replace(awake, syscall="futex", moving=1.0)) is Cause.PYTHON
    assert decide(dataclasses.replace(awake, syscall="futex", cpu=0.005, process_cpu=0.005)) is Cause.LOCK
    assert decide(dataclasses.replace(awake, runs=4)) is not Cause.PYTHON  # it did sleep, by a full account


def test_progress_of_a_pass() -> None:
    """A pass of many handles that advances evenly is overload; a long one among them is not."""
    even = Evidence(0.4, cpu=0.39, process_cpu=0.39, samples=2, gil_wait=0.03, handles=300, uneven=0.05, threshold=0.1)
    assert decide(even) is Cause.OVERLOAD
    assert decide(dataclasses.replace(even, uneven=0.5)) is Cause.NATIVE_GIL
    assert decide(dataclasses.replace(even, handles=10)) is Cause.NATIVE_GIL


def test_collections_during_python_code_are_no_native_call() -> None:
    """A collection keeps the GIL for longer than an interval, but the code around it makes progress."""
    found = Evidence(0.5, cpu=0.49, process_cpu=0.49, gc=0.2, samples=6, gil_wait=0.027, moving=0.6, threshold=0.1)
    assert decide(found) is Cause.PYTHON
    assert decide(dataclasses.replace(found, gc=0.01)) is Cause.NATIVE_GIL


def test_a_watcher_that_kept_waking_was_not_stopped() -> None:
    """C code that waits and keeps the GIL looks like a stopped process, but the watcher wakes each 5 ms."""
    stopped = Evidence(0.5, cpu=0.0, process_cpu=0.01, run_queue=0.0, runs=2, watcher_late=0.49, watcher_runs=2,
                       gil_wait=0.48, samples=1, syscall="clock_nanosleep", threshold=0.1)  # fmt: skip
    assert decide(stopped) is Cause.SUSPENDED
    assert decide(dataclasses.replace(stopped, watcher_runs=95)) is Cause.NATIVE_GIL
    assert decide(dataclasses.replace(stopped, watcher_runs=95, runs=95)) is Cause.GIL, "the loop waited for it too"


def test_a_signal_handler_runs_while_the_loop_polls() -> None:
    """A loop that "overslept" with its processor time near the wall computed, or slept, in a handler."""
    poll = Evidence(0.4, asleep=True, run_queue=0.0, gil_wait=0.005, samples=5, threshold=0.1)
    computes = dataclasses.replace(poll, cpu=0.39, process_cpu=0.39, moving=0.9, syscall="running", syscall_share=1.0)
    assert decide(computes) is Cause.PYTHON
    sleeps = dataclasses.replace(poll, cpu=0.0, process_cpu=0.0, syscall="clock_nanosleep", syscall_share=1.0)
    assert decide(sleeps) is Cause.SLEEP


def test_a_clock_that_ran_backwards_proves_nothing() -> None:
    """A negative run-queue time does not outweigh the processor time used: no I/O is claimed."""
    found = Evidence(wall=1.0, cpu=1.0, run_queue=-2.0, samples=1, wait_channel="running")
    assert decide(found) not in (Cause.SLEEP, Cause.LOCK, Cause.IO)


def test_collection_in_another_thread_while_the_loop_sleeps() -> None:
    """A loop asleep in time.sleep() is a sleep even if another thread collects; a loop waiting for the GIL is not."""
    asleep = Evidence(
        wall=0.34,
        cpu=0.0,
        process_cpu=0.2,
        gc=0.2,
        samples=5,
        syscall="clock_nanosleep",
        syscall_share=1.0,
        gil_wait=0.0,
    )
    assert decide(asleep) is Cause.SLEEP
    assert decide(dataclasses.replace(asleep, syscall="futex")) is Cause.GC
    assert decide(dataclasses.replace(asleep, syscall="running")) is Cause.GC

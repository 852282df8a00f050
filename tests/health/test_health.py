"""The states of workers, as a pure function decides them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.events import WorkerState
from loopwatch.health.records import ProcessFacts
from loopwatch.health.states import GRACE, Executor, Situation, crash_reason, exit_name, judge

HUNG_AFTER = 60.0

seconds = st.floats(0, 1e6)
some = st.none() | seconds
situations = st.builds(
    Situation,
    age=seconds,
    alive=st.none() | st.booleans(),
    zombie=st.booleans(),
    zombie_for=some,
    exitcode=st.none() | st.integers(-80, 255),
    oom_killed=st.none() | st.booleans(),
    executor=st.sampled_from(Executor),
    executor_for=seconds,
    asked_to_end=st.booleans(),
    ready=st.none() | st.booleans(),
    calls=st.none() | st.integers(0, 5),
    task=st.none() | st.just("app:resize"),
    running_for=some,
    still_for=some,
    letter=st.none() | st.sampled_from("RSDTtZXI"),
    waits_in=st.none() | st.just("futex_do_wait"),
)


@given(situations, st.floats(0.01, 1e5))
def test_every_situation_has_a_state_and_a_reason(worker: Situation, hung_after: float) -> None:
    """Every situation has a state, and all states but idle and busy have a reason."""
    state, reason = judge(worker, hung_after)
    assert state in WorkerState
    assert reason or state in (WorkerState.IDLE, WorkerState.BUSY)


@given(situations)
def test_what_is_certain_comes_first(worker: Situation) -> None:
    """An exited worker has no other state, an orphan is neither busy nor hung, and these two states need a task."""
    state = judge(worker, HUNG_AFTER).state
    assert (state is WorkerState.ZOMBIE) == worker.zombie
    assert (state is WorkerState.DEAD) == (worker.alive is False and not worker.zombie)
    living = worker.alive is not False and not worker.zombie
    unwanted = living and worker.executor in (Executor.SHUT_DOWN, Executor.BROKEN, Executor.COLLECTED)
    assert (state is WorkerState.ORPHAN) == (unwanted and worker.executor_for >= GRACE)
    if state in (WorkerState.BUSY, WorkerState.HUNG):
        assert worker.calls is not None and worker.calls > 0 and worker.executor is Executor.OPEN
    if state is WorkerState.IDLE:
        assert worker.calls == 0
    if state is WorkerState.HUNG:
        assert worker.still_for is not None and worker.still_for >= HUNG_AFTER


@given(situations, st.floats(0, 1e6))
def test_progress_never_makes_a_worker_hung(worker: Situation, still: float) -> None:
    """A worker with more recent progress is hung only if one with less recent progress is."""
    earlier = dataclasses.replace(worker, still_for=still)
    later = dataclasses.replace(worker, still_for=still / 2)
    if judge(later, HUNG_AFTER).state is WorkerState.HUNG:
        assert judge(earlier, HUNG_AFTER).state is WorkerState.HUNG


BUSY = Situation(calls=1, task="app:resize", running_for=75.0, still_for=70.0, letter="S")

CASES = [
    (Situation(alive=None), WorkerState.UNKNOWN, "it has not been looked at yet"),
    (Situation(), WorkerState.UNKNOWN, "whether it has a task is not known"),
    (Situation(calls=0, still_for=1e6), WorkerState.IDLE, ""),
    (Situation(calls=2, still_for=59.9, running_for=100), WorkerState.BUSY, ""),
    (Situation(calls=2, still_for=100, running_for=59.9), WorkerState.BUSY, ""),
    (Situation(calls=1, ready=False, age=3), WorkerState.STARTING, "it was started 3.0 s ago and is not ready yet"),
    (Situation(calls=1, asked_to_end=True), WorkerState.STOPPING, "it was asked to end"),
    (
        BUSY, WorkerState.HUNG,
        "it has run app:resize for 75 s and has used neither processor nor I/O for 70 s; its state is S",
    ),
    (
        dataclasses.replace(BUSY, waits_in="hrtimer_nanosleep"), WorkerState.HUNG,
        "it has run app:resize for 75 s and has used neither processor nor I/O for 70 s; it waits in hrtimer_nanosleep",
    ),
    (
        dataclasses.replace(BUSY, letter="T"), WorkerState.HUNG,
        "it has run app:resize for 75 s and has used neither processor nor I/O for 70 s; "
        "it is stopped by a signal (SIGSTOP)",
    ),
    (
        dataclasses.replace(BUSY, task=None, running_for=None, letter=None), WorkerState.HUNG,
        "it has had a task, has used neither processor nor I/O for 70 s",
    ),
    (
        dataclasses.replace(BUSY, executor=Executor.ENDING), WorkerState.STOPPING,
        "its executor is shutting down; it still runs app:resize (75 s)",
    ),
    (
        Situation(executor=Executor.SHUT_DOWN, executor_for=1), WorkerState.STOPPING,
        "its executor is shut down, since 1.0 s",
    ),
    (
        dataclasses.replace(BUSY, executor=Executor.SHUT_DOWN, executor_for=9), WorkerState.ORPHAN,
        "it is alive although its executor was shut down 9.0 s ago; it still runs app:resize (75 s)",
    ),
    (
        Situation(executor=Executor.BROKEN, executor_for=20), WorkerState.ORPHAN,
        "it is alive although its executor broke 20 s ago",
    ),
    (
        Situation(executor=Executor.COLLECTED, executor_for=20, calls=0), WorkerState.ORPHAN,
        "it is alive although its executor was collected 20 s ago",
    ),
    (
        Situation(zombie=True, zombie_for=12, exitcode=-11, executor=Executor.BROKEN), WorkerState.ZOMBIE,
        "it has exited (SIGSEGV) 12 s ago and nobody has waited for it",
    ),
    (Situation(alive=False, exitcode=3), WorkerState.DEAD, "it has ended (exit 3)"),
    (
        Situation(alive=False, exitcode=-9, oom_killed=True), WorkerState.DEAD,
        "it has ended (killed by the kernel for want of memory)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("worker", "state", "reason"), CASES)
def test_states_and_their_reasons(worker: Situation, state: WorkerState, reason: str) -> None:
    """Each state has its reason, with durations in words."""
    assert judge(worker, HUNG_AFTER) == (state, reason)


def test_facts_become_a_situation() -> None:
    """A situation combines the polled facts of a process with those of its pool, which take precedence."""
    facts = ProcessFacts(1, 5.0, alive=True, moved_at=2.0, state="S", waits_in="do_wait")
    known = Situation.of(facts, 10.0, calls=1, waits_in="read")
    assert (known.still_for, known.letter, known.waits_in, known.calls, known.alive) == (8.0, "S", "read", 1, True)
    assert Situation.of(None, 10.0).alive is None


@pytest.mark.parametrize(
    ("exitcode", "oom", "reason"),
    [(-9, True, "oom"), (-9, None, "SIGKILL"), (-11, False, "SIGSEGV"), (3, None, "exit 3"), (None, None, "unknown")],
)
def test_crash_reasons_are_short(exitcode: int | None, oom: bool | None, reason: str) -> None:
    """A crash reason is a short word that suits a metric attribute."""
    assert crash_reason(exitcode, oom) == reason


def test_a_signal_without_a_name_has_its_number() -> None:
    """A real-time signal, which has no name in Python, is shown by its number."""
    assert exit_name(-50) == "signal 50"

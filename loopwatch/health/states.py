"""Derives the state of a worker (idle, busy, hung, ...) and its reason in words. A pure function of known facts."""

from __future__ import annotations

from enum import StrEnum
from signal import Signals
from typing import NamedTuple

from loopwatch.core.dataclasses import dataclass
from loopwatch.events import WorkerState
from loopwatch.health.records import ProcessFacts

GRACE = 5.0
"""Seconds that a worker may take to end once its executor accepts no more calls."""


class Executor(StrEnum):
    """State of a worker's executor."""

    OPEN = "open"
    """It accepts calls."""
    SHUT_DOWN = "shut down"
    """It accepts no more calls; no thread waits for its workers to end."""
    ENDING = "shutting down"
    """It accepts no more calls, and a thread waits for its workers to end."""
    BROKEN = "broken"
    """It has failed, for example because a worker died."""
    COLLECTED = "collected"
    """It was garbage collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The known facts about one worker at one moment; times in seconds.

    Attributes:
        age: time since it was started.
        alive: whether it runs; None if not polled yet.
        zombie: whether it has exited and is not reaped.
        zombie_for: time since it was seen as a zombie.
        exitcode: negative for the number of a signal; None if unknown.
        oom_killed: whether the kernel's OOM killer ended it.
        executor: state of its executor.
        executor_for: time since the executor entered that state.
        asked_to_end: whether this worker alone was asked to end, to be replaced or for lack of work.
        ready: whether it has reported that it accepts calls; None if its kind does not report it.
        calls: number of its current calls; None if unknown.
        task: name of its current task.
        running_for: time since that task began.
        still_for: time since it was last seen to use CPU or I/O; None if unknown.
        letter: state of the process, as in ``/proc/PID/stat``.
        waits_in: kernel function or system call that it sleeps in.
    """

    age: float = 0.0
    alive: bool | None = True
    zombie: bool = False
    zombie_for: float | None = None
    exitcode: int | None = None
    oom_killed: bool | None = None
    executor: Executor = Executor.OPEN
    executor_for: float = 0.0
    asked_to_end: bool = False
    ready: bool | None = None
    calls: int | None = None
    task: str | None = None
    running_for: float | None = None
    still_for: float | None = None
    letter: str | None = None
    waits_in: str | None = None

    @classmethod
    def of(cls, facts: ProcessFacts | None, now: float, **known: object) -> Situation:
        """Build a situation from polled ``facts`` and other ``known`` attributes.

        Args:
            facts: of the process, None if not polled yet.
            now: ``time.monotonic`` seconds.
            **known: attributes, which take precedence over the facts.

        Example:
            >>> Situation.of(ProcessFacts(1, 5.0, alive=True, moved_at=2.0, state="S"), 10.0, calls=1).still_for
            8.0
        """
        observed: dict[str, object] = {"alive": None}
        if facts is not None:
            observed = {
                "alive": facts.alive,
                "zombie": facts.zombie,
                "exitcode": facts.exitcode,
                "oom_killed": facts.oom_killed,
                "still_for": None if facts.moved_at is None else max(now - facts.moved_at, 0.0),
                "letter": facts.state,
                "waits_in": facts.waits_in,
            }
        return cls(**{**observed, **known})  # type: ignore[arg-type]


class Verdict(NamedTuple):
    """A state and its reason in words; empty if the state needs none."""

    state: WorkerState
    reason: str = ""


def judge(worker: Situation, hung_after: float) -> Verdict:
    """Decide the state of a worker. The most certain comes first: exited, then executor closed, then its activity.

    Args:
        worker: the known facts.
        hung_after: seconds for which a worker with a task may use neither CPU nor I/O; one that waits for good reason,
            such as a ``sleep`` of an hour, counts as hung too: the reason names what it waits in.

    Example:
        >>> judge(Situation(calls=1, task="app:resize", running_for=75, still_for=70, waits_in="futex_do_wait"), 60)
        ... # doctest: +NORMALIZE_WHITESPACE
        Verdict(state=<WorkerState.HUNG: 'hung'>, reason='it has run app:resize for 75 s and has used neither
         processor nor I/O for 70 s; it waits in futex_do_wait')
    """
    if worker.zombie:
        since = "" if worker.zombie_for is None else f" {_seconds(worker.zombie_for)} ago"
        return Verdict(WorkerState.ZOMBIE, f"it has exited{_how(worker)}{since} and nobody has waited for it")
    if worker.alive is False:
        return Verdict(WorkerState.DEAD, f"it has ended{_how(worker)}")
    if worker.executor is not Executor.OPEN:
        return _unwanted(worker)
    if worker.asked_to_end:
        return Verdict(WorkerState.STOPPING, "it was asked to end")
    if worker.ready is False:
        return Verdict(WorkerState.STARTING, f"it was started {_seconds(worker.age)} ago and is not ready yet")
    if worker.alive is None and worker.calls is None:
        return Verdict(WorkerState.UNKNOWN, "it has not been looked at yet")
    if worker.calls is None:
        return Verdict(WorkerState.UNKNOWN, _stopped(worker) or "whether it has a task is not known")
    if worker.calls <= 0:
        return Verdict(WorkerState.IDLE)
    still = worker.still_for
    if still is not None and still >= hung_after and (worker.running_for is None or worker.running_for >= hung_after):
        return Verdict(WorkerState.HUNG, _hung(worker, still))
    return Verdict(WorkerState.BUSY, _stopped(worker))


def _unwanted(worker: Situation) -> Verdict:
    executor = worker.executor
    if executor is Executor.ENDING:
        return Verdict(WorkerState.STOPPING, "its executor is shutting down" + _task(worker, "; it still runs {}"))
    since = _seconds(worker.executor_for)
    if worker.executor_for < GRACE:
        return Verdict(WorkerState.STOPPING, f"its executor is {executor.value}, since {since}")
    words = {Executor.SHUT_DOWN: "was shut down", Executor.BROKEN: "broke", Executor.COLLECTED: "was collected"}
    return Verdict(
        WorkerState.ORPHAN, f"it is alive although its executor {words[executor]} {since} ago"
        + _task(worker, "; it still runs {}"),
    )  # fmt: skip


def _hung(worker: Situation, still: float) -> str:
    runs = "it has run {}" if worker.task else "it has had a task"
    text = runs.format(worker.task)
    text += f" for {_seconds(worker.running_for)} and" if worker.running_for is not None else ","
    text += f" has used neither processor nor I/O for {_seconds(still)}"
    where = _stopped(worker)
    if not where and (worker.waits_in or worker.letter):
        where = f"it waits in {worker.waits_in}" if worker.waits_in else f"its state is {worker.letter}"
    return f"{text}; {where}" if where else text


def _stopped(worker: Situation) -> str:
    """Return why the process cannot run at all; empty if it can."""
    return {
        "T": "it is stopped by a signal (SIGSTOP)",
        "t": "a debugger has stopped it",
        "D": "it waits for a device or a network file system, which cannot be interrupted",
    }.get(worker.letter or "", "")


def _task(worker: Situation, words: str) -> str:
    if not worker.task:
        return ""
    since = f" ({_seconds(worker.running_for)})" if worker.running_for is not None else ""
    return words.format(worker.task + since)


def _how(worker: Situation) -> str:
    if worker.exitcode is None:
        return ""
    return " (killed by the kernel for want of memory)" if worker.oom_killed else f" ({exit_name(worker.exitcode)})"


def crash_reason(exitcode: int | None, oom_killed: bool | None = None) -> str:
    """Return the crash reason of a worker, as in :attr:`loopwatch.PoolStats.crashes`: few distinct values.

    Example:
        >>> crash_reason(-11), crash_reason(3), crash_reason(-9, oom_killed=True), crash_reason(None)
        ('SIGSEGV', 'exit 3', 'oom', 'unknown')
    """
    return "oom" if oom_killed else "unknown" if exitcode is None else exit_name(exitcode)


def exit_name(exitcode: int) -> str:
    """Return the name of the signal that ended a process, or ``exit N``.

    Example:
        >>> exit_name(-9), exit_name(0)
        ('SIGKILL', 'exit 0')
    """
    if exitcode >= 0:
        return f"exit {exitcode}"
    try:
        return Signals(-exitcode).name
    except ValueError:  # a real-time signal
        return f"signal {-exitcode}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"

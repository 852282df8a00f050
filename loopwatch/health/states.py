"""Derives the state of a worker (idle, busy, hung, ...) and the reason in words. A pure function of known facts."""

from __future__ import annotations

from enum import StrEnum
from signal import Signals
from typing import NamedTuple

from loopwatch.core.dataclasses import dataclass
from loopwatch.events import WorkerState
from loopwatch.health.records import ProcessFacts

GRACE = 5.0
"""s in which a worker may end by itself once its executor takes no more calls."""


class Executor(StrEnum):
    """Whether the executor of a worker still wants it."""

    OPEN = "open"
    """It takes calls."""
    SHUT_DOWN = "shut down"
    """It takes no more; nobody waits for what is left."""
    ENDING = "shutting down"
    """It takes no more, and somebody waits until its workers have ended."""
    BROKEN = "broken"
    """It has given up, for example as another worker of it has died."""
    COLLECTED = "collected"
    """Nobody has a reference to it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known of one worker at one moment; times in s.

    Attributes:
        age: since it was started.
        alive: whether it runs; None where that was not looked at yet.
        zombie: whether it has exited and nobody has waited for it.
        zombie_for: since when that is so.
        exitcode: how it ended, negative for the number of a signal; None where that is not known.
        oom_killed: whether the kernel killed it for want of memory.
        executor: whether it is still wanted.
        executor_for: since when that is so.
        told_to_end: whether this worker alone was told to end, to be replaced or as there is too little to do.
        ready: whether it has said that it can take calls; None where workers do not say that.
        calls: that it has; None where that cannot be told.
        task: name of the one that it runs.
        running_for: for how long.
        still_for: since it was last seen to use processor or I/O; None where that is not known.
        letter: state of the process, as in ``/proc/PID/stat``.
        waits_in: what it sleeps in: a kernel function, or a system call.
    """

    age: float = 0.0
    alive: bool | None = True
    zombie: bool = False
    zombie_for: float | None = None
    exitcode: int | None = None
    oom_killed: bool | None = None
    executor: Executor = Executor.OPEN
    executor_for: float = 0.0
    told_to_end: bool = False
    ready: bool | None = None
    calls: int | None = None
    task: str | None = None
    running_for: float | None = None
    still_for: float | None = None
    letter: str | None = None
    waits_in: str | None = None

    @classmethod
    def of(cls, facts: ProcessFacts | None, now: float, **known: object) -> Situation:
        """Return what ``facts`` say of a process, and what else is ``known``.

        Args:
            facts: as they were polled, None where they were not yet.
            now: ``time.monotonic``.
            **known: attributes, which win over the facts.

        Example:
            >>> Situation.of(ProcessFacts(1, 5.0, alive=True, moved_at=2.0, state="S"), 10.0, calls=1).still_for
            8.0
        """
        told: dict[str, object] = {"alive": None}
        if facts is not None:
            told = {
                "alive": facts.alive,
                "zombie": facts.zombie,
                "exitcode": facts.exitcode,
                "oom_killed": facts.oom_killed,
                "still_for": None if facts.moved_at is None else max(now - facts.moved_at, 0.0),
                "letter": facts.state,
                "waits_in": facts.waits_in,
            }
        return cls(**{**told, **known})  # type: ignore[arg-type]


class Verdict(NamedTuple):
    """A state, and why in words; empty where the state says it all."""

    state: WorkerState
    reason: str = ""


def judge(worker: Situation, hung_after: float) -> Verdict:
    """Decide the state of a worker. What is certain comes first: exited, then unwanted, then what it does.

    Args:
        worker: what is known of it.
        hung_after: s for which a worker that has a task may use neither processor nor I/O; a worker that waits for
            good reason, such as a ``sleep`` of an hour, counts as hung, too: the reason says what it waits in.

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
    if worker.told_to_end:
        return Verdict(WorkerState.STOPPING, "it was told to end")
    if worker.ready is False:
        return Verdict(WorkerState.STARTING, f"it was started {_seconds(worker.age)} ago and is not ready yet")
    if worker.alive is None and worker.calls is None:
        return Verdict(WorkerState.UNKNOWN, "it has not been looked at yet")
    if worker.calls is None:
        return Verdict(WorkerState.UNKNOWN, _stopped(worker) or "whether it has a task cannot be told")
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
    """What keeps it from running at all."""
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
    """Return how a worker died, as :attr:`loopwatch.PoolStats.crashes` has it: few different words.

    Example:
        >>> crash_reason(-11), crash_reason(3), crash_reason(-9, oom_killed=True), crash_reason(None)
        ('SIGSEGV', 'exit 3', 'oom', 'unknown')
    """
    return "oom" if oom_killed else "unknown" if exitcode is None else exit_name(exitcode)


def exit_name(exitcode: int) -> str:
    """Return the name of a signal, or ``exit N``.

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

"""Records and protocols shared by the modules of ``health``. Moments are ``time.monotonic`` seconds unless stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import PoolStats


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool at one moment.

    Attributes:
        stats: its public statistics.
        waits, runs: wait and run times of its tasks since it was created, in seconds; a private copy.
        neglected: number of lost errors by type; empty also if unknown.
        number: distinguishes it from a later pool of its name; set by the monitor, 0 before.
    """

    stats: PoolStats
    waits: Histogram
    runs: Histogram
    number: int = 0
    neglected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Facts from the system about one process, as of the last poll; None where the system does not report it.

    Attributes:
        pid: process id.
        at: when it was polled.
        alive: whether it runs; a zombie does not.
        zombie: whether it has exited and is not reaped.
        cpu: CPU seconds.
        starved: seconds for which its main thread was runnable but was given no processor.
        memory, unique: resident bytes; bytes that its end would free.
        moved_at: when its CPU time or its I/O was last seen to grow.
        started_at: seconds since the epoch.
        state: letter of ``/proc/PID/stat``, such as S or D.
        name: name of its program, never its arguments.
        waits_in: kernel function that it sleeps in; read only if it has made no progress for a while.
        exitcode: negative for the number of a signal; None while it lives or if unknown.
        oom_killed: whether the kernel's OOM killer ended it; None if unknown.
    """

    pid: int
    at: float
    alive: bool
    zombie: bool = False
    cpu: float | None = None
    memory: int | None = None
    unique: int | None = None
    moved_at: float | None = None
    started_at: float | None = None
    state: str | None = None
    name: str = ""
    waits_in: str | None = None
    exitcode: int | None = None
    oom_killed: bool | None = None
    starved: float | None = None


REQUESTS = frozenset({"SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE"})
"""Signals by which an operator, a terminal, or a reader that has read enough ends a process."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a child process that belongs to no pool.

    Attributes:
        pid: process id.
        at: when it was noticed.
        lived: seconds from start to end.
        reason: ``SIGSEGV``, ``exit 3``, ``oom``; None if it was asked to end, or ended with exit code 0.
        place: where it was started, ``file:line in function``; empty if unknown.
        name: name of its program.
        executes: whether it executed another program, whose exit code is a result rather than an accident.
    """

    pid: int
    at: float
    lived: float
    reason: str | None
    place: str = ""
    name: str = ""
    executes: bool = False

    @property
    def is_accident(self) -> bool:
        """Whether it is certainly a crash.

        That is a signal not in :data:`REQUESTS` or, of a copy of this process, the exit code of an uncaught exception.
        Other exit codes are results: billiard's workers exit with 155 to be replaced (``EX_RECYCLE``), gunicorn's with
        3 and 4.
        """
        if self.reason is None or self.reason in REQUESTS:
            return False
        return not self.reason.startswith("exit ") or (self.reason == "exit 1" and not self.executes)


class Waiter(StrEnum):
    """A step at the end of a program that waits for work."""

    RUN = "run"
    """The end of ``asyncio.run``: ``loop.shutdown_default_executor()``."""
    LOOP = "loop"
    """``shutdown(wait=True)`` of an executor on the thread of a running loop, as at the end of its ``with`` block."""
    INTERPRETER = "interpreter"
    """The exit of the interpreter, which waits for all threads that are no daemons."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A job or thread that a program waits for at its end.

    Attributes:
        name: ``module:function`` of a job, or the name of a thread.
        place: where it is, ``module:function (file:line)``; empty if unknown, as of a job in another process.
        call: dotted name of the function that it calls there; empty if unknown.
    """

    name: str
    place: str = ""
    call: str = ""

    def __str__(self) -> str:
        where = f" at {self.place}" if self.place else ""
        return self.name + where + (f" in {self.call}" if self.call else "")


@dataclass(frozen=True, slots=True)
class ExitWait:
    """A wait at the end of a program that has lasted for ``Config.hang_after``.

    Attributes:
        waiter: the step that waits.
        subject: name of the executor, or of the step.
        seconds: how long it has waited.
        jobs: what it waits for.
    """

    waiter: Waiter
    subject: str
    seconds: float
    jobs: tuple[Awaited, ...]


class Source(Protocol):
    """A pool or a group of processes, as the monitor reads it, from its own thread or that of a snapshot."""

    @property
    def gone(self) -> bool:
        """Whether it has ended: closed or collected, without workers, and reported so; the monitor then drops it."""

    def pids(self) -> Sequence[int]:
        """Return the ids of the worker processes to poll; empty for threads."""

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return its statistics, given the polled facts of its processes."""

"""Records and protocols shared by the modules of ``health``. Times are ``time.monotonic`` s unless said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import PoolStats


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool at one moment.

    Attributes:
        stats: what is told to people.
        waits, runs: how long its tasks waited and ran since it was made, s; a copy that nobody writes to.
        neglected: failed calls whose error nobody can ask for any more, by type; empty also where that is not known.
        number: tells it from a later pool of its name; the monitor's business, 0 before.
    """

    stats: PoolStats
    waits: Histogram
    runs: Histogram
    number: int = 0
    neglected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What the system says of one process, as it was last polled; None where it does not say.

    Attributes:
        pid: process id.
        at: when it was polled.
        alive: whether it runs; a zombie does not.
        zombie: whether it has exited and nobody has waited for it.
        cpu: s of processor time.
        starved: s for which its main thread was ready to run and was given no processor.
        memory, unique: resident bytes; bytes that would be free if it ended.
        moved_at: when its processor time or its I/O was last seen to be more than before.
        started_at: s since the epoch.
        state: letter of ``/proc/PID/stat``, such as S or D.
        name: what it is, a program's name, never its arguments.
        waits_in: kernel function that it sleeps in, asked for only where it has not moved for a while.
        exitcode: how it ended, negative for the number of a signal; None while it lives, and where that is not known.
        oom_killed: whether the kernel killed it for want of memory, if SIGKILL ended it; None where that cannot be
            told.
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
    """How a child process that belongs to no pool has ended.

    Attributes:
        pid: process id.
        at: when that was noticed.
        lived: s from its start.
        reason: ``SIGSEGV``, ``exit 3``, ``oom``; None if it was told to end, or ended with exit code 0.
        place: where it was made, ``file:line in function``; empty where that is not known.
        name: what it was, a program's name.
        executes: whether it was a program of its own, whose exit code is an answer rather than an accident.
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
        """Whether it is a crash beyond doubt.

        That is a signal which nobody sends for a good reason, or, of a copy of this process, the exit code of an
        uncaught exception. Other exit codes are answers: billiard's workers end with 155 to be replaced
        (``EX_RECYCLE``), gunicorn's with 3 and 4.
        """
        if self.reason is None or self.reason in REQUESTS:
            return False
        return not self.reason.startswith("exit ") or (self.reason == "exit 1" and not self.executes)


class Source(Protocol):
    """A pool, or a group of processes, as the monitor asks it: from the monitor's thread, or that of a snapshot."""

    @property
    def gone(self) -> bool:
        """Whether it is over: closed or collected, no worker left, and told once as such."""

    def pids(self) -> Sequence[int]:
        """Return the worker processes whose facts are wanted; empty for threads."""

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return its figures, given what was polled of its processes."""

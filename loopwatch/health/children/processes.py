"""Polls facts about processes: whether they are alive, resource usage, time of last progress, exit status.

It only reads, and reaps nothing: the exit status of a child is left to the program. It imports psutil, and is therefore
loaded only once there is a process to watch.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping

import psutil

from loopwatch.core.dataclasses import replace
from loopwatch.core.originals import time
from loopwatch.core.text import printable
from loopwatch.health.children.hooks import peek
from loopwatch.health.records import ProcessFacts
from loopwatch.system.cgroup import Oom
from loopwatch.system.threads import read_kernel

UNIQUE_EVERY = 60.0
"""Seconds between two readings of one process's USS: the kernel walks all of its pages (7 ms for 500 MB)."""
UNIQUE_SHARE = 0.0005
"""Share of one CPU that reading USS may use."""
STILL = 5.0
"""Seconds without progress after which the kernel function that a process sleeps in is read."""
SIGKILL = -int(getattr(signal, "SIGKILL", 9))

_NOT_TOLD = (psutil.Error, OSError, ValueError, IndexError)
"""Exceptions of psutil if access is denied, no descriptor is left, or a /proc file is incomplete."""

_LETTERS: Mapping[str, str] = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: "X",
    psutil.STATUS_IDLE: "I",
}


class Processes:
    """Polls the facts of processes; one poller at a time.

    Args:
        exit_of: returns the exit code of a process that was reaped, None if unknown.
        oom: detector of OOM kills; its owner sets the start of its interval.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        exit_of: Callable[[int], int | None] = lambda _pid: None,
        oom: Oom | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.facts: Mapping[int, ProcessFacts] = {}
        """Facts of the processes polled last; replaced as a whole, so any thread may read it."""
        self._exit_of, self._oom, self._clock = exit_of, oom or Oom(), clock
        self._known: dict[int, psutil.Process] = {}
        self._io: dict[int, float] = {}
        self._unique_at: dict[int, float] = {}
        self._next_unique = 0.0

    def poll(self, pids: Iterable[int], *, until: float | None = None, unique: bool = True) -> bool:
        """Poll ``pids`` and forget all others; return whether all were polled.

        Args:
            pids: process ids.
            until: when to stop, ``time.monotonic`` seconds: processes not reached keep their last facts.
            unique: whether one process's USS may be read if it is due.
        """
        wanted = dict.fromkeys(pids)
        facts = {pid: self.facts[pid] for pid in wanted if pid in self.facts}
        complete = True
        for pid in wanted:
            if until is not None and self._clock() > until:
                complete = False
                break
            facts[pid] = self._look(pid, facts.get(pid))
        self._judge_ends(facts)
        for store in (self._known, self._io, self._unique_at):
            for pid in [pid for pid in store if pid not in wanted]:
                del store[pid]
        if unique:
            self._read_unique(facts)
        self.facts = facts
        return complete

    def forget(self, pids: Iterable[int]) -> None:
        """Forget ``pids``, which have ended and may be reused."""
        gone = set(pids)
        if gone:
            self.facts = {pid: fact for pid, fact in self.facts.items() if pid not in gone}

    def _look(self, pid: int, before: ProcessFacts | None) -> ProcessFacts:
        if before is not None and not before.alive and not before.zombie:
            return before  # it ended; the id may be reused by now
        now = self._clock()
        try:
            process = self._known.get(pid)
            if process is None:
                process = self._known[pid] = psutil.Process(pid)
            elif not process.is_running():  # the id was reused
                return self._gone(pid, now, before)
            with process.oneshot():
                return self._read(process, now, before)
        except psutil.ZombieProcess:  # macOS reports nothing else about it
            return _zombie(pid, now, before)
        except psutil.NoSuchProcess:
            return self._gone(pid, now, before)
        except _NOT_TOLD:
            return before or ProcessFacts(pid, now, alive=True, moved_at=None)

    def _read(self, process: psutil.Process, now: float, before: ProcessFacts | None) -> ProcessFacts:
        pid = process.pid
        letter = _LETTERS.get(process.status())
        started_at, name = (process.create_time(), printable(process.name())) if before is None else _same(before)
        if letter in ("Z", "X"):
            return _zombie(pid, now, before or ProcessFacts(pid, now, alive=True, started_at=started_at, name=name))
        times = process.cpu_times()
        cpu = times.user + times.system
        moved = before is None or before.cpu is None or cpu > before.cpu or self._has_done_io(process)
        moved_at = now if moved or before is None else before.moved_at
        still = moved_at is not None and now - moved_at > STILL
        return ProcessFacts(
            pid, now, alive=True, cpu=cpu, memory=process.memory_info().rss, unique=before.unique if before else None,
            moved_at=moved_at, started_at=started_at, state=letter, name=name, waits_in=_wchan(pid) if still else None,
            starved=_run_queue(pid),
        )  # fmt: skip

    def _has_done_io(self, process: psutil.Process) -> bool:
        """Whether its I/O counters have grown; read only if its CPU time has not, as it takes another file."""
        try:
            done = float(sum(process.io_counters()))  # calls and bytes: any growth counts
        except (psutil.AccessDenied, AttributeError, NotImplementedError):
            return False
        before = self._io.get(process.pid)
        self._io[process.pid] = done
        return before is not None and done > before

    def _gone(self, pid: int, now: float, before: ProcessFacts | None) -> ProcessFacts:
        self._known.pop(pid, None)
        code = self._exit_of(pid)
        if before is None:
            return ProcessFacts(pid, now, alive=False, exitcode=code)
        known = before.exitcode if code is None else code
        return replace(before, at=now, alive=False, zombie=False, state=None, waits_in=None, exitcode=known)

    def _judge_ends(self, facts: dict[int, ProcessFacts]) -> None:
        """Determine which processes that ended since the last poll were OOM-killed."""
        ended = [
            pid
            for pid, fact in facts.items()
            if not fact.alive and ((before := self.facts.get(pid)) is None or before.alive)
        ]
        killed = frozenset(pid for pid in ended if facts[pid].exitcode in (SIGKILL, None))
        verdict = self._oom.killed(killed) if killed else False
        for pid in ended:
            facts[pid] = replace(facts[pid], oom_killed=verdict if pid in killed else False)

    def _read_unique(self, facts: dict[int, ProcessFacts]) -> None:
        """Read the USS of the process whose turn it is."""
        now = self._clock()
        due = [
            pid
            for pid, fact in facts.items()
            if fact.alive and pid in self._known and now - self._unique_at.get(pid, -UNIQUE_EVERY) >= UNIQUE_EVERY
        ]
        if not due or now < self._next_unique:
            return
        pid = min(due, key=lambda pid: self._unique_at.get(pid, -UNIQUE_EVERY))
        self._unique_at[pid] = now
        before = time.thread_time()
        try:
            unique = self._known[pid].memory_full_info().uss
        except (*_NOT_TOLD, AttributeError, NotImplementedError):
            return
        finally:
            self._next_unique = now + (time.thread_time() - before) / UNIQUE_SHARE
        facts[pid] = replace(facts[pid], unique=unique)


def _zombie(pid: int, now: float, before: ProcessFacts | None) -> ProcessFacts:
    """Return the facts of a zombie: the last known ones and its exit code."""
    known = before or ProcessFacts(pid, now, alive=True)
    return replace(
        known, at=now, alive=False, zombie=True, memory=None, unique=None, state="Z", waits_in=None, exitcode=peek(pid)
    )


def _same(before: ProcessFacts) -> tuple[float | None, str]:
    return before.started_at, before.name


def _wchan(pid: int) -> str | None:
    """Return the kernel function that a process's main thread sleeps in, None where the kernel does not show it."""
    text = (read_kernel(f"/proc/{pid}/wchan") or "").strip()
    return text if text not in ("", "0") else None


def _run_queue(pid: int) -> float | None:
    """Return the seconds a process's main thread has spent on the run queue (``/proc/PID/schedstat``)."""
    fields = (read_kernel(f"/proc/{pid}/schedstat") or "").split()
    return int(fields[1]) / 1e9 if len(fields) >= 2 else None

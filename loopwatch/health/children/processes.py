"""Polls facts about processes: whether they are alive, resource usage, time of last progress, exit status.

Reads, never waits: the exit status of a child stays where it is for whoever started it. Imports psutil, so that it is
loaded only where there is a process to watch.
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
"""s between two readings of one process's USS: the kernel walks all of its pages for it (7 ms for 500 MB)."""
UNIQUE_SHARE = 0.0005
"""Share of a processor that reading USS may take."""
STILL = 5.0
"""s without progress after which it is asked what a process waits in."""
SIGKILL = -int(getattr(signal, "SIGKILL", 9))

_NOT_TOLD = (psutil.Error, OSError, ValueError, IndexError)
"""What psutil raises of a process that is not ours to look at, without a descriptor left, of a file half there."""

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
    """What was polled of processes so far; one poller at a time.

    Args:
        exit_of: returns how a process ended, as far as somebody has waited for it; None where that is not known.
        oom: whom the kernel has killed for memory; its owner says from when on.
        clock: monotonic s.
    """

    def __init__(
        self,
        exit_of: Callable[[int], int | None] = lambda _pid: None,
        oom: Oom | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.facts: Mapping[int, ProcessFacts] = {}
        """Of the processes that were asked for last; replaced as a whole, so that any thread may read it."""
        self._exit_of, self._oom, self._clock = exit_of, oom or Oom(), clock
        self._known: dict[int, psutil.Process] = {}
        self._io: dict[int, float] = {}
        self._unique_at: dict[int, float] = {}
        self._next_unique = 0.0

    def poll(self, pids: Iterable[int], *, until: float | None = None, unique: bool = True) -> bool:
        """Look at ``pids`` and forget all others; return whether all of them were looked at.

        Args:
            pids: process ids.
            until: when to stop (``time.monotonic``): what could not be looked at keeps its last facts.
            unique: whether the turn of somebody's USS may have come.
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
        """Forget ``pids``, which have ended: whoever gets their numbers is somebody else."""
        gone = set(pids)
        if gone:
            self.facts = {pid: fact for pid, fact in self.facts.items() if pid not in gone}

    def _look(self, pid: int, before: ProcessFacts | None) -> ProcessFacts:
        if before is not None and not before.alive and not before.zombie:
            return before  # it ended; whoever has its number now is somebody else
        now = self._clock()
        try:
            process = self._known.get(pid)
            if process is None:
                process = self._known[pid] = psutil.Process(pid)
            elif not process.is_running():  # the number belongs to somebody else by now
                return self._gone(pid, now, before)
            with process.oneshot():
                return self._read(process, now, before)
        except psutil.ZombieProcess:  # of which macOS tells nothing else
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
        """Only asked where its processor time stands still: the file is another one."""
        try:
            done = float(sum(process.io_counters()))  # calls and bytes: any of them moves
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
        """Say of those that have ended since the last poll whether the kernel killed them."""
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
    """Return the facts of one that has exited and was not waited for: what was known of it, and how it ended."""
    known = before or ProcessFacts(pid, now, alive=True)
    return replace(
        known, at=now, alive=False, zombie=True, memory=None, unique=None, state="Z", waits_in=None, exitcode=peek(pid)
    )


def _same(before: ProcessFacts) -> tuple[float | None, str]:
    return before.started_at, before.name


def _wchan(pid: int) -> str | None:
    """Return the kernel function that a process sleeps in; its main thread's, and only where the kernel shows it."""
    text = (read_kernel(f"/proc/{pid}/wchan") or "").strip()
    return text if text not in ("", "0") else None


def _run_queue(pid: int) -> float | None:
    """Return for how many s the main thread of a process has waited for a processor (``/proc/PID/schedstat``)."""
    fields = (read_kernel(f"/proc/{pid}/schedstat") or "").split()
    return int(fields[1]) / 1e9 if len(fields) >= 2 else None

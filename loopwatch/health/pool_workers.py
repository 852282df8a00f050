"""Tracks the worker processes of one pool: start times, their entries on the task board, their exits."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.originals import time
from loopwatch.health.records import ProcessFacts
from loopwatch.health.states import crash_reason
from loopwatch.health.task_board import Now, Run, TaskBoard

MOST_REASONS = 16
"""Most crash reasons distinguished; further ones are counted as ``other``."""
MOST_DEAD = 16
"""Most dead workers reported one by one."""
DYING = 0.5
"""Seconds that a worker may take to exit once it has closed its descriptors."""
SILENT = 10.0
"""Seconds after which a new worker without an entry on the task board is no longer expected to make one."""
SIGKILL = -int(getattr(signal, "SIGKILL", 9))


@dataclass(slots=True)
class _Member:
    """One worker; ``is_new`` if its start was seen, ``slot`` its index on the task board, None if it has none yet."""

    born: float
    is_new: bool
    slot: int | None = None
    cpu: float = 0.0


class Work(NamedTuple):
    """Current activity of one worker.

    Attributes:
        calls: number of its current tasks, None if unknown.
        done: number of tasks it has finished.
        task: name of its current task.
        since: start of that task, ``time.monotonic`` seconds.
        ready: whether it asks for tasks, None if unknown.
    """

    calls: int | None = None
    done: int = 0
    task: str | None = None
    since: float | None = None
    ready: bool | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """A worker that crashed: it exited without being asked to.

    Attributes:
        pid: process id.
        at, born: when its death was noticed, and when it was first seen; ``time.monotonic`` seconds.
        exitcode: negative for the number of a signal.
        task: number of its task, None if it had none or that is unknown.
        done: number of tasks it had finished.
    """

    pid: int
    at: float
    born: float
    exitcode: int
    task: int | None
    done: int


class PoolWorkers:
    """The worker processes of one pool.

    Args:
        board: the task board they write to, None without one.
    """

    def __init__(self, board: TaskBoard | None) -> None:
        self._board = board
        self._lock = threading.RLock()  # a signal handler or finalizer of the program may re-enter
        self.kept: set[int] = set()
        """Workers not to be forgotten while their exit status is determined."""
        self._members: dict[int, _Member] = {}
        self.started = self.recycled = 0
        self.is_ending = False
        """Whether the pool is ending, so that workers which exit are not replaced."""
        self.crashes: Counter[str] = Counter()
        """Number of crashed workers by reason."""
        self.dead: deque[Dead] = deque(maxlen=MOST_DEAD)
        """The latest crashed workers, oldest first."""
        self.oom: set[int] = set()
        """Process ids of those killed by the kernel's OOM killer."""
        self._unsettled: set[int] = set()
        self._cpu_of_gone = self._overhead_of_gone = 0.0

    def close(self) -> None:
        """Stop reading the task board."""
        self._board = None

    def look(self, pids: Iterable[int], now: float, *, are_new: bool = True, count: Callable[[], object] = int) -> None:
        """Update the set of workers.

        Args:
            pids: of the pool's current workers.
            now: ``time.monotonic`` seconds.
            are_new: whether workers not seen before have just started, and will write to the task board.
            count: called after new workers were added and before gone ones are removed.
        """
        present = set(pids)
        with self._lock:
            for pid in present:
                if pid not in self._members:
                    self._members[pid] = _Member(now, are_new)
                    self.started += 1
            count()
            for pid in list(self._members):
                if pid not in present and pid not in self.kept:
                    self._leave(pid)

    def _leave(self, pid: int) -> None:
        member = self._members.pop(pid, None)
        if member is None:
            return
        self._cpu_of_gone += member.cpu
        slot = self._slot(pid, member)
        if slot is not None and self._board is not None:
            self._overhead_of_gone += self._board.now(slot).overhead
            self._board.free(slot)
        if not self.is_ending and not self.has_crashed(pid):
            self.recycled += 1

    def note_crashes(self, processes: Mapping[int, Any], now: float) -> None:
        """Record which of ``processes`` have crashed, and how; waits a moment for those that are exiting.

        A process closes its descriptors some time before it can be reaped: in between, it writes its core dump.
        """
        connection = sys.modules["multiprocessing.connection"]
        ready = connection.wait([process.sentinel for process in processes.values()], timeout=0)
        dying = {pid: process for pid, process in processes.items() if process.sentinel in ready}
        with self.keeping(dying):
            for pid, process in dying.items():
                while process.exitcode is None and time.monotonic() - now < DYING:
                    time.sleep(0.005)
                exitcode = process.exitcode
                if exitcode is not None and not self.has_crashed(pid):
                    self.crashed(pid, exitcode, now)

    @contextmanager
    def keeping(self, pids: Iterable[int]) -> Iterator[None]:
        """Keep the entries of ``pids`` for the duration of the block, even if other threads find them gone."""
        kept = set(pids)
        self.kept |= kept
        try:
            yield
        finally:
            self.kept -= kept

    def crashed(self, pid: int, exitcode: int, now: float) -> Dead:
        """Record the crash of worker ``pid``."""
        at, born = self.now(pid), self.born(pid, now)
        dead = Dead(pid, now, born, exitcode, None if at is None else at.number, 0 if at is None else at.done)
        self.dead.append(dead)
        self._count(crash_reason(exitcode))
        if exitcode == SIGKILL:
            self._unsettled.add(pid)
        return dead

    def has_crashed(self, pid: int) -> bool:
        """Whether worker ``pid`` is among the latest crashed ones."""
        return any(dead.pid == pid for dead in self.dead)

    def _count(self, reason: str) -> None:
        self.crashes[reason if reason in self.crashes or len(self.crashes) < MOST_REASONS else "other"] += 1

    @property
    def is_unsettled(self) -> bool:
        """Whether it is still unknown if the OOM killer ended one of them."""
        return bool(self._unsettled)

    @staticmethod
    def living(processes: Iterable[Any]) -> list[Any]:
        """Return the processes that were not reaped yet; ``is_alive`` is not called, as it would reap them.

        Callers must not keep the result: each process object holds descriptors.
        """
        return [each for each in processes if getattr(getattr(each, "_popen", None), "returncode", 0) is None]

    def settle(self, facts: Mapping[int, ProcessFacts]) -> None:
        """Correct the crash reason of workers that the OOM killer ended, once ``facts`` say so."""
        for pid in list(self._unsettled):
            fact = facts.get(pid)
            if fact is None or fact.alive:
                continue
            self._unsettled.discard(pid)
            if fact.oom_killed:
                self.oom.add(pid)
                before, after = crash_reason(SIGKILL), crash_reason(SIGKILL, True)
                self.crashes[before] -= 1
                self.crashes += Counter()  # drops zero counts
                self._count(after)

    def pids(self) -> Sequence[int]:
        """Return the current workers, and crashed ones of which it is unknown if the OOM killer ended them."""
        return [*self._members, *(pid for pid in self._unsettled if pid not in self._members)]

    @property
    def size(self) -> int:
        """Number of workers at the last update."""
        return len(self._members)

    def present(self) -> Sequence[int]:
        """Return the current workers without those recorded as crashed."""
        dead = {each.pid for each in self.dead}
        return [pid for pid in list(self._members) if pid not in dead]

    def born(self, pid: int, now: float) -> float:
        """Return when worker ``pid`` was first seen, ``time.monotonic`` seconds; ``now`` for an unknown one."""
        member = self._members.get(pid)
        return now if member is None else member.born

    def cpu(self, facts: Mapping[int, ProcessFacts]) -> float:
        """Return the CPU seconds of all workers so far."""
        for pid, member in list(self._members.items()):
            fact = facts.get(pid)
            if fact is not None and fact.cpu is not None:
                member.cpu = fact.cpu
        return self._cpu_of_gone + sum(member.cpu for member in list(self._members.values()))

    def overhead(self) -> float | None:
        """Return the CPU seconds workers spent on arguments and results, None without a task board."""
        if self._board is None:
            return None
        return self._overhead_of_gone + sum(at.overhead for pid in self.present() if (at := self.now(pid)) is not None)

    # -- the task board -------------------------------------------------------------------------------------------

    def is_known(self, now: float) -> bool:
        """Whether all workers have an entry on the task board, or are expected to make one; True without workers."""
        return self._board is not None and all(
            self._is_awaited(member, now) or self._slot(pid, member) is not None
            for pid, member in list(self._members.items())
        )

    def _is_awaited(self, member: _Member, now: float) -> bool:
        return self._board is not None and member.is_new and now - member.born < SILENT

    def now(self, pid: int) -> Now | None:
        """Return the task board's entry of worker ``pid``, None if it has none."""
        member = self._members.get(pid)
        slot = None if member is None else self._slot(pid, member)
        return None if slot is None or self._board is None else self._board.now(slot)

    def work(self, pid: int, name_of: Callable[[int], str], now: float) -> Work:
        """Return the current activity of worker ``pid``.

        Args:
            pid: process id.
            name_of: returns the name of the task with a number.
            now: ``time.monotonic`` seconds.
        """
        at, member = self.now(pid), self._members.get(pid)
        if at is None:
            return Work(0, ready=False) if member is not None and self._is_awaited(member, now) else Work()
        if at.number is None:
            return Work(0, at.done, ready=at.ready)
        return Work(1, at.done, name_of(at.number), at.since, at.ready)

    def run_of(self, number: int) -> Run | None:
        """Return the times of finished task ``number``, None if no worker has them."""
        board = self._board
        if board is None:
            return None
        for pid, member in list(self._members.items()):
            slot = self._slot(pid, member)
            run = None if slot is None else board.finished(slot, number)
            if run is not None:
                return run
        return None

    def _slot(self, pid: int, member: _Member) -> int | None:
        if member.slot is None and self._board is not None:
            member.slot = self._board.slot_of(pid)
        return member.slot

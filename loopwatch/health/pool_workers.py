"""Tracks the worker processes of one pool: start times, their entries on the task board, how they ended."""

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
"""Ways to die told apart; further ones are told as ``other``."""
MOST_DEAD = 16
"""Dead workers that are told one by one."""
DYING = 0.5
"""s that a worker may take to end once it has closed its descriptors."""
SILENT = 10.0
"""s after which a worker that has not said anything is not waited for any more."""
SIGKILL = -int(getattr(signal, "SIGKILL", 9))


@dataclass(slots=True)
class _Member:
    """One worker; ``is_new`` if it was seen to start, ``slot`` its index on the board, None as far as it has none."""

    born: float
    is_new: bool
    slot: int | None = None
    cpu: float = 0.0


class Work(NamedTuple):
    """What one worker is about.

    Attributes:
        calls: tasks that it has, None where that cannot be told.
        done: tasks that it has finished.
        task: name of the one that it runs.
        since: ``time.monotonic`` s when it began.
        ready: whether it asks for tasks, None where that cannot be told.
    """

    calls: int | None = None
    done: int = 0
    task: str | None = None
    since: float | None = None
    ready: bool | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """A worker that died without being told to.

    Attributes:
        pid: process id.
        at, born: ``time.monotonic`` s when that was noticed, and when it was first seen.
        exitcode: negative for the number of a signal.
        task: number of the task that it had, None if it had none or that is not known.
        done: tasks it had finished.
    """

    pid: int
    at: float
    born: float
    exitcode: int
    task: int | None
    done: int


class PoolWorkers:
    """The workers of a pool.

    Args:
        board: where they say what they run, None where there is none.
    """

    def __init__(self, board: TaskBoard | None) -> None:
        self._board = board
        self._lock = threading.RLock()  # a signal handler or a finalizer of the program may come in between
        self.kept: set[int] = set()
        """Workers that are not to be forgotten now: it is being found out how they ended."""
        self._members: dict[int, _Member] = {}
        self.started = self.recycled = 0
        self.is_ending = False
        """Whether workers that go are not to be replaced."""
        self.crashes: Counter[str] = Counter()
        """Workers that died without being told to, by reason."""
        self.dead: deque[Dead] = deque(maxlen=MOST_DEAD)
        """The last of them, oldest first."""
        self.oom: set[int] = set()
        """Which of them the kernel killed for want of memory."""
        self._unsettled: set[int] = set()
        self._cpu_of_gone = self._overhead_of_gone = 0.0

    def close(self) -> None:
        """Ask the board no more."""
        self._board = None

    def look(self, pids: Iterable[int], now: float, *, are_new: bool = True, count: Callable[[], object] = int) -> None:
        """See which workers there are now.

        Args:
            pids: of those whom the pool has.
            now: ``time.monotonic``.
            are_new: whether those not seen before have just been started, and will say what they do.
            count: called while those that come are known, and those that go still are.
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
        """Note which of ``processes`` are dead or about to be, and how they ended.

        A process has closed its descriptors some time before it can be waited for: in between, it writes its core.
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
        """Forget none of ``pids`` meanwhile, whatever other threads see of them."""
        kept = set(pids)
        self.kept |= kept
        try:
            yield
        finally:
            self.kept -= kept

    def crashed(self, pid: int, exitcode: int, now: float) -> Dead:
        """Note that worker ``pid`` died without being told to."""
        at, born = self.now(pid), self.born(pid, now)
        dead = Dead(pid, now, born, exitcode, None if at is None else at.number, 0 if at is None else at.done)
        self.dead.append(dead)
        self._count(crash_reason(exitcode))
        if exitcode == SIGKILL:
            self._unsettled.add(pid)
        return dead

    def has_crashed(self, pid: int) -> bool:
        """Whether worker ``pid`` is one of the last that crashed."""
        return any(dead.pid == pid for dead in self.dead)

    def _count(self, reason: str) -> None:
        self.crashes[reason if reason in self.crashes or len(self.crashes) < MOST_REASONS else "other"] += 1

    @property
    def is_unsettled(self) -> bool:
        """Whether it is still to be found out who killed one of them."""
        return bool(self._unsettled)

    @staticmethod
    def living(processes: Iterable[Any]) -> list[Any]:
        """Return those that nobody has waited for; to ask one whether it is alive would be to wait for it.

        They are not to be kept: each has descriptors.
        """
        return [each for each in processes if getattr(getattr(each, "_popen", None), "returncode", 0) is None]

    def settle(self, facts: Mapping[int, ProcessFacts]) -> None:
        """Correct the reason of those that the kernel killed for want of memory, once that has been looked at."""
        for pid in list(self._unsettled):
            fact = facts.get(pid)
            if fact is None or fact.alive:
                continue
            self._unsettled.discard(pid)
            if fact.oom_killed:
                self.oom.add(pid)
                before, after = crash_reason(SIGKILL), crash_reason(SIGKILL, True)
                self.crashes[before] -= 1
                self.crashes += Counter()  # which drops what is 0
                self._count(after)

    def pids(self) -> Sequence[int]:
        """Return the workers that are there, and those of whom it is still to be found out who killed them."""
        return [*self._members, *(pid for pid in self._unsettled if pid not in self._members)]

    @property
    def size(self) -> int:
        """How many workers there were at the last look."""
        return len(self._members)

    def present(self) -> Sequence[int]:
        """Return the workers that the pool has, without those whose death was noted."""
        dead = {each.pid for each in self.dead}
        return [pid for pid in list(self._members) if pid not in dead]

    def born(self, pid: int, now: float) -> float:
        """Return when worker ``pid`` was first seen, ``time.monotonic`` s."""
        member = self._members.get(pid)
        return now if member is None else member.born

    def cpu(self, facts: Mapping[int, ProcessFacts]) -> float:
        """Return s of processor time of all workers so far."""
        for pid, member in list(self._members.items()):
            fact = facts.get(pid)
            if fact is not None and fact.cpu is not None:
                member.cpu = fact.cpu
        return self._cpu_of_gone + sum(member.cpu for member in list(self._members.values()))

    def overhead(self) -> float | None:
        """Return s of processor time that arguments and results cost the workers, None where they do not say."""
        if self._board is None:
            return None
        return self._overhead_of_gone + sum(at.overhead for pid in self.present() if (at := self.now(pid)) is not None)

    # -- the board ------------------------------------------------------------------------------------------------

    def is_known(self, now: float) -> bool:
        """Whether all workers say what they run, or are about to; True if there are none."""
        return self._board is not None and all(
            self._is_awaited(member, now) or self._slot(pid, member) is not None
            for pid, member in list(self._members.items())
        )

    def _is_awaited(self, member: _Member, now: float) -> bool:
        return self._board is not None and member.is_new and now - member.born < SILENT

    def now(self, pid: int) -> Now | None:
        """Return what worker ``pid`` is about, None if it does not say."""
        member = self._members.get(pid)
        slot = None if member is None else self._slot(pid, member)
        return None if slot is None or self._board is None else self._board.now(slot)

    def work(self, pid: int, name_of: Callable[[int], str], now: float) -> Work:
        """Return what worker ``pid`` is about.

        Args:
            pid: process id.
            name_of: returns the name of the task with a number.
            now: ``time.monotonic``.
        """
        at, member = self.now(pid), self._members.get(pid)
        if at is None:
            return Work(0, ready=False) if member is not None and self._is_awaited(member, now) else Work()
        if at.number is None:
            return Work(0, at.done, ready=at.ready)
        return Work(1, at.done, name_of(at.number), at.since, at.ready)

    def run_of(self, number: int) -> Run | None:
        """Return how task ``number`` went, None if no worker says."""
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

"""Tracks child processes that belong to no pool: live ones, zombies, and the ends of the others."""
# Importing pathlib takes 4 ms, in every watched process.
# ruff: noqa: PTH110, PTH208

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.histogram import Histogram
from loopwatch.core.originals import time
from loopwatch.core.patches import loaded
from loopwatch.events import PoolStats, WorkerStats
from loopwatch.health.children.hooks import Birth, ProcessHooks
from loopwatch.health.records import End, PoolReading, ProcessFacts
from loopwatch.health.states import Situation, Verdict, crash_reason, judge
from loopwatch.system import threads

NAME = KIND = "children"
SIGKILL = -int(getattr(signal, "SIGKILL", 9))
MOST_TOLD = 100
"""Most children listed one by one: zombies first, then the oldest; all of them are counted."""
HEARD_WITHIN = 60.0
"""Seconds after a child is gone in which its exit code may still arrive; a fork server keeps it until it is polled."""
NOTED_WITHIN = 1.0
"""Seconds after a child is first seen in which the record of its start may still arrive."""
MOST_ENDS = 1024
"""Most ends kept as input of the finding rules."""


@dataclass(slots=True)
class _Child:
    """A child that is present or has just gone."""

    pid: int
    birth: Birth | None
    first_seen: float
    counted: bool
    zombie_since: float | None = None
    gone_since: float | None = None


class Children:
    """The :class:`~loopwatch.health.records.Source` of children of this process that belong to no pool.

    Args:
        process_hooks: records of the children that the program started.
        hung_after: returns ``Config.hung_after``, seconds.
        oom_killed: returns whether processes that SIGKILL has just ended were OOM-killed; None: unknown.
        clock: monotonic seconds.
    """

    gone = False

    def __init__(
        self,
        process_hooks: ProcessHooks,
        hung_after: Callable[[], float],
        oom_killed: Callable[[frozenset[int]], bool | None] = lambda _pids: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ends: deque[End] = deque(maxlen=MOST_ENDS)
        """The latest ends, oldest first."""
        self._process_hooks, self._hung_after, self._oom_killed, self._clock = (
            process_hooks,
            hung_after,
            oom_killed,
            clock,
        )
        self._members: dict[int, _Child] = {}
        self._claimed: set[int] = set()
        self._started = 0
        self._crashes: Counter[str] = Counter()
        self._cpu = 0.0

    def begin(self) -> None:
        """Adopt the existing children, so that their exits are recorded.

        Where that would take a scan of all processes of the system, later polls adopt them instead.
        """
        if _is_listed() and has_children():
            now, theirs = self._clock(), _helpers()
            for pid in child_pids():
                if pid not in self._process_hooks.known and pid not in theirs:
                    self._members[pid] = _Child(pid, self._process_hooks.adopt(pid), now, counted=False)

    # -- called by the monitor ------------------------------------------------------------------------------------

    @property
    def used(self) -> bool:
        """Whether there are or were any children; if not, there is nothing to report."""
        return bool(self._started or self._members)

    def look(self, claimed: Collection[int]) -> None:
        """Update the set of children.

        Args:
            claimed: process ids that belong to pools.
        """
        now = self._clock()
        process_hooks = dict(self._process_hooks.known)
        self._claimed = (self._claimed & process_hooks.keys()) | set(claimed)
        theirs = self._claimed | _helpers()
        here = [pid for pid in child_pids() if pid not in theirs]
        here += [pid for pid, birth in process_hooks.items() if birth.remote and pid not in theirs]
        for pid in here:
            birth = process_hooks.get(pid)
            member = self._members.get(pid)
            if birth is not None and birth.pool is not None:
                continue
            if member is not None and member.birth is None:
                if birth is None and now - member.first_seen >= NOTED_WITHIN:
                    birth = self._process_hooks.adopt(pid)
                member.birth = birth  # it was seen before its start was recorded
            if member is None or member.birth is not birth:
                # Counted at the next poll: a pool may still claim an unrecorded child.
                member = self._members[pid] = _Child(pid, birth, now, counted=False)
                if birth is not None:
                    self._count(member)
            else:
                self._count(member)
        for pid in theirs & self._members.keys():
            birth = self._members.pop(pid).birth
            if birth is not None and birth.adopted:  # the pool records its end
                self._process_hooks.forget([pid])
        self._note_short_lives(process_hooks, now)

    def _count(self, member: _Child) -> None:
        self._started += not member.counted
        member.counted = True

    def _note_short_lives(self, process_hooks: Mapping[int, Birth], now: float) -> None:
        """Count children that were reaped before a poll saw them, and forget reaped workers of pools."""
        done = [pid for pid, birth in process_hooks.items() if birth.exitcode is not None and pid not in self._members]
        ours = {pid: process_hooks[pid] for pid in done if process_hooks[pid].pool is None and pid not in self._claimed}
        killed = frozenset(pid for pid, birth in ours.items() if birth.exitcode == SIGKILL)
        oom = self._oom_killed(killed) if killed else None
        for pid, birth in ours.items():
            self._started += 1
            self._ended(pid, birth, birth.exitcode, now=now, oom=oom if pid in killed else False)
        self._process_hooks.forget(done)

    def settle(self, facts: Mapping[int, ProcessFacts]) -> list[int]:
        """Record the children that have ended; return their ids, which may be reused."""
        now = self._clock()
        over = []
        for pid, member in list(self._members.items()):
            fact = facts.get(pid)
            if fact is None:
                continue
            if fact.zombie and member.zombie_since is None:
                member.zombie_since = now
            if not fact.alive and not fact.zombie:
                birth = member.birth or self._process_hooks.known.get(pid)
                code = fact.exitcode if birth is None or birth.exitcode is None else birth.exitcode
                if member.gone_since is None:
                    member.gone_since = now
                if code is None and now - member.gone_since < (HEARD_WITHIN if birth is not None else NOTED_WITHIN):
                    continue  # its exit code is about to arrive
                self._ended(pid, birth, code, now=now, oom=fact.oom_killed, name=fact.name)
                self._count(member)
                self._cpu += fact.cpu or 0.0
                over.append(pid)
                del self._members[pid]
        self._process_hooks.forget(over)
        return over

    def _ended(
        self, pid: int, birth: Birth | None, code: int | None, *, now: float, oom: bool | None = None, name: str = ""
    ) -> None:
        crashed = code is not None and code != 0 and not (birth is not None and _as_requested(birth, code))
        reason = crash_reason(code, oom) if crashed else None
        if reason is not None:
            self._crashes[reason] += 1
        known = birth or Birth(pid, now, executes=True)
        over = now if known.ended_at is None else known.ended_at
        self.ends.append(
            End(pid, now, max(over - known.at, 0.0), reason, known.place, known.name or name, known.executes)
        )

    # -- implementation of Source ---------------------------------------------------------------------------------

    def pids(self) -> Sequence[int]:
        """Return the ids of the present children."""
        return tuple(self._members)

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return the statistics of the children."""
        members = [
            each for each in list(self._members.values()) if each.gone_since is None
        ]  # copied: the monitor's thread may change it
        members.sort(key=lambda each: (each.zombie_since is None, each.first_seen))
        workers = [self._worker(member, facts.get(member.pid), now) for member in members]
        stats = PoolStats(
            name=NAME,
            kind=KIND,
            workers=tuple(workers[:MOST_TOLD]),
            started=self._started,
            crashes=dict(self._crashes),
            cpu=self._cpu + sum(worker.cpu or 0.0 for worker in workers),
        )
        return PoolReading(stats, Histogram(), Histogram())

    def _worker(self, member: _Child, fact: ProcessFacts | None, now: float) -> WorkerStats:
        since = member.first_seen
        if member.birth is not None:
            since = member.birth.at
        elif fact is not None and fact.started_at is not None:  # the kernel's, right to a second
            since = min(since, now - (time.time() - fact.started_at))
        zombie_for = None if member.zombie_since is None else now - member.zombie_since
        verdict = judge(Situation.of(fact, now, zombie_for=zombie_for), self._hung_after())
        name = (member.birth.name if member.birth is not None else "") or (fact.name if fact is not None else "")
        return WorkerStats(
            pid=member.pid,
            state=verdict.state,
            calls=0,
            done=0,
            age=max(now - since, 0.0),
            memory=(fact.memory or 0) if fact is not None else 0,
            reason=_words(verdict, name, member.birth),
            unique=fact.unique if fact is not None else None,
            starved=fact.starved if fact is not None else None,
            cpu=fact.cpu if fact is not None else None,
            task=name or None,
            exitcode=fact.exitcode if fact is not None else None,
            oom_killed=fact.oom_killed if fact is not None else None,
        )


def _words(verdict: Verdict, name: str, birth: Birth | None) -> str:
    made = f"made at {birth.place}" if birth is not None and birth.place else ""
    return "; ".join(part for part in (name, verdict.reason, made) if part)


def _as_requested(birth: Birth, code: int) -> bool:
    """Whether it ended on request, by the signal or by itself after it; not if it was aborted before."""
    return birth.asked and not birth.aborted and (code >= 0 or crash_reason(code) in _REQUESTED)


_REQUESTED = ("SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGHUP")


def _helpers() -> set[int]:
    """Return the ids of helper processes of multiprocessing, loky and loopwatch."""
    found: list[Any] = []
    for name in ("multiprocessing.resource_tracker", "loky.backend.resource_tracker"):
        found.append(getattr(getattr(loaded(name), "_resource_tracker", None), "_pid", None))
    forkserver = getattr(loaded("multiprocessing.forkserver"), "_forkserver", None)
    found.append(getattr(forkserver, "_forkserver_pid", None))
    launch = loaded("loopwatch.workers.launch")
    if launch is not None:
        found += launch.helpers()
    return {pid for pid in found if isinstance(pid, int)}


def has_children() -> bool:
    """Whether this process has any child: one system call, which neither blocks nor reaps."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:  # ECHILD
        return False
    return True


def child_pids() -> list[int]:
    """Return the ids of the children of this process.

    The kernel lists them by the thread that forked them (proc(5), ``/proc/PID/task/TID/children``); where it does not,
    all processes of the system are scanned for their parent, which takes milliseconds.
    """
    if not has_children() and hasattr(os, "waitid"):
        return []
    try:
        if _is_listed():
            return [pid for thread in os.listdir("/proc/self/task") for pid in _children_of(thread)]
    except OSError:  # no descriptor left, or access denied: tried again at the next poll
        return []
    import psutil

    try:
        return [child.pid for child in psutil.Process().children()]
    except (psutil.Error, OSError):
        return []


def _is_listed() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _children_of(thread: str) -> list[int]:
    text = threads.read_kernel(f"/proc/self/task/{thread}/children", whole=True)
    return [int(word) for word in (text or "").split()]  # empty if the thread has ended

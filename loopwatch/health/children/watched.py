"""Tracks child processes that belong to no pool: which are alive, which are zombies, how the others ended."""
# To load pathlib takes 4 ms, in every process that is watched.
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
"""Children listed one by one: zombies first, then the oldest; all of them are counted."""
HEARD_WITHIN = 60.0
"""s: so long after a child is gone its exit code may still be heard of; a fork server keeps it until it is asked."""
NOTED_WITHIN = 1.0
"""s: so long after a child is seen it may still turn out who started it."""
MOST_ENDS = 1024
"""Ends kept for whoever looks for a pattern in them."""


@dataclass(slots=True)
class _Child:
    """One that is there, or has just gone."""

    pid: int
    birth: Birth | None
    first_seen: float
    counted: bool
    zombie_since: float | None = None
    gone_since: float | None = None


class Children:
    """The children of this process that no pool looks after: the :class:`~loopwatch.health.records.Source` of them.

    Args:
        births: what was noted of children that the program started.
        hung_after: s, as ``Config.hung_after``.
        oom_killed: returns whether the kernel killed processes that SIGKILL has ended a moment ago; None: unknown.
        clock: monotonic s.
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
        """How the last ones ended, oldest first."""
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
        """Adopt the children that are there already: how they end is heard of from now on.

        Where every process of the system would have to be asked, those are adopted that later looks find.
        """
        if _is_listed() and has_children():
            now, theirs = self._clock(), _helpers()
            for pid in child_pids():
                if pid not in self._process_hooks.known and pid not in theirs:
                    self._members[pid] = _Child(pid, self._process_hooks.adopt(pid), now, counted=False)

    # -- what the monitor asks ------------------------------------------------------------------------------------

    @property
    def used(self) -> bool:
        """Whether there are any, or were: nothing need be told otherwise."""
        return bool(self._started or self._members)

    def look(self, claimed: Collection[int]) -> None:
        """See which there are.

        Args:
            claimed: processes that pools look after.
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
                member.birth = birth  # it was seen before it was noted
            if member is None or member.birth is not birth:
                # Of one that nobody noted a pool may say a moment later that it is its own.
                member = self._members[pid] = _Child(pid, birth, now, counted=False)
                if birth is not None:
                    self._count(member)
            else:
                self._count(member)
        for pid in theirs & self._members.keys():
            birth = self._members.pop(pid).birth
            if birth is not None and birth.adopted:  # whoever claims it hears of its end
                self._process_hooks.forget([pid])
        self._note_short_lives(process_hooks, now)

    def _count(self, member: _Child) -> None:
        self._started += not member.counted
        member.counted = True

    def _note_short_lives(self, process_hooks: Mapping[int, Birth], now: float) -> None:
        """Deal with children that were waited for before anybody saw them, and with workers of pools that are gone."""
        done = [pid for pid, birth in process_hooks.items() if birth.exitcode is not None and pid not in self._members]
        ours = {pid: process_hooks[pid] for pid in done if process_hooks[pid].pool is None and pid not in self._claimed}
        killed = frozenset(pid for pid, birth in ours.items() if birth.exitcode == SIGKILL)
        oom = self._oom_killed(killed) if killed else None
        for pid, birth in ours.items():
            self._started += 1
            self._ended(pid, birth, birth.exitcode, now=now, oom=oom if pid in killed else False)
        self._process_hooks.forget(done)

    def settle(self, facts: Mapping[int, ProcessFacts]) -> list[int]:
        """Take note of those that have ended; return them: their numbers may be given to others."""
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
                    continue  # whoever waits for it is about to say how it ended
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
        crashed = code is not None and code != 0 and not (birth is not None and _as_told(birth, code))
        reason = crash_reason(code, oom) if crashed else None
        if reason is not None:
            self._crashes[reason] += 1
        known = birth or Birth(pid, now, executes=True)
        over = now if known.ended_at is None else known.ended_at
        self.ends.append(
            End(pid, now, max(over - known.at, 0.0), reason, known.place, known.name or name, known.executes)
        )

    # -- as a source ----------------------------------------------------------------------------------------------

    def pids(self) -> Sequence[int]:
        """Return those that are there."""
        return tuple(self._members)

    def reading(self, facts: Mapping[int, ProcessFacts], now: float) -> PoolReading:
        """Return how many there are and how they are."""
        members = [
            each for each in list(self._members.values()) if each.gone_since is None
        ]  # the monitor's thread may be at it
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
        elif fact is not None and fact.started_at is not None:  # as the kernel has it: to a second
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


def _as_told(birth: Birth, code: int) -> bool:
    """Whether it ended since it was told to: by such a signal, or by itself upon it; not if it was aborted before."""
    return birth.told and not birth.aborted and (code >= 0 or crash_reason(code) in _TOLD)


_TOLD = ("SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGHUP")


def _helpers() -> set[int]:
    """Return processes that multiprocessing, loky and loopwatch keep for themselves."""
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
    """Whether this process has any child: one system call, which waits for nothing and takes nothing away."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:  # ECHILD
        return False
    return True


def child_pids() -> list[int]:
    """Return the children of this process.

    The kernel keeps them by the thread that forked them (proc(5), ``/proc/PID/task/TID/children``); where it does not
    say, every process of the system is asked for its parent, which takes milliseconds.
    """
    if not has_children() and hasattr(os, "waitid"):
        return []
    try:
        if _is_listed():
            return [pid for thread in os.listdir("/proc/self/task") for pid in _children_of(thread)]
    except OSError:  # no descriptor left, or not ours to look at: the next time, perhaps
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
    return [int(word) for word in (text or "").split()]  # else the thread has ended

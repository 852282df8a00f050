"""Decides the cause of a stall: ordered rules over :class:`loopwatch.Evidence`, first match wins.

A rule depends on the evidence only, so that any verdict in a journal can be replayed. The rules judge the block's own
part, see :mod:`loopwatch.diagnosis.own_part`. If no rule is confident, the cause is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable

from loopwatch.core.dataclasses import dataclass
from loopwatch.diagnosis.own_part import Parts, computes, contradictions, is_starved, may_want_the_gil, slept, split
from loopwatch.events import Cause, Evidence
from loopwatch.system.syscalls import POLLS, RUNNING, kind_of

MOST = 0.5
"""Share of the observed span that one activity must fill to be its cause."""
MOSTLY = 0.8
MUCH, SOME = 0.4, 0.3
"""Shares from which loss of the GIL shows: the watcher notices it only between its own sleeps."""

ONE_PROCESSOR = 1.25
"""Processors that threads which compute under the GIL use at most, with a margin for what they do without it."""
UNSURE = 0.1
"""Share of a block without a processor from which a free GIL is no proof that the thread had given it up."""
MANY_HANDLES, EVEN = 20, 0.2
"""Handles of one pass, and how far its progress may deviate from an even one, that show many small callbacks."""
CROWD = 1000
"""Handles of one pass that are the reason for collections in it."""
SEVERAL = 3
"""Samples from which their median says how long the watcher had to wait for the GIL."""

MOVES = 0.3
"""Share of neighbouring samples with different innermost positions from which a thread counts as progressing."""
STAYS = 0.34
"""The same, below which it does not if most samples are within calls of C code: one of three, at the end of a call."""

CHEAP = frozenset(
    {
        "builtins.isinstance",
        "builtins.len",
        "os.getpid",
        "threading.get_ident",
        "time.monotonic",
        "time.monotonic_ns",
        "time.perf_counter",
        "time.perf_counter_ns",
        "time.thread_time",
        "time.time",
    }
)
"""Calls too cheap to have delayed a sample: the interpreter releases the GIL at the end of the first call after an
operator that kept it, and which function ran that operator is not known."""


def decide(evidence: Evidence) -> Cause:
    """Return the cause that ``evidence`` proves, ``unknown`` if it proves none.

    Example:
        >>> decide(Evidence(wall=0.3, cpu=0.0, samples=9, syscall="clock_nanosleep", syscall_share=1.0))
        <Cause.SLEEP: 'sleep'>
    """
    facts = _Facts.of(evidence)
    for rule in _RULES:
        cause = rule(facts)
        if cause is not None:
            return cause
    return Cause.UNKNOWN


@dataclass(frozen=True, slots=True)
class _Facts:
    """Evidence with the shares of the block's own part that the rules compare.

    Attributes:
        evidence: the facts.
        parts: the block's own part, and the time without a processor.
        ran: share of it for which the loop's thread used a processor.
        others: processors used by the other threads of the process.
        late: share of it for which the watcher was late, not for want of a processor.
        kept: share of it for which the watcher waited for the GIL.
    """

    evidence: Evidence
    parts: Parts
    ran: float
    others: float
    late: float
    kept: float

    @classmethod
    def of(cls, evidence: Evidence) -> _Facts:
        """Return the facts of ``evidence``."""
        parts, cpu = split(evidence), evidence.cpu or 0.0
        others = 0.0 if evidence.process_cpu is None or evidence.cpu is None else evidence.process_cpu - cpu
        kept = late = max(evidence.watcher_late - max(evidence.watcher_starved, 0.0), 0.0)
        if evidence.watcher_runs is not None:  # once each switch interval while it waits for the GIL
            kept = min(kept, evidence.watcher_runs * evidence.switch_interval)
        kept -= parts.starved  # whoever keeps the GIL may have no processor meanwhile, and compute nothing
        own = parts.own
        return cls(evidence, parts, _share(cpu, own), _share(others, own), _share(late, own), _share(kept, own))

    def share(self, seconds: float | None) -> float:
        """Return ``seconds`` as a share of the block's own part."""
        return _share(seconds, self.parts.own)

    @property
    def woke(self) -> bool | None:
        """Whether the watcher kept waking while it was late, as a thread that waits for the GIL does; None: unknown."""
        return _woke(self.evidence.watcher_runs, self.evidence.watcher_late, self.evidence)

    @property
    def contended(self) -> bool:
        """Whether the watcher had to wait for the GIL."""
        return (self.evidence.gil_wait or 0.0) >= 0.2 * self.evidence.switch_interval or self.kept >= SOME / 2


def _share(seconds: float | None, whole: float) -> float:
    """Return a share; never below 0, as clocks that were read at different moments may run against each other."""
    return seconds / whole if seconds is not None and seconds > 0 and whole > 0 else 0.0


def _woke(runs: int | None, seconds: float, evidence: Evidence) -> bool | None:
    """Whether a thread that was given a processor ``runs`` times waited for the GIL most of ``seconds``."""
    return None if runs is None else runs * evidence.switch_interval >= SOME * seconds


def _impossible(facts: _Facts) -> Cause | None:
    return Cause.UNKNOWN if contradictions(facts.evidence) else None


def _surely_another_held_the_gil(facts: _Facts) -> Cause | None:
    # The threads that fight for the GIL also take the processors from each other.
    evidence = facts.evidence
    others = _share((evidence.process_cpu or 0.0) - (evidence.cpu or 0.0), evidence.wall)
    if _share(evidence.cpu, evidence.wall) >= 0.1 or not MOSTLY <= others <= ONE_PROCESSOR:
        return None
    if _share(evidence.gc, evidence.wall) >= MOST:  # the other thread collects garbage
        return None
    if slept(evidence) and kind_of(evidence.syscall) in ("io", "sleep") and evidence.syscall_share >= MOST:
        return None
    woke = _woke(evidence.runs, evidence.wall, evidence)  # one that waits for a lock does not wake
    if woke is None:
        return _another_held_the_gil(facts)
    return Cause.GIL if woke else None


def _starved(facts: _Facts) -> Cause | None:
    return Cause.STARVED if is_starved(facts.evidence) else None


def _suspended(facts: _Facts) -> Cause | None:
    evidence = facts.evidence
    nobody_ran = evidence.process_cpu is not None and facts.share(evidence.process_cpu) < 0.1
    nothing_seen = evidence.samples < 2 or (evidence.gil_wait or 0.0) > 3 * evidence.switch_interval
    # A loop that nothing kept from waking up, and that did not wait for a processor either, was stopped itself.
    could_not_wake = evidence.asleep and evidence.run_queue is not None and evidence.samples < 2
    stopped = nobody_ran and facts.ran < MOST and nothing_seen and not facts.woke
    return Cause.SUSPENDED if stopped and (could_not_wake or facts.late >= MOST) else None


def _gc(facts: _Facts) -> Cause | None:
    # A sleeping thread that does not want the GIL is not held up by a collection in another thread.
    evidence = facts.evidence
    elsewhere = evidence.samples > 1 and kind_of(evidence.syscall) in ("sleep", "io") and evidence.syscall_share >= MOST
    # What thousands of callbacks allocate is collected with them.
    is_crowd = evidence.callbacks >= SEVERAL and (evidence.handles or 0) >= CROWD
    return Cause.GC if facts.share(evidence.gc) >= MOST and not elsewhere and not is_crowd else None


def _overload(facts: _Facts) -> Cause | None:
    evidence = facts.evidence
    longest, surely = evidence.longest_callback, evidence.dominant_callback
    if evidence.handles is not None and evidence.uneven is not None and evidence.threshold is not None:
        # As much of the pass was done as of its time was over, whenever it was sampled.
        small = facts.parts.own / max(evidence.handles, 1) <= evidence.threshold / 5
        none_long = surely is None or surely < evidence.threshold
        if evidence.handles >= MANY_HANDLES and small and none_long and evidence.uneven <= EVEN:
            return Cause.OVERLOAD
    if evidence.callbacks < 3 or longest is None or surely is None or evidence.threshold is None:
        return None
    # Few samples, far apart, bound a callback badly; a different one in nearly each is as good evidence.
    ever_new = evidence.callbacks >= 0.75 * evidence.samples or evidence.callbacks >= 5
    many = longest < evidence.threshold or (ever_new and surely < evidence.threshold / 2)
    return Cause.OVERLOAD if many else None


def _another_held_the_gil(facts: _Facts) -> Cause | None:
    evidence = facts.evidence
    if facts.ran >= MOST or facts.others < MUCH:
        return None
    if facts.kept >= SOME:
        return Cause.GIL
    # A thread that waits for a lock stays in one position; one that waits for the GIL gets it at times, and moves on.
    stays = evidence.lock_wait and (evidence.moving or 0.0) < MOVES
    wanted = evidence.asleep or (not stays and kind_of(evidence.syscall) in (RUNNING, "lock", ""))
    return Cause.GIL if wanted and facts.contended else None


def _kept_the_gil_idle(facts: _Facts) -> Cause | None:
    """C code that waits without releasing the GIL: no thread computes, and the watcher keeps asking for the GIL."""
    evidence = facts.evidence
    if facts.ran >= MOST or facts.others >= SOME or facts.kept < MOST or not facts.woke:
        return None
    return Cause.GIL if _woke(evidence.runs, facts.parts.own, evidence) else Cause.NATIVE_GIL


def _computing(facts: _Facts) -> Cause | None:
    evidence = facts.evidence
    if facts.ran < MOST:
        return None
    released = evidence.samples >= SEVERAL and (evidence.gil_wait or 0.0) <= 2 * evidence.switch_interval
    if (facts.kept >= MUCH and not released) or (evidence.in_call >= MOST and (evidence.moving or 0.0) < STAYS):
        return Cause.NATIVE_GIL
    if not evidence.samples:
        return None
    collects = facts.share(evidence.gc) >= SOME / 2 and (evidence.moving or 0.0) >= MOVES
    if (evidence.gil_wait or 0.0) > 3 * evidence.switch_interval and not collects:  # Python code releases it after one
        return Cause.NATIVE_GIL
    wants_the_gil = may_want_the_gil(evidence) and evidence.syscall_share >= MOST
    if (evidence.moving or 0.0) >= MOVES or (evidence.gil_wait or 0.0) >= MOST * evidence.switch_interval:
        return Cause.PYTHON
    if wants_the_gil:
        return Cause.PYTHON
    if evidence.gil_wait is None or facts.parts.starved >= UNSURE * evidence.wall:
        # A thread that lacks a processor may also lack the GIL; only a call of C code can have given it up by itself.
        contended = (evidence.gil_wait or 0.0) >= SOME * evidence.switch_interval
        if evidence.call is None or evidence.call in CHEAP or contended:
            return Cause.PYTHON
        return Cause.NATIVE if evidence.samples > 1 or evidence.gil_wait is not None else None
    return Cause.NATIVE


def _waiting(facts: _Facts) -> Cause | None:
    evidence = facts.evidence
    if facts.ran >= MOST or (evidence.asleep and evidence.syscall in (None, RUNNING, *POLLS)):
        return None
    if slept(evidence) and evidence.syscall_share >= MOST:
        return {"sleep": Cause.SLEEP, "lock": Cause.LOCK, "io": Cause.IO}[kind_of(evidence.syscall)]
    if evidence.asleep or facts.share(evidence.gc) + facts.ran >= MOST:
        return None
    # By the kernel's accounting it slept most of the time, but each time too briefly to be found asleep.
    return _by_name(evidence) or (
        Cause.IO if evidence.samples and evidence.wait_channel and not computes(evidence) else None
    )


def _by_name(evidence: Evidence) -> Cause | None:
    """Return the cause by the name of the call, where the kernel does not say what the thread waited in."""
    if evidence.lock_wait:
        return Cause.LOCK
    if evidence.call == "time.sleep":
        return Cause.SLEEP
    module = (evidence.call or "").partition(".")[0]
    return Cause.IO if module in ("socket", "select", "ssl", "subprocess", "posix", "os", "io") else None


_RULES: tuple[Callable[[_Facts], Cause | None], ...] = (
    _impossible,
    _surely_another_held_the_gil,
    _starved,
    _suspended,
    _gc,
    _overload,
    _another_held_the_gil,
    _kept_the_gil_idle,
    _computing,
    _waiting,
)

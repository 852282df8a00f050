"""Decides the cause of a stall: ordered rules over :class:`loopwatch.Evidence`, first match wins.

A rule depends on the evidence only, so that any verdict in a journal can be replayed. If no rule is confident, the
cause is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable

from loopwatch.events import Cause, Evidence
from loopwatch.system.syscalls import RUNNING, kind_of

MOST = 0.5
"""Share of the observed span that one activity must fill to be its cause."""
MOSTLY = 0.8
MUCH, SOME = 0.4, 0.3
"""Shares from which loss of the GIL shows: the watcher notices it only between its own sleeps."""

MOVES = 0.3
"""Share of neighbouring samples with different innermost positions from which a thread counts as progressing."""


def decide(evidence: Evidence) -> Cause:
    """Return the cause that ``evidence`` proves, ``unknown`` if it proves none.

    Example:
        >>> decide(Evidence(wall=0.3, cpu=0.0, samples=9, syscall="clock_nanosleep", syscall_share=1.0))
        <Cause.SLEEP: 'sleep'>
    """
    for rule in _RULES:
        cause = rule(evidence)
        if cause is not None:
            return cause
    return Cause.UNKNOWN


def _share(seconds: float | None, evidence: Evidence) -> float:
    """Share of the block; never below 0, as clocks that were read at different moments may run against each other."""
    return 0.0 if seconds is None or evidence.wall <= 0 else max(seconds / evidence.wall, 0.0)


def _others(evidence: Evidence) -> float:
    """Share of one processor used by the other threads of the process."""
    if evidence.process_cpu is None or evidence.cpu is None:
        return 0.0
    return _share(evidence.process_cpu - evidence.cpu, evidence)


def _kept_from_running(evidence: Evidence) -> float:
    """Share of the span in which the watcher had a processor, but not the GIL."""
    return _share(evidence.watcher_late - evidence.watcher_starved, evidence)


def _starved(evidence: Evidence) -> Cause | None:
    waited = max(_waited_for_a_processor(evidence), _awake(_share(evidence.throttled, evidence), evidence))
    if evidence.asleep:
        waited = max(waited, _share(evidence.watcher_starved, evidence))
    # A block whose processor time alone exceeds the threshold is not only the machine's fault.
    too_long_by_itself = None not in (evidence.cpu, evidence.threshold) and evidence.cpu >= evidence.threshold  # type: ignore[operator]
    return Cause.STARVED if waited >= (MOSTLY if too_long_by_itself else MOST) else None


def _suspended(evidence: Evidence) -> Cause | None:
    nobody_ran = evidence.process_cpu is not None and _share(evidence.process_cpu, evidence) < 0.1
    nobody_waited = _share(evidence.run_queue, evidence) < 0.3
    nothing_seen = evidence.samples < 2 or (evidence.gil_wait or 0.0) > 3 * evidence.switch_interval
    # A loop that nothing kept from waking up, and that did not wait for a processor either, was stopped itself.
    could_not_wake = evidence.asleep and evidence.run_queue is not None
    stopped = nobody_ran and nobody_waited and nothing_seen
    return Cause.SUSPENDED if stopped and (could_not_wake or _kept_from_running(evidence) >= MOST) else None


def _gc(evidence: Evidence) -> Cause | None:
    # A sleeping thread that does not want the GIL is not held up by a collection in another thread.
    elsewhere = evidence.samples > 1 and kind_of(evidence.syscall) in ("sleep", "io") and evidence.syscall_share >= MOST
    return Cause.GC if _share(evidence.gc, evidence) >= MOST and not elsewhere else None


def _overload(evidence: Evidence) -> Cause | None:
    longest, surely = evidence.longest_callback, evidence.dominant_callback
    if evidence.callbacks < 3 or longest is None or surely is None or evidence.threshold is None:
        return None
    # Few samples, far apart, bound a callback badly; a different one in nearly each is as good evidence.
    ever_new = evidence.callbacks >= 0.75 * evidence.samples or evidence.callbacks >= 5
    many = longest < evidence.threshold or (ever_new and surely < evidence.threshold / 2)
    return Cause.OVERLOAD if many else None


def _ran(evidence: Evidence) -> float:
    """Share of processor time that the loop's thread used, of the time that it did not wait for a processor."""
    return _share(evidence.cpu, evidence) / (1 - min(_waited_for_a_processor(evidence), MOSTLY))


def _waited_for_a_processor(evidence: Evidence) -> float:
    """Share of the span in which the loop's thread was runnable and had no processor."""
    return _awake(_share(evidence.run_queue, evidence), evidence)


def _awake(waited: float, evidence: Evidence) -> float:
    """Limit a wait to the share awake: a thread found asleep is not runnable, and waited before the block."""
    return min(waited, max(1 - evidence.syscall_share, 0.0)) if _slept(evidence) else waited


def _another_held_the_gil(evidence: Evidence) -> Cause | None:
    if _ran(evidence) >= MOST or _others(evidence) < MUCH:
        return None
    if _kept_from_running(evidence) >= SOME:
        return Cause.GIL
    # A thread that waits for a lock stays in one position; one that waits for the GIL gets it at times, and moves on.
    stays = evidence.lock_wait and (evidence.moving or 0.0) < MOVES
    wanted = evidence.asleep or (not stays and kind_of(evidence.syscall) in (RUNNING, "lock", ""))
    contended = (evidence.gil_wait or 0.0) >= 0.2 * evidence.switch_interval or _kept_from_running(evidence) >= SOME / 2
    return Cause.GIL if wanted and contended else None


def _computing(evidence: Evidence) -> Cause | None:
    if evidence.asleep or _ran(evidence) < MOST:
        return None
    if _kept_from_running(evidence) >= MUCH or evidence.in_call >= MOST:
        return Cause.NATIVE_GIL
    if not evidence.samples or evidence.gil_wait is None:
        return None
    if evidence.gil_wait > 3 * evidence.switch_interval:  # Python code releases the GIL after one
        return Cause.NATIVE_GIL
    if (evidence.moving or 0.0) >= MOVES or evidence.gil_wait >= MOST * evidence.switch_interval:
        return Cause.PYTHON
    return Cause.NATIVE


def _waiting(evidence: Evidence) -> Cause | None:
    if evidence.asleep or _ran(evidence) >= MOST:
        return None
    if _slept(evidence) and evidence.syscall_share >= MOST:
        return {"sleep": Cause.SLEEP, "lock": Cause.LOCK, "io": Cause.IO}[kind_of(evidence.syscall)]
    if _share(evidence.run_queue, evidence) + _share(evidence.gc, evidence) + _share(evidence.cpu, evidence) >= MOST:
        return None
    # By the kernel's accounting it slept most of the time, but each time too briefly to be found asleep.
    return _by_name(evidence) or (Cause.IO if evidence.samples and evidence.wait_channel else None)


def _slept(evidence: Evidence) -> bool:
    """Whether the samples found the thread asleep rather than running."""
    if evidence.samples == 1 and (evidence.gil_wait or 0.0) > 3 * evidence.switch_interval:
        return False  # a single, late sample: the block may have been over by the time the kernel was asked
    return kind_of(evidence.syscall) in ("sleep", "lock", "io")


def _by_name(evidence: Evidence) -> Cause | None:
    """Return the cause by the name of the call, where the kernel does not say what the thread waited in."""
    if evidence.lock_wait:
        return Cause.LOCK
    if evidence.call == "time.sleep":
        return Cause.SLEEP
    module = (evidence.call or "").partition(".")[0]
    return Cause.IO if module in ("socket", "select", "ssl", "subprocess", "posix", "os", "io") else None


_RULES: tuple[Callable[[Evidence], Cause | None], ...] = (
    _starved,
    _suspended,
    _gc,
    _overload,
    _another_held_the_gil,
    _computing,
    _waiting,
)

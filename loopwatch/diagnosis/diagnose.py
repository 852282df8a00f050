"""Turns an observation into a :class:`loopwatch.Stall`. Pure, except for the function that names calls."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType

from loopwatch.core.dataclasses import dataclass, replace
from loopwatch.core.faults import Attempt, plainly
from loopwatch.core.text import MAX_LINE, printable
from loopwatch.diagnosis.advise import NO_HANDLERS, NOTHING, advise
from loopwatch.diagnosis.cause import CHEAP, decide
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.diagnosis.culprit import Stack, Verdict, judge
from loopwatch.diagnosis.own_part import split
from loopwatch.diagnosis.site import Site
from loopwatch.events import Cause, Evidence, Frame, StackCount, Stall
from loopwatch.watch.observation import Observation, Sample
from loopwatch.watch.stacks import RawStack, to_frames

MAX_PROFILE = 8
"""Distinct stacks kept per stall."""

_DEBUGGERS = (
    "IPython.core.debugger", "_pydevd_bundle", "bdb", "debugpy", "ipdb", "pdb", "pudb", "pydevd", "remote_pdb",
    "web_pdb",
)  # fmt: skip
_WAITERS = ("threading", "queue", "concurrent.futures", "multiprocessing", "_queue")
_WAITING_METHODS = (".acquire", ".join", ".result", ".wait", ".get", ".put")

CallName = Callable[[RawStack], str | None]
"""Returns the dotted name of the call that the innermost frame of a stack is making."""


def undiagnosed(seen: Observation, threshold: float) -> Stall:
    """Return the stall of an undiagnosed observation: its measurements, without a cause."""
    return Stall(
        id=seen.id,
        loop=printable(seen.loop),
        thread=printable(seen.thread),
        pid=seen.pid,
        expected=None if seen.expectation is None else printable(seen.expectation.reason),
        started_at=seen.started_at,
        duration=seen.end - seen.start,
        uncertainty=seen.uncertainty,
        ongoing=seen.ongoing,
        cause=Cause.UNKNOWN,
        samples=(0, len(seen.samples)),
        task=None if seen.task is None else printable(seen.task),
        coroutine=None if seen.coroutine is None else printable(seen.coroutine),
        context={printable(key): printable(value) for key, value in seen.context.items()},
        victims=seen.victims,
        evidence=replace(seen.evidence, threshold=threshold),
    )


def diagnose(
    seen: Observation,
    site: Site,
    threshold: float,
    call_name: CallName,
    dump: Stack = (),
    *,
    handlers: frozenset[CodeType] = NO_HANDLERS,
    attempt: Attempt = plainly,
) -> Stall | None:
    """Return the stall of the observation ``seen``, None if a debugger held the program.

    All text in it is printable and bounded, see :mod:`loopwatch.core.text`.

    Args:
        seen: observation of the watcher.
        site: decides whose code a frame is.
        threshold: seconds, the limit in force.
        call_name: names the call at the innermost line of a stack.
        dump: stack that faulthandler wrote during the block, used if no sample shows the user's code.
        handlers: code of the registered signal handlers.
        attempt: guards the optional parts of a stall: the names of calls (part ``source``), the culprit, the cause,
            the remedy; default: unguarded.
    """
    stacks = [to_frames(sample.stack.frames) for sample in seen.samples]
    if any(_in_debugger(stack) for stack in stacks):
        return None
    place = _Place(site, call_name, attempt)
    lasted = _lasted(seen.samples)
    shown = [index for index, stack in enumerate(stacks) if stack]
    verdict = place.judge([stacks[index] for index in shown], [lasted[index] for index in shown])
    if verdict.culprit is None and dump:
        verdict = place.judge([dump])
    if seen.endpoint is not None and site.is_user(seen.endpoint) and not _shows_user(verdict, site):
        verdict = replace(verdict, culprit=seen.endpoint, agreeing=len(shown))
    leaf = verdict.stack[-1] if verdict.stack else None
    inner = _sample_of(verdict, seen.samples, stacks)
    call = place.call(inner.stack) if inner is not None else None
    spans = _spans(seen)
    evidence = _complete(seen, spans, leaf, call, threshold)
    cause = attempt("cause", lambda: decide(evidence), Cause.UNKNOWN)
    if cause is Cause.SUSPENDED and evidence.traced:
        return None
    was_in = None if CAUSES[cause].has_culprit else verdict.culprit
    other = {Cause.GIL: seen.hog, Cause.GC: seen.collector}.get(cause)
    if other is not None:
        verdict = replace(place.judge([to_frames(other.frames)]), agreeing=verdict.agreeing)
        leaf = verdict.stack[-1] if verdict.stack else leaf
        call = place.call(other)
    elif _has_no_culprit(cause, seen, call, dump):
        verdict = Verdict(None, verdict.stack, 0)
    parts = split(evidence).within(seen.end - seen.start)
    calls = _calls(verdict, call if cause is not Cause.PYTHON else None, site)
    known = replace(seen, evidence=evidence)
    own = None if inner is None or other is not None or verdict.culprit is None else inner.stack
    advised = attempt(
        "remedy",
        lambda: advise(known, site, cause, verdict, shown=own, calls=calls, parts=parts, handlers=handlers),
        NOTHING,
    )
    return replace(
        undiagnosed(seen, threshold),
        uncertainty=_uncertainty(seen, spans, cause),
        cause=cause,
        culprit=verdict.culprit,
        leaf=leaf,
        stack=verdict.stack,
        samples=(verdict.agreeing, len(seen.samples)),
        evidence=evidence,
        remedy=printable(advised.remedy, MAX_LINE),
        profile=_profile(stacks),
        starved=parts.starved,
        throttled=parts.throttled,
        was_in=was_in,
        offloadable=advised.offloadable,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Locates a block in the code; a failure costs the stall its location, no more.

    Attributes: as the arguments of :func:`diagnose`.
    """

    site: Site
    call_name: CallName
    attempt: Attempt

    def judge(self, stacks: Sequence[Stack], lasted: Sequence[int] = ()) -> Verdict:
        """Return the culprit of ``stacks``; see :func:`loopwatch.diagnosis.culprit.judge`."""
        unknown = Verdict(None, stacks[-1] if stacks else (), 0)
        return self.attempt("culprit", lambda: judge(self.site, stacks, lasted), unknown)

    def call(self, stack: RawStack) -> str | None:
        """Return the name of the call at the innermost line of ``stack``."""
        name = self.attempt("source", lambda: self.call_name(stack), None)
        return None if name is None else printable(name)


def _shows_user(verdict: Verdict, site: Site) -> bool:
    return verdict.culprit is not None and site.is_user(verdict.culprit)


def _lasted(samples: Sequence[Sample]) -> list[int]:
    """Return for each sample how many of its outermost calls are known to last; all in the first sample of a callback.

    What was seen of a call before the block does not count: a coroutine may have waited since.
    """
    found: list[int] = []
    for before, sample in zip((None, *samples), samples, strict=False):
        frames = sample.stack.frames
        if before is None or before.callback != sample.callback:
            found.append(len(frames))
        else:
            found.append(next((n for n, frame in enumerate(reversed(frames)) if not frame.was_seen), len(frames)))
    return found


def _has_no_culprit(cause: Cause, seen: Observation, call: str | None, dump: Stack) -> bool:
    """Whether the sampled code is not to blame: something else blocked the loop, or the sample came too late."""
    misplaced = cause is Cause.NATIVE_GIL and len(seen.samples) == 1 and call in CHEAP and not dump
    return not CAUSES[cause].has_culprit or cause is Cause.GIL or misplaced


def _uncertainty(seen: Observation, spans: Spans, cause: Cause) -> float:
    if CAUSES[cause].is_whole_pass:
        return seen.uncertainty
    if seen.shared:
        return seen.uncertainty + spans.slack
    return min(seen.uncertainty, spans.slack) if spans.callbacks else seen.uncertainty


@dataclass(frozen=True, slots=True)
class Spans:
    """How the observed span divides among callbacks.

    Attributes:
        callbacks: number of different callbacks seen.
        longest: upper bound, seconds, of the time that any one of them held the loop; None without samples.
        surely: lower bound of the same.
        slack: seconds of the span that may belong to other callbacks than the longest one.
    """

    callbacks: int
    longest: float | None
    surely: float | None
    slack: float


def _spans(seen: Observation) -> Spans:
    samples = [sample for sample in seen.samples if sample.callback is not None]
    if not samples:
        return Spans(0, None, None, seen.end - seen.start)
    runs: list[list[Sample]] = [[samples[0]]]
    for sample in samples[1:]:
        if sample.callback == runs[-1][-1].callback:
            runs[-1].append(sample)
        else:
            runs.append([sample])
    longest, surely = 0.0, 0.0
    for index, run in enumerate(runs):
        begin = runs[index - 1][-1].at if index else seen.start
        end = runs[index + 1][0].at if index + 1 < len(runs) else seen.end
        first, last = run[0], run[-1]
        # The first callback of a pass began with it, the last one ends with it; if the pass's own bounds are known.
        seen_from = (
            begin if seen.shared and first.stack.position == 0 else max(first.at - _held(first, seen.evidence), begin)
        )
        lower = (end if seen.shared and _is_last(last) else last.at) - seen_from
        if end - begin > longest:
            longest, surely = end - begin, lower
    callbacks = len({sample.callback for sample in samples})
    return Spans(callbacks, longest, surely, max(seen.end - seen.start - surely, 0.0))


def _held(sample: Sample, evidence: Evidence) -> float:
    """Return for how many seconds before ``sample`` one call must have kept the GIL.

    The watcher requested the GIL all that time. Its holder releases it one switch interval after the request, at the
    end of the current call: nothing else can have run meanwhile.
    """
    return max(sample.late - 2 * evidence.switch_interval - evidence.watcher_starved, 0.0)


def _is_last(sample: Sample) -> bool:
    position, planned = sample.stack.position, sample.stack.planned
    if position is None or planned is None:
        return position is not None and sample.waiting == 0
    return position == planned - 1


def _complete(seen: Observation, spans: Spans, leaf: Frame | None, call: str | None, threshold: float) -> Evidence:
    positions = [
        (sample.stack.frames[0].code, sample.stack.frames[0].lasti) for sample in seen.samples if sample.stack.frames
    ]
    pairs = list(itertools.pairwise(positions))
    return replace(
        seen.evidence,
        moving=sum(one != other for one, other in pairs) / len(pairs) if pairs else None,
        callbacks=spans.callbacks,
        handles=max((sample.stack.planned or 0 for sample in seen.samples), default=0) or None,
        uneven=_uneven(seen),
        longest_callback=spans.longest,
        dominant_callback=spans.surely,
        in_call=sum(sample.stack.in_gc for sample in seen.samples) / len(seen.samples)
        if call and seen.samples
        else 0.0,
        lock_wait=_waits_for_lock(leaf, call),
        call=call,
        threshold=threshold,
    )


def _uneven(seen: Observation) -> float | None:
    """Return how far the progress of the pass deviates from an even one, None if it was not seen in its middle."""
    length, found = seen.end - seen.start, []
    for sample in seen.samples:
        position, planned = sample.stack.position, sample.stack.planned
        if position is None or not planned or length <= 0:
            return None
        found.append((position / planned, (sample.at - seen.start) / length))
    if not any(0.2 <= over <= 0.8 for _, over in found):
        return None
    return max(abs(done - over) for done, over in found)


def _waits_for_lock(leaf: Frame | None, call: str | None) -> bool:
    if leaf is None:
        return False
    in_waiter = any(leaf.module == name or leaf.module.startswith(name + ".") for name in _WAITERS)
    return (in_waiter and call is not None and call.endswith(_WAITING_METHODS)) or call == ".acquire"


def _in_debugger(stack: Stack) -> bool:
    return any(_is_debugger(frame.module) for frame in stack)


@lru_cache(maxsize=4096)
def _is_debugger(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in _DEBUGGERS)


def _sample_of(verdict: Verdict, samples: Sequence[Sample], stacks: Sequence[Stack]) -> Sample | None:
    return next(
        (sample for sample, stack in zip(samples, stacks, strict=True) if stack and stack == verdict.stack), None
    )


def _calls(verdict: Verdict, call: str | None, site: Site) -> tuple[str, ...]:
    """Return dotted names from the culprit's line inward, for the remedy table."""
    if verdict.culprit is None:
        return ()
    frames = verdict.stack
    if verdict.culprit in frames:
        frames = frames[len(frames) - frames[::-1].index(verdict.culprit) :]
    if verdict.repeated is not None:  # what its short calls do is not what holds the loop
        frames = tuple(itertools.takewhile(lambda frame: not site.is_user(frame), frames))
        call = None
    named = [
        f"{frame.module}.{frame.function}"
        for frame in frames
        if not site.is_user(frame) and not site.is_machinery(frame)
    ]
    return (*named, call) if call else tuple(named)


def _profile(stacks: Sequence[Stack]) -> tuple[StackCount, ...]:
    counted = Counter(stack for stack in stacks if stack)
    return (
        tuple(StackCount(stack, count) for stack, count in counted.most_common(MAX_PROFILE)) if len(counted) > 1 else ()
    )

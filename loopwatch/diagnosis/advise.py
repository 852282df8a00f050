"""What to do about a stall: its remedy, and whether its culprit can be offloaded. Pure; collects what both need."""

from __future__ import annotations

from collections.abc import Sequence
from types import CodeType
from typing import NamedTuple

from loopwatch.core.dataclasses import replace
from loopwatch.diagnosis import call_context, offloadable
from loopwatch.diagnosis.cause import decide
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.diagnosis.culprit import AGREE, Verdict
from loopwatch.diagnosis.own_part import Parts
from loopwatch.diagnosis.remedy import called, is_known, moves, remedy
from loopwatch.diagnosis.site import Site
from loopwatch.events import Cause
from loopwatch.watch.observation import Observation
from loopwatch.watch.stacks import RawStack

LEAST = 0.001
"""Seconds that each callback of an overloaded pass takes at least for its call to be looked at."""
NO_HANDLERS: frozenset[CodeType] = frozenset()


class Advised(NamedTuple):
    """What to do: the remedy, one line, and whether the culprit can be offloaded."""

    remedy: str
    offloadable: bool


NOTHING = Advised("", False)


def advise(
    seen: Observation,
    site: Site,
    cause: Cause,
    verdict: Verdict,
    *,
    shown: RawStack | None,
    calls: Sequence[str],
    parts: Parts,
    handlers: frozenset[CodeType] = NO_HANDLERS,
) -> Advised:
    """Return what to do about the stall that ``seen`` becomes.

    Args:
        seen: observation of the watcher.
        site: decides whose code a frame is.
        cause, verdict: why the loop was blocked, and by whom.
        shown: the sampled stack that the verdict stands for, None if it is another thread's or a dump.
        calls: as in :func:`loopwatch.diagnosis.remedy.remedy`.
        parts: how much of the block was without a processor.
        handlers: code of the registered signal handlers.
    """
    stacks = [sample.stack for sample in seen.samples]
    frames = shown.frames if shown is not None else ()
    in_task = seen.task is not None or seen.coroutine is not None
    context = call_context.find(verdict.culprit, frames, site.is_user, handlers, in_task=in_task)
    if cause is Cause.GIL and not calls:  # a thread of a library, such as the one that feeds a process pool
        calls = [f"{frame.module}.{frame.function}" for frame in verdict.stack]
    own = offloadable.frame_of(frames, verdict.culprit)
    if context.kind is call_context.Kind.CALLED and own is not None and not offloadable.lasts(own, stacks):
        context = replace(context, is_short=True)
    can = (
        CAUSES[cause].is_offloadable
        and moves(cause, calls)
        and verdict.culprit is not None
        and site.is_user(verdict.culprit)
        and offloadable.can_be_offloaded(context, own, stacks)
    )
    alone = _as_one_call(seen, cause, verdict, calls)
    if alone is not None:
        handles = seen.evidence.handles or 0
        text = remedy(alone, calls, verdict.culprit, parts, context)
        return Advised(f"{text} {handles} callbacks in one pass, each {1000 * parts.own / handles:.0f} ms.", can)
    text = remedy(cause, calls, verdict.culprit, parts, context)
    if verdict.repeated is not None and cause is Cause.PYTHON:
        text += f" It makes many short calls of {called(verdict.repeated.function)}."
    return Advised(text, can)


def _as_one_call(seen: Observation, cause: Cause, verdict: Verdict, calls: Sequence[str]) -> Cause | None:
    """Return the cause that one callback of an overloaded pass has, where they all make a call that can be mended.

    None where they do not, where the call is not known, or where each takes less than :data:`LEAST`.
    """
    evidence = seen.evidence
    if cause is not Cause.OVERLOAD or not evidence.handles or verdict.culprit is None:
        return None
    if verdict.agreeing < AGREE * len(seen.samples) or evidence.wall / evidence.handles < LEAST:
        return None
    alone = decide(replace(evidence, handles=None, uneven=None, callbacks=1))
    return alone if is_known(alone, calls) else None

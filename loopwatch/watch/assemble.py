"""Builds the observation of a block from its samples and measurements. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from loopwatch.core.dataclasses import replace
from loopwatch.core.median import median
from loopwatch.events import Evidence
from loopwatch.system.syscalls import kind_of
from loopwatch.watch.contention import Hindrance
from loopwatch.watch.expected_code import Span
from loopwatch.watch.observation import Caller, Episode, Observation, Sample
from loopwatch.watch.probes.base import Block
from loopwatch.watch.stacks import RawStack
from loopwatch.watch.usage import Usage


class Origin(NamedTuple):
    """The loop, thread and process of a block, and when the block began.

    Attributes:
        loop: name of the loop.
        thread: name of its thread, "" if it has none.
        pid: id of the process.
        started_at: start of the block, seconds since the epoch.
    """

    loop: str
    thread: str
    pid: int
    started_at: float


class Measured(NamedTuple):
    """Measurements of a block, beside its samples.

    Attributes:
        usage: processor time of the loop's thread and of the process.
        hindrance: delays of the watcher during the block, and their causes.
        gc: seconds that the garbage collector ran.
        collector: stack of another thread that began the longest full collection of them, None if none did.
        switch_interval: seconds after which a thread must release the GIL, :func:`sys.getswitchinterval`.
        traced: whether a debugger is attached to the process.
    """

    usage: Usage
    hindrance: Hindrance
    gc: float
    collector: RawStack | None
    switch_interval: float
    traced: bool


def observation(origin: Origin, block: Block, episode: Episode, measured: Measured, *, ongoing: bool) -> Observation:
    """Return the observation of ``block``; ``ongoing``: the block has not ended."""
    hog, caller = measured.hindrance.hog, main_caller(episode)
    due = block.start
    if block.asleep and ran_in_poll(episode.samples):
        block = _by_code_in_poll(block, measured.usage)
        certain = block.end - block.start - block.uncertainty
        measured = measured._replace(usage=measured.usage._replace(wall=certain))
    return Observation(
        id=episode.id,
        loop=origin.loop,
        thread=origin.thread,
        started_at=origin.started_at - (due - block.start),
        start=block.start,
        end=block.end,
        evidence=_evidence(block, episode.samples, measured),
        uncertainty=block.uncertainty,
        shared=block.shared,
        asleep=block.asleep,
        ongoing=ongoing,
        victims=block.victims,
        samples=list(episode.samples),
        hog=hog.stack if hog is not None else None,
        collector=measured.collector,
        task=caller.task,
        coroutine=caller.coroutine,
        context=caller.context,
        span=caller.span,
        endpoint=caller.endpoint,
        pid=origin.pid,
    )


def ran_in_poll(samples: Sequence[Sample]) -> bool:
    """Whether most samples of a loop that did not return from its poll show code that ran within it.

    A signal handler does; ``select`` goes on waiting after it (PEP 475).
    """
    return 2 * sum(_shows_code(sample) for sample in samples) > len(samples)


def _by_code_in_poll(block: Block, used: Usage) -> Block:
    """Return the block of code that ran within a poll: it began after the poll did, and as long ago as it computed."""
    least = max(block.end - block.start, used.cpu or 0.0)
    doubt = max(block.end - least - (block.start if block.polls_since is None else block.polls_since), 0.0) / 2
    return replace(block, start=block.end - least - doubt, uncertainty=doubt, asleep=False)


def waits_in_poll(samples: Sequence[Sample]) -> bool:
    """Whether samples of an asyncio loop show neither a callback nor any code."""
    return all(sample.callback is None and not _shows_code(sample) for sample in samples)


def _shows_code(sample: Sample) -> bool:
    frames = sample.stack.frames
    return bool(frames) and frames[0].module != "selectors"


def main_caller(episode: Episode) -> Caller:
    """Return the callback found in most samples."""
    seen = Counter(sample.callback for sample in episode.samples if sample.callback in episode.callers)
    return episode.callers[seen.most_common(1)[0][0]] if seen else Caller(None, None)


def expected_by(samples: Sequence[Sample]) -> str | None:
    """Return why a block is expected, if most of its samples show code that is expected to block; else None."""
    reasons = Counter(sample.expected for sample in samples if sample.expected is not None)
    return reasons.most_common(1)[0][0] if 2 * reasons.total() > len(samples) else None


def expected_within(samples: Sequence[Sample], spans: Iterable[Span], block: Block) -> str | None:
    """Return why ``block`` is expected, if most of its time was spent in expected code; else None.

    Args:
        samples: of the block; one that shows other code within a span reveals that the span was not spent in its own.
        spans: entries into expected code within the block, on its loop's thread.
        block: the block.
    """
    inside = 0.0
    until, longest = block.start, ("", 0.0)
    for span in sorted(spans, key=lambda span: span.start):
        during = [sample for sample in samples if span.start <= sample.at <= span.end]
        if any(_shows_other(sample, span) for sample in during):
            continue
        inside += max(min(span.end, block.end) - max(span.start, until), 0.0)  # one may lie within another
        until = max(until, span.end)
        longest = max(longest, (span.reason, span.end - span.start), key=lambda item: item[1])
    return longest[0] if 2 * inside > block.end - block.start else None


def _shows_other(sample: Sample, span: Span) -> bool:
    return (sample.is_known and sample.expected is None) or (span.in_task and sample.task is None)


def _evidence(block: Block, samples: Sequence[Sample], measured: Measured) -> Evidence:
    used, hindrance = measured.usage, measured.hindrance
    syscall, share = _where(samples)
    waits = list(_gil_waits(samples, used.run_queue, measured.switch_interval)) if samples else []
    return Evidence(
        wall=used.wall,
        cpu=used.cpu,
        process_cpu=used.process_cpu,
        run_queue=used.run_queue,
        runs=used.runs,
        throttled=hindrance.throttled,
        gc=measured.gc,
        watcher_late=hindrance.late,
        watcher_starved=hindrance.starved,
        watcher_runs=hindrance.runs,
        gil_wait=median(waits) if waits else None,
        samples=len(samples),
        syscall=syscall,
        syscall_share=share,
        wait_channel=_most_common([sample.wait_channel for sample in samples if sample.wait_channel]),
        hog=None if hindrance.hog is None else min(hindrance.hog.cpu / (block.end - block.start), 1.0),
        asleep=block.asleep,
        switch_interval=measured.switch_interval,
        traced=measured.traced,
    )


def _gil_waits(samples: Sequence[Sample], run_queue: float | None, switch_interval: float) -> Iterator[float]:
    """Yield for each sample the seconds that the watcher waited for the GIL, where that is known.

    Of waits that Python code cannot explain, the time is left out in which the loop's thread had no processor: it may
    have kept the GIL meanwhile without computing.

    Args:
        samples: of the block.
        run_queue: seconds of the block in which the loop's thread had no processor, None if unknown.
        switch_interval: seconds after which a running thread gives up the GIL.
    """
    read = [None if sample.clocks is None else sample.clocks.run_queue for sample in samples]
    before = None if run_queue is None or read[-1] is None else read[-1] - run_queue
    for sample, now in zip(samples, read, strict=True):
        wait = sample.gil_wait
        if wait is not None and wait > 2 * switch_interval and now is not None and before is not None:
            wait = max(wait - max(now - before, 0.0), 0.0)
        if wait is not None:
            yield wait
        before = now


def _where(samples: Sequence[Sample]) -> tuple[str | None, float]:
    """Return the commonest system call of the commonest kind, and the share of samples in calls of that kind."""
    kinds = Counter(kind_of(sample.syscall) for sample in samples if sample.syscall is not None)
    if not kinds:
        return None, 0.0
    kind, count = kinds.most_common(1)[0]
    return _most_common([sample.syscall for sample in samples if kind_of(sample.syscall) == kind]), count / len(samples)


def _most_common(values: Sequence[str | None]) -> str | None:
    return Counter(values).most_common(1)[0][0] if values else None

"""Computes the processor time of a loop's thread, and of the process, during a block, from clock readings."""

from __future__ import annotations

from typing import NamedTuple

from loopwatch.system.threads import Clocks
from loopwatch.watch.probes.base import Block
from loopwatch.watch.watched_loop import WatchedLoop

SPANNED = 0.4
"""Share of a block that the clock readings within it must span to represent all of it."""
NEAR = 0.1
"""Share of a block that the loop may have worked before it and after it, between the readings that are taken for it."""


class Usage(NamedTuple):
    """Seconds used within the ``wall`` seconds that were observed; None where this system does not provide them.

    Attributes:
        wall: length of the observed span.
        cpu, process_cpu: processor time of the loop's thread and of the process.
        run_queue: time in which the loop's thread was runnable and had no processor.
        runs: how many times it was given one.
    """

    wall: float
    cpu: float | None = None
    process_cpu: float | None = None
    run_queue: float | None = None
    runs: int | None = None


def usage(loop: WatchedLoop, block: Block, inside: list[Clocks]) -> Usage:
    """Return the processor time, and the wait for a processor, during ``block``.

    Args:
        loop: the loop of the block.
        block: its bounds, and its processor time where the probe has read it.
        inside: clocks read by the watcher during the block, in order of time.
    """
    length = block.end - block.start
    found = None
    if inside and inside[-1].at - inside[0].at >= SPANNED * length:
        found = _within(inside[0], inside[-1], length)
    if found is None or found.run_queue is None:
        before = _since_before(loop, block, length)
        found = before if found is None else found._replace(run_queue=before.run_queue, runs=before.runs)
    if found.run_queue is not None:
        found = found._replace(run_queue=min(max(found.run_queue, 0.0), length))
    if block.window is not None:
        found = found._replace(wall=block.window, cpu=block.cpu, process_cpu=block.process_cpu)
        if found.run_queue is not None and block.cpu is not None:  # read at other moments
            found = found._replace(run_queue=min(found.run_queue, max(block.window - block.cpu, 0.0)))
    return found


def _within(first: Clocks, last: Clocks, length: float) -> Usage:
    """Extrapolate the usage between two readings to the whole block."""
    scale = length / (last.at - first.at)
    cpu, process_cpu = _difference(first.cpu, last.cpu), last.process_cpu - first.process_cpu
    run_queue = _difference(first.run_queue, last.run_queue)
    return Usage(
        length,
        None if cpu is None else cpu * scale,
        process_cpu * scale,
        None if run_queue is None else run_queue * scale,
        None if first.runs is None or last.runs is None else round((last.runs - first.runs) * scale),
    )


def _since_before(loop: WatchedLoop, block: Block, length: float) -> Usage:
    """Return the usage since the last reading by the block's start, over the time in which the loop was not idle.

    Where other work of the loop lies between, as in a row of blocks, it is taken to have had all of the wait for a
    processor that it can have had.
    """
    baseline = loop.baseline_by(block.start + NEAR * length)
    if baseline is None or loop.thread is None:
        return Usage(length)
    before, now = baseline.clocks, loop.thread.clocks()
    idle = loop.probe.counters(now.at).idle or 0.0
    loop.note_clocks(now, idle)
    wall = max(now.at - before.at - max(idle - baseline.idle, 0.0), length)
    run_queue = _difference(before.run_queue, now.run_queue)
    runs = None if before.runs is None or now.runs is None else now.runs - before.runs
    other = now.at - baseline.run_queue_at - max(idle - baseline.run_queue_idle, 0.0) - length
    if other > NEAR * length:
        runs, run_queue = None, None if run_queue is None else max(run_queue - other, 0.0)
    return Usage(wall, _difference(before.cpu, now.cpu), now.process_cpu - before.process_cpu, run_queue, runs)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before

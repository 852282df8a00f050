"""The processor time and the wait for a processor of a block, from readings that do not begin with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loopwatch.system.threads import Clocks
from loopwatch.watch.observation import Baseline
from loopwatch.watch.probes.base import Block
from loopwatch.watch.usage import Usage, usage


def measured(block: Block, baseline: Baseline, now: Clocks, idle: float = 0.0) -> Usage:
    """The usage of a block of a loop whose clocks are known once before it, and now."""
    loop: Any = SimpleNamespace(
        baseline_by=lambda _latest: baseline,
        note_clocks=lambda *_: None,
        thread=SimpleNamespace(clocks=lambda: now),
        probe=SimpleNamespace(counters=lambda _at: SimpleNamespace(idle=idle)),
    )
    return usage(loop, block, [])


BLOCK = Block(key=10.0, start=10.0, end=10.2)


@pytest.mark.parametrize(
    ("read_at", "waited", "idle", "expected"),
    [
        (10.0, 0.1, 0.0, 0.1),
        (9.99, 0.1, 0.0, 0.1),  # next to nothing lies between
        (9.5, 0.1, 0.5, 0.1),  # the loop was idle until the block began
        (9.8, 0.1, 0.0, 0.0),  # the work before the block may have had all of the wait
        (9.8, 0.3, 0.0, 0.1),  # ... but not more than it lasted
        (9.8, 0.3, 0.1, 0.2),
    ],
)
def test_a_wait_for_a_processor_is_that_of_the_block(
    read_at: float, waited: float, idle: float, expected: float
) -> None:
    """Of what the thread waited since an earlier reading, a block gets what work before it cannot have had."""
    before = Baseline(Clocks(read_at, 1.0, 1.0, 5.0, 7), read_at, 3.0, 3.0)
    now = Clocks(10.2, 1.05, 1.05, 5.0 + waited, 9)
    found = measured(BLOCK, before, now, 3.0 + idle)
    assert found.run_queue == pytest.approx(expected)
    assert found.cpu == pytest.approx(0.05)


def test_an_old_reading_of_the_run_queue_counts_from_its_own_time() -> None:
    """The run queue may have been read before the other clocks; the number of runs is unknown then."""
    before = Baseline(Clocks(10.0, 1.0, 1.0, 5.0, 7), 9.8, 3.0, 3.0)
    found = measured(BLOCK, before, Clocks(10.2, 1.0, 1.0, 5.25, 99), 3.0)
    assert found.wall == pytest.approx(0.2)
    assert found.run_queue == pytest.approx(0.05)
    assert found.runs is None

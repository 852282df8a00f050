"""The monitor of the garbage collector: how long it ran, and which thread began."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from loopwatch.system.gc_monitor import FULL_KEPT, GcMonitor
from loopwatch.watch.stacks import RawStack, of_caller


@pytest.fixture
def monitor() -> Iterator[GcMonitor[RawStack]]:
    """A started monitor of the garbage collector."""
    found = GcMonitor(print, of_caller)
    found.start()
    yield found
    found.stop()


def test_collection_is_counted(monitor: GcMonitor[RawStack]) -> None:
    """A gc.collect() is counted with the time it took, within the span in which it ran and nowhere else."""
    garbage = [[] for _ in range(200_000)]  # something to traverse
    began = time.monotonic()
    gc.collect()
    ended = time.monotonic()
    within = monitor.within(began, ended)
    assert 0.5 * (ended - began) <= within <= ended - began
    assert monitor.within(ended, ended + 10) == 0.0
    middle = (began + ended) / 2
    halves = monitor.within(began, middle) + monitor.within(middle, ended)
    assert halves == pytest.approx(within, abs=1e-6)
    assert len(garbage) == 200_000


def test_young_collections_do_not_count(monitor: GcMonitor[RawStack]) -> None:
    """The youngest generation takes microseconds and is ignored."""
    began = time.monotonic()
    for _ in range(50):
        gc.collect(0)
    assert monitor.within(began, time.monotonic()) <= 0.02


def test_collection_under_way(monitor: GcMonitor[RawStack]) -> None:
    """A collection that has not ended yet counts up to the end of the span."""
    now = time.monotonic()
    monitor._note("start", {"generation": 2})
    assert monitor.within(now, now + 5.0) == pytest.approx(5.0, abs=0.1)
    monitor._note("stop", {"generation": 2})
    assert monitor.within(now + 1, now + 5.0) == 0.0


def test_memory_is_bounded(monitor: GcMonitor[RawStack]) -> None:
    """The last 256 collections are kept."""
    for _ in range(1000):
        monitor._note("start", {"generation": 1})
        monitor._note("stop", {"generation": 1})
    assert len(monitor._spans) == 256


def test_monitor_is_registered_once_and_removed() -> None:
    """Started twice it is once in gc.callbacks; stopped, in any order with others, it is gone."""
    before = list(gc.callbacks)
    first, second = GcMonitor(print, of_caller), GcMonitor(print, of_caller)
    for _ in range(2):
        first.start()
        second.start()
    assert len(gc.callbacks) == len(before) + 2
    first.stop()
    first.stop()
    second.stop()
    assert gc.callbacks == before


def maintenance() -> None:
    """Collect garbage, as a thread of the program may do."""
    gc.collect()


def test_a_collection_in_another_thread_is_seen(monitor: GcMonitor[RawStack]) -> None:
    """What another thread was doing when it began a full collection is known; of the own thread's it is not asked."""
    began = time.monotonic()
    thread = threading.Thread(target=maintenance)
    thread.start()
    thread.join()
    stack = monitor.elsewhere(began, time.monotonic(), threading.get_ident())
    assert stack is not None
    assert (stack.frames[0].code, stack.frames[0].line) == (
        maintenance.__code__,
        maintenance.__code__.co_firstlineno + 2,
    )
    assert monitor.elsewhere(began, time.monotonic(), thread.ident) is None
    assert monitor.elsewhere(began - 1, began, threading.get_ident()) is None


def test_stacks_of_collections_are_dropped(monitor: GcMonitor[RawStack]) -> None:
    """A few stacks are kept, those of old collections are not."""
    for _ in range(3 * FULL_KEPT):
        maintenance()
    assert len(monitor._full) == FULL_KEPT
    monitor.forget(time.monotonic())
    assert not monitor._full

"""The sink thread: stalls wait while calls that keep the GIL follow each other, and nothing else does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loopwatch.core.faults import Faults
from loopwatch.sinks.thread import SinkThread
from loopwatch.watch.lapse import Lapse

SEEN: Any = object()


class Row:
    """A row of calls that keep the GIL: it goes on until it is set to be over."""

    def __init__(self) -> None:
        self.is_over = False
        self.asked = threading.Event()

    def goes_on(self) -> bool:
        self.asked.set()
        return not self.is_over


@pytest.fixture
def made() -> Iterator[tuple[SinkThread, Row, list[float]]]:
    row, emitted = Row(), list[float]()
    lapse: Lapse[Any] = Lapse(tuple, lambda *_: None, 60.0)
    thread = SinkThread(lambda _seen: emitted.append(time.monotonic()), lapse, Faults(), row.goes_on)
    yield thread, row, emitted
    thread.stop(20.0)


Hurry = Callable[[SinkThread, Row], object]


def tick(thread: SinkThread, row: Row) -> None:
    row.is_over = True
    thread.tick()


@pytest.mark.parametrize(
    "hurry",
    [tick, lambda thread, _row: thread.flush(20.0), lambda thread, _row: thread.do(int)],
    ids=["the row is over", "flush", "another action"],
)
def test_stalls_are_put_off_until(made: tuple[SinkThread, Row, list[float]], hurry: Hurry) -> None:
    """A stall waits for the end of the row, a flush, or an action that does not wait; a tick in its midst is none."""
    thread, row, emitted = made
    thread.put(SEEN)
    assert row.asked.wait(20.0)
    thread.put(SEEN)
    thread.tick()
    assert emitted == []
    hurry(thread, row)
    assert thread.flush(20.0)
    assert len(emitted) == 2


def test_stalls_are_not_put_off_for_ever(
    made: tuple[SinkThread, Row, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row without an end delays a stall for a bounded time."""
    monkeypatch.setattr("loopwatch.sinks.thread.PUT_OFF", 0.1)
    thread, _, emitted = made
    began = time.monotonic()
    thread.put(SEEN)
    while not emitted:
        assert time.monotonic() - began < 20.0
        time.sleep(0.005)
    assert emitted[0] - began >= 0.1

"""The call queue compared with a naive sorted list, and the slots of the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loopwatch import PoolClosed
from loopwatch.workers.call import Call
from loopwatch.workers.call_queue import SPARE, CallQueue, Room
from loopwatch.workers.options import CallOptions
from tests.conftest import Run

LIMITS = {"free": None, "one": 1, "two": 2}
"""How often each function may run at a time."""


def call_of(function: str, priority: int = 0) -> Call:
    """Return a call without a waiter."""
    options = CallOptions(priority=priority, max_concurrency=LIMITS[function])
    return Call(function, options, cast("asyncio.Future[Any]", None))


class AgainstSortedList(RuleBasedStateMachine):
    """Applies the same operations to a call queue and to a list that is searched linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.call_queue = CallQueue()
        self.waiting: list[tuple[int, int, Call]] = []
        self.running: list[Call] = []
        self.last = self.first = 0

    def may_run(self, call: Call) -> bool:
        limit = LIMITS[call.function]
        return limit is None or sum(each.function == call.function for each in self.running) < limit

    @rule(function=st.sampled_from(sorted(LIMITS)), priority=st.integers(-1, 1))
    def add(self, function: str, priority: int) -> None:
        call = call_of(function, priority)
        self.last += 1
        self.waiting.append((-priority, self.last, call))
        self.call_queue.add(call)

    @rule()
    def take(self) -> None:
        expected = min((entry for entry in self.waiting if self.may_run(entry[2])), default=None)
        call = self.call_queue.next()
        assert call is (None if expected is None else expected[2])
        if expected is not None:
            self.waiting.remove(expected)
            self.running.append(expected[2])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.running))
        self.running.remove(call)
        self.call_queue.ended(call)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.running))
        self.running.remove(call)
        self.call_queue.ended(call)
        self.first -= 1
        self.waiting.append((-call.options.priority, self.first, call))
        self.call_queue.add(call, first=True)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        self.call_queue.discard(entry[2])

    @rule()
    def clear(self) -> None:
        assert self.call_queue.clear() == [call for _, _, call in sorted(self.waiting)]
        self.waiting.clear()

    @invariant()
    def counts(self) -> None:
        assert len(self.call_queue) == len(self.waiting)
        assert self.call_queue.in_line >= any(self.may_run(call) for _, _, call in self.waiting)
        for _, _, call in self.waiting:
            assert self.call_queue.is_at_limit(call) == (not self.may_run(call))


TestAgainstSortedList = AgainstSortedList.TestCase
TestAgainstSortedList.settings = settings(max_examples=150, stateful_step_count=60)


def test_cancelled_call_passes_its_turn_on() -> None:
    """A call that became runnable because another ended, and is cancelled, passes its turn on to the next call."""
    call_queue = CallQueue()
    first, second, third = (call_of("one") for _ in range(3))
    for call in (first, second, third):
        call_queue.add(call)
    assert call_queue.next() is first
    assert call_queue.next() is None
    call_queue.ended(first)
    call_queue.discard(second)
    assert call_queue.in_line == 1
    assert call_queue.next() is third


@pytest.mark.parametrize("function", ["free", "one"])
def test_cancelled_calls_take_no_memory(function: str) -> None:
    """However many calls are cancelled, at most a few hundred of them are kept."""
    call_queue = CallQueue()
    running = call_of("one")
    call_queue.add(running)
    assert call_queue.next() is running
    for _ in range(10_000):
        call = call_of(function)
        call_queue.add(call)
        assert (call_queue.next() is None) == (function == "one")
        if function == "free":
            call_queue.ended(call)
            call_queue.add(call)
        call_queue.discard(call)
    kept = len(call_queue._line) + sum(map(len, call_queue._aside.values()))
    assert kept <= 2 * SPARE
    assert len(call_queue) == 0
    assert call_queue._line == []


def test_waiters_get_slots_in_order(run: Run) -> None:
    """Waiters get slots in order, the slot of a cancelled waiter goes to the next, and closing fails all waiters."""

    async def main() -> None:
        room = Room(1)
        assert room.take()
        assert not room.take()
        order: list[int] = []

        async def wait(number: int) -> None:
            await room.wait()
            order.append(number)

        tasks = [asyncio.ensure_future(wait(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        room.give()
        await tasks[0]
        room.give()
        await tasks[2]
        room.give()
        tasks[3].cancel()  # it has been given the slot and does not know yet
        await asyncio.wait(tasks)
        assert order == [0, 2]
        assert room.take()
        late = asyncio.ensure_future(wait(9))
        await asyncio.sleep(0)
        room.refuse(PoolClosed("it was closed"))
        with pytest.raises(PoolClosed, match="it was closed"):
            await late
        room.give()
        assert room.take()

    run(main())


def test_unlimited_slots() -> None:
    """Without a limit a slot is always free."""
    take: Callable[[], bool] = Room(None).take
    assert all(take() for _ in range(10_000))


async def test_slot_that_was_released_before() -> None:
    """A new waiter takes a slot that was just released at once; the next one waits."""
    room = Room(1)
    assert room.take()
    room.give()
    await room.wait()
    assert not room.take()
    waiting = asyncio.ensure_future(room.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    room.give()
    await waiting

"""Work deferred until the first use of a loop or pool, and foreign patches of the functions that trigger it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loopwatch.core.deferred import Deferred


class Begun:
    """Counts beginnings and faults."""

    def __init__(self) -> None:
        self.times = 0
        self.faults: list[Exception] = []
        self.deferred = Deferred(self.begin, lambda: "here", self.faults.append)

    def begin(self) -> None:
        self.times += 1


@pytest.fixture
def begun() -> Iterator[Begun]:
    """A piece of work deferred until the first use."""
    real = asyncio.events._set_running_loop
    begun = Begun()
    begun.deferred.start()
    yield begun
    begun.deferred.cancel()
    asyncio.events._set_running_loop = real


def test_deferred_work_runs_once(begun: Begun) -> None:
    """The first loop runs the deferred work, and the second finds every function as it was before."""
    asyncio.run(asyncio.sleep(0))
    asyncio.run(asyncio.sleep(0))
    assert (begun.times, begun.faults, begun.deferred.is_waiting) == (1, [], False)
    assert asyncio.events._set_running_loop is asyncio._set_running_loop


def test_an_error_does_not_reach_the_program(begun: Begun) -> None:
    """An error of the deferred work is handed over, and the loop runs."""
    begun.deferred._begin = lambda: 1 / 0
    assert asyncio.run(asyncio.sleep(0, "ran")) == "ran"
    assert [type(each) for each in begun.faults] == [ZeroDivisionError]


def test_foreign_wrapper(begun: Begun) -> None:
    """Under a foreign wrapper the replacement stays and does nothing, and each use calls the wrapper once."""
    inner, calls = asyncio.events._set_running_loop, []

    @functools.wraps(inner)
    def theirs(loop: Any) -> None:
        calls.append(loop is not None)
        inner(loop)

    asyncio.events._set_running_loop = theirs
    asyncio.run(asyncio.sleep(0))
    assert (begun.times, asyncio.events._set_running_loop) == (1, theirs)
    assert calls[:2] == [True, False]
    calls.clear()
    asyncio.run(asyncio.sleep(0))
    assert calls[:2] == [True, False]


def test_replacement_by_the_deferred_work_is_used(begun: Begun) -> None:
    """The first use calls a function that the deferred work replaced, also through a reference taken before."""
    seen: list[Any] = []
    kept, real = asyncio.events._set_running_loop, asyncio._set_running_loop

    def patched(loop: Any) -> None:
        seen.append(loop)
        real(loop)

    def begin() -> None:
        asyncio.events._set_running_loop = patched

    begun.deferred._begin = begin
    asyncio.run(asyncio.sleep(0))
    assert len(seen) > 0
    seen.clear()
    loop = asyncio.new_event_loop()
    kept(loop), kept(None)
    loop.close()
    assert seen == [loop, None]


def test_pools_made_before_the_first_use(begun: Begun) -> None:
    """An unused pool is known with its place of creation as long as it lives, and does not trigger the work."""
    pool, gone = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    del gone
    assert begun.deferred.pools() == [(pool, "here")]
    assert begun.times == 0
    pool.submit(len, "").result()
    pool.shutdown()
    assert (begun.times, begun.faults) == (1, [])


def test_two_threads_at_once(begun: Begun) -> None:
    """Whichever loop is first triggers the work, and both run."""
    barrier, ran = threading.Barrier(2), []

    def work() -> None:
        barrier.wait()
        ran.append(asyncio.run(asyncio.sleep(0, 1)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (begun.times, ran) == (1, [1, 1])

"""What is put off until the first use, and what others do to the functions that it waits at meanwhile."""

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
    """Something that waits for the first use."""
    real = asyncio.events._set_running_loop
    begun = Begun()
    begun.deferred.start()
    yield begun
    begun.deferred.cancel()
    asyncio.events._set_running_loop = real


def test_begins_once(begun: Begun) -> None:
    """The first loop begins it, the second finds everything as it was before."""
    asyncio.run(asyncio.sleep(0))
    asyncio.run(asyncio.sleep(0))
    assert (begun.times, begun.faults, begun.deferred.is_waiting) == (1, [], False)
    assert asyncio.events._set_running_loop is asyncio._set_running_loop


def test_an_error_does_not_reach_the_program(begun: Begun) -> None:
    """What goes wrong is handed over, and the loop runs."""
    begun.deferred._begin = lambda: 1 / 0
    assert asyncio.run(asyncio.sleep(0, "ran")) == "ran"
    assert [type(each) for each in begun.faults] == [ZeroDivisionError]


def test_wrapped_by_somebody_else(begun: Begun) -> None:
    """Under a foreign wrapper the replacement stays and does nothing; the wrapper is called once a time."""
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


def test_what_replaces_the_function_is_used(begun: Begun) -> None:
    """The first use goes where the beginning has put something else, and so does whoever kept the function before."""
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


def test_pools_that_were_made_meanwhile(begun: Begun) -> None:
    """A pool that was made but not used is known with its place as long as it lives, and begins nothing."""
    pool, gone = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    del gone
    assert begun.deferred.pools() == [(pool, "here")]
    assert begun.times == 0
    pool.submit(len, "").result()
    pool.shutdown()
    assert (begun.times, begun.faults) == (1, [])


def test_two_threads_at_once(begun: Begun) -> None:
    """Whichever loop is first begins it, and both run."""
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

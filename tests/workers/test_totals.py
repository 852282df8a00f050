"""Totals of offloaded calls: run time, trip and time saved of known calls, which never decrease."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import loopwatch
from loopwatch import CallOptions
from loopwatch.events import DESTINATIONS, PlaceStats
from loopwatch.workers import totals
from loopwatch.workers.thread_backend import ThreadBackend
from loopwatch.workers.totals import CallTotals, places, totals_of

pytestmark = pytest.mark.measures

Run = Callable[[Any], Any]


def blocking_sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def now() -> dict[str, PlaceStats]:
    found = {place: PlaceStats(place) for place in DESTINATIONS}
    return found | {each.place: each for each in places()}


def grown(place: str, before: dict[str, PlaceStats]) -> PlaceStats:
    old, new = before[place], now()[place]
    names = ("calls", "run", "trip", "held", "saved")
    return PlaceStats(place, *(getattr(new, name) - getattr(old, name) for name in names))


def test_processes(run: Run) -> None:
    """Run times of calls through a function and directly through a pool add up, and so do trips and pickling times."""
    moved = loopwatch.offload(blocking_sleep)

    async def main(pool: loopwatch.WorkerPool) -> None:
        async with pool:
            before = now()
            await asyncio.gather(*(pool.run(blocking_sleep, 0.05) for _ in range(4)))
            await pool.options(retries=1).run(blocking_sleep, 0.05)
            async for _ in pool.map(blocking_sleep, [0.05]):
                pass
            first = grown("process", before)
            assert first.calls == 6
            assert 0.3 <= first.run < 3
            assert first.trip >= 0.05  # four calls on two workers: two of them waited
            assert 0 < first.held < first.trip
            assert 0 < first.saved <= first.run - first.held + 1e-6  # less if earlier calls were a loss
        assert grown("process", before) == first  # the pool is closed

    run(main(loopwatch.WorkerPool(workers=2)))

    async def by_function() -> None:
        before = now()
        assert await moved(0.05) == 0.05
        more = grown("process", before)
        assert more.calls == 0  # an offloaded function counts its own calls
        assert more.run >= 0.05
        assert moved.stats().process == 1

    run(by_function())


def test_threads_inline_and_engines(run: Run) -> None:
    """Each destination has its own totals: threads add no pickling, and inline calls have no trip and save nothing."""

    class Engine:
        name = "engine"

        def submit(self, function: Any, args: Any, kwargs: Any, options: Any) -> asyncio.Future[Any]:
            return asyncio.ensure_future(self.run(function, args))

        async def run(self, function: Any, args: Any) -> Any:
            await asyncio.sleep(0.05)
            return function(*args)

        def cancel(self, future: asyncio.Future[Any]) -> None:
            future.cancel()

        async def close(self) -> None: ...

        def stats(self) -> Any: ...

    threads = ThreadBackend(1, name="one")

    async def main() -> None:
        before, gate = now(), threading.Event()
        in_threads = loopwatch.offload(to=threads)(blocking_sleep)
        first = threads.submit(gate.wait, (), {}, CallOptions())
        second = asyncio.ensure_future(in_threads(0.05))
        while threads.stats().queued != 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        gate.set()
        await first, await second
        found = grown("thread", before)
        assert 0.1 <= found.run < 60
        assert found.trip >= 0.05  # the second waited for the first
        assert (found.held, found.calls) == (0, 0)
        assert found.saved == pytest.approx(found.run)

        await loopwatch.offload(to="inline")(blocking_sleep)(0.05)
        found = grown("inline", before)
        assert 0.05 <= found.run < 2
        assert (found.trip, found.held, found.saved) == (0, 0, 0)

        await loopwatch.offload(to=Engine())(blocking_sleep)(0.01)
        found = grown("backend", before)
        assert 0.06 <= found.run < 2
        await threads.close()

    run(main())


def test_coroutines_inline(run: Run) -> None:
    """For a coroutine that runs inline the steps count, not the time it waits."""

    @loopwatch.offload(to="inline")
    async def steps() -> None:
        time.sleep(0.02)
        await asyncio.sleep(0.2)
        time.sleep(0.02)

    async def main() -> None:
        before, began = now(), time.perf_counter()
        await steps()
        assert 0.04 <= grown("inline", before).run <= time.perf_counter() - began - 0.19

    run(main())


def test_totals_of_collected_owners_are_kept() -> None:
    """Totals of collected owners are kept and nothing else of them, however many there were."""

    class Owner: ...

    before = now()
    for _ in range(1000):
        owner = Owner()
        totals_of(owner, "process").run += 0.5
        del owner
    gc.collect()
    assert grown("process", before).run == pytest.approx(500)
    assert len([each for each in totals._totals.open if each.is_over]) == 0


def test_saved_never_falls() -> None:
    """The saved time stands still when pickling of a call that has not run yet makes the difference fall."""

    class Owner: ...

    owner, before = Owner(), now()
    own = totals_of(owner, "process")
    own.run += 1.0
    assert grown("process", before).saved == pytest.approx(1.0)
    own.held += 0.4
    assert grown("process", before).saved == pytest.approx(1.0)
    own.run += 0.5
    assert grown("process", before).saved == pytest.approx(1.1)
    assert isinstance(own, CallTotals)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_begins_at_zero() -> None:
    """A forked child does not inherit the parent's totals."""

    class Owner: ...

    owner = Owner()
    totals_of(owner, "process").run += 1.0
    assert now()["process"].run >= 1.0
    pid = os.fork()
    if not pid:
        os._exit(0 if places() == () else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

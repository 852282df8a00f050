"""A worker that writes garbage to its parent affects at most its own call; the parent reads on and executes nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import psutil
import pytest

from loopwatch.errors import WorkerCrashed
from loopwatch.workers import descriptor_passing
from loopwatch.workers.connection import MOST_DESCRIPTORS
from loopwatch.workers.pool import WorkerPool
from tests.conftest import Run
from tests.workers import gone_mad
from tests.workers.helpers import WAYS

linux = pytest.mark.skipif(sys.platform != "linux", reason="memfd and its seals are Linux's")


def quiet_loop() -> list[Any]:
    """Collect the exceptions reported to the running loop's exception handler."""
    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))
    return said


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_a_worker_that_sends_no_frames_is_killed(run: Run, method: str) -> None:
    """Noise, sizes of exabytes or missing descriptors fail the call with the reason, and the pool goes on."""

    async def main() -> None:
        said = quiet_loop()
        async with WorkerPool(1, start_method=method) as pool:
            assert await pool.run(abs, -1) == 1
            before = psutil.Process().num_fds()
            for data in gone_mad.BROKEN.values():
                with pytest.raises(WorkerCrashed, match=r"it has sent what makes no sense|not enough memory"):
                    await pool.run(gone_mad.send, data, wait=True)
                await pool.ready()
                assert await pool.run(abs, -1) == 1
            assert psutil.Process().num_fds() <= before
            assert pool.stats().started == 1 + len(gone_mad.BROKEN)
        assert said == []

    run(main())


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_results_of_unknown_calls_are_dropped(run: Run, method: str) -> None:
    """Invalid log records and results of unknown calls are skipped, even if unpickling them would end the program."""

    async def main() -> None:
        said = quiet_loop()
        async with WorkerPool(1, start_method=method) as pool:
            for data in gone_mad.LOST.values():
                assert await pool.run(gone_mad.send, data, wait=False) == "done"
            assert pool.stats().crashes == {}
            assert pool.stats().started == 1
        assert said == []

    run(main())


def test_descriptors_without_a_frame_are_bounded(run: Run) -> None:
    """A worker that sends descriptors by the thousand does not exhaust the parent's."""

    async def main() -> None:
        most = 0

        async def measure() -> None:
            nonlocal most
            while True:
                most = max(most, psutil.Process().num_fds())
                await asyncio.sleep(0.001)

        async with WorkerPool(1) as pool:
            await pool.run(abs, 1)
            before = psutil.Process().num_fds()
            measuring = asyncio.create_task(measure())
            with pytest.raises(WorkerCrashed, match="descriptors that belong to nothing"):
                await pool.run(gone_mad.send_descriptors, 100)
            measuring.cancel()
            assert most <= before + MOST_DESCRIPTORS + 2 * descriptor_passing.MOST + 8
            await pool.ready()
            assert psutil.Process().num_fds() <= before

    run(main())


@pytest.mark.long
def test_a_flood_of_records_does_not_fill_the_memory(run: Run) -> None:
    """Data that a worker sends faster than it is handled waits in its socket, not in the parent's memory."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            call = asyncio.ensure_future(pool.run(gone_mad.send_without_end, 1.0))
            most = 0
            while not call.done():
                await asyncio.sleep(0)
                most = max([most, *(len(connection._frames) for connection in pool._dispatcher.supervisor.connections)])
            assert await call == "done"
            assert 0 < most < 3000  # one slice holds 1,300

    run(main())


@linux
@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_shared_memory_cannot_be_cut(run: Run, method: str) -> None:
    """A worker that truncates memory shared with its parent is refused; the parent would die of SIGBUS."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method) as pool:
            tried = await pool.run(gone_mad.cut_shared_memory)
            assert set(tried) <= {"Operation not permitted"}
            assert await pool.run(abs, -1) == 1

    run(main())

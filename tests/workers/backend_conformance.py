"""What every backend has to do: checks for a class that says how to make one.

A test class derives from :class:`Conformance` and says what its backend can do. The calls go by name, and wait for one
another by named pipes, so that it does not matter where they run.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

import loopwatch
from loopwatch import Backend, NotPicklable, OffloadError, PoolClosed, QueueFull, TaskTimeout
from loopwatch.workers.options import CallOptions
from tests.conftest import Run
from tests.offloading import offloaded
from tests.workers import conforming
from tests.workers.helpers import Gate, figures_add_up, hold

PLAIN = CallOptions()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """What holds calls until it is opened."""
    made = Gate(tmp_path)
    yield made
    made.close()


class Conformance:
    """The checks. ``make`` makes a backend that runs one call at a time, of which ``max_queue`` may wait."""

    pickles: ClassVar[bool] = True
    """Whether functions and arguments are pickled."""
    knows_options: ClassVar[bool] = True
    """Whether time-outs, priorities and limits mean anything."""
    unwraps: ClassVar[bool] = True
    """Whether what ``@offload`` has made is run as the plain function."""

    def make(self, max_queue: int | None = None) -> Backend:
        """Return a new backend."""
        raise NotImplementedError

    async def strays_end(self, backend: Backend) -> None:
        """Wait until calls that were given up, but could not be stopped, have ended: the gate is open."""

    @asynccontextmanager
    async def made(self, max_queue: int | None = None) -> AsyncIterator[Backend]:
        """A backend that is closed at the end, with figures that add up and nothing under way."""
        backend = self.make(max_queue)
        try:
            yield backend
            figures_add_up(backend.stats())
        finally:
            await backend.close()
        stats = backend.stats()
        figures_add_up(stats)
        assert (stats.name, stats.queued, stats.running) == (backend.name, 0, 0)

    # -- calls ----------------------------------------------------------------------------------------------------

    def test_is_a_backend(self, run: Run) -> None:
        """It has the interface, figures before the first call, and may be closed without one."""

        async def main() -> None:
            async with self.made() as backend:
                assert isinstance(backend, Backend)
                assert isinstance(backend.name, str)
                assert backend.stats().submitted == 0

        run(main())

    def test_results(self, run: Run) -> None:
        """Functions and coroutine functions return what they return, to a future of the loop; order does not matter."""

        async def main() -> None:
            async with self.made() as backend:
                futures = [
                    backend.submit(divmod, (7, 2), {}, PLAIN),
                    backend.submit(int, ("101",), {"base": 2}, PLAIN),
                    backend.submit(conforming.doubled_later, (4,), {}, PLAIN),
                ]
                assert all(future.get_loop() is asyncio.get_running_loop() for future in futures)
                assert await asyncio.gather(*futures) == [(3, 1), 5, 8]
            stats = backend.stats()
            assert (stats.submitted, stats.completed, stats.failed) == (3, 3, 0)

        run(main())

    def test_the_loop_goes_on(self, run: Run, gate: Gate) -> None:
        """While a call runs the loop does anything else, and the figures show it."""

        async def main() -> None:
            async with self.made() as backend:
                call = backend.submit(hold, (*gate.wait_args, "held"), {}, PLAIN)
                assert not call.done()
                await gate.entered()
                stats = backend.stats()
                assert (stats.submitted, stats.running, stats.completed) == (1, 1, 0)
                gate.open()
                assert await call == "held"

        run(main())

    def test_errors(self, run: Run) -> None:
        """What the function raises arrives as itself; what would end the program or confuse the loop, in words."""

        async def main() -> None:
            async with self.made() as backend:
                with pytest.raises(ValueError, match="of ours"):
                    await backend.submit(conforming.fail, ("of ours",), {}, PLAIN)
                for function, words in (
                    (sys.exit, "exit"),
                    (conforming.interrupt, "KeyboardInterrupt"),
                    (conforming.stop, "StopIteration"),
                ):
                    with pytest.raises(OffloadError, match=f"(?i){words}"):
                        await backend.submit(function, (), {}, PLAIN)
                assert await backend.submit(abs, (-3,), {}, PLAIN) == 3
            assert (backend.stats().failed, backend.stats().completed) == (4, 1)

        run(main())

    def test_not_picklable(self, run: Run) -> None:
        """What cannot travel is named, the result too, and nobody else is harmed."""
        if not self.pickles:
            pytest.skip("nothing is pickled")

        async def main() -> None:
            async with self.made() as backend:
                with pytest.raises(NotPicklable, match=r"argument 2 .*lock"):
                    await backend.submit(max, (1, threading.Lock()), {}, PLAIN)
                with pytest.raises(NotPicklable, match=r"the result .*lock"):
                    await backend.submit(threading.Lock, (), {}, PLAIN)
                assert await backend.submit(abs, (-3,), {}, PLAIN) == 3

        run(main())

    # -- @offload -------------------------------------------------------------------------------------------------

    def test_through_the_decorator(self, run: Run) -> None:
        """``@offload(to=backend)`` awaits its calls, and says where they run."""

        async def main() -> None:
            async with self.made() as backend:
                moved = loopwatch.offload(to=backend)(conforming.double)
                assert await moved(3) == 6
                with pytest.raises(TypeError, match="missing 1 required"):
                    await moved()  # type: ignore[call-arg]
                assert moved.explain().endswith(f"runs on {backend.name}: as it was told")
                assert backend.stats().submitted == 2

        run(main())

    def test_what_is_decorated_runs_plainly(self, run: Run) -> None:
        """Given what ``@offload`` has made, it runs the plain function: a function, a coroutine function, a method."""
        if not self.unwraps:
            pytest.skip("it does not know what @offload has made")

        async def main() -> None:
            async with self.made() as backend:
                assert await backend.submit(offloaded.add, (1,), {"right": 2}, PLAIN) == 3
                value, pid = await backend.submit(offloaded.later, (7,), {}, PLAIN)
                area, pid_of_method = await backend.submit(offloaded.Shapes(3).area, (), {}, PLAIN)
                assert (value, area) == (7, 9)
                assert pid == pid_of_method

        run(main())

    # -- giving up ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("by", ["backend", "future", "task"])
    def test_cancel_what_waits(self, run: Run, gate: Gate, tmp_path: Path, by: str) -> None:
        """A call that is given up before it has begun never runs, however that is said; twice is as good as once."""

        async def main() -> None:
            path = tmp_path / "touched"
            async with self.made() as backend:
                first = backend.submit(hold, (*gate.wait_args,), {}, PLAIN)
                await gate.entered()
                second = backend.submit(Path.touch, (path,), {}, PLAIN)
                if by == "task":
                    task = asyncio.ensure_future(_await(second))
                    await asyncio.sleep(0)
                    task.cancel()
                else:
                    second.cancel() if by == "future" else backend.cancel(second)
                await asyncio.wait([second])
                assert second.cancelled()
                backend.cancel(second)
                gate.open()
                await first
                assert await backend.submit(abs, (-3,), {}, PLAIN) == 3
            assert not path.exists()
            assert (backend.stats().cancelled, backend.stats().completed) == (1, 2)

        run(main())

    def test_cancel_what_runs(self, run: Run, gate: Gate) -> None:
        """A call that is given up while it runs has no effect on anybody, and leaves its place to the next."""
        if not self.knows_options:
            pytest.skip("it cannot let go of a call")

        async def main() -> None:
            async with self.made() as backend:
                call = backend.submit(hold, (*gate.wait_args,), {}, PLAIN)
                await gate.entered()
                backend.cancel(call)
                await asyncio.wait([call])
                assert call.cancelled()
                assert await backend.submit(abs, (-3,), {}, PLAIN) == 3
                gate.open()
                await self.strays_end(backend)
            assert (backend.stats().cancelled, backend.stats().completed) == (1, 1)

        run(main())

    def test_cancel_what_is_over(self, run: Run) -> None:
        """Giving up a call that has ended changes nothing."""

        async def main() -> None:
            async with self.made() as backend:
                call = backend.submit(abs, (-3,), {}, PLAIN)
                await call
                backend.cancel(call)
                assert call.result() == 3
            assert (backend.stats().cancelled, backend.stats().completed) == (0, 1)

        run(main())

    # -- options --------------------------------------------------------------------------------------------------

    def test_timeout(self, run: Run, gate: Gate) -> None:
        """A call that runs too long fails, as a TimeoutError too, and leaves its place to the next."""
        if not self.knows_options:
            pytest.skip("it knows no time-outs")

        async def main() -> None:
            async with self.made() as backend:
                call = backend.submit(hold, (*gate.wait_args,), {}, CallOptions(timeout=0.1))
                with pytest.raises(TaskTimeout, match=r"hold ran longer than 0\.1 s") as caught:
                    await call
                assert isinstance(caught.value, TimeoutError)
                assert await backend.submit(abs, (-3,), {}, PLAIN) == 3
                gate.open()
                await self.strays_end(backend)
            stats = backend.stats()
            assert (stats.timed_out, stats.failed, stats.completed) == (1, 1, 1)

        run(main())

    def test_priority(self, run: Run, gate: Gate, tmp_path: Path) -> None:
        """What has a higher priority goes first; within one, first come, first served."""
        if not self.knows_options:
            pytest.skip("it knows no priorities")

        async def main() -> None:
            path = tmp_path / "order"
            async with self.made() as backend:
                calls = [backend.submit(hold, (*gate.wait_args,), {}, PLAIN)]
                await gate.entered()
                for number, priority in enumerate([0, 5, 0, -1, 5]):
                    options = CallOptions(priority=priority)
                    calls.append(backend.submit(conforming.note, (path, number), {}, options))
                assert backend.stats().queued == 5
                gate.open()
                await asyncio.gather(*calls)
            assert path.read_text().split() == ["1", "4", "0", "2", "3"]

        run(main())

    def test_full_queue(self, run: Run, gate: Gate) -> None:
        """A full queue refuses a call at once, or has it wait for room; one that is given up makes room."""
        if not self.knows_options:
            pytest.skip("its queue has no end")

        async def main() -> None:
            async with self.made(max_queue=1) as backend:
                calls = [backend.submit(hold, (*gate.wait_args,), {}, PLAIN)]
                await gate.entered()
                calls.append(backend.submit(abs, (-1,), {}, PLAIN))
                with pytest.raises(QueueFull, match=r"1 calls wait, max_queue=1"):
                    await backend.submit(abs, (-2,), {}, PLAIN)
                waiting = [backend.submit(abs, (-number,), {}, CallOptions(on_full="wait")) for number in (3, 4)]
                await asyncio.sleep(0)
                assert backend.stats().queued == 1
                backend.cancel(calls[1])
                await asyncio.wait([calls[1]])
                gate.open()
                assert await asyncio.gather(calls[0], *waiting) == [None, 3, 4]
            stats = backend.stats()
            assert (stats.submitted, stats.completed, stats.cancelled) == (4, 3, 1)

        run(main())

    # -- the end --------------------------------------------------------------------------------------------------

    def test_close_waits(self, run: Run, gate: Gate) -> None:
        """Closing waits for what was taken; no more is taken; it may be closed again, at the same time too."""

        async def main() -> None:
            backend = self.make()
            calls = [backend.submit(hold, (*gate.wait_args, "held"), {}, PLAIN), backend.submit(abs, (-3,), {}, PLAIN)]
            await gate.entered()
            closing = [asyncio.ensure_future(backend.close()) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(PoolClosed):
                await backend.submit(abs, (-3,), {}, PLAIN)
            gate.open()
            await asyncio.gather(*closing)
            assert [call.result() for call in calls] == ["held", 3]
            await backend.close()
            await backend.close(force=True)
            assert backend.stats().completed == 2

        run(main())

    def test_close_by_force(self, run: Run, gate: Gate) -> None:
        """Closed by force, what waits or runs fails at once."""
        if not self.knows_options:
            pytest.skip("it cannot let go of a call")

        async def main() -> None:
            backend = self.make()
            calls = [backend.submit(hold, (*gate.wait_args,), {}, PLAIN), backend.submit(abs, (-3,), {}, PLAIN)]
            await gate.entered()
            await backend.close(force=True)
            for call in calls:
                with pytest.raises(PoolClosed):
                    await call
            gate.open()
            await self.strays_end(backend)
            figures_add_up(backend.stats())
            assert backend.stats().failed == 2

        run(main())


async def _await(future: asyncio.Future[Any]) -> Any:
    return await future

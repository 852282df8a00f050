"""Conformance suite for offload backends: what every :class:`loopwatch.Backend` has to do, as a pytest class.

Users find it as :class:`loopwatch.testing.BackendConformance`. The calls go by name, and wait for one another by named
pipes (POSIX), so that it does not matter where they run.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

try:
    import pytest
except ImportError:
    raise ImportError("loopwatch.testing.BackendConformance is a pytest class: pip install pytest") from None

from loopwatch.errors import NotPicklable, OffloadError, PoolClosed, QueueFull, TaskTimeout
from loopwatch.events import PoolStats
from loopwatch.offloading import conformance_calls as calls_of
from loopwatch.offloading.conformance_calls import hold
from loopwatch.offloading.decorator import offload
from loopwatch.workers.backend import Backend
from loopwatch.workers.options import CallOptions

PLAIN = CallOptions()
Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end on a new loop."""


class Gate:
    """Holds calls in workers until it is opened, and knows when they have begun; by bytes in two named pipes.

    Args:
        folder: where the pipes are made.
    """

    def __init__(self, folder: Path) -> None:
        self.began, self.opened = str(folder / "began"), str(folder / "opened")
        os.mkfifo(self.began)
        os.mkfifo(self.opened)
        self._fds = [os.open(path, os.O_RDWR) for path in (self.began, self.opened)]
        self.wait_args = (self.began, self.opened)

    def open(self, calls: int = 1) -> None:
        """Let ``calls`` of them go on."""
        os.write(self._fds[1], b"." * calls)

    async def entered(self, calls: int = 1) -> None:
        """Wait until ``calls`` of them have begun."""
        loop = asyncio.get_running_loop()
        for _ in range(calls):
            there = asyncio.Event()
            loop.add_reader(self._fds[0], there.set)
            await there.wait()
            loop.remove_reader(self._fds[0])
            os.read(self._fds[0], 1)

    def close(self) -> None:
        """Close the pipes."""
        for fd in self._fds:
            os.close(fd)


def stats_add_up(stats: PoolStats) -> None:
    """Assert that every call that was taken is accounted for once."""
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled + stats.queued + stats.running, stats


class BackendConformance:
    """What every offload backend has to do; derive a test class, and return your backend from :meth:`make`.

    Attributes:
        pickles: whether functions and arguments are pickled.
        knows_options: whether time-outs, priorities and limits of :class:`loopwatch.CallOptions` mean anything.
        unwraps: whether what ``@offload`` has made is run as the plain function.

    Example:
        .. code-block:: python

            from loopwatch.testing import BackendConformance

            class TestMyBackend(BackendConformance):
                knows_options = False

                def make(self, max_queue=None):
                    return MyBackend(workers=1)
    """

    pickles: ClassVar[bool] = True
    knows_options: ClassVar[bool] = True
    unwraps: ClassVar[bool] = True

    @pytest.fixture
    def run(self) -> Run:
        """Runs a coroutine to its end on a new loop; override it to test on other kinds of loop."""
        return asyncio.run

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Iterator[Gate]:
        """Holds calls until it is opened."""
        made = Gate(tmp_path)
        yield made
        made.close()

    def make(self, max_queue: int | None = None) -> Backend:
        """Return a new backend that runs one call at a time, of which ``max_queue`` may wait, None: any number."""
        raise NotImplementedError

    async def strays_end(self, backend: Backend) -> None:
        """Wait until calls that were given up, but could not be stopped, have ended: the gate is open."""

    @asynccontextmanager
    async def made(self, max_queue: int | None = None) -> AsyncIterator[Backend]:
        """A backend that is closed at the end, with figures that add up and nothing under way."""
        backend = self.make(max_queue)
        try:
            yield backend
            stats_add_up(backend.stats())
        finally:
            await backend.close()
        stats = backend.stats()
        stats_add_up(stats)
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
                    backend.submit(calls_of.doubled_later, (4,), {}, PLAIN),
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
                with pytest.raises(ValueError, match="on purpose"):
                    await backend.submit(calls_of.fail, ("on purpose",), {}, PLAIN)
                for function, words in (
                    (sys.exit, "exit"),
                    (calls_of.interrupt, "KeyboardInterrupt"),
                    (calls_of.stop, "StopIteration"),
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
                moved = offload(to=backend)(calls_of.double)
                assert await moved(3) == 6
                with pytest.raises(TypeError, match="missing 1 required"):
                    await moved()  # type: ignore[call-arg]
                assert moved.explain().endswith(f"runs on {backend.name}: as configured")
                assert backend.stats().submitted == 2

        run(main())

    def test_what_is_decorated_runs_plainly(self, run: Run) -> None:
        """Given what ``@offload`` has made, it runs the plain function: a function, a coroutine function, a method."""
        if not self.unwraps:
            pytest.skip("it does not know what @offload has made")

        async def main() -> None:
            async with self.made() as backend:
                assert await backend.submit(calls_of.add, (1,), {"right": 2}, PLAIN) == 3
                value, pid = await backend.submit(calls_of.later, (7,), {}, PLAIN)
                area, pid_of_method = await backend.submit(calls_of.Shapes(3).area, (), {}, PLAIN)
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
                    calls.append(backend.submit(calls_of.note, (path, number), {}, options))
                assert backend.stats().queued == 5
                gate.open()
                await asyncio.gather(*calls)
            assert path.read_text(encoding="utf-8").split() == ["1", "4", "0", "2", "3"]

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
            stats_add_up(backend.stats())
            assert backend.stats().failed == 2

        run(main())


async def _await(future: asyncio.Future[Any]) -> Any:
    return await future

"""``@offload``: what can be decorated, where it runs, and what is refused."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch.offloading import default_pool, route
from loopwatch.offloading.policy import Measured, decide
from loopwatch.workers import pickling
from tests.offloading import offloaded


@pytest.fixture(autouse=True)
async def shut_down() -> AsyncIterator[None]:
    """Close the default pool and threads within the test's loop."""
    yield
    await default_pool.shut_down()


async def test_functions_run_in_a_worker() -> None:
    """Functions, coroutine functions and each kind of method run in another process, and return their results."""
    here = os.getpid()
    assert await offloaded.add(1, right=2) == 3
    shapes = offloaded.Shapes(3)
    found = [
        await offloaded.later(7),
        await shapes.area(),
        await shapes.static(4),
        await offloaded.Shapes.static(5),
        await offloaded.Shapes.named(),
    ]
    assert [value for value, _ in found] == [7, 9, 4, 5, "Shapes"]
    assert here not in {pid for _, pid in found}


async def test_exception_arrives_as_itself() -> None:
    """An exception of the function is raised by the await, and its cause shows the line in the worker."""
    with pytest.raises(ValueError, match="on purpose") as caught:
        await offloaded.fails("on purpose")
    assert "raise ValueError(words)" in str(caught.value.__cause__)


def test_decorated_function_looks_like_the_original() -> None:
    """Name, docstring and signature are kept; it pickles by reference and counts as a coroutine function."""
    assert offloaded.add.__name__ == "add"
    assert offloaded.add.__doc__ == "Add two numbers."
    assert list(inspect.signature(offloaded.add).parameters) == ["left", "right"]
    assert pickle.loads(pickle.dumps(offloaded.add)) is offloaded.add
    if sys.version_info < (3, 14):
        assert asyncio.iscoroutinefunction(offloaded.add)
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(offloaded.add)


def test_without_a_loop() -> None:
    """Called without a running loop it raises an error that names the alternative, which works."""
    with pytest.raises(loopwatch.OffloadError, match=r"needs a running event loop.*add\.inline\(\)"):
        offloaded.add(1)
    assert offloaded.add.inline(1) == 2


async def test_no_pool_within_a_pool() -> None:
    """An offloaded function that calls another runs it inline, in the same worker."""
    outer, inner = await offloaded.nested()
    assert outer == inner != os.getpid()


async def test_destinations() -> None:
    """``thread`` runs in a thread of the default backend, ``inline`` in the caller's."""
    assert (await offloaded.thread_name()).startswith("loopwatch-threads")
    assert await offloaded.here() == threading.current_thread().name
    stats = offloaded.here.stats()
    assert (stats.to, stats.inline, stats.failed) == ("inline", stats.calls, 0)


async def test_threads_within_threads() -> None:
    """More nested calls to threads than there are threads all end: inner calls run inline."""
    names = await asyncio.gather(*(offloaded.nested_threads(3) for _ in range(100)))
    assert [len(each) for each in names] == [1] * 100
    assert all(each.pop().startswith("loopwatch-threads") for each in names)


async def test_thread_timeout() -> None:
    """A call in a thread that times out fails; its thread goes on and does not count against the limit."""
    event = threading.Event()
    try:
        with pytest.raises(loopwatch.TaskTimeout, match="cannot be stopped"):
            await offloaded.waits(event)
        assert (await offloaded.thread_name()).startswith("loopwatch-threads")
    finally:
        event.set()


async def test_auto_offloads_computing_and_waiting_functions() -> None:
    """Once measured to hold the loop, a computing function goes to a process and a waiting one to a thread."""
    assert await offloaded.computes(0.05) == os.getpid()
    assert await offloaded.computes(0.05) != os.getpid()
    assert "keeps the GIL" in offloaded.computes.explain()
    assert await offloaded.naps(0.05) == threading.current_thread().name
    assert (await offloaded.naps(0.05)).startswith("loopwatch-threads")
    assert "waits for" in offloaded.naps.explain()


async def test_auto_does_not_count_queueing_as_overhead() -> None:
    """A burst that waits in the queue far longer than it runs leaves the function with the processes."""
    burst = await asyncio.gather(*(offloaded.burns(0.02) for _ in range(40)))
    assert burst.count(os.getpid()) == 1
    assert offloaded.burns.stats().process == 39
    assert await offloaded.burns(0.02) != os.getpid()
    assert offloaded.burns.stats().to == "process"


async def test_auto_honours_call_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large bytes are sent beside the pickle, and the function's max_concurrency holds."""
    sent: list[tuple[Any, pickling.Payload]] = []
    encode = pickling.encode_call

    def noted(function: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append((function, encode(function, *args, **kwargs)))
        return sent[-1][1]

    monkeypatch.setattr(pickling, "encode_call", noted)
    for burns in (offloaded.burns_one, offloaded.burns_other):
        for _ in range(3):
            await burns(0.02, bytes(1_000_000))
    assert [[len(each) for each in packed.buffers] for _, packed in sent] == [[1_000_000]] * 4
    assert len({function for function, _ in sent}) == 2
    assert {function.__qualname__ for function, _ in sent} == {"burns_one", "burns_other"}


async def test_auto_falls_back_where_arguments_do_not_pickle() -> None:
    """A call whose argument cannot be pickled runs in a thread instead, and the reason is kept."""
    await offloaded.computes(0.05)
    assert await offloaded.computes(0.05, threading.Lock()) == os.getpid()
    assert "cannot be sent" in offloaded.computes.explain()


async def test_pool_of_ones_own() -> None:
    """``pool=`` sends the calls to that pool; a lambda or closure needs no name."""
    pytest.importorskip("cloudpickle")
    offset = 5
    async with loopwatch.WorkerPool(workers=1) as pool:
        function: Any = loopwatch.offload(pool=pool)(lambda value: (value + offset, os.getpid()))
        value, pid = await function(1)
        assert value == 6
        assert pid == pool.stats().workers[0].pid


async def test_a_backend_may_be_given() -> None:
    """Any object with the methods of ``Backend`` can run the calls."""

    class Own:
        name = "own"

        def submit(self, function: Callable[..., Any], args: Any, kwargs: Any, _options: Any) -> asyncio.Future[Any]:
            future = asyncio.get_running_loop().create_future()
            future.set_result(("own", args, dict(kwargs)))
            return future

        def cancel(self, future: asyncio.Future[Any]) -> None:
            future.cancel()

        async def close(self, *, force: bool = False) -> None:
            pass

        def stats(self) -> loopwatch.PoolStats:
            return loopwatch.PoolStats("own")

    own = Own()
    assert isinstance(own, loopwatch.Backend)
    function = loopwatch.offload(to=own)(offloaded.add.inline)
    assert await function(1, right=2) == ("own", (1,), {"right": 2})
    assert function.explain().endswith("runs on own: as configured")


async def test_second_loop_in_another_thread() -> None:
    """A loop of another thread uses the default pool of the first: there is one per process."""
    first = await offloaded.pid()

    def other() -> list[int]:
        async def main() -> list[int]:
            return [await offloaded.pid() for _ in range(3)]

        return asyncio.run(main())

    with ThreadPoolExecutor(1) as executor:
        pids = await asyncio.get_running_loop().run_in_executor(executor, other)
    pool = default_pool.current_pool()
    assert pool is not None
    assert {first, *pids} <= {each.pid for each in pool.stats().workers}


def test_one_run_after_the_other() -> None:
    """Each ``asyncio.run`` gets a default pool and shuts it down at its end."""

    async def main() -> int:
        return await offloaded.pid()

    for _ in range(2):
        pid = asyncio.run(main())
        pool = default_pool.current_pool()
        assert pool is not None
        assert pool.closed
        assert not Path(f"/proc/{pid}").exists()


async def test_configured_destination() -> None:
    """``offload_to`` sets the destination of functions without one of their own, from the next call on."""
    agent = loopwatch.install(offload_to="thread")
    try:
        assert await offloaded.pid() == os.getpid()
        agent.configure(offload_to="process")
        assert await offloaded.pid() != os.getpid()
        (pool,) = agent.snapshot().pools
        assert (pool.name, pool.completed, pool.failed) == ("default", 1, 0)
        assert agent.snapshot().to_dict()["pools"][0]["completed"] == 1
    finally:
        agent.configure(offload_to="process")
        loopwatch.uninstall()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"retries": -1}, "retries=-1"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"priority": "high"}, "priority='high'"),
        ({"to": "somewhere"}, "to='somewhere'"),
        ({"to": 3}, "to=3"),
        ({"pool": "mine"}, "pool='mine'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    """Invalid arguments are refused at decoration, in one line that names them."""
    with pytest.raises(loopwatch.ConfigError) as caught:
        loopwatch.offload(**arguments)(offloaded.add.inline)
    assert words in str(caught.value)
    assert "must be" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [offloaded.numbers, 5, offloaded.Shapes])
def test_undecoratable_objects(bad: Any) -> None:
    """A generator function, a class or an object that is no function is refused at decoration."""
    with pytest.raises(loopwatch.ConfigError, match="@offload of"):
        loopwatch.offload(bad)


SCRIPT = """\
import asyncio, loopwatch
@loopwatch.offload
def double(value): return 2 * value
async def main(): return await double(2)
"""


def test_unguarded_script(tmp_path: Path) -> None:
    """A script without the ``__main__`` guard ends with an error that names the remedy, and few processes start."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "print(asyncio.run(main()))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr


def test_guarded_script(tmp_path: Path) -> None:
    """The same script with the guard works."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "if __name__ == '__main__':\n    print(asyncio.run(main()))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


INLINE = loopwatch.Decision("inline", "")
MOVED = loopwatch.Decision("process", "")


@pytest.mark.parametrize(
    ("measured", "now", "to", "why"),
    [
        (Measured(1, 0.001), INLINE, "inline", "only 1 calls"),
        (Measured(50, 0.009), INLINE, "inline", "9.0 ms"),
        (Measured(1, 0.2), INLINE, "process", "keeps the GIL"),
        (Measured(50, 0.009), MOVED, "process", "9.0 ms"),
        (Measured(50, 0.004), MOVED, "inline", "4.0 ms"),
        (Measured(50, 0.2, cpu_share=0.1), INLINE, "thread", "waits for 90%"),
        (Measured(50, 0.2, keeps_gil=False), INLINE, "thread", "without the GIL"),
        (Measured(50, 0.2, bound="a lock cannot be sent"), INLINE, "thread", "a lock cannot be sent"),
        (Measured(50, 0.02, trip=0.3), INLINE, "thread", "300.0 ms"),
    ],
)
def test_policy(measured: Measured, now: loopwatch.Decision, to: str, why: str) -> None:
    """The destination of a function follows from its measurements, and the reason names the decisive one."""
    decision = decide(measured, now)
    assert decision.to == to
    assert why in decision.reason


async def test_auto_returns_inline_when_calls_become_cheap() -> None:
    """An offloaded function runs inline again once its calls are quick, and stays there; each change is recorded."""
    calls: Any = loopwatch.offload(to="auto")(offloaded.computes.inline)
    for _ in range(3):
        await calls(0.03)
    assert calls.stats().to == "process"
    while calls.stats().to != "inline":
        await calls(0.0)
    assert [change.to for change in calls.stats().changes] == ["process", "inline"]
    assert "less than the 10 ms" in calls.stats().changes[-1].reason
    assert await calls(0.0) == os.getpid()


async def test_auto_tries_a_process_again_after_a_bad_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that does not pickle keeps a function off processes for a number of calls only."""
    assert route.AGAIN == 200
    monkeypatch.setattr(route, "AGAIN", 5)
    calls: Any = loopwatch.offload(to="auto")(offloaded.computes.inline)
    await calls(0.02)
    await calls(0.02, threading.Lock())
    before = calls.stats()
    assert (before.to, before.thread, before.calls) == ("thread", 1, 2)
    calls_made = 0
    while calls.stats().to != "process":
        await calls(0.011)
        calls_made += 1
    assert calls_made == 5


async def test_auto_measures_the_longest_step_of_a_coroutine() -> None:
    """A coroutine function is judged by the longest of its steps, not by the time it waits."""

    async def waits() -> None:
        await asyncio.sleep(0.02)

    async def blocks() -> None:
        await asyncio.sleep(0)
        offloaded.computes.inline(0.02)

    offloads = [loopwatch.offload(to="auto")(function) for function in (waits, blocks)]
    for each in offloads:
        for _ in range(3):
            await each()
    assert [each.stats().to for each in offloads] == ["inline", "process"]


def test_threads_where_there_are_no_workers() -> None:
    """Without Unix-only features (as on Windows) the decorator can be imported, and threads work."""
    code = """
        import os, signal, socket, sys
        sys.modules["fcntl"] = None
        for module, names in ((socket, ("CMSG_LEN", "SCM_RIGHTS", "MSG_CTRUNC", "recv_fds", "send_fds")),
                              (os, ("memfd_create", "fork", "register_at_fork", "sched_getaffinity", "pidfd_open")),
                              (signal, ("pthread_sigmask",))):
            for name in names:
                if hasattr(module, name):
                    delattr(module, name)
        import asyncio, loopwatch

        @loopwatch.offload(to="thread")
        def double(value):
            return 2 * value

        async def main():
            return await double(21)

        print(asyncio.run(main()), loopwatch.WorkerPool.__name__)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("42 WorkerPool\n", "")

"""Executors of the program are discovered and measured task by task, and their behaviour does not change."""

from __future__ import annotations

import asyncio
import asyncio.base_events
import concurrent.futures.process
import concurrent.futures.thread
import gc
import json
import multiprocessing.pool
import os
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tasks_of_pools as tasks
from tests_of_pools import Gate, until

import loopwatch
from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.events import PoolStats, WorkerState
from loopwatch.health import states as states_module
from loopwatch.health.naming import pool_name
from loopwatch.health.service import HealthService
from loopwatch.health.task_stats import Window

pytestmark = pytest.mark.measures

HERE = Path(__file__).name
REPLACED = {
    Future: ("set_exception", "cancel"),
    concurrent.futures.thread: ("_WorkItem",),
    concurrent.futures.ThreadPoolExecutor: ("__init__", "submit", "shutdown"),
    concurrent.futures.process: ("_WorkItem", "_process_worker"),
    concurrent.futures.ProcessPoolExecutor: (
        "__init__", "submit", "shutdown",
    ),
    concurrent.futures.process._ExecutorManagerThread: ("terminate_broken",),  # type: ignore[attr-defined]
    multiprocessing.pool: ("worker",),
    multiprocessing.pool.Pool: (
        "__init__", "close", "terminate", "join", "apply_async", "_map_async", "imap", "imap_unordered",
        "_join_exited_workers", "_repopulate_pool_static",
    ),
    multiprocessing.pool.ApplyResult: ("__init__", "_set"),
    multiprocessing.pool.MapResult: ("__init__", "_set"),
    multiprocessing.pool.IMapIterator: ("__init__", "_set"),
    multiprocessing.pool.IMapUnorderedIterator: ("__init__", "_set"),
    asyncio.base_events.BaseEventLoop: ("set_default_executor", "run_in_executor"),
}  # fmt: skip


def replaced() -> dict[tuple[str, str], object]:
    return {(str(owner), name): vars(owner).get(name) for owner, names in REPLACED.items() for name in names}


@pytest.fixture
def watch() -> Iterator[HealthService]:
    """A health service with ``hung_after`` of one second, checked to have no faults and to undo its patches."""
    before = replaced()
    patches, faults, config = PatchSet(), Faults(), Config(log_level="CRITICAL", hung_after=1.0)
    watch = HealthService(lambda: config, patches, faults, lambda _loop: "main")
    watch.start()
    yield watch
    watch.stop()
    patches.undo_all()
    assert faults.counts == {}
    assert replaced() == before


def pools(watch: HealthService) -> list[PoolStats]:
    return [reading.stats for reading in watch.readings() if reading.stats.kind != "children"]


def only(watch: HealthService) -> PoolStats:
    (found,) = pools(watch)
    return found


def states(stats: PoolStats) -> list[str]:
    return sorted(worker.state for worker in stats.workers)


def test_stats_of_threads(watch: HealthService, tmp_path: Path) -> None:
    """Running, queued and finished tasks of threads are counted, and errors by type even if not retrieved."""
    with ThreadPoolExecutor(2) as executor, Gate(tmp_path) as go:
        held = [executor.submit(tasks.until_there, str(go)) for _ in range(2)]
        futures = [executor.submit(tasks.even, number) for number in range(5)]
        cancelled = executor.submit(tasks.double, 1)
        assert cancelled.cancel()
        until(lambda: only(watch).running == 2)
        stats = only(watch)
        assert states(stats) == ["busy", "busy"]
        assert {worker.task for worker in stats.workers} == {"tasks_of_pools:until_there"}
        assert {worker.pid for worker in stats.workers} == {thread.native_id for thread in executor._threads}
        assert all((worker.running_for or 0.0) > 0.0 for worker in stats.workers)
        assert (stats.queued, stats.submitted, stats.max_workers, stats.started, stats.closed) == (6, 8, 2, 2, False)
        go.open()
        del futures, held
        until(lambda: only(watch).cancelled == 1)
        until(lambda: only(watch).running == 0)
        stats = only(watch)
        assert (stats.completed, stats.failed, stats.cancelled, stats.queued) == (5, 2, 1, 0)
        assert stats.failures == {"tasks_of_pools.Odd": 2}
        assert states(stats) == ["idle", "idle"]
        assert sum(worker.done for worker in stats.workers) == 7
    (reading,) = [each for each in watch.readings() if each.stats.kind == "thread"]
    assert (reading.waits.count, reading.runs.count) == (7, 7)
    assert reading.waits.highest > 0.0
    assert (reading.stats.closed, reading.stats.workers) == (True, ())


def test_processor_time_of_threads(watch: HealthService) -> None:
    """The processor time of tasks is counted, including that of threads that have ended."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(tasks.burn, 0.05).result()
        executor.submit(int).result()  # the task before is counted by now
        worker = only(watch).workers[0]
        assert (worker.cpu or 0.0) >= 0.05
    assert (only(watch).task_cpu or 0.0) >= 0.05


def test_utilization_is_that_of_the_last_window(watch: HealthService) -> None:
    """Utilization is one half if one of two threads is busy for the whole window."""
    window = Window()
    shares = [window.share(at, busy=at, workers=2) for at in (0.0, 1.0, 2.0, 3.0)]
    assert shares == [0.0, 0.5, 0.5, 0.5]
    assert window.share(10.0, busy=3.0, workers=2) == 0.0  # idle since
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        assert 0.0 <= only(watch).utilization <= 1.0


def test_names(watch: HealthService) -> None:
    """A pool is named after its thread prefix, or its class and the line that made it; names are unique."""

    class Subclass(ThreadPoolExecutor):
        pass

    first = ThreadPoolExecutor(1, thread_name_prefix="thumbs")
    more = []
    for _ in range(2):
        more.append(Subclass(1))
    line = test_names.__code__.co_firstlineno + 9
    names = [stats.name for stats in pools(watch)]
    assert names == ["thumbs", f"Subclass at {HERE}:{line}", f"Subclass at {HERE}:{line} #2"]
    assert pools(watch)[1].created_at.endswith(f"{HERE}:{line} in test_names")
    watch.watch(first, "thumbnails")
    watch.watch(more[0], "thumbnails")
    assert [stats.name for stats in pools(watch)][:2] == ["thumbnails", "thumbnails #2"]


def test_nothing_of_a_task_changes(watch: HealthService) -> None:
    """The function, its result, its error and the error's traceback are the same as without the agent."""
    del watch
    result = object()

    def function() -> Any:
        return function, result

    with ThreadPoolExecutor(1) as executor:
        found, value = executor.submit(function).result()
        assert found is function
        assert value is result
        error = executor.submit(tasks.even, 1).exception()
        assert isinstance(error, tasks.Odd)
        files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
        assert files == ["thread.py", "tasks_of_pools.py"]
        assert list(executor.map(tasks.double, range(5))) == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        ThreadPoolExecutor(0)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_nothing_is_kept_alive(watch: HealthService) -> None:
    """Executors, their threads, results and errors are freed with the last reference, without the collector."""
    gc.disable()
    try:
        executor = ThreadPoolExecutor(1)
        future = executor.submit(tasks.Odd)
        value = weakref.ref(future.result())
        failed = executor.submit(tasks.even, 1)
        error = failed.exception()
        assert error is not None
        gone = weakref.ref(error)
        executor.submit(int).result()  # the thread is done with the tasks before
        del future, failed, error
        assert value() is None
        assert gone() is None
        threads, gone = list(executor._threads), weakref.ref(executor)
        del executor
        assert gone() is None
    finally:
        gc.enable()
    until(lambda: not any(thread.is_alive() for thread in threads))
    assert only(watch).closed
    assert only(watch).workers == ()


@pytest.mark.parametrize("how", ["shut down", "collected"])
def test_orphans(watch: HealthService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A thread that still runs a task after its executor was shut down or collected is an orphan."""
    monkeypatch.setattr(states_module, "GRACE", 0.05)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    executor = ThreadPoolExecutor(1)
    future = executor.submit(tasks.stuck, str(fifo))
    until(lambda: only(watch).running == 1)
    if how == "shut down":
        executor.shutdown(wait=False)
    del executor
    until(lambda: states(only(watch)) == [WorkerState.ORPHAN])
    (worker,) = only(watch).workers
    assert f"its executor was {how}" in worker.reason
    assert "it still runs tasks_of_pools:stuck" in worker.reason
    fifo.open("w").close()
    future.result(10)
    until(lambda: only(watch).workers == ())


def test_hung(watch: HealthService, tmp_path: Path) -> None:
    """A thread whose task makes no progress is hung, with a reason; one that computes is busy."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    stop = str(tmp_path / "stop")
    with ThreadPoolExecutor(2) as executor:
        executor.submit(tasks.stuck, str(fifo))
        executor.submit(tasks.until_there, stop)
        until(lambda: WorkerState.HUNG in states(only(watch)))
        found = {worker.task: worker for worker in only(watch).workers}
        hung = found["tasks_of_pools:stuck"]
        assert hung.state == WorkerState.HUNG
        assert "has used neither processor nor I/O for" in hung.reason
        assert found["tasks_of_pools:until_there"].state == WorkerState.BUSY
        Path(stop).touch()
        fifo.open("w").close()
        until(lambda: states(only(watch)) == ["idle", "idle"])


def test_broken_initializer(watch: HealthService, caplog: pytest.LogCaptureFixture) -> None:
    """A pool whose initializer fails is closed, and its submitted task fails."""
    del caplog
    executor = ThreadPoolExecutor(1, initializer=tasks.even, initargs=(1,))
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executor.submit(int).result()
    until(lambda: only(watch).workers == ())
    assert only(watch).closed
    executor.shutdown()


def test_executors_that_existed_before(tmp_path: Path) -> None:
    """Existing executors are found, new tasks of their threads are seen, and queued ones run after the agent stops."""
    before = replaced()
    with ThreadPoolExecutor(1) as executor, Gate(tmp_path) as go:
        executor.submit(int).result()
        for _ in range(2):  # on, off, and on again
            patches, faults = PatchSet(), Faults()
            watch = HealthService(Config, patches, faults, lambda _loop: None)
            watch.start()
            assert executor.submit(tasks.double, 2).result() == 4
            until(lambda watch=watch: only(watch).completed == 1)  # type: ignore[misc]
            held, waiting = executor.submit(tasks.until_there, str(go)), executor.submit(tasks.double, 3)
            until(lambda watch=watch: only(watch).running == 1)  # type: ignore[misc]
            watch.stop()
            patches.undo_all()
            assert replaced() == before
            assert faults.counts == {}
            go.open()
            assert (held.result(), waiting.result()) == (os.getpid(), 6)
            Path(str(go)).unlink()


def test_default_executors(run: Callable[[Any], Any], watch: HealthService) -> None:
    """A loop's default executor, made by the loop or set on it, is listed as such with the loop's name."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, tasks.double, 4) == 8
        made = only(watch)
        assert (made.name, made.kind, made.completed) == ("default executor of main", "default", 1)
        assert HERE in made.created_at
        given = ThreadPoolExecutor(3, thread_name_prefix="given")
        loop.set_default_executor(given)
        assert await asyncio.to_thread(tasks.double, 5) == 10
        stats = pools(watch)[1]
        assert (stats.name, stats.kind, stats.max_workers) == ("default executor of main #2", "default", 3)
        assert stats.completed == 1
        own = ThreadPoolExecutor(1)
        assert await loop.run_in_executor(own, tasks.double, 6) == 12
        assert pools(watch)[2].kind == "thread"
        own.shutdown()

    run(main())
    gc.collect()
    until(lambda: all(stats.workers == () for stats in pools(watch)))


class Inline(Executor):
    """Runs a task where it is submitted."""

    def __init__(self) -> None:
        self.was_shut_down = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if not args:
            return future  # resolved by the test
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc.with_traceback(None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.was_shut_down = wait and not cancel_futures


def test_any_other_executor(watch: HealthService) -> None:
    """An executor given to ``watch`` is measured by its submitted tasks and is not kept alive."""
    executor = Inline()
    watch.watch(executor, "inline")
    assert executor.submit(tasks.double, 2).result() == 4
    executor.submit(tasks.even, 1)
    open_, running = executor.submit(int), executor.submit(int)
    running.set_running_or_notify_cancel()
    stats = only(watch)
    assert (stats.name, stats.kind, stats.queued, stats.running) == ("inline", "other", 1, 1)
    assert (stats.completed, stats.failures) == (1, {"tasks_of_pools.Odd": 1})
    assert list(executor.map(tasks.double, range(2))) == [0, 2]
    assert open_.cancel()
    running.set_result(1)
    executor.shutdown()
    assert executor.was_shut_down
    stats = only(watch)
    assert (stats.closed, stats.completed, stats.cancelled, stats.run and stats.run.count) == (True, 4, 1, 5)
    ref = weakref.ref(executor)
    del executor
    assert ref() is None


def test_other_executors_are_put_back() -> None:
    """An executor given to ``watch`` gets its own methods back when the service stops."""
    patches = PatchSet()
    watch = HealthService(Config, patches, Faults(), lambda _loop: None)
    watch.start()
    executor = Inline()
    watch.watch(executor, None)
    assert "submit" in vars(executor)
    watch.stop()
    patches.undo_all()
    assert vars(executor) == {"was_shut_down": False}


def test_watch_executor(agent: loopwatch.Agent) -> None:
    """``watch_executor`` rejects what is no executor with a clear error, and names one in snapshots and JSON."""
    for wrong in (None, object(), 3, ThreadPoolExecutor):
        with pytest.raises(loopwatch.ConfigError, match=r"watch_executor\(.*\): not an executor"):
            agent.watch_executor(wrong)
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(loopwatch.ConfigError, match=r"watch_executor\(name=''\): must be a str that is not empty"):
            agent.watch_executor(executor, "")
        agent.watch_executor(executor, name="thumbnails")
        assert executor.submit(tasks.double, 2).result() == 4
        until(lambda: agent.snapshot().pools[0].completed == 1)
        pool = json.loads(json.dumps(agent.snapshot().to_dict()))["pools"][0]
        assert (pool["name"], pool["kind"], pool["run"]["count"]) == ("thumbnails", "thread", 1)
        assert pool["workers"][0]["state"] in {"idle", "busy"}
    with pytest.raises(loopwatch.ConfigError, match="its submit\\(\\) cannot be replaced"):
        agent.watch_executor(Slotted())


class Slotted:
    __slots__ = ()

    def submit(self, function: Any) -> Any:
        """Run nothing."""


def test_own_pools(agent: loopwatch.Agent) -> None:
    """loopwatch's own pools report the same stats: errors by type, crashes by reason, the place where it was made."""

    async def main() -> None:
        async with loopwatch.WorkerPool(1, name="own") as pool:
            assert await pool.run(tasks.double, 2) == 4
            with pytest.raises(tasks.Odd):
                await pool.run(tasks.even, 1)
            with pytest.raises(loopwatch.WorkerCrashed):
                await pool.run(tasks.exits, 3)
            await pool.ready()
            (stats,) = [each for each in agent.snapshot().pools if each.kind == "loopwatch"]
            assert (stats.name, stats.max_workers, stats.completed, stats.closed) == ("own", 1, 1, False)
            assert stats.failures == {"tasks_of_pools.Odd": 1, "loopwatch.errors.WorkerCrashed": 1}
            assert stats.crashes == {"exit 3": 1}
            assert HERE in stats.created_at
            assert [worker.state for worker in stats.workers] == ["idle"]
            assert (stats.encoding or 0.0) > 0.0
        (stats,) = [each for each in agent.snapshot().pools if each.kind == "loopwatch"]
        assert (stats.closed, stats.workers) == (True, ())

    asyncio.run(main())


AT_EXIT = """
import loopwatch, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import Pool
if __name__ == "__main__":
    loopwatch.install()
    with ThreadPoolExecutor(1) as used, ProcessPoolExecutor(1) as processes:
        used.submit(int).result(), processes.submit(int).result()
    never_used = ThreadPoolExecutor(1)
    left = ThreadPoolExecutor(1)
    left.submit(int).result()
    processes = ProcessPoolExecutor(1)
    processes.submit(int).result()
    pool = Pool(1)
    pool.apply(int)
    closed = Pool(1)
    closed.apply(int)
    closed.close()
    closed.join()
"""


def test_executors_that_live_as_long_as_the_process(tmp_path: Path) -> None:
    """Executors that are never shut down do not delay or disturb the interpreter's exit, and nothing is written."""
    script = tmp_path / "left.py"
    script.write_text(AT_EXIT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_pools_of_the_opentelemetry_sdk_are_not_listed(agent: loopwatch.Agent) -> None:
    """Short-lived thread pools that the OpenTelemetry SDK makes for itself are not among the pools of a snapshot."""
    from opentelemetry.sdk.resources import OTELResourceDetector, get_aggregated_resources

    for _ in range(6):
        get_aggregated_resources([OTELResourceDetector()])
    with ThreadPoolExecutor(1) as executor:
        executor.submit(len, "abc").result()
        assert [pool.completed for pool in agent.snapshot().pools] == [1]


def test_names_fit_a_line_and_say_which_package() -> None:
    """A prefix with a line break is escaped, and a pool made in an ``__init__.py`` is named with its package."""
    assert pool_name("ThreadPoolExecutor", "", set(), given="a\nb\x1b") == "a\\nb\\x1b"
    place = "/site-packages/shop/__init__.py:7 in start"
    assert pool_name("ThreadPoolExecutor", place, set()) == "ThreadPoolExecutor at shop/__init__.py:7"

"""An error is counted as lost once its future is gone and it was never retrieved in any way."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
import tasks_of_pools as tasks
from test_executors import only, replaced, watch
from tests_of_pools import Gate, until

import loopwatch
from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.health import lost_errors
from loopwatch.health.service import HealthService
from loopwatch.health.task_stats import MOST_TYPES, TOGETHER, TaskStats

pytestmark = pytest.mark.measures

__all__ = ["watch"]
ODD = "tasks_of_pools.Odd"


@pytest.fixture
def threads(watch: HealthService) -> Iterator[ThreadPoolExecutor]:
    """An executor with one thread, which runs its tasks in order."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def processes(watch: HealthService) -> Iterator[ProcessPoolExecutor]:
    """An executor with one process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
    del executor
    gc.collect()
    from multiprocessing import resource_tracker

    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def fail(executor: Executor, error: int = 1) -> Future[int]:
    """Return a failed future whose error was not retrieved."""
    future = executor.submit(tasks.even, error)
    assert executor.submit(abs, -1).result() == 1
    until(future.done)
    return future


def forget(executor: Executor) -> None:
    """Submit a task that fails and drop its future."""
    executor.submit(tasks.even, 1)
    executor.submit(abs, -1).result()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_errors_that_are_not_retrieved(kind: str, watch: HealthService, request: pytest.FixtureRequest) -> None:
    """A lost error is counted by type when its future is dropped, at once or later; successes are not counted."""
    executor = request.getfixturevalue(kind)
    for _ in range(3):
        forget(executor)
    kept = [fail(executor) for _ in range(4)]
    until(lambda: only(watch).neglected == 3)
    until(lambda: only(watch).failed == 7)
    assert only(watch).neglected == 3
    kept.clear()
    assert only(watch).neglected == 7
    (reading,) = [each for each in watch.readings() if each.stats.kind != "children"]
    assert reading.neglected == {ODD: 7}


def by_result(executor: Executor, _gate: Gate) -> int:
    with pytest.raises(tasks.Odd):
        fail(executor).result()
    return 1


def by_waiting_in_result(executor: Executor, _gate: Gate) -> int:
    with pytest.raises(tasks.Odd):
        executor.submit(tasks.even, 1).result()
    return 1


def by_exception(executor: Executor, _gate: Gate) -> int:
    assert isinstance(fail(executor).exception(), tasks.Odd)
    return 1


def by_a_method_that_was_looked_up_before(executor: Executor, gate: Gate) -> int:
    executor.submit(tasks.until_there, str(gate))
    ask = executor.submit(tasks.even, 1).exception
    gate.open()
    assert isinstance(ask(), tasks.Odd)
    return 1


def by_what_was_sent_elsewhere(executor: Executor, _gate: Gate) -> int:
    with ThreadPoolExecutor(1) as other:
        error = other.submit(executor.submit(tasks.even, 1).exception).result()
    assert isinstance(error, tasks.Odd)
    return 1


def as_they_complete(executor: Executor, _gate: Gate) -> int:
    futures = [executor.submit(tasks.even, number) for number in range(4)]
    errors = [future.exception() for future in concurrent.futures.as_completed(futures)]
    return sum(error is not None for error in errors)


def by_waiting_for_the_first_error(executor: Executor, gate: Gate) -> int:
    executor.submit(tasks.until_there, str(gate))
    threading.Timer(0.05, gate.open).start()
    concurrent.futures.wait([executor.submit(tasks.even, 1)], return_when=FIRST_EXCEPTION)
    concurrent.futures.wait([fail(executor)], return_when=FIRST_EXCEPTION)
    return 2


def by_a_callback(executor: Executor, gate: Gate) -> int:
    called = threading.Semaphore(0)
    executor.submit(tasks.until_there, str(gate))
    executor.submit(tasks.even, 1).add_done_callback(lambda _future: called.release())
    gate.open()
    called.acquire()
    fail(executor).add_done_callback(lambda _future: called.release())
    called.acquire()
    return 2


def by_map(executor: Executor, _gate: Gate) -> int:
    with pytest.raises(tasks.Odd):
        list(executor.map(tasks.even, [1]))
    return 1


def by_map_whose_others_have_failed_too(executor: Executor, _gate: Gate) -> int:
    found = executor.map(tasks.even, [1, 3, 5])
    executor.submit(abs, -1).result()
    with pytest.raises(tasks.Odd):
        list(found)
    return 3


def by_repr(executor: Executor, _gate: Gate) -> int:
    assert "raised Odd" in repr(fail(executor))
    return 1


def by_a_loop(executor: Executor, gate: Gate) -> int:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        executor.submit(tasks.until_there, str(gate))
        waiting = [loop.run_in_executor(executor, tasks.even, 1), asyncio.wrap_future(executor.submit(tasks.even, 1))]
        gate.open()
        over = asyncio.wrap_future(fail(executor))
        return await asyncio.gather(*waiting, over, return_exceptions=True)

    errors = asyncio.run(main())
    assert [type(error) for error in errors] == [tasks.Odd] * 3
    return 3


WAYS = [
    by_result, by_waiting_in_result, by_exception, by_a_method_that_was_looked_up_before, by_what_was_sent_elsewhere,
    as_they_complete, by_waiting_for_the_first_error, by_a_callback, by_map, by_map_whose_others_have_failed_too,
    by_repr, by_a_loop,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_ways_to_get_an_error(kind: str, watch: HealthService, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """An error retrieved in any way is not lost, and the same pool still counts the next lost one."""
    executor, failed = request.getfixturevalue(kind), 0
    pool = only(watch).name

    def stats() -> Any:
        return next(each.stats for each in watch.readings() if each.stats.name == pool)

    for ask in WAYS:
        with Gate(tmp_path) as gate:
            failed += ask(executor, gate)
        gc.collect()
        until(lambda: stats().failed == failed)  # noqa: B023 - it is called at once
        assert (ask.__name__, stats().neglected) == (ask.__name__, 0)
    forget(executor)
    until(lambda: stats().neglected == 1)


def test_a_cancelled_call_has_no_lost_error(watch: HealthService, threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """No error is lost if the program tried in vain to cancel the call, running or failed, as ``map`` does."""
    with Gate(tmp_path) as gate:
        running = threads.submit(lambda: [tasks.until_there(str(gate)), tasks.even(1)])
        until(running.running)
        assert not running.cancel()
        del running
        gate.open()
        assert not fail(threads).cancel()
    until(lambda: only(watch).failed == 2)
    assert only(watch).neglected == 0


def test_waiting_does_not_retrieve_an_error(watch: HealthService, threads: ThreadPoolExecutor) -> None:
    """Errors are lost if the program only waits for its futures and never reads them."""
    concurrent.futures.wait([threads.submit(tasks.even, 1)])
    concurrent.futures.wait([fail(threads)])
    for _future in concurrent.futures.as_completed([threads.submit(tasks.even, 1)]):
        del _future
    abandoned = threads.map(tasks.even, [1, 3])
    forget(threads)
    del abandoned
    until(lambda: only(watch).neglected == 6)


def test_errors_that_are_retrieved_while_they_occur(watch: HealthService) -> None:
    """None of 1000 errors is counted as lost when they are retrieved at the moment they occur."""
    asked: list[BaseException | None] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as executor, ThreadPoolExecutor(2) as other:
            for number in range(500):
                futures = [executor.submit(tasks.even, 1) for _ in range(2)]
                if number % 3 == 0:
                    asked.extend(future.exception() for future in futures)
                elif number % 3 == 1:
                    asked.extend(other.map(Future.exception, futures))
                else:
                    while not all(future.done() for future in futures):
                        pass
                    asked.extend(future.exception() for future in futures)
                del futures
    finally:
        sys.setswitchinterval(interval)
    assert [type(error) for error in asked] == [tasks.Odd] * 1000
    gc.collect()
    failed = [reading.stats for reading in watch.readings() if reading.stats.failed]
    assert [(stats.failed, stats.neglected) for stats in failed] == [(1000, 0)]


def test_a_failed_future_looks_the_same(watch: HealthService, threads: ThreadPoolExecutor) -> None:
    """Name, module and traceback of a failed future are unchanged, and once read its class and attributes too."""
    future = fail(threads)
    kind = type(future)
    assert kind is not Future and isinstance(future, Future)
    assert (kind.__name__, kind.__qualname__, kind.__module__) == ("Future", "Future", Future.__module__)
    assert kind.__doc__ == Future.__doc__
    assert (future.done(), future.cancelled(), future.running()) == (True, False, False)
    assert type(future) is kind
    with pytest.raises(tasks.Odd) as raised:
        future.result()
    files = {Path(frame.filename).name for frame in traceback.extract_tb(raised.value.__traceback__)}
    assert files - {"threads.py"} == {Path(__file__).name, "_base.py", "thread.py", "tasks_of_pools.py"}
    assert not any(frame.name in ("read", "follow") for frame in traceback.extract_tb(raised.value.__traceback__))
    assert type(future) is Future
    assert vars(future).keys() == vars(Future()).keys()
    succeeded = threads.submit(abs, -1)
    assert succeeded.result() == 1
    assert type(succeeded) is Future and vars(succeeded).keys() == vars(Future()).keys()


def test_a_failed_future_is_not_kept_alive(watch: HealthService, threads: ThreadPoolExecutor) -> None:
    """A failed future is freed with its last reference, whether its error was retrieved or not."""
    gc.collect()
    gc.disable()
    try:
        for ask in (False, True):
            future = fail(threads)
            if ask:
                assert future.exception() is not None
            ref = weakref.ref(future)
            del future
            assert ref() is None
    finally:
        gc.enable()
    assert only(watch).neglected == 1


def test_failed_futures_in_cycles(watch: HealthService, threads: ThreadPoolExecutor) -> None:
    """The lost error of a future in a cycle is counted when any thread collects the cycle."""
    future: Any = fail(threads)
    future.own = future
    del future
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    assert only(watch).neglected == 1


def test_a_failed_future_that_outlives_its_pool(watch: HealthService) -> None:
    """A lost error is counted even if its future is dropped after the pool's final reading."""
    with ThreadPoolExecutor(1) as executor:
        kept = fail(executor)
    until(lambda: watch._executors.each()[0]._last is not None or only(watch) is None)
    assert (only(watch).closed, only(watch).neglected) == (True, 0)
    del kept
    assert (only(watch).closed, only(watch).neglected) == (True, 1)


def test_futures_that_the_program_fails_itself(watch: HealthService, threads: ThreadPoolExecutor) -> None:
    """A future that the program fails itself, even inside a task, is left alone."""
    own: Future[int] = Future()
    threads.submit(own.set_exception, ValueError()).result()
    assert type(own) is Future
    own = Future()
    own.set_exception(ValueError())
    assert type(own) is Future


def test_futures_with_a_finalizer(
    watch: HealthService, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Futures of a class with its own finalizer are left alone, and their lost errors are not counted."""

    class Own(Future[int]):
        def __del__(self) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr(concurrent.futures._base, "Future", Own)
        future = fail(threads)
    assert type(future) is Own
    del future
    assert (only(watch).failed, only(watch).neglected) == (1, 0)


def test_pools_of_multiprocessing(watch: HealthService) -> None:
    """Each ``apply_async`` or ``map_async`` job with a lost error counts once; ``get`` and callbacks retrieve it."""
    errors: list[BaseException] = []
    with ThreadPool(1) as pool:
        pool.apply_async(tasks.even, (1,))
        pool.apply_async(tasks.even, (1,), callback=print)
        pool.map_async(tasks.even, [1, 3, 2], chunksize=1)
        pool.apply_async(tasks.even, (1,), error_callback=errors.append)
        got, looked, mapped = pool.apply_async(tasks.even, (1,)), pool.apply_async(tasks.even, (1,)), None
        mapped = pool.map_async(tasks.even, [2, 1], chunksize=1)
        for result in (got, mapped):
            with pytest.raises(tasks.Odd):
                result.get()
        with pytest.raises(tasks.Odd):
            pool.map(tasks.even, [1])
        with pytest.raises(tasks.Odd):
            pool.apply(tasks.even, (1,))
        assert not looked.successful()
        assert type(got) is type(looked) is multiprocessing.pool.ApplyResult
        with pytest.raises(tasks.Odd):
            list(pool.imap(tasks.even, [1]))
        assert pool.apply(abs, (-1,)) == 1
        del got, looked, mapped, result
        until(lambda: only(watch).neglected == 3)
        assert len(errors) == 1
    pool.join()
    assert only(watch).neglected == 3


def test_a_pool_of_processes(watch: HealthService) -> None:
    """Lost errors of a multiprocessing pool of processes are counted."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply_async(tasks.even, (1,))
        with pytest.raises(tasks.Odd):
            pool.apply(tasks.even, (1,))
        until(lambda: only(watch).neglected == 1)
        assert only(watch).failed == 2
    pool.join()


def test_stopping_and_starting_again() -> None:
    """Lost errors are counted only while the service runs; stopping undoes everything, and a new start works."""
    before = replaced()
    faults = Faults()
    with ThreadPoolExecutor(1) as executor:
        early = fail(executor)
        assert type(early) is Future
        for _ in range(2):
            patches = PatchSet()
            watch = HealthService(lambda: Config(log_level="CRITICAL"), patches, faults, lambda _loop: "main")
            watch.start()
            forget(executor)
            until(lambda watch=watch: only(watch).neglected == 1)  # type: ignore[misc]
            kept, asked = fail(executor), fail(executor)
            task_stats = watch._executors.each()[0].task_stats
            watch.stop()
            patches.undo_all()
            del kept
            task_stats.fold()
            assert task_stats.neglected == {ODD: 1}
            assert isinstance(asked.exception(), tasks.Odd)
            assert type(asked) is type(fail(executor)) is Future
            assert replaced() == before
    assert faults.counts == {}


def test_at_the_end_of_the_interpreter() -> None:
    """Failed futures that still exist when the interpreter ends cause no output."""
    program = """
import loopwatch
from concurrent.futures import ThreadPoolExecutor
agent = loopwatch.install()
executor = ThreadPoolExecutor(1)
kept = [executor.submit(int, "x") for _ in range(3)]
executor.submit(int).result()
cycle = [kept]
cycle.append(cycle)
print([pool.neglected for pool in agent.snapshot().pools])
executor.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("[0]\n", "", 0)


def test_lost_errors_are_a_finding(run: Callable[[Any], Any]) -> None:
    """The finding has the number and the types of the lost errors, not of all that failed."""
    agent = loopwatch.install(log_level="CRITICAL")
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="mail") as executor:
            for _ in range(6):
                executor.submit(int, "x")
            for _ in range(9):
                assert executor.submit(tasks.even, 1).exception() is not None
            agent._parts.health._monitor.poll_now()
            (finding,) = [each for each in agent.snapshot().findings if each.kind == "neglected-errors"]
        assert finding.subject == "mail"
        assert finding.evidence == {"neglected": 6.0, "failed": 15.0}
        assert "6 calls of mail failed and nobody asked for their result (ValueError)" in finding.text
    finally:
        loopwatch.uninstall()


def test_concurrent_lost_errors() -> None:
    """Lost errors of several threads are all counted in bounded memory, and by a bounded number of types."""
    task_stats = TaskStats()
    threads = [
        threading.Thread(target=lambda: [task_stats.neglect("ValueError") for _ in range(2 * TOGETHER)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(task_stats._neglected) < 8 * TOGETHER
    for number in range(MOST_TYPES + 5):
        task_stats.neglect(f"Error{number}")
    task_stats.fold()
    assert task_stats.neglected["ValueError"] == 8 * TOGETHER
    assert task_stats.neglected.total() == 8 * TOGETHER + MOST_TYPES + 5
    assert len(task_stats.neglected) == MOST_TYPES + 1


def test_a_missing_attribute_stays_missing() -> None:
    """Reading an attribute that is not set raises AttributeError."""

    class Result:
        pass

    kind = lost_errors._kind(Result, lost_errors.RESULT, print)
    with pytest.raises(AttributeError, match="_value"):
        _ = kind()._value

"""Healthy programs of common kinds cause no finding and no log line, whatever fails and ends in them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tasks_of_pools as tasks
from tests_of_pools import Gate, until

import loopwatch
from loopwatch.agent import Agent
from loopwatch.health import findings, history, monitor, states

pytestmark = pytest.mark.measures

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Agent]:
    """An agent whose rules fire at once, checked to have no findings, log lines or faults."""
    monkeypatch.setattr(monitor, "PERIOD", 0.05)
    for rule in findings.RULES:
        monkeypatch.setattr(type(rule), "hold", 0.0)
    for name, value in {"EVERY": 0.0, "SHORTEST": 0.2, "UNWAITED_AFTER": 0.3}.items():
        monkeypatch.setattr(history, name, value)
    monkeypatch.setattr(states, "GRACE", 0.1)
    with caplog.at_level(logging.WARNING, "loopwatch"):
        agent = loopwatch.install(threshold=60, cpu_budget=1.0, hung_after=0.3)
        yield agent
        for _ in range(3):
            agent._parts.health._monitor.poll_now()
        snapshot = agent.snapshot()
        loopwatch.uninstall()
    assert [(finding.kind, finding.text) for finding in snapshot.findings] == []
    assert [record.getMessage() for record in caplog.records] == []
    assert snapshot.agent.faults == {}


def failed(agent: Agent) -> int:
    return sum(each.failed for each in agent.snapshot().pools)


Call = Callable[[ThreadPoolExecutor | None, Callable[..., Any]], Awaitable[Any]]


def in_executor(executor: ThreadPoolExecutor | None, function: Callable[..., Any]) -> Awaitable[Any]:
    return asyncio.get_running_loop().run_in_executor(executor, function)


def wrapped(executor: Any, function: Callable[..., Any]) -> Awaitable[Any]:
    return asyncio.wrap_future(executor.submit(function))


def wrapped_once_over(executor: Any, function: Callable[..., Any]) -> Awaitable[Any]:
    future = executor.submit(function)
    until(future.done)
    return asyncio.wrap_future(future)


async def to_thread(_executor: ThreadPoolExecutor | None, function: Callable[..., Any]) -> Any:
    return await asyncio.to_thread(function)


async def anyio_to_thread(_executor: ThreadPoolExecutor | None, function: Callable[..., Any]) -> Any:
    anyio = pytest.importorskip("anyio")
    return await anyio.to_thread.run_sync(function)


def poll() -> None:
    queue.SimpleQueue[int]().get(timeout=0.001)


@pytest.mark.parametrize("own", [False, True], ids=["default", "own"])
@pytest.mark.parametrize("call", [in_executor, wrapped, wrapped_once_over, to_thread, anyio_to_thread])
def test_polling_whose_errors_are_handled(call: Call, own: bool, silent: Agent, run: Callable[[Any], Any]) -> None:
    """Failed calls that are awaited are no finding, for each way to call a thread from a loop."""

    async def main() -> int:
        executor, empty = ThreadPoolExecutor(1) if own or call in (wrapped, wrapped_once_over) else None, 0
        for _ in range(60):
            try:
                await call(executor, poll)
            except queue.Empty:
                empty += 1
        return empty

    assert run(main()) == 60


def test_awaited_processes_whose_errors_are_handled(silent: Agent, run: Callable[[Any], Any]) -> None:
    """Failed calls to processes that are awaited are no finding."""

    async def main() -> None:
        with ProcessPoolExecutor(1, mp_context=FORK) as executor:
            for _ in range(30):
                with pytest.raises(tasks.Odd):
                    await asyncio.get_running_loop().run_in_executor(executor, tasks.even, 1)

    run(main())


def test_calls_that_time_out_and_fail_later(silent: Agent, run: Callable[[Any], Any]) -> None:
    """The late error of a call that ``wait_for`` or a cancelled task gave up is no finding."""

    async def main() -> None:
        loop, over = asyncio.get_running_loop(), threading.Event()

        def late() -> None:
            over.wait(30)
            raise OSError

        with ThreadPoolExecutor(8) as executor:
            for _ in range(4):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(loop.run_in_executor(executor, late), 0.01)
                task = asyncio.create_task(asyncio.wait_for(loop.run_in_executor(executor, late), 30))
                await asyncio.sleep(0.01)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            over.set()

    run(main())
    until(lambda: failed(silent) == 8)


def test_results_that_are_asked_for_later(silent: Agent) -> None:
    """Errors retrieved by callbacks, ``as_completed``, ``wait`` or ``map``, even if closed early, are no finding."""
    seen: list[BaseException | None] = []
    with ThreadPoolExecutor(2) as executor:
        for _ in range(10):
            executor.submit(tasks.even, 1).add_done_callback(lambda future: seen.append(future.exception()))
            for future in concurrent.futures.as_completed([executor.submit(tasks.even, 1) for _ in range(2)]):
                seen.append(future.exception())
            done, _ = concurrent.futures.wait([executor.submit(tasks.even, 1)], return_when=FIRST_EXCEPTION)
            seen.extend(each.exception() for each in done)
            with pytest.raises(tasks.Odd):
                list(executor.map(tasks.even, [1, 3, 5]))
            results = executor.map(tasks.double, range(9))
            assert next(results) == 0
            results.close()  # type: ignore[attr-defined]
            executor.map(tasks.double, range(3))
    assert [type(each) for each in seen] == [tasks.Odd] * 40


def test_a_lost_error_is_found_among_handled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pool with many handled errors the one that is never retrieved is a finding."""
    agent = loopwatch.install(threshold=60, log_level="CRITICAL")

    async def main(executor: ThreadPoolExecutor) -> None:
        for _ in range(30):
            with pytest.raises(queue.Empty):
                await in_executor(executor, poll)
        executor.submit(tasks.even, 1)
        await in_executor(executor, int)

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="mail") as executor:
            asyncio.run(main(executor))
            agent._parts.health._monitor.poll_now()
            (finding,) = agent.snapshot().findings
        assert (finding.kind, finding.subject) == ("neglected-errors", "mail")
        assert finding.evidence == {"neglected": 1.0, "failed": 31.0}
    finally:
        loopwatch.uninstall()


def test_the_loop_reports_errors_that_are_never_retrieved(silent: Agent, run: Callable[[Any], Any]) -> None:
    """asyncio still reports an unawaited error of ``run_in_executor`` itself when the agent is installed."""
    reported: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        loop.run_in_executor(None, tasks.even, 1)
        while not reported:
            await asyncio.to_thread(int)

    run(asyncio.wait_for(main(), 30))
    assert [type(each) for each in reported] == [tasks.Odd]


def test_executors_for_life(silent: Agent, run: Callable[[Any], Any]) -> None:
    """Long-lived executors, one for each database, are no finding."""
    pools = [ThreadPoolExecutor(3, thread_name_prefix=f"database {n}") for n in range(8)]

    async def main() -> None:
        for _ in range(10):
            await asyncio.gather(*(in_executor(pool, int) for pool in pools))
            await asyncio.sleep(0.05)

    run(main())
    for pool in pools:
        pool.shutdown()


def test_threads_that_consume_for_as_long_as_the_program_runs(silent: Agent, run: Callable[[Any], Any]) -> None:
    """Threads that block on a queue for the life of the program are hung, but neither logged nor a finding."""
    things: queue.SimpleQueue[int] = queue.SimpleQueue()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            calls = [in_executor(None, things.get), in_executor(executor, things.get)]
            while sum(w.state == "hung" for pool in silent.snapshot().pools for w in pool.workers) < 2:
                await asyncio.sleep(0.02)
            silent._parts.health._monitor.poll_now()
            things.put(1)
            things.put(1)
            await asyncio.gather(*calls)

    run(asyncio.wait_for(main(), 40))


def test_a_task_that_outlives_its_executor(silent: Agent) -> None:
    """A call that still runs after ``shutdown(wait=False)`` is neither logged nor a finding."""
    over = threading.Event()
    executor = ThreadPoolExecutor(1)
    future: Future[bool] = executor.submit(over.wait, 30)
    executor.shutdown(wait=False)
    until(lambda: any(w.state == "orphan" for pool in silent.snapshot().pools for w in pool.workers))
    silent._parts.health._monitor.poll_now()
    over.set()
    assert future.result(30)


def test_programs_whose_exit_codes_are_results(silent: Agent, run: Callable[[Any], Any]) -> None:
    """No finding for failed checks, an empty ``grep``, a time-out, a closed pipe, or a SIGTERM by another process."""

    async def main() -> None:
        for _ in range(5):
            child = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 3")
            assert await child.wait() == 3
            child = await asyncio.create_subprocess_exec("/bin/sleep", "60")
            child.terminate()
            assert await child.wait() == -signal.SIGTERM
        for _ in range(4):
            assert subprocess.run(["grep", "-q", "x", os.devnull], check=False).returncode == 1
            with pytest.raises(subprocess.TimeoutExpired):
                subprocess.run(["/bin/sleep", "60"], timeout=0.01, check=False)
            with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as reader:
                assert reader.stdout is not None and reader.stdout.readline() == b"y\n"
            assert reader.wait() == -signal.SIGPIPE
            with subprocess.Popen(["/bin/sleep", "60"]) as child_of_others:
                subprocess.run(["/bin/sh", "-c", f"kill -TERM {child_of_others.pid}"], check=True)

    run(main())


@pytest.mark.long
def test_a_supervisor_that_recycles_its_workers(silent: Agent) -> None:
    """No finding for forks that exit with 0 or a code that requests a restart, or that their supervisor kills."""
    for code in (0, 155, 0, 155, 155, 155):
        pid = os.fork()
        if pid == 0:
            time.sleep(0.6)
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    for _ in range(4):
        worker = FORK.Process(target=time.sleep, args=(60,))
        worker.start()
        worker.kill()
        worker.join()


def test_many_children_that_are_reaped_in_turn(silent: Agent, tmp_path: Path) -> None:
    """Sixteen children that have exited are no finding while the program waits for an earlier one."""
    first = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    with Gate(tmp_path) as gate:
        children = [subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) for _ in range(8)]
        processes = [FORK.Process(target=tasks.until_there, args=(str(gate),)) for _ in range(8)]
        for process in processes:
            process.start()
        silent._parts.health._monitor.poll_now()  # all of them are known
        for child in children:
            assert child.stdin is not None
            child.stdin.close()

    def zombies() -> int:
        return sum(w.state == "zombie" for pool in silent.snapshot().pools for w in pool.workers)

    until(lambda: zombies() == 16)
    for _ in range(20):
        silent._parts.health._monitor.poll_now()
        time.sleep(0.05)
    first.communicate()
    for child in children:
        child.wait()
    for process in processes:
        process.join()


def test_recycled_workers_and_pools_made_for_jobs(silent: Agent) -> None:
    """No finding for ``maxtasksperchild``, even in forks of an executor's thread, which exit with 1."""

    def work() -> None:
        with FORK.Pool(2, maxtasksperchild=2) as pool:
            for _ in range(6):
                assert pool.map(tasks.double, range(4), chunksize=1) == [0, 2, 4, 6]

    work()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()
    for _ in range(2):
        with ProcessPoolExecutor(1, mp_context=FORK) as processes:
            processes.submit(tasks.double, 2).result()


def test_batches_of_threads_that_are_worth_it(silent: Agent) -> None:
    """A thread pool for each of eight batches of downloads is no finding."""
    for _ in range(8):
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(time.sleep, [0.02] * 4))


def test_coroutine_functions_called_from_threads_by_a_library(silent: Agent) -> None:
    """Thread pools that asgiref makes for each asynchronous view under WSGI are no finding."""
    sync = pytest.importorskip("asgiref.sync")

    async def view(number: int) -> int:
        await asyncio.sleep(0)
        return number

    for number in range(8):
        assert sync.async_to_sync(view)(number) == number
    assert len([each for each in silent.snapshot().pools if "asgiref" in each.created_at]) >= 5

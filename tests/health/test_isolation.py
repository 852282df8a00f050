"""An object that cannot be watched is left alone, counted and logged once; all others are watched."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import gc
import logging
import multiprocessing
import queue
import subprocess
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import tasks_of_pools as tasks
from tests_of_pools import until

import loopwatch
from loopwatch.agent import Agent
from loopwatch.core.faults import Faults
from loopwatch.health import isolation
from loopwatch.health.isolation import Isolation

LEFT_ALONE = "could not be watched and is left alone"


@pytest.fixture
def watching(caplog: pytest.LogCaptureFixture) -> Iterator[Agent]:
    """An installed agent."""
    with caplog.at_level(logging.WARNING, "loopwatch"):
        yield loopwatch.install(threshold=60)
        loopwatch.uninstall()


def faults(agent: Agent) -> dict[str, int]:
    return dict(agent.snapshot().agent.faults)


def others_are_watched(agent: Agent) -> None:
    """Check that a thread pool and a child process made later are watched."""
    with ThreadPoolExecutor(1, thread_name_prefix="healthy") as executor:
        assert executor.submit(tasks.double, 2).result() == 4
        until(lambda: any(each.name == "healthy" and each.completed == 1 for each in agent.snapshot().pools))
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
            pids = {w.pid for each in agent.snapshot().pools if each.kind == "children" for w in each.workers}
            assert child.pid in pids


def resolved(mock: Any) -> Any:
    """Return a mock whose ``submit`` returns a future that has a result."""
    future: Future[int] = Future()
    future.set_result(7)
    mock.submit.return_value = future
    return mock


MOCKS: dict[str, Callable[[], Any]] = {
    "Mock": Mock,
    "MagicMock": MagicMock,
    "with a spec": lambda: Mock(spec=ThreadPoolExecutor(1)),
    "of a class": lambda: MagicMock(spec=ThreadPoolExecutor),
}


@pytest.mark.parametrize("kind", MOCKS)
def test_a_mock_in_place_of_an_executor(
    kind: str, watching: Agent, run: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A mock given as an executor works as without the agent and is not counted as a fault."""
    mock = resolved(MOCKS[kind]())

    async def main() -> int:
        loop = asyncio.get_running_loop()
        try:
            loop.set_default_executor(mock)
        except TypeError:  # asyncio wants a real one
            pass
        found: int = await loop.run_in_executor(mock, tasks.double, 2)
        return found

    assert run(main()) == 7
    mock.submit.assert_called_with(tasks.double, 2)
    others_are_watched(watching)
    assert faults(watching) == {}
    assert [record.getMessage() for record in caplog.records] == []


def test_watch_executor_rejects_a_mock(watching: Agent) -> None:
    """A mock is rejected with a clear error, because its methods could not be restored."""
    mock = resolved(Mock())
    with pytest.raises(loopwatch.ConfigError, match=r"its submit\(\) cannot be replaced .*as that of a mock"):
        watching.watch_executor(mock, "mock")
    assert mock.submit(tasks.double, 2).result() == 7
    loopwatch.uninstall()
    assert isinstance(mock.submit, Mock)
    others_are_watched(loopwatch.install(threshold=60))


class Raising(ThreadPoolExecutor):
    """An executor with an attribute that raises."""

    @property
    def _threads(self) -> Any:
        raise RuntimeError("not to be looked at")

    @_threads.setter
    def _threads(self, threads: Any) -> None:
        self.found = threads


class Unmade(ThreadPoolExecutor):
    """An executor that does not call the constructor of its base class."""

    def __init__(self) -> None:
        pass

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


def test_an_executor_whose_attributes_raise(watching: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """Two such executors, each used several times, are two faults and one log line."""
    for _ in range(2):
        odd = Raising(1)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="not to be looked at"):  # as without the agent
                odd.submit(tasks.double, 2)
            watching.watch_executor(odd)
        with pytest.raises(RuntimeError, match="not to be looked at"):
            odd.shutdown()
    assert faults(watching) == {"executor": 2}
    lines = [record.getMessage() for record in caplog.records if LEFT_ALONE in record.getMessage()]
    assert lines == [
        f"loopwatch: one executor {LEFT_ALONE} (the program is not affected): RuntimeError: not to be looked at"
    ]
    others_are_watched(watching)
    assert faults(watching) == {"executor": 2}


def test_an_executor_without_its_base_constructor(watching: Agent, run: Callable[[Any], Any]) -> None:
    """A subclass that overrides everything works as the default executor and is no fault."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Unmade())
        found: int = await loop.run_in_executor(None, tasks.double, 2)
        return found

    assert run(main()) == 4
    others_are_watched(watching)
    assert faults(watching) == {}


class Plain:
    """A future of the program's own with only what a work item needs."""

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[int] = queue.SimpleQueue()

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def set_result(self, result: int) -> None:
        self.results.put(result)


def test_a_future_of_another_kind(watching: Agent) -> None:
    """A foreign future in a pool's queue is counted as one fault, and the pool's thread goes on."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        (thread,) = executor._threads
        for number in range(3):
            future = Plain()
            executor._work_queue.put(concurrent.futures.thread._WorkItem(future, tasks.double, (number,), {}))  # type: ignore[arg-type]
            assert future.results.get(timeout=20) == 2 * number
        executor.submit(int).result()
        assert thread.is_alive()
    assert faults(watching) == {"executor": 1}
    others_are_watched(watching)


class OddPopen(subprocess.Popen[bytes]):
    """A Popen whose ``args`` raises."""

    @property
    def args(self) -> Any:
        raise RuntimeError("secret")

    @args.setter
    def args(self, args: Any) -> None:
        pass


class OddProcess(multiprocessing.get_context("fork").Process):  # type: ignore[name-defined, misc]
    """A process whose ``pid`` is a mock."""

    @property
    def pid(self) -> Any:
        return Mock()


def test_children_that_cannot_be_watched(watching: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """Each Popen that cannot be read is one fault, a process whose pid is a mock is ignored, and others are watched."""
    for _ in range(2):
        with OddPopen(["/bin/true"]) as child:
            assert child.wait() == 0
    process = OddProcess(target=int)
    process.start()
    process.join()
    assert faults(watching) == {"child": 2}
    assert sum(LEFT_ALONE in record.getMessage() for record in caplog.records) == 1
    watching._parts.health._monitor.poll_now()
    others_are_watched(watching)
    assert faults(watching) == {"child": 2}


class Strange(Executor):
    """An executor whose ``submit`` does not return a future."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def test_a_named_executor_that_returns_no_future(watching: Agent) -> None:
    """It is dropped with one fault at its first call, and all calls return what they did before."""
    strange = Strange()
    watching.watch_executor(strange, "strange")
    assert [strange.submit(tasks.double, number) for number in range(4)] == [0, 2, 4, 6]
    assert faults(watching) == {"executor": 1}
    assert watching.snapshot().pools == ()
    others_are_watched(watching)


def test_memory_of_failed_objects_is_bounded_and_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed objects are referenced weakly, and only the latest few hundred are remembered."""

    class Thing:
        pass

    class Slotted:
        __slots__ = ()

    faults = Faults()
    kept = Isolation(faults, "thing")
    thing, slotted = Thing(), Slotted()
    ref = weakref.ref(thing)
    assert kept.add(thing, ValueError()) and kept.add(slotted, ValueError())
    assert not kept.add(thing, ValueError()) and not kept.add(slotted, ValueError())
    assert (kept.has(thing), kept.has(slotted), kept.has(Thing())) == (True, True, False)
    del thing
    gc.collect()
    assert ref() is None and len(kept._failed) == 1
    monkeypatch.setattr(isolation, "MOST", 10)
    things = [Thing() for _ in range(50)]
    for each in things:
        kept.add(each, ValueError())
    assert len(kept._failed) == 10 and kept.has(things[-1])
    assert faults.counts == {"thing": 52} and not faults.is_off("other")

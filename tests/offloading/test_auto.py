"""Functions named in the configuration are offloaded once flagged, and the program's behaviour stays the same."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch import Cause, Frame, Stall
from loopwatch.agent import Agent
from loopwatch.events import Evidence
from loopwatch.offloading import default_pool, route
from loopwatch.offloading.auto import IN_A_THREAD, OUTSIDE, WITHIN_CONTEXT
from loopwatch.offloading.side_effects import CALLS_ITSELF
from tests.conftest import Run, runner
from tests.offloading import named, offloaded

pytestmark = pytest.mark.measures

MODULE = "tests.offloading.named"
HERE = os.getpid()


@pytest.fixture
def make() -> Iterator[Callable[..., Agent]]:
    """Make agents, and stop them at the end."""
    made: list[Agent] = []

    def agent(**settings: Any) -> Agent:
        made.append(Agent(loopwatch.Config(log_level=logging.CRITICAL, **settings)))
        made[-1].start()
        return made[-1]

    yield agent
    for each in reversed(made):
        each.stop()


def stall_in(function: str, *callers: str, cause: Cause = Cause.PYTHON, module: str = MODULE, at: float = 1.0) -> Stall:
    """A stall with a culprit, as the diagnosis makes it."""
    frames = tuple(Frame(name, module, "named.py", 1) for name in (*callers, function))
    return Stall(
        id=f"s{at}", loop="main", started_at=at, duration=0.2, uncertainty=0.0, ongoing=False, cause=cause,
        culprit=frames[-1], leaf=frames[-1], stack=frames, samples=(3, 3), task=None, coroutine=None, context={},
        victims=0, evidence=Evidence(wall=0.2), remedy="move it",
    )  # fmt: skip


def flag(agent: Agent, function: str, *callers: str, cause: Cause = Cause.PYTHON, module: str = MODULE) -> None:
    """Have the agent see enough stalls to flag a function."""
    offloader = agent._parts.offloading._auto
    assert offloader is not None
    for number in range(agent.config.flag_after):
        offloader.saw(stall_in(function, *callers, cause=cause, module=module, at=1.0 + number))


def skip_probation(agent: Agent, function: str) -> None:
    """Send a function to a process from its first call on."""
    function = agent._parts.offloading._auto._listed[f"{MODULE}:{function}"].offloaded  # type: ignore[union-attr]
    assert function is not None and function.route.probation is not None
    function.route.probation.left = 0


def stats_of(agent: Agent, name: str) -> loopwatch.events.OffloadStats:
    """Return the stats of a function."""
    return next(each for each in agent.snapshot().offload if each.name == f"{MODULE}:{name}")


def listed(agent: Agent) -> dict[str, str]:
    """Return the functions named in the configuration, with the reasons for their destinations."""
    return {each.name: each.reason for each in agent.snapshot().offload if each.way != "offload"}


async def in_task(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a plain function without await inside a task of its own."""
    return await asyncio.create_task(named.handler_of(function, *args, **kwargs))


async def until_offloaded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the function as often as it is compared before it goes to a process, and then once."""
    for _ in range(3):
        await in_task(function, *args, **kwargs)
    return await in_task(function, *args, **kwargs)


def scenario(run: Run, test: Callable[[], Any]) -> Any:
    """Run a test on a loop, and close the default pool in it."""

    async def main() -> Any:
        try:
            return await test()
        finally:
            await default_pool.shut_down()

    return run(main())


# -- transparent ------------------------------------------------------------------------------------------------------


def test_plain_function_runs_in_a_process(run: Run, make: Callable[..., Agent]) -> None:
    """Once flagged, and after three compared calls, a plain call deep inside a task runs in another process; its
    arguments, result and exception are unchanged.
    """
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> list[Any]:
        seen = [(await in_task(named.where, 0))[1]]
        flag(agent, "where")
        seen += [(await in_task(named.where, number))[1] for number in (1, 2, 3)]
        value, pid, _ = await in_task(named.where, {"a": [1]})
        with pytest.raises(ValueError, match="of x"):
            await in_task(named.where, "x", fail=True)
        return [*seen, value, pid]

    *before, value, pid = scenario(run, test)
    assert before == [HERE] * 4
    assert value == {"a": [1]}
    assert pid != HERE
    stats = stats_of(agent, "where")
    assert (stats.way, stats.to, stats.calls, stats.inline, stats.process, stats.failed) == (
        "transparent_offload", "process", 5, 3, 1, 1,
    )  # fmt: skip


def test_cause_decides_the_destination(run: Run, make: Callable[..., Agent]) -> None:
    """Waiting functions, and C code that releases the GIL, go to a thread at once and see their context variables."""
    agent = make(transparent_offload=[f"{MODULE}:where", f"{MODULE}:logs"])

    async def test() -> list[str]:
        flag(agent, "where", cause=Cause.NATIVE)
        flag(agent, "logs", cause=Cause.SLEEP)
        return [(await in_task(named.where))[2], await in_task(named.logs, 1)]

    assert all(name.startswith("loopwatch-threads") for name in scenario(run, test))
    assert "without the GIL" in stats_of(agent, "where").reason
    assert "waits for 100%" in stats_of(agent, "logs").reason


def test_existing_references_are_offloaded(run: Run, make: Callable[..., Agent]) -> None:
    """References imported by name before, or kept in a container, are offloaded too; the function stays the same object
    with the same signature.
    """
    kept = {"by name": named.where}
    signature = inspect.signature(named.where)
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> Any:
        flag(agent, "where", cause=Cause.IO)
        return await in_task(kept["by name"])

    assert scenario(run, test)[2].startswith("loopwatch-threads")
    assert kept["by name"] is named.where
    assert inspect.signature(named.where) == signature


def test_mutating_functions_stay(run: Run, make: Callable[..., Agent]) -> None:
    """A function that changes an argument, its object or a global never goes to a process: the caller sees each change,
    whichever call made it.
    """
    agent = make(
        transparent_offload=[f"{MODULE}:mutates", f"{MODULE}:logs", f"{MODULE}:Shape.grows", f"{MODULE}:Shape.area"]
    )
    named.log.clear()

    async def test() -> tuple[list[int], int, Any]:
        for name in ("mutates", "logs", "Shape.grows", "Shape.area"):
            flag(agent, name)
        values: list[int] = []
        shape = named.Shape(1)
        for number in range(5):
            await in_task(named.mutates, values)
            await in_task(named.logs, number)
            await in_task(shape.grows)
        areas = [await in_task(shape.area) for _ in range(4)]
        return values, shape.side, areas

    values, side, areas = scenario(run, test)
    assert (values, side, named.log) == ([0, 1, 2, 3, 4], 6, [0, 1, 2, 3, 4])
    assert "it changes its arguments" in stats_of(agent, "mutates").reason
    assert "it changes its arguments" in stats_of(agent, "Shape.grows").reason
    assert "it changes the global log" in stats_of(agent, "logs").reason
    assert [stats_of(agent, name).process for name in ("mutates", "logs", "Shape.grows")] == [0, 0, 0]
    assert [area for area, _ in areas] == [36] * 4
    assert [pid == HERE for _, pid in areas] == [True, True, True, False]


def test_methods_and_whole_modules(run: Run, make: Callable[..., Agent]) -> None:
    """``pkg.mod:*`` sends plain functions and methods to threads only; one named by itself may go to a process."""
    agent = make(transparent_offload=[f"{MODULE}:*", f"{MODULE}:Shape.static"])

    async def test() -> tuple[Any, ...]:
        for name in ("where", "Shape.static", "Shape.made"):
            flag(agent, name)
        found = [await until_offloaded(function) for function in (named.where, named.Shape.made)]
        return (*found, await until_offloaded(named.Shape.static, 4))

    where, made, static = scenario(run, test)
    assert where[1:] == (HERE, where[2]) and where[2].startswith("loopwatch-threads")
    assert made == ("Shape", HERE)
    assert static[0] == 4 and static[1] != HERE
    assert f"{MODULE}:* moves to threads only" in stats_of(agent, "where").reason
    assert "numbers" not in {each.name.partition(":")[2] for each in agent.snapshot().offload}


def test_held_lock_keeps_it_inline(run: Run, make: Callable[..., Agent]) -> None:
    """Two tasks that call it under a lock do not deadlock: the call stays inline, counted with the reason."""
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> Any:
        flag(agent, "where", cause=Cause.IO)
        return await asyncio.gather(*(in_task(named.under_lock, number) for number in range(2)))

    assert scenario(run, test) == [(number, HERE, threading.current_thread().name) for number in range(2)]
    assert stats_of(agent, "where").left == {"under_lock() holds lock": 2}


def test_outside_a_task_it_stays_inline(run: Run, make: Callable[..., Agent]) -> None:
    """Tasks from before the agent are not bridged: their calls stay inline and are counted; later tasks, and coroutines
    given to ``Agent.bridge``, are bridged.
    """
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> list[Any]:
        flag(agent, "where", cause=Cause.IO)
        direct = named.where()[2]
        bridged = (await agent.bridge(named.handler_of(named.where)))[2]
        narrowed = (await in_task(named.where))[2]
        return [direct, bridged, narrowed]

    direct, bridged, narrowed = scenario(run, test)
    assert direct == narrowed == threading.current_thread().name
    assert bridged.startswith("loopwatch-threads")
    assert stats_of(agent, "where").left == {OUTSIDE: 2}


def test_tasks_are_bridged_only_when_needed(run: Run, make: Callable[..., Agent]) -> None:
    """Before a function is flagged tasks are plain, and ``Agent.bridge`` returns its argument."""
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> list[bool]:
        coroutine = named.handler_of(named.where)
        kinds = [agent.bridge(coroutine) is coroutine]
        coroutine.close()
        return kinds

    async def tasks() -> list[bool]:
        kinds = []
        for moment in ("before", "after"):
            task = asyncio.ensure_future(asyncio.sleep(0))
            kinds.append(inspect.iscoroutine(task.get_coro()))
            await task
            if moment == "before":
                flag(other, "where", cause=Cause.IO)
        return kinds

    assert scenario(run, test) == [True]
    other = make(transparent_offload=[f"{MODULE}:where"])
    assert scenario(run, tasks) == [True, False]


def test_cancelled_and_timed_out(run: Run, make: Callable[..., Agent], tmp_path: Path) -> None:
    """``asyncio.timeout`` and a sibling's failure in a TaskGroup end an offloaded call, as they end an await."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    opened = os.open(pipe, os.O_RDWR)
    agent = make(transparent_offload=[f"{MODULE}:waits_for"])

    async def times_out() -> str:
        try:
            async with asyncio.timeout(0.05):
                named.waits_for(pipe)
        except TimeoutError:
            return "timed out"
        return "not"

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise ValueError("sibling")

    async def test() -> tuple[str, int]:
        flag(agent, "waits_for", cause=Cause.IO)
        first = await asyncio.create_task(times_out())
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(named.handler_of(named.waits_for, pipe))
                group.create_task(breaks())
        return first, len(caught.value.exceptions)

    assert scenario(run, test) == ("timed out", 1)
    os.write(opened, b"..")  # the threads, which cannot be stopped, end here
    for thread in threading.enumerate():
        if thread.name == "loopwatch-threads":
            thread.join()
    os.close(opened)
    assert stats_of(agent, "waits_for").failed == 2


def test_current_task_and_context(run: Run, make: Callable[..., Agent]) -> None:
    """After the call the same task runs; variables set in the thread are set for the caller only, as by a function that
    was not offloaded, also by a coroutine function.
    """
    agent = make(transparent_offload=[f"{MODULE}:sets"], auto_offload=[f"{MODULE}:awaited_sets"])

    async def handler(name: str) -> tuple[bool, list[str]]:
        task = asyncio.current_task()
        named.variable.set("before " + name)
        seen = [*named.sets(name), named.variable.get(), *await named.awaited_sets(name * 2), named.variable.get()]
        return asyncio.current_task() is task, seen

    async def test() -> Any:
        flag(agent, "sets", cause=Cause.IO)
        flag(agent, "awaited_sets", cause=Cause.IO)
        return await asyncio.gather(*(asyncio.create_task(handler(name)) for name in "xy"))

    thread = "loopwatch-threads"
    assert scenario(run, test) == [
        (True, [f"before {name}", thread, name, name, thread, name * 2]) for name in "xy"
    ]  # fmt: skip


def test_functions_that_need_the_loop_stay(run: Run, make: Callable[..., Agent]) -> None:
    """A plain function that makes tasks stays on the loop's thread, with that reason."""
    agent = make(transparent_offload=[f"{MODULE}:makes_task"])

    async def test() -> Any:
        flag(agent, "makes_task", cause=Cause.IO)
        return await (await in_task(named.makes_task))

    assert scenario(run, test) == threading.current_thread().name
    assert (
        stats_of(agent, "makes_task")
        .explain()
        .endswith("runs inline, on the loop: it calls create_task(), which needs the running loop")
    )


def test_tasks_of_a_request_are_bridged_with_it(run: Run, make: Callable[..., Agent]) -> None:
    """A coroutine given to ``Agent.bridge`` may create tasks, as middlewares do, and they are bridged too."""
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def request() -> Any:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(named.handler_of(named.where))
        return task.result()

    async def test() -> Any:
        flag(agent, "where", cause=Cause.IO)
        return await agent.bridge(request())

    assert scenario(run, test)[2].startswith("loopwatch-threads")


def test_offloaded_function_that_calls_another(run: Run, make: Callable[..., Agent]) -> None:
    """An offloaded function that calls another one runs it in the same place."""
    agent = make(transparent_offload=[f"{MODULE}:calls_another", f"{MODULE}:where"])

    async def test() -> Any:
        flag(agent, "calls_another")
        flag(agent, "where")
        return await until_offloaded(named.calls_another, 5)

    value, pid, name = scenario(run, test)
    assert (value, name) == (5, "MainThread") and pid != HERE


def test_a_task_factory_of_the_program_is_kept(make: Callable[..., Agent]) -> None:
    """The program's task factory, set before or after, makes the tasks, and they are bridged nevertheless."""
    agent = make(transparent_offload=[f"{MODULE}:where"])
    made = []

    def factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    async def test() -> list[str]:
        flag(agent, "where", cause=Cause.IO)
        asyncio.get_running_loop().set_task_factory(factory)
        assert asyncio.get_running_loop().get_task_factory() is factory
        return [(await in_task(named.where))[2]]

    assert scenario(runner("asyncio"), test)[0].startswith("loopwatch-threads")
    assert made[0] == "handler_of.<locals>.handler"


@pytest.mark.parametrize("cause", [Cause.IO, Cause.PYTHON])
def test_exceptions_of_a_plain_function(run: Run, make: Callable[..., Agent], cause: Cause) -> None:
    """From a thread and from a process each exception arrives as itself, also one that a future cannot hold, that would
    end the program, or whose class does not pickle.
    """
    agent = make(transparent_offload=[f"{MODULE}:raises"])

    async def raised(kind: str) -> BaseException:
        try:
            named.raises(kind)
        except BaseException as exc:
            return exc
        raise AssertionError

    async def test() -> list[BaseException]:
        flag(agent, "raises", cause=cause)
        skip_probation(agent, "raises")
        kinds = ("stop", "exit", "cancelled", "interrupt", "refused", "group")
        return [await asyncio.create_task(raised(kind)) for kind in kinds]

    stop, ends, cancelled, interrupt, refused, group = scenario(run, test)
    assert isinstance(stop, StopIteration) and stop.value == 3
    assert isinstance(ends, SystemExit) and ends.code == 4
    assert type(cancelled) is asyncio.CancelledError and cancelled.args == ("mine",)
    assert type(interrupt) is KeyboardInterrupt
    assert type(refused) is named.Refused
    assert (str(refused), refused.code, refused.where) == ("refused: 7", 7, "here")
    assert isinstance(group, ExceptionGroup) and len(group.exceptions) == 2
    stats = stats_of(agent, "raises")
    assert (stats.calls, stats.inline, stats.failed) == (6, 0, 6)


def test_unpicklable_exception(run: Run, make: Callable[..., Agent]) -> None:
    """An exception that cannot be pickled at all is wrapped once; from then on its function goes to threads."""
    agent = make(transparent_offload=[f"{MODULE}:raises"])

    async def raised() -> BaseException:
        with pytest.raises(Exception) as caught:
            named.raises("nested")
        return caught.value

    async def test() -> list[BaseException]:
        flag(agent, "raises")
        skip_probation(agent, "raises")
        return [await asyncio.create_task(raised()) for _ in range(2)]

    first, second = scenario(run, test)
    assert type(first) is loopwatch.OffloadError
    assert isinstance(second, ExceptionGroup) and type(second.exceptions[0]) is named.Refused
    assert "a process would be better, but the result cannot be unpickled here" in stats_of(agent, "raises").reason


def test_exceptions_of_a_coroutine_function(run: Run, make: Callable[..., Agent]) -> None:
    """An exception whose class does not pickle arrives as itself."""
    agent = make(auto_offload=[f"{MODULE}:awaited_raises"])

    async def test() -> Any:
        flag(agent, "awaited_raises")
        skip_probation(agent, "awaited_raises")
        with pytest.raises(named.Refused) as caught:
            await named.awaited_raises("refused")
        return caught.value

    assert (scenario(run, test).where, stats_of(agent, "awaited_raises").failed) == ("here", 1)


def test_a_coroutine_that_a_plain_function_returns(run: Run, make: Callable[..., Agent]) -> None:
    """A coroutine returned by a plain function is awaited by the caller, and not in the thread."""
    agent = make(transparent_offload=[f"{MODULE}:promises"])

    async def test() -> Any:
        flag(agent, "promises", cause=Cause.IO)
        return await (await in_task(named.promises, 5))

    assert scenario(run, test) == (5, HERE, threading.current_thread().name)
    assert stats_of(agent, "promises").thread == 1


@pytest.mark.parametrize("cause", [Cause.IO, Cause.PYTHON])
def test_arguments_of_any_name(run: Run, make: Callable[..., Agent], cause: Cause) -> None:
    """Keyword arguments with the names of loopwatch's own parameters are passed to the function."""
    names = ["self", "args", "kwargs", "function", "place", "moved", "listed", "original", "around"]
    agent = make(transparent_offload=[f"{MODULE}:takes"])

    async def handler() -> Any:
        return named.takes(**dict.fromkeys(names))

    async def test() -> Any:
        flag(agent, "takes", cause=cause)
        skip_probation(agent, "takes")
        return await asyncio.create_task(handler())

    assert scenario(run, test) == sorted(names)
    assert stats_of(agent, "takes").inline == 0


def test_shared_context(run: Run, make: Callable[..., Agent]) -> None:
    """Within ``Context.run`` a call stays inline, so that tasks running in one context never find it in use."""
    agent = make(transparent_offload=[f"{MODULE}:where"])
    context = contextvars.copy_context()

    async def handler() -> Any:
        await asyncio.sleep(0)
        return context.run(named.where)

    async def test() -> Any:
        flag(agent, "where", cause=Cause.IO)
        return await asyncio.gather(*(asyncio.create_task(handler()) for _ in range(2)))

    assert scenario(run, test) == [(None, HERE, threading.current_thread().name)] * 2
    assert stats_of(agent, "where").left == {WITHIN_CONTEXT: 2}


def test_recursive_function_runs_in_a_process(run: Run, make: Callable[..., Agent]) -> None:
    """A recursive function is offloaded by its outermost call; inline it recurses as before, and as deep."""
    agent = make(transparent_offload=[f"{MODULE}:fib"])
    code = named.fib.__code__

    async def test() -> list[Any]:
        flag(agent, "fib")
        return [await in_task(named.fib, 15) for _ in range(5)]

    found = scenario(run, test)
    assert [value for value, _ in found] == [610] * 5
    assert [pid == HERE for _, pid in found] == [True] * 3 + [False] * 2
    stats = stats_of(agent, "fib")
    assert (stats.calls, stats.inline, stats.process, stats.left) == (5, 3, 2, {})
    agent.stop()
    assert named.fib.__code__ is code


def test_recursion(run: Run, make: Callable[..., Agent]) -> None:
    """A function that calls itself is not offloaded to a thread; indirect recursion seen in a thread ends the
    offloading. Inline both recurse as deep as before.
    """
    agent = make(transparent_offload=[f"{MODULE}:{name}" for name in ("recurses", "even")])
    code = named.even.__code__
    deep = sys.getrecursionlimit() // 2

    async def test() -> list[Any]:
        flag(agent, "recurses", cause=Cause.IO)
        flag(agent, "even", cause=Cause.IO)
        return [
            await in_task(named.recurses, deep),
            named.even(deep // 2 * 2),
            await in_task(named.even, deep // 4 * 2),
        ]

    assert scenario(run, test) == [deep, True, True]
    assert stats_of(agent, "recurses").left == {IN_A_THREAD: 1}
    assert stats_of(agent, "even").reason == CALLS_ITSELF
    assert named.even.__code__ is code


def test_quick_calls_are_not_judged(run: Run, make: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that became quick costs little per call: it is judged again after a slow call, or when asked for."""
    agent = make(transparent_offload=[f"{MODULE}:takes"])
    judged, real = [], route.decide

    def decide(*args: Any) -> Any:
        judged.append(args)
        return real(*args)

    async def test() -> None:
        flag(agent, "takes", cause=Cause.IO)
        for _ in range(60):  # until the calls that flagged it are forgotten
            named.takes()
        monkeypatch.setattr(route, "decide", decide)
        for _ in range(100):
            named.takes()

    scenario(run, test)
    assert len(judged) < 50  # all but the calls that this busy machine made slow
    assert stats_of(agent, "takes").calls == 160
    assert stats_of(agent, "takes").reason.startswith("it takes")


def test_globals_of_a_worker(run: Run, make: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that reads a global set after its module was imported does not go to a process, where it differs."""
    agent = make(transparent_offload=[f"{MODULE}:predicts"])
    monkeypatch.setattr(named, "model", {"a": 1})

    async def test() -> Any:
        flag(agent, "predicts")
        return await until_offloaded(named.predicts, 5)

    assert scenario(run, test) == (6, HERE)
    stats = stats_of(agent, "predicts")
    assert (stats.inline, stats.thread, stats.process, stats.failed) == (3, 1, 0, 0)
    assert stats.reason.endswith("the global model is another one there: it was set after its module was imported")


def test_thread_bound_functions_stay(run: Run, make: Callable[..., Agent]) -> None:
    """A function that uses a ``threading.local``, or the exception that its caller handles, stays inline; the latter
    only while there is one.
    """
    agent = make(transparent_offload=[f"{MODULE}:uses_local", f"{MODULE}:reports"])

    async def handles() -> Any:
        try:
            raise KeyError("on purpose")
        except KeyError:
            return named.reports()

    async def test() -> list[Any]:
        flag(agent, "uses_local", cause=Cause.IO)
        flag(agent, "reports", cause=Cause.IO)
        named.local.value = 1
        return [
            await in_task(named.uses_local), await asyncio.create_task(handles()), await in_task(named.reports),
        ]  # fmt: skip

    local, handled, other = scenario(run, test)
    assert local == "{'value': 1}" + threading.current_thread().name
    assert "KeyError: 'on purpose'" in handled[1]
    assert other[2].startswith("loopwatch-threads")
    assert stats_of(agent, "uses_local").reason == "it uses the global local, an _thread._local"
    assert stats_of(agent, "reports").left == {"its caller handled an exception, for which it may ask": 1}


def test_program_without_guard(tmp_path: Path) -> None:
    """A program without the ``__main__`` guard, which a worker would run again, is offloaded to threads only."""
    (tmp_path / "work.py").write_text("import os\ndef where(): return os.getpid()\n")
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
            import asyncio, os, sys
            import loopwatch, work
            from tests.offloading.test_auto import flag, in_task

            agent = loopwatch.install(transparent_offload=["work:where"], log_level="CRITICAL")

            async def main():
                flag(agent, "where", module="work")
                print({await in_task(work.where) == os.getpid() for _ in range(5)})
                print(agent.snapshot().offload[0].reason)

            asyncio.run(main())
        """)
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "{True}"
    assert lines[1].endswith("__main__ would run in it: it has no if __name__ == '__main__'")
    assert len(lines) == 2


# -- auto_offload -----------------------------------------------------------------------------------------------------


def test_coroutine_function_runs_in_a_process(run: Run, make: Callable[..., Agent]) -> None:
    """Once flagged, and after three compared calls, a coroutine function runs on a loop of a worker process."""
    agent = make(auto_offload=[f"{MODULE}:awaited"])

    async def test() -> list[Any]:
        assert (await named.awaited(0))[1] == HERE
        flag(agent, "awaited")
        return [await named.awaited([number]) for number in range(4)]

    found = scenario(run, test)
    assert [value for value, _, _ in found] == [[0], [1], [2], [3]]
    assert [pid == HERE for _, pid, _ in found] == [True, True, True, False]
    assert inspect.iscoroutinefunction(named.awaited)
    assert (stats_of(agent, "awaited").way, stats_of(agent, "awaited").process) == ("auto_offload", 1)


def test_concurrent_calls_are_compared(run: Run, make: Callable[..., Agent]) -> None:
    """More concurrent calls than are compared do not keep a coroutine function from being offloaded."""
    agent = make(auto_offload=[f"{MODULE}:awaited"])

    async def test() -> list[Any]:
        flag(agent, "awaited")
        first = await asyncio.gather(*(named.awaited(number) for number in range(5)))
        return [*first, await named.awaited(5)]

    found = scenario(run, test)
    assert [value for value, _, _ in found] == [0, 1, 2, 3, 4, 5]
    assert [pid == HERE for _, pid, _ in found] == [True] * 5 + [False]


def test_coroutine_functions_that_call_each_other(run: Run, make: Callable[..., Agent]) -> None:
    """Within a thread a coroutine function runs inline: more nested calls than there are threads do not deadlock."""
    agent = make(auto_offload=[f"{MODULE}:awaited_even"])

    async def test() -> bool:
        flag(agent, "awaited_even", cause=Cause.IO)
        return await named.awaited_even(100)

    assert scenario(run, test) is True
    stats = stats_of(agent, "awaited_even")
    assert (stats.thread, stats.inline) == (1, 50)


def test_objects_of_a_loop_are_refused(run: Run, make: Callable[..., Agent]) -> None:
    """A call with a lock, queue or future of asyncio among its arguments stays inline, counted with the reason."""
    agent = make(auto_offload=[f"{MODULE}:awaited"])

    async def test() -> list[str]:
        flag(agent, "awaited", cause=Cause.IO)
        queue: asyncio.Queue[int] = asyncio.Queue()
        return [(await named.awaited([queue]))[2], (await named.awaited(1))[2]]

    inline, function = scenario(run, test)
    assert inline == threading.current_thread().name
    assert function.startswith("loopwatch-threads")
    assert stats_of(agent, "awaited").left == {"an argument was an asyncio.queues.Queue": 1}


def test_caller_of_the_culprit_is_offloaded(run: Run, make: Callable[..., Agent]) -> None:
    """If the culprit is not listed but a caller of it is, the caller is offloaded."""
    agent = make(auto_offload=[f"{MODULE}:awaited_spins"])

    async def test() -> int:
        flag(agent, "spins", "awaited_spins", cause=Cause.IO)
        return stats_of(agent, "awaited_spins").calls

    assert scenario(run, test) == 0
    assert stats_of(agent, "awaited_spins").to == "thread"


# -- real stalls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["transparent_offload", "auto_offload"])
def test_from_block_to_worker(run: Run, make: Callable[..., Agent], way: str) -> None:
    """A function that really blocks its loop is flagged by the agent and then runs in another process."""
    name = "spins" if way == "transparent_offload" else "awaited_spins"
    agent = make(threshold=0.02, flag_after=2, **{way: [f"{MODULE}:{name}"]})

    async def test() -> int:
        call = (lambda: in_task(named.spins, 0.06)) if name == "spins" else (lambda: named.awaited_spins(0.06))
        pids = []
        for _ in range(100):
            pids.append(await call())
            await asyncio.sleep(0.01)
            if pids[-1] != HERE:
                break
        return len(set(pids))

    assert scenario(run, test) == 2
    assert stats_of(agent, name).to == "process"
    assert [stall.coroutine for stall in agent.stalls() if stall.culprit is not None][-1].endswith(
        "handler" if name == "spins" else "main"
    )


def test_stall_in_a_bridged_task_is_diagnosed(make: Callable[..., Agent], run: Run) -> None:
    """A block inside a bridged task is reported with task, coroutine and stack as usual."""
    agent = make(threshold=0.02, transparent_offload=[f"{MODULE}:where"])

    async def test() -> None:
        flag(agent, "where", cause=Cause.IO)
        await asyncio.create_task(named.handler_of(named.spins, 0.2), name="bridged one")

    scenario(run, test)
    assert agent.flush()
    stall = next(each for each in agent.stalls() if each.task == "bridged one")
    assert stall.culprit is not None
    assert stall.culprit.function == "spins"
    assert stall.coroutine == "handler_of.<locals>.handler"
    assert [frame.function for frame in stall.stack] == [
        "handler_of.<locals>.handler", "handler_of.<locals>.below", "spins",
    ]  # fmt: skip


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_that_do_not_resolve(make: Callable[..., Agent], caplog: pytest.LogCaptureFixture) -> None:
    """Each name that cannot be found, or is of the wrong kind, is logged once with the reason; the others work."""
    agent = make(
        transparent_offload=[
            f"{MODULE}:nothing", f"{MODULE}:Shape.nothing", f"{MODULE}:awaited", f"{MODULE}:numbers",
            f"{MODULE}:lock", f"{MODULE}:where", "no_such_package.module:function",
        ],
        auto_offload=[f"{MODULE}:spins", "xml.dom.minicompat:nothing_yet"],
    )  # fmt: skip
    reasons = {name.partition(":")[2]: reason for name, reason in listed(agent).items()}
    agent.stop()
    assert reasons == {
        "nothing": f"{MODULE} has no nothing",
        "Shape.nothing": "Shape has no nothing",
        "awaited": "it is a coroutine function: name it in auto_offload",
        "spins": "it is a plain function: name it in transparent_offload",
        "numbers": "numbers is a generator, which cannot be moved; return a list",
        "lock": "lock is a lock, and no function written in Python",
        "function": "there is no module no_such_package",
        "where": "it was not found to block",
    }
    lines = [record.message for record in caplog.records if "which stays as it is" in record.message]
    assert len(lines) == 8
    assert any("xml.dom.minicompat was never imported" in line for line in lines)


def test_module_that_is_imported_later(
    make: Callable[..., Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of a module that is imported later is resolved then."""
    (tmp_path / "imported_later.py").write_text("def function(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    agent = make(transparent_offload=["imported_later:function"])
    assert listed(agent) == {}
    import imported_later  # type: ignore[import-not-found]

    assert list(listed(agent)) == ["imported_later:function"]
    code = imported_later.function.__code__
    agent._parts.offloading._auto.saw(stall_in("function", module="imported_later"))  # type: ignore[union-attr]
    assert imported_later.function.__code__ is code
    sys.modules.pop("imported_later")


def test_uninstall_restores_everything(run: Run, make: Callable[..., Agent]) -> None:
    """After ``stop`` functions, ``create_task`` and import hooks are as before, and the pool ends by itself."""
    before = (named.where.__code__, dict(named.where.__dict__), list(sys.meta_path))
    classes: dict[type, Any] = {}
    agent = make(transparent_offload=[f"{MODULE}:where", "xml.dom.minicompat:nothing_yet"])

    async def test() -> Any:
        for kind in type(asyncio.get_running_loop()).__mro__:
            classes[kind] = vars(kind).get("create_task")
        flag(agent, "where")
        function = await until_offloaded(named.where)
        assert named.where.__code__ is not before[0]
        agent.stop()
        pool = default_pool.current_pool()
        assert pool is not None
        while not pool.closed or pool.stats().workers:
            await asyncio.sleep(0.001)
        return function, (await in_task(named.where))[1]

    function, again = scenario(run, test)
    assert function[1] != HERE and again == HERE
    assert (named.where.__code__, named.where.__dict__, sys.meta_path) == before
    assert {kind: vars(kind).get("create_task") for kind in classes} == classes


def test_uninstall_ends_the_threads(run: Run, make: Callable[..., Agent]) -> None:
    """Threads used by offloaded functions only end by themselves; later calls start others."""
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> list[str]:
        flag(agent, "where", cause=Cause.IO)
        names = [(await in_task(named.where))[2]]
        threads = [each for each in threading.enumerate() if each.name == names[0]]
        agent.stop()
        for each in threads:
            await asyncio.to_thread(each.join)
        again = make(transparent_offload=[f"{MODULE}:where"])
        flag(again, "where", cause=Cause.IO)
        return [*names, (await in_task(named.where))[2]]

    assert all(name.startswith("loopwatch-threads") for name in scenario(run, test))


def test_shared_default_pool_stays(run: Run, make: Callable[..., Agent]) -> None:
    """A default pool that a decorated function uses too is not ended with the agent."""
    agent = make(transparent_offload=[f"{MODULE}:where"])

    async def test() -> list[int]:
        flag(agent, "where")
        pid = (await until_offloaded(named.where))[1]
        await offloaded.pid()
        agent.stop()
        await asyncio.sleep(0)
        pool = default_pool.current_pool()
        assert pool is not None and not pool.closed
        return [pid, await offloaded.pid()]

    assert HERE not in scenario(run, test)


def test_configure_at_run_time(run: Run, make: Callable[..., Agent]) -> None:
    """Names can be added while the program runs, and a function taken off the list is as it was."""
    agent = make()
    code = named.where.__code__

    async def test() -> Any:
        agent.configure(transparent_offload=[f"{MODULE}:where"])
        flag(agent, "where", cause=Cause.IO)
        return await in_task(named.where)

    assert scenario(run, test)[2].startswith("loopwatch-threads")
    agent.configure(transparent_offload=())
    assert named.where.__code__ is code

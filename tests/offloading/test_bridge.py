"""The bridge: a plain function inside a coroutine suspends its task, and everything else stays the same."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import greenlet
import pytest

from loopwatch.offloading.bridge import KEPT, Bridged, is_open, wait
from tests.conftest import Run

variable: contextvars.ContextVar[str] = contextvars.ContextVar("bridge_variable", default="unset")


async def later(value: Any) -> Any:
    """Return ``value`` after a turn of the loop."""
    await asyncio.sleep(0)
    return value


async def fails() -> None:
    """Raise after a turn of the loop."""
    await asyncio.sleep(0)
    raise KeyError("on purpose")


def deep(levels: int, act: Callable[[], Any]) -> Any:
    """Call ``act`` below plain calls."""
    return act() if not levels else deep(levels - 1, act)


def test_plain_function_waits_while_the_loop_goes_on(run: Run) -> None:
    """Two tasks whose plain functions wait for each other both end: neither holds the loop."""

    async def main() -> list[str]:
        events = {name: asyncio.Event() for name in "ab"}

        def meet(own: str, other: str) -> str:
            events[own].set()
            wait(events[other].wait())
            return own

        async def handler(own: str, other: str) -> str:
            await asyncio.sleep(0)
            return str(deep(20, lambda: meet(own, other)))

        tasks = [asyncio.create_task(Bridged(handler(*pair))) for pair in ("ab", "ba")]
        return await asyncio.gather(*tasks)

    assert run(main()) == ["a", "b"]


def test_results_and_exceptions(run: Run) -> None:
    """The plain call returns the awaited result or raises its exception, and so does the coroutine for its caller."""

    async def handler(end: str) -> Any:
        assert is_open()
        seen = [wait(later(7)), wait(later((1, 2)))]
        with pytest.raises(KeyError, match="on purpose"):
            wait(fails())
        await asyncio.sleep(0)
        seen.append(wait(later(None)))
        if end == "raise":
            raise ValueError(end)
        return seen

    async def main() -> Any:
        with pytest.raises(ValueError, match="raise"):
            await asyncio.create_task(Bridged(handler("raise")))
        return await asyncio.create_task(Bridged(handler("return")))

    assert run(main()) == [7, (1, 2), None]


def test_context_variables(run: Run) -> None:
    """A plain function sees and sets the variables of its task across the wait, also within a nested context; other
    tasks are not affected.
    """

    async def handler(name: str) -> tuple[str, str, str]:
        variable.set(name)

        def inner() -> str:
            variable.set(name + " within")
            wait(later(None))
            return variable.get()

        def plain() -> str:
            wait(later(None))
            before = variable.get()
            variable.set(before + " set")
            return before

        within = contextvars.copy_context().run(inner)
        return plain(), variable.get(), within

    async def main() -> Any:
        return await asyncio.gather(*(asyncio.create_task(Bridged(handler(name))) for name in "xy"))

    assert run(main()) == [("x", "x set", "x within"), ("y", "y set", "y within")]
    assert variable.get() == "unset"


def test_cancellation_and_timeout(run: Run) -> None:
    """Cancelling the task, and ``asyncio.timeout``, reach the waiting plain function and the awaitable it waits for."""

    async def main() -> list[str]:
        seen: list[str] = []
        begun = asyncio.Event()

        async def endless() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("awaited")
                raise

        def plain() -> None:
            try:
                wait(endless())
            finally:
                seen.append("plain")

        async def timed() -> str:
            try:
                async with asyncio.timeout(0.01):
                    plain()
            except TimeoutError:
                return "timed out"
            return "not"

        async def cancelled() -> None:
            try:
                plain()
            except asyncio.CancelledError:
                seen.append("coroutine")
                raise

        seen.append(await asyncio.create_task(Bridged(timed())))
        begun.clear()
        task = asyncio.create_task(Bridged(cancelled()))
        await begun.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        return seen

    assert run(main()) == ["awaited", "plain", "timed out", "awaited", "plain", "coroutine"]


def test_task_group_and_current_task(run: Run) -> None:
    """In a TaskGroup a waiting plain function belongs to its task, and is cancelled when a sibling fails."""

    async def main() -> tuple[bool, bool]:
        same = []

        async def waits() -> None:
            before = asyncio.current_task()
            try:
                wait(asyncio.sleep(30))
            finally:
                same.append(asyncio.current_task() is before)

        async def breaks() -> None:
            await asyncio.sleep(0)
            raise ValueError("sibling")

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(Bridged(waits()))
                group.create_task(Bridged(breaks()))
        return same == [True], [str(each) for each in caught.value.exceptions] == ["sibling"]

    assert run(main()) == (True, True)


def test_asynchronous_iteration_and_contexts(run: Run) -> None:
    """A plain function may wait inside an asynchronous generator, and within ``async with``."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield wait(later(number))

    async def handler() -> list[int]:
        lock = asyncio.Lock()
        found = []
        async for number in numbers():
            async with lock:
                found.append(wait(later(number * 10)))
        return found

    async def main() -> Any:
        return await asyncio.create_task(Bridged(handler()))

    assert run(main()) == [0, 10, 20]


def test_await_inside_a_task(run: Run) -> None:
    """A bridged coroutine can be awaited by a plain task, and bridged twice."""

    async def handler() -> Any:
        first = wait(later(1))
        await asyncio.sleep(0)
        return first, wait(later(2))

    async def main() -> Any:
        return await Bridged(handler()), await asyncio.create_task(Bridged(_awaits(Bridged(handler()))))

    assert run(main()) == ((1, 2), (1, 2))


async def _awaits(awaitable: Any) -> Any:
    return await awaitable


def test_outside() -> None:
    """Without a bridge a plain function that waits gets an error."""

    async def main() -> None:
        assert not is_open()
        coroutine = later(1)
        with pytest.raises(RuntimeError, match="only inside a bridged coroutine"):
            wait(coroutine)
        coroutine.close()

    asyncio.run(main())


def test_closed_without_asyncio() -> None:
    """A coroutine that no asyncio loop runs has no way to wait."""

    async def handler() -> bool:
        return is_open()

    with pytest.raises(StopIteration) as ended:
        Bridged(handler()).send(None)
    assert ended.value.value is False


def test_bridge_looks_like_its_coroutine() -> None:
    """asyncio accepts the bridge as a coroutine; name, code and frame are those of the coroutine."""
    coroutine = later(1)
    bridged = Bridged(coroutine)
    assert asyncio.iscoroutine(bridged)
    assert (bridged.__qualname__, bridged.cr_code) == ("later", later.__code__)
    assert bridged.cr_frame is coroutine.cr_frame
    bridged.close()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_close_reaches_a_function_that_waits() -> None:
    """Closed during a wait, plain function and coroutine run their ``finally``."""
    seen = []

    async def handler() -> None:
        try:
            wait(asyncio.sleep(30))
        finally:
            seen.append("closed")

    async def main() -> None:
        bridged = Bridged(handler())
        bridged.send(None)
        bridged.close()

    asyncio.run(main())
    assert seen == ["closed"]


def test_greenlets_are_reused(run: Run) -> None:
    """Greenlets are reused, and keep neither contexts nor results of finished coroutines."""

    class Thing:
        pass

    references: list[weakref.ref[Any]] = []

    async def handler() -> Thing:
        variable.set("held")
        thing = Thing()
        references.append(weakref.ref(thing))
        token: contextvars.ContextVar[Thing] = contextvars.ContextVar("thing")
        token.set(thing)
        wait(later(None))
        return thing

    async def main() -> None:
        for _ in range(3):
            await asyncio.gather(*(asyncio.create_task(Bridged(handler())) for _ in range(50)))

    run(main())
    gc.collect()
    assert [reference() for reference in references] == [None] * 150


def test_dropped_while_it_waits() -> None:
    """A task dropped with its loop during a wait raises nothing anywhere."""

    async def handler(begun: asyncio.Event) -> None:
        begun.set()
        wait(asyncio.Event().wait())

    async def main() -> None:
        begun = asyncio.Event()
        bridged = Bridged(handler(begun))
        bridged.send(None)
        await begun.wait()
        del bridged
        gc.collect()

    asyncio.run(main())


def test_greenlets_that_are_not_kept_are_freed(run: Run) -> None:
    """With more concurrent coroutines than kept greenlets the surplus is freed, even greenlets begun within a step."""

    async def handler() -> int:
        await asyncio.sleep(0)
        return wait(later(1)) + await asyncio.create_task(Bridged(later(1)))

    async def main() -> list[int]:
        return await asyncio.gather(*(asyncio.create_task(Bridged(handler())) for _ in range(3 * KEPT)))

    before = sum(isinstance(each, greenlet.greenlet) for each in gc.get_objects())
    assert run(main()) == [2] * 3 * KEPT
    gc.collect()
    assert sum(isinstance(each, greenlet.greenlet) for each in gc.get_objects()) <= before + KEPT


def test_greenlets_of_others(run: Run) -> None:
    """A greenlet made within a step, as SQLAlchemy makes them, returns to its own coroutine in later steps, while plain
    functions of others wait.
    """

    async def spawned(function: Callable[..., Any], *args: Any) -> Any:
        child = greenlet.greenlet(function, greenlet.getcurrent())
        result = child.switch(*args)
        while not child.dead:
            result = child.switch(await result)
        return result

    def awaits_within(name: int) -> list[Any]:
        parent = greenlet.getcurrent().parent
        assert parent is not None
        return [parent.switch(later((name, number))) for number in range(5)]

    async def handler(name: int) -> list[Any]:
        found = []
        for _ in range(3):
            found += [wait(later(name)), await spawned(awaits_within, name)]
        return found

    async def main() -> Any:
        return await asyncio.gather(*(asyncio.create_task(Bridged(handler(name))) for name in range(5)))

    assert run(main()) == [[name, [(name, number) for number in range(5)]] * 3 for name in range(5)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly since Python 3.12")
def test_closed_for_a_task_that_starts_within_a_step() -> None:
    """A task that is not bridged and starts eagerly within a step of a bridged one cannot wait in its place."""

    async def child() -> bool:
        return is_open()

    async def parent() -> tuple[bool, bool, bool]:
        before = is_open()
        task: Any = asyncio.Task(child(), loop=asyncio.get_running_loop(), eager_start=True)  # type: ignore[call-arg]
        return before, await task, is_open()

    async def main() -> Any:
        return await asyncio.create_task(Bridged(parent()))

    assert asyncio.run(main()) == (True, False, True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly since Python 3.12")
def test_deep_greenlet_is_not_reused_at_a_shallow_stack() -> None:
    """A greenlet first used deep within a recursion is not reused where the stack is shallow."""

    async def nested(depth: int) -> int:
        loop = asyncio.get_running_loop()
        return await loop.create_task(Bridged(nested(depth - 1))) if depth else 0

    async def recurses() -> int:
        return deep(sys.getrecursionlimit() // 2, lambda: 1)

    async def main() -> int:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        with pytest.raises(RecursionError):
            await nested(sys.getrecursionlimit())
        return await asyncio.create_task(Bridged(recurses()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never awaited
        assert asyncio.run(main()) == 1
        gc.collect()


@pytest.mark.parametrize("then", ["returns", "awaits", "waits"])
def test_dropped_coroutine_that_swallows_the_exit(then: str) -> None:
    """A coroutine dropped during a wait, within another's step, that swallows the exit does not disturb the other."""
    seen: list[str] = []

    async def stubborn() -> None:
        try:
            wait(asyncio.Event().wait())
        except BaseException:
            seen.append(f"open: {is_open()}")
        if then == "awaits":
            await asyncio.sleep(0)
        elif then == "waits":
            with pytest.raises(RuntimeError, match="only inside"):
                wait(None)  # type: ignore[arg-type]
        seen.append("end")

    async def other(dropped: list[Any]) -> int:
        await asyncio.sleep(0)
        dropped.clear()
        return wait(later(5))

    async def main() -> int:
        dropped = [Bridged(stubborn())]
        dropped[0].send(None)
        return await asyncio.create_task(Bridged(other(dropped)))

    assert asyncio.run(main()) == 5
    assert seen == (["open: False"] if then == "awaits" else ["open: False", "end"])

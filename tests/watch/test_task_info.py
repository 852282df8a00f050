"""The running task, read from outside: handles, tasks, contexts of real loops."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from typing import Any

import pytest
from conftest import Run

from loopwatch.core.text import MAX_NAME
from loopwatch.watch.task_info import context_of, labels, names_of, running_task, task_of

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")


def test_running_task_is_that_of_the_loop(run: Run) -> None:
    """Inside a task it is returned; inside a plain callback, and for a loop that does not run, there is none."""
    seen: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert running_task(loop) is asyncio.current_task()
        done = asyncio.Event()

        def callback() -> None:
            seen.append(running_task(loop))
            done.set()

        loop.call_soon(callback)
        await done.wait()

    run(main())
    loop = asyncio.new_event_loop()
    seen.append(running_task(loop))
    loop.close()
    assert seen == [None, None]


def test_running_task_is_seen_from_another_thread(run: Run) -> None:
    """The watcher's thread can read the running task of a loop in another thread."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(running_task(loop)))
        thread.start()
        thread.join()
        assert found == [asyncio.current_task()]

    run(main())


class Catching(asyncio.SelectorEventLoop):
    """Keeps every scheduled handle."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        super().__init__()

    def call_soon(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.handles.append(super().call_soon(*args, **kwargs))
        return self.handles[-1]


def test_task_of_a_handle() -> None:
    """A handle that starts or wakes a task leads to the task; other handles lead to none."""
    with asyncio.Runner(loop_factory=Catching) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Catching)

        async def main() -> Any:
            await asyncio.sleep(0)
            future = loop.create_future()
            loop.call_later(0.001, future.set_result, None)
            await future
            return asyncio.current_task()

        task = runner.run(main())
        handles = list(loop.handles)
        found = [task_of(handle) for handle in handles]
        assert found.count(task) >= 3
        assert task_of(loop.call_soon(print)) is None
        loop.handles[-1].cancel()
        loop.handles.clear()
    assert task_of(None) is None
    assert task_of(object()) is None


def test_names_of_a_task(run: Run) -> None:
    """A task is described by its name and the qualified name of its coroutine."""

    class Views:
        async def show(self) -> None:
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(Views().show(), name="request 7")
        assert names_of(task) == (
            "request 7",
            "test_names_of_a_task.<locals>.Views.show",
        )
        await task

    run(main())
    assert names_of(None) == (None, None)


def test_name_of_a_coroutine_that_has_none() -> None:
    """An awaitable object without a qualified name is described by its type."""

    class Odd:
        """An awaitable object as made by Cython and other compilers."""

    class Task:
        def get_coro(self) -> object:
            return Odd()

        def get_name(self) -> str:
            return "t"

    assert names_of(Task()) == ("t", "Odd")


def test_context_of_a_task(run: Run) -> None:
    """The context of a task is reached without a handle (3.11 has no public way), and is its own."""

    async def inner() -> None:
        tenant.set("acme")
        found = context_of(asyncio.current_task(), None)
        assert found is not None
        assert found[tenant] == "acme"

    async def main() -> None:
        tenant.set("other")
        await asyncio.create_task(inner())
        found = context_of(asyncio.current_task(), None)
        assert found is not None
        assert found[tenant] == "other"

    run(main())


def test_context_of_a_handle() -> None:
    """A callback's context is that of its handle, also where it is no task."""
    loop = asyncio.new_event_loop()
    context = contextvars.copy_context()
    handle = loop.call_soon(print, context=context)
    assert context_of(None, handle) is context
    handle.cancel()
    loop.close()
    assert context_of(None, None) is None
    assert context_of(None, object()) is None


def test_labels_by_name_and_by_callable() -> None:
    """Labels come from variables by name and from callables, read in the given context; the later source wins."""
    context = contextvars.Context()
    context.run(tenant.set, "acme")
    assert labels(context, ("tenant", lambda: {"upper": tenant.get().upper()})) == {"tenant": "acme", "upper": "ACME"}
    assert labels(context, ("tenant", lambda: {"tenant": "x"})) == {"tenant": "x"}
    assert labels(context, ("no_such_variable", lambda: None)) == {}
    assert labels(context, ()) == {}


def test_labels_are_short_strings() -> None:
    """Keys and values of any source become strings, of 200 characters at most."""
    context = contextvars.Context()
    found = labels(context, (lambda: {"n": 5, 7: "x" * 1000},))  # type: ignore[dict-item]
    assert found == {"n": "5", "7": f"{'x' * 131}...{'x' * 66}"}
    assert MAX_NAME == 200


def test_context_in_use_can_be_read(run: Run) -> None:
    """The context that the loop's thread is in can be read from another thread, as a copy."""

    async def main() -> None:
        tenant.set("acme")
        context = context_of(asyncio.current_task(), None)
        assert context is not None
        found: list[dict[str, str]] = []
        thread = threading.Thread(
            target=lambda: found.append(labels(context.copy(), ("tenant", lambda: {"a": tenant.get()})))
        )
        thread.start()
        thread.join()
        assert found == [{"tenant": "acme", "a": "acme"}]

    run(main())


def test_source_that_raises() -> None:
    """An exception of a callable is left to the caller."""

    def broken() -> dict[str, str]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        labels(contextvars.Context(), (broken,))


def test_trace_of_opentelemetry() -> None:
    """The current span of the context is named in W3C format; an invalid one is not."""
    from opentelemetry import trace
    from opentelemetry.context import attach

    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False))
    context = contextvars.Context()
    context.run(lambda: attach(trace.set_span_in_context(span)))
    assert labels(context, ()) == {"trace_id": "0" * 29 + "abc", "span_id": "0" * 13 + "def"}
    assert labels(contextvars.Context(), ()) == {}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_task_is_running() -> None:
    """A task that runs eagerly, inside the step of another, is the running one."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        seen: list[str | None] = []

        async def child() -> None:
            seen.append(names_of(running_task(loop))[1])

        await asyncio.create_task(child(), name="child")
        assert seen == ["test_eager_task_is_running.<locals>.main.<locals>.child"]

    asyncio.run(main())

"""Identifies the running callback from another thread: its task, coroutine, and labels from its context."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loopwatch.core.faults import Attempt, plainly
from loopwatch.core.patches import loaded
from loopwatch.core.setting_kinds import ContextSource
from loopwatch.core.text import printable
from loopwatch.watch.probes.base import Loop


def running_task(loop: Loop) -> Any:
    """Return the task that ``loop`` is stepping, None if there is none."""
    try:
        return asyncio.current_task(loop)
    except RuntimeError:
        return None


def task_of(handle: Any) -> Any:
    """Return the task that ``handle`` steps, None if it steps none."""
    # A task is stepped through a bound method, of Python or of C (``TaskStepMethWrapper`` has ``__self__`` too).
    owner = getattr(getattr(handle, "_callback", None), "__self__", None)
    return owner if isinstance(owner, asyncio.Task) else None


def names_of(task: Any) -> tuple[str | None, str | None]:
    """Return (name of the task, qualified name of its coroutine)."""
    if task is None:
        return None, None
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", None)
    if name is None and coroutine is not None:
        name = type(coroutine).__name__
    return printable(task.get_name()), None if name is None else printable(name)


def context_of(task: Any, handle: Any) -> contextvars.Context | None:
    """Return the context in which the callback runs, None if it cannot be reached."""
    context = getattr(handle, "_context", None)
    if isinstance(context, contextvars.Context):
        return context
    if task is None:
        return None
    if hasattr(task, "get_context"):  # since 3.12
        found = task.get_context()
        return found if isinstance(found, contextvars.Context) else None
    # 3.11: the C task visits its own context before anything else (TaskObj_traverse, Modules/_asynciomodule.c).
    return next((item for item in gc.get_referents(task) if isinstance(item, contextvars.Context)), None)


def labels(
    context: contextvars.Context, sources: Sequence[ContextSource], attempt: Attempt = plainly
) -> dict[str, str]:
    """Return the printable labels that ``sources`` and OpenTelemetry give for the callback that runs in ``context``.

    Args:
        context: a copy of the callback's context; the original is in use by the loop's thread and cannot be entered.
        sources: names of context variables, and callables that return labels.
        attempt: calls one source: a failing one gives no labels and leaves the others intact; parts are ``trace`` for
            OpenTelemetry and ``context``, ``context 2``, ... for the sources. By default exceptions propagate.
    """
    asked = [attempt("trace", lambda: context.run(_trace), None)]
    for number, source in enumerate(sources, 1):
        part = "context" if number == 1 else f"context {number}"
        asked.append(attempt(part, functools.partial(_asked, context, source), None))
    return {key: value for found in asked if found for key, value in found.items()}


def _asked(context: contextvars.Context, source: ContextSource) -> dict[str, str]:
    said: Mapping[str, str] | None = context.run(source) if callable(source) else _variable(context, source)
    return {printable(str(key)): printable(str(value)) for key, value in (said or {}).items()}


def span_of(context: contextvars.Context) -> Any:
    """Return the OpenTelemetry span context current in ``context``, None if there is none."""
    trace = loaded("opentelemetry.trace")
    if trace is None:
        return None
    span = context.run(trace.get_current_span).get_span_context()
    return span if span.is_valid else None


def _variable(context: contextvars.Context, name: str) -> Mapping[str, str]:
    found = [str(value) for variable, value in context.items() if variable.name == name]
    return {name: found[-1]} if found else {}


def _trace() -> Mapping[str, str]:
    trace = loaded("opentelemetry.trace")
    if trace is None:
        return {}
    get_context: Callable[[], Any] = trace.get_current_span().get_span_context
    span = get_context()
    if not span.is_valid:
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def count_tasks() -> int | None:
    """Return the number of tasks in this process, None where it is not known without walking them."""
    tasks = loaded("asyncio.tasks")
    registry = getattr(tasks, "_scheduled_tasks", None)  # 3.12, 3.13
    if registry is None:
        registry = getattr(tasks, "_all_tasks", None)  # 3.11
    eager = getattr(tasks, "_eager_tasks", ())
    return len(registry) + len(eager) if registry is not None else None

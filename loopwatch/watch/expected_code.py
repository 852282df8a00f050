"""``loopwatch.expected``: marks code whose blocks of the loop are expected, such as a warm-up.

The mark is a context variable of the code inside. So it follows a coroutine through its awaits, and the tasks that it
starts meanwhile, and does not cover other callbacks that run on the loop until it is over. The watcher reads it from
the context of the callback that it samples; entering and leaving takes two microseconds and no lock.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

from loopwatch.core.originals import time
from loopwatch.core.process_state import one
from loopwatch.errors import ConfigError

SHORTEST = 0.001
"""Seconds; what is inside for a shorter time is left to samples: no limit of blocks is near it."""
MOST_SPANS = 64
"""Finished entries of the whole process that are kept, the latest ones."""
UNTIL_LEFT = float("inf")

Function = TypeVar("Function", bound=Callable[..., Any])


class Mark:
    """One entry into expected code. Attributes: why; who entered; when it was left; the mark around it."""

    __slots__ = ("_began", "in_task", "outer", "owner", "reason", "until")

    def __init__(self, reason: str, owner: object, outer: Mark | None, began: float, *, in_task: bool) -> None:
        self.reason, self.owner, self.outer, self._began = reason, owner, outer, began
        self.in_task = in_task
        self.until = UNTIL_LEFT

    def covering(self, at: float) -> Mark | None:
        """Return the innermost mark that is in force ``at``: this one or one around it; None if all were left."""
        mark: Mark | None = self
        while mark is not None and mark.until <= at:
            mark = mark.outer
        return mark

    def span(self, end: float) -> Span:
        """Return the span from its entry to ``end``."""
        return Span(self.reason, threading.get_ident(), self._began, end, self.in_task)


class Span(NamedTuple):
    """The time between entry and end of expected code, ``time.monotonic`` seconds.

    Attributes:
        reason: why blocks there are expected.
        thread: ident of the thread.
        start, end: of the code.
        in_task: whether it was entered in a task.
    """

    reason: str
    thread: int
    start: float
    end: float
    in_task: bool


class Marks:
    """The marks of this process.

    Attributes:
        watchers: number of agents that watch.
        spans: the latest spans of some length.
        variable: holds the innermost mark of the code that runs in a context.
    """

    def __init__(self) -> None:
        self.watchers = 0
        self.spans: deque[Span] = deque(maxlen=MOST_SPANS)
        self.variable: ContextVar[Mark | None] = ContextVar("loopwatch_expected", default=None)


marks = one(Marks)


def marked(context: Context | None, at: float) -> str | None:
    """Return why a block by the code that runs in ``context`` is expected at ``at``, None if it is not."""
    mark = None if context is None else context.get(marks.variable)
    covering = None if mark is None else mark.covering(at)
    return None if covering is None else covering.reason


def spans_within(thread: int, start: float, end: float) -> Iterable[Span]:
    """Return the spans of ``thread`` between ``start`` and ``end``: most likely without a pause for other callbacks."""
    return [span for span in tuple(marks.spans) if span.thread == thread and start <= span.start and span.end <= end]


class expected:  # noqa: N801 - read as a statement: with expected("warm-up")
    """Expect the code inside to block the loop: a context manager, and a decorator.

    A block there is counted (``LoopStats.expected``) and journaled as expected; it is no stall: not logged, not
    flagged, in no stall metric, and not passed to callbacks. A block is judged by its larger part. Only blocks of the
    code inside are expected, and of tasks that it starts, until it is left; not those of other callbacks that run while
    it awaits. Without an agent it does nothing.

    Args:
        reason: why, human-readable; shown in the report.

    Raises:
        ConfigError: it decorates a generator function, or something that is no function.

    Example:
        >>> with expected("warm-up"):
        ...     model = sum(range(1000))
        >>> @expected("nightly rebuild")
        ... async def rebuild(): ...
    """

    __slots__ = ("_entered", "reason")

    def __init__(self, reason: str) -> None:
        self.reason = str(reason)
        self._entered: list[Mark] = []

    def __enter__(self) -> Self:
        if marks.watchers:
            now, outer = time.monotonic(), marks.variable.get()
            outer = None if outer is None else outer.covering(now)
            mark = Mark(self.reason, self, outer, now, in_task=_in_task())
            self._entered.append(mark)
            marks.variable.set(mark)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._entered:
            return  # there was no agent
        now, mark = time.monotonic(), marks.variable.get()
        if mark is not None and mark.owner is self and mark in self._entered:
            marks.variable.set(mark.outer)
            self._entered.remove(mark)
        else:  # left in another context, as asynchronous generators may be: the variable there is not ours
            mark = self._entered.pop()
        mark.until = now
        mark.outer = None if mark.outer is None else mark.outer.covering(now)  # or a row of marks would never end
        span = mark.span(now)
        if span.end - span.start >= SHORTEST:
            marks.spans.append(span)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, traceback)

    def __call__(self, function: Function) -> Function:
        """Return ``function``, a plain or a coroutine function, with its code expected to block."""
        if not callable(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"expected({self.reason!r}): decorates functions and coroutine functions, not {function!r}; "
                "use a with statement around the code that blocks"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("Function", coroutine)

        @functools.wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("Function", plain)


def _in_task() -> bool:
    loop = asyncio._get_running_loop()
    return loop is not None and asyncio.current_task(loop) is not None

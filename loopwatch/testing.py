"""Test helpers, for users and for loopwatch itself: an assertion, a recording sink, a manual clock."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from loopwatch.agent import Agent
from loopwatch.config import Config
from loopwatch.core.off_loop import off_loop
from loopwatch.errors import LoopwatchError
from loopwatch.events import Stall
from loopwatch.sinks.log import describe

Function = TypeVar("Function", bound=Callable[..., Any])


class assert_not_blocked:  # noqa: N801 - reads as a statement
    """Fail if the running event loop is blocked for ``max_s`` seconds or longer.

    A context manager (``with`` and ``async with``) for code that runs on a loop, and a decorator for functions and
    coroutine functions. Works beside an installed agent and without one.

    Args:
        max_s: seconds; a shorter block is allowed. Below about 0.02 the noise of a busy machine may show.
        **settings: further fields of :class:`loopwatch.Config`, such as ``user_code``.

    Raises:
        AssertionError: lists each block: how long, where, why. Not raised over another exception.
        ConfigError: ``max_s`` is not a number above 0.
        LoopwatchError: no event loop runs here.

    Example:
        >>> @assert_not_blocked(0.05)
        ... async def handler():
        ...     await asyncio.sleep(0.1)
        >>> asyncio.run(handler())
    """

    def __init__(self, max_s: float = 0.1, **settings: Any) -> None:
        self._config = Config.of({"threshold": max_s, "log_level": logging.DEBUG, "cpu_budget": 1.0, **settings})
        self._agent: Agent | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise LoopwatchError("assert_not_blocked: no event loop runs here; use it inside a coroutine") from None
        self._agent = off_loop(lambda: Agent(self._config))
        self._agent.start(discover=False)
        self._agent.watch_loop(self._loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        agent, self._agent = self._agent, None
        if agent is None or self._loop is None:
            return
        agent.cut(self._loop)
        agent.flush(5.0)
        agent.stop()
        stalls = [stall for stall in agent.stalls() if not stall.ongoing]
        if stalls and exc is None:
            raise AssertionError(
                f"the event loop was blocked for {self._config.threshold:g} s or longer, {len(stalls)} time(s):\n"
                + "\n".join(f"  {describe(stall)}" for stall in stalls)
            )

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.sleep(0)
        self.__exit__(kind, exc, traceback)

    def __call__(self, function: Function) -> Function:
        """Decorate a function or coroutine function; each call is checked on its own."""
        threshold, config = self._config.threshold, self._config
        settings = {name: pair[1] for name, pair in config.changes_from(Config()).items() if name != "threshold"}

        @functools.wraps(function)
        async def checked_coroutine(*args: Any, **kwargs: Any) -> Any:
            async with assert_not_blocked(threshold, **settings):
                return await function(*args, **kwargs)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            with assert_not_blocked(threshold, **settings):
                return function(*args, **kwargs)

        chosen: Any = checked_coroutine if inspect.iscoroutinefunction(function) else checked
        return chosen  # type: ignore[no-any-return]


class RecordingSink:
    """An ``on_stall`` callback that stores stalls and lets a test wait for them.

    Attributes:
        stalls: in order of arrival.

    Example:
        >>> sink = RecordingSink()
        >>> agent = Agent()
        >>> remove = agent.on_stall(sink)
        >>> sink.stalls
        []
    """

    def __init__(self) -> None:
        self.stalls: list[Stall] = []
        self._arrived = threading.Condition()

    def __call__(self, stall: Stall) -> None:
        """Store ``stall``."""
        with self._arrived:
            self.stalls.append(stall)
            self._arrived.notify_all()

    def wait(self, count: int = 1, timeout: float = 10.0) -> list[Stall]:
        """Return the stalls as soon as there are ``count``.

        Raises:
            AssertionError: there were fewer after ``timeout`` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.stalls) >= count, timeout):
                raise AssertionError(f"{len(self.stalls)} of {count} stalls came within {timeout} s: {self.stalls}")
            return list(self.stalls)


class FakeClock:
    """A clock that only moves by :meth:`advance`; call it to read it.

    Example:
        >>> clock = FakeClock(100.0)
        >>> clock.advance(2.5)
        >>> clock()
        102.5
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by ``seconds``."""
        self.now += seconds


def __getattr__(name: str) -> Any:
    """Load the conformance suite only where it is asked for, as it needs pytest."""
    if name != "BackendConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "loopwatch.offloading.conformance" not in sys.modules:
        import pytest

        pytest.register_assert_rewrite("loopwatch.offloading.conformance")
    from loopwatch.offloading.conformance import BackendConformance

    return BackendConformance

"""``@offload``: a function that is awaited and runs somewhere else; the call sites look like those of a coroutine."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from loopwatch.errors import ConfigError, NotPicklable, OffloadError
from loopwatch.events import Decision
from loopwatch.workers import defaults, launch, settings, worker
from loopwatch.workers.backend import Backend
from loopwatch.workers.options import CallOptions
from loopwatch.workers.policy import Measured, decide
from loopwatch.workers.pool import WorkerPool

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PLACES = ("process", "thread", "auto", "inline")
KEPT = 50
"""Calls whose run times are kept for a function that runs where it is best."""
TRIPS = 5
"""Trips to a process after which it is known what one costs."""
AGAIN = 200
"""Calls after which a function that was moved is tried inline once more, if it has become cheap."""


class Offloaded(Protocol[P, T_co]):
    """What ``@offload`` makes of a function: called as before, with the same arguments, and awaited."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T_co]: ...

    @property
    def inline(self) -> Callable[P, T_co]:
        """The plain function, here and now."""

    def stats(self) -> OffloadStats:
        """Return the figures of this function."""

    def explain(self) -> str:
        """Return in words where it runs, and why."""


class OffloadStats(dict[str, Any]):
    """Figures of one function, JSON-able.

    ``calls`` and how many of them ran ``inline``, in a ``thread``, in a ``process``, and ``failed``; where it runs
    (``to``) and the ``reason``; ``run``: median s of the last calls that were measured.
    """


class Reference:
    """A decorated function by its name, for a worker: unpickled there, it is the plain function."""

    def __init__(self, module: str, qualname: str) -> None:
        self.module, self.__qualname__ = module, qualname
        self.__module__ = module

    def __reduce__(self) -> tuple[Any, ...]:
        return _resolve, (self.module, self.__qualname__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _resolve(self.module, self.__qualname__)(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and (self.module, self.__qualname__) == (other.module, other.__qualname__)

    def __hash__(self) -> int:
        return hash((self.module, self.__qualname__))


class _Timed:
    """Calls a function and returns (result, s, processor s of its thread); the arguments are seen by a pool as ever."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, float, float]:
        began = _clocks()
        result = self.function(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return result, *_used(began)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Timed) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


def _resolve(module: str, qualname: str) -> Any:
    import importlib

    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part) if isinstance(found, type) else getattr(found, part)
        found = getattr(found, "__func__", found)
    return getattr(found, "inline", found)


class _Moved:
    """One decorated function: where it runs, what was measured."""

    def __init__(self, function: Callable[..., Any], to: Any, options: CallOptions, pool: WorkerPool | None) -> None:
        self.function = function
        self._to = to
        self.options = options
        self.pool = pool
        self.reference: Any = function
        if "<locals>" not in function.__qualname__ and "<lambda>" not in function.__qualname__:
            self.reference = Reference(function.__module__, function.__qualname__)
        self.lock = threading.Lock()
        self.calls = self.failed = 0
        self.away = 0
        self.by_place = {"inline": 0, "thread": 0, "process": 0}
        self.runs: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self.trips: deque[float] = deque(maxlen=TRIPS)
        self.unpicklable = ""
        self._decision = Decision("inline", "not called yet")

    @property
    def to(self) -> Any:
        """Where its calls are sent: what it was decorated with, else what is configured."""
        return settings.offload_to if self._to is None else self._to

    @property
    def decision(self) -> Decision:
        """Where its next call runs, and why."""
        return self._decision if self.to == "auto" else Decision(_label(self.to), "as it was told")

    async def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.calls += 1
        place = self.to
        if worker.INSIDE:
            place = "inline"  # no pools within pools
        elif place == "auto":
            place = self.decision.to
            if place != "inline" and self.calls % AGAIN == 0:
                place = "inline" if max(run for run, _ in self.runs) < 0.1 else place
        try:
            return await self._run(place, args, kwargs)
        except BaseException:
            self.failed += 1
            raise

    async def _run(self, place: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if isinstance(place, str):
            self.by_place[place] += 1
        if place == "inline":
            return await self._inline(args, kwargs)
        if self.to == "auto":
            return await self._elsewhere(place, args, kwargs)
        return await self._send(place, self._sent(place), args, kwargs)

    def _sent(self, place: Any) -> Any:
        """Return what is sent there for the function: itself, or to another process its name, if it is known there."""
        by_name = place != "thread" and (launch.main_is_importable() or not _of_main(self.function))
        return self.reference if by_name else self.function

    async def _send(self, place: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if place == "thread":
            return await defaults.threads().submit(function, args, kwargs, self.options)
        if place == "process" and self.pool is None:
            return await defaults.in_process(function, args, kwargs, self.options)
        backend: Any = self.pool if place == "process" else place
        return await backend.submit(function, args, kwargs, self.options)

    async def _inline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        began = _clocks()
        try:
            result = self.function(*args, **kwargs)
        finally:
            self._measured(*_used(began))
        return await result if inspect.isawaitable(result) else result

    async def _elsewhere(self, place: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run where the policy says, with the function measured there."""
        began, alone = time.perf_counter(), self.away == 0
        self.away += 1
        try:
            result, run, cpu = await self._send(place, _Timed(self._sent(place)), args, kwargs)
        except NotPicklable as exc:
            self.unpicklable = str(exc)
            self._decide()
            return await self._run("thread", args, kwargs)
        finally:
            self.away -= 1
        if place == "process" and alone:  # else it may have waited for those before it: that is no part of the way
            self.trips.append(time.perf_counter() - began - run)
        self._measured(run, cpu)
        return result

    def _measured(self, run: float, cpu: float) -> None:
        with self.lock:
            self.runs.append((run, cpu))
            if self.to == "auto":
                self._decide()

    def _decide(self) -> None:
        slow = sorted(self.runs)[-max(len(self.runs) // 10, 1) :]
        run = sum(each for each, _ in slow) / len(slow)
        cpu = sum(each for _, each in slow) / len(slow)
        # The shortest: others had to wait, the first ones for a worker to start.
        trip = min(self.trips) if len(self.trips) == TRIPS else None
        measured = Measured(self.calls, run, min(cpu / run, 1.0) if run > 0 else 1.0, trip, None, self.unpicklable)
        self._decision = decide(measured, self._decision)

    def stats(self) -> OffloadStats:
        return OffloadStats(
            calls=self.calls,
            failed=self.failed,
            **self.by_place,
            to=self.decision.to,
            reason=self.decision.reason,
            run=sorted(run for run, _ in self.runs)[len(self.runs) // 2] if self.runs else None,
        )

    def explain(self) -> str:
        name = f"{self.function.__module__}.{self.function.__qualname__}"
        return f"{name} runs {_IN_WORDS.get(self.decision.to, 'on ' + self.decision.to)}: {self.decision.reason}"


_IN_WORDS = {"inline": "inline, on the loop", "thread": "in a thread", "process": "in a worker process"}


def _clocks() -> tuple[float, float, int]:
    """Return s, processor s of this thread, and how often it has waited (-1 where the system does not say)."""
    waits = -1
    if sys.platform == "linux":
        import resource

        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    return time.perf_counter(), time.thread_time(), waits


def _used(began: tuple[float, float, int]) -> tuple[float, float]:
    """Return s and processor s since then: all of it if the thread never waited, though it may not have got one."""
    now, cpu, waits = _clocks()
    run = now - began[0]
    return run, run if waits == began[2] >= 0 else cpu - began[1]


def _of_main(function: Callable[..., Any]) -> bool:
    return function.__module__ in ("__main__", "__mp_main__")


def _label(to: Any) -> str:
    return to if isinstance(to, str) else str(getattr(to, "name", "backend"))


@overload
def offload(function: Callable[P, Awaitable[T]], /) -> Offloaded[P, T]: ...
@overload
def offload(function: Callable[P, T], /) -> Offloaded[P, T]: ...
@overload
def offload(
    *,
    to: str | Backend = ...,
    timeout: float | None = ...,
    retries: int = ...,
    priority: int = ...,
    max_concurrency: int | None = ...,
    pool: WorkerPool | None = ...,
) -> Callable[[Callable[P, T]], Offloaded[P, T]]: ...


def offload(
    function: Any = None,
    /,
    *,
    to: str | Backend | None = None,
    timeout: float | None = None,
    retries: int = 0,
    priority: int = 0,
    max_concurrency: int | None = None,
    pool: WorkerPool | None = None,
) -> Any:
    """Have a function run in a worker process, or where ``to`` says: it is awaited from now on.

    Args:
        function: a function, method, static or class method, or coroutine function.
        to: ``process``, ``thread`` (for what waits, or gives up the GIL), ``auto`` (inline while it is cheap, moved
            when it was measured to hold the loop), ``inline``, or a :class:`Backend`; None for what
            ``Config.offload_to`` says, ``process`` by default.
        timeout: s that a call may run; None for no limit.
        retries: times that a call may be run again if its worker dies.
        priority: calls with a higher one go first.
        max_concurrency: calls of this function at a time; None for no limit.
        pool: the :class:`WorkerPool` to use instead of the default one.

    Returns:
        The decorated function. ``.inline`` is the plain function, ``.stats()`` its figures, ``.explain()`` in words
        where it runs and why. Inside a worker a call runs inline.

    Raises:
        ConfigError: an argument that cannot be used; at decoration.

    Example:
        >>> @offload(to="thread", timeout=5)
        ... def read(path): return open(path).read()
    """
    options = CallOptions(timeout, retries, priority, max_concurrency)
    if to is not None and not (to in PLACES if isinstance(to, str) else isinstance(to, Backend)):
        raise ConfigError(f"to={to!r}: must be {', '.join(map(repr, PLACES))} or a Backend")
    if pool is not None and not isinstance(pool, WorkerPool):
        raise ConfigError(f"pool={pool!r}: must be a loopwatch.WorkerPool")
    if function is None:
        return lambda function: _decorated(function, to, options, pool)
    return _decorated(function, to, options, pool)


def _decorated(function: Any, to: Any, options: CallOptions, pool: WorkerPool | None) -> Any:
    if isinstance(function, staticmethod | classmethod):
        return type(function)(_decorated(function.__func__, to, options, pool))
    if not inspect.isfunction(function):
        raise ConfigError(f"@offload of {function!r}: must be a function, a method or a coroutine function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"@offload of {function.__qualname__}: a generator cannot be moved; return a list")
    moved = _Moved(function, to, options, pool)

    @functools.wraps(function)
    def offloaded(*args: Any, **kwargs: Any) -> Any:
        worker.refuse_while_preparing()
        if not worker.INSIDE and asyncio._get_running_loop() is None:
            raise OffloadError(
                f"{function.__qualname__}() is offloaded and needs a running event loop: await it inside one, "
                f"or call {function.__qualname__}.inline() here and now"
            )
        return moved.call(args, kwargs)

    attributes = cast("Any", offloaded)
    attributes.inline = function
    setattr(attributes, worker.OFFLOADED, offloaded)
    attributes.stats = moved.stats
    attributes.explain = moved.explain
    # What asks whether it may be awaited is told so: asyncio's mark, and since 3.12 that of inspect.
    attributes._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(offloaded)
    return offloaded

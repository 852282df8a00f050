"""``@offload``: runs the calls of a function off the loop; call sites await it like a coroutine function."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from loopwatch.errors import ConfigError, OffloadError
from loopwatch.events import OffloadStats
from loopwatch.offloading.function import OffloadedFunction, name_of
from loopwatch.offloading.measurements import Measurements
from loopwatch.offloading.route import Route
from loopwatch.workers import worker
from loopwatch.workers.backend import Backend
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_TARGETS = ("process", "thread", "auto", "inline")


class Offloaded(Protocol[P, T_co]):
    """A function decorated with ``@offload``: called with the same arguments as before, and awaited."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T_co]:
        """Run the call at its destination; awaiting it gives the result."""

    @property
    def inline(self) -> Callable[P, T_co]:
        """The plain function, which runs on the calling thread."""

    def stats(self) -> OffloadStats:
        """Return the statistics of this function."""

    def explain(self) -> str:
        """Describe in words where it runs, and why."""


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
    """Run a function in a worker process, or where ``to`` says; it must then be awaited.

    Args:
        function: a function, method, static or class method, or coroutine function.
        to: ``process``, ``thread`` (for functions that wait or release the GIL), ``auto`` (inline while cheap,
            offloaded once measured to hold the loop), ``inline``, or a :class:`Backend`; None for
            ``Config.offload_to``, ``process`` by default.
        timeout: seconds that a call may run; None for no limit.
        retries: how often a call may be run again if its worker dies.
        priority: calls with a higher one run first.
        max_concurrency: calls of this function at a time; None for no limit.
        pool: the :class:`WorkerPool` to use instead of the default one.

    Returns:
        The decorated function. ``.inline`` is the plain function, ``.stats()`` returns statistics, ``.explain()``
        says in words where it runs and why. Inside a worker a call runs inline.

    Raises:
        ConfigError: an argument is invalid; raised at decoration.

    Example:
        >>> @offload(to="thread", timeout=5)
        ... def read(path): return open(path).read()
    """
    options = CallOptions(timeout, retries, priority, max_concurrency)
    if to is not None and not (to in _TARGETS if isinstance(to, str) else isinstance(to, Backend)):
        raise ConfigError(f"to={to!r}: must be {', '.join(map(repr, _TARGETS))} or a Backend")
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
    measurements = Measurements()
    route = Route(name_of(function), to, measurements)
    run = OffloadedFunction(function, route, measurements, options, pool=pool)

    @functools.wraps(function)
    def offloaded(*args: Any, **kwargs: Any) -> Any:
        worker.refuse_while_preparing()
        if not worker.here.is_worker and asyncio._get_running_loop() is None:
            raise OffloadError(
                f"{function.__qualname__}() is offloaded and needs a running event loop: await it inside one, "
                f"or call {function.__qualname__}.inline() here and now"
            )
        return run.call(args, kwargs)

    attributes = cast("Any", offloaded)
    attributes.inline = function
    setattr(attributes, worker.OFFLOADED, offloaded)
    attributes.stats = run.stats
    attributes.explain = run.explain
    # Mark it as a coroutine function: for asyncio, and since 3.12 for inspect.
    attributes._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(offloaded)
    return offloaded

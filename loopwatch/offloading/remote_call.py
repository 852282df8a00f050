"""Wrappers of a call that runs in a worker: function by name, timing, caller's context, raised exception."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import pickle
import sys
import threading
import traceback
from typing import Any, NamedTuple

from loopwatch.core.originals import time
from loopwatch.system.threads import scheduled
from loopwatch.workers import worker


class Clocks(NamedTuple):
    """The clocks of this thread at one moment.

    Attributes:
        at: ``time.perf_counter``, seconds.
        cpu: processor time of the thread, seconds.
        waits: voluntary context switches of the thread; -1 where the system does not count them.
        starved: seconds that it has waited for a processor; None if not read.
    """

    at: float
    cpu: float
    waits: int
    starved: float | None


def read_clocks(*, exact: bool = True) -> Clocks:
    """Read the clocks before a call; if ``exact``, also the wait for a processor (a file of ``/proc``, a few us)."""
    at, cpu = time.perf_counter(), time.thread_time()
    return Clocks(at, cpu, _waits(), _run_queue() if exact else None)


def used_since(began: Clocks) -> tuple[float, float]:
    """Return (seconds, processor seconds) since ``began``, without waits for a processor where those are known.

    A thread that never waited voluntarily counts as computing all the time, even while it had no processor.
    """
    # Read within the time measured: a wait for a processor that is subtracted is one that was measured.
    starved = 0.0 if began.starved is None else max((_run_queue() or 0.0) - began.starved, 0.0)
    waits, at, cpu = _waits(), time.perf_counter(), time.thread_time()
    run = max(at - began.at - starved, 0.0)
    return run, run if waits == began.waits >= 0 else min(cpu - began.cpu, run)


def _waits() -> int:
    """Return how often the thread has waited voluntarily, -1 where it is unknown."""
    if sys.platform != "linux":
        return -1
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _run_queue() -> float | None:
    """Return the seconds for which the thread has waited for a processor, None where they are unknown."""
    if sys.platform != "linux":
        return None
    found = scheduled(threading.get_native_id())
    return None if found is None else found.run_queue


class Reference:
    """A function pickled by name: unpickled in a worker, it is the plain function."""

    is_by_name = True
    """Pickled only once, see :mod:`loopwatch.workers.pickling`."""

    def __init__(self, module: str, qualname: str) -> None:
        self.module, self.__qualname__ = module, qualname
        self.__module__ = module

    def __reduce__(self) -> tuple[Any, ...]:
        return _resolve, (self.module, self.__qualname__)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return _resolve(self.module, self.__qualname__)(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and (self.module, self.__qualname__) == (other.module, other.__qualname__)

    def __hash__(self) -> int:
        return hash((self.module, self.__qualname__))


def _resolve(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part) if isinstance(found, type) else getattr(found, part)
        found = getattr(found, "__func__", found)
    return worker.undecorated(found)


class Raised:
    """An exception of a call that a future or pickle would not pass on as it is; rebuilt without its ``__init__``.

    Example:
        >>> Raised(StopIteration(3)).error
        StopIteration(3)
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        where = "".join(traceback.format_exception(error))
        return _raised, (type(error), error.args, dict(error.__dict__), where)


def _raised(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any], where: str) -> Raised:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    if isinstance(error, StopIteration | SystemExit):
        error.__init__(*args)  # type: ignore[misc]  # sets value or code
    error.__cause__ = worker.RemoteTraceback(where)
    return Raised(error)


class Timed:
    """Calls a function and returns (result, seconds, processor seconds of its thread); a pool still sees its arguments.

    Args:
        function: function to call.
        as_called: return an exception as :class:`Raised` if it would not arrive as it is.
        awaits: await a coroutine that it returns.
    """

    def __init__(self, function: Any, *, as_called: bool = False, awaits: bool = True) -> None:
        self.function, self.as_called, self.awaits = function, as_called, awaits
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function and measure it."""
        began = read_clocks()
        try:
            result = self.function(*args, **kwargs)
        except BaseException as exc:
            if not self.as_called or _survives(exc):
                raise
            return Raised(exc), *used_since(began)
        if self.awaits and inspect.iscoroutine(result):
            return self._finished(result, began)
        return result, *used_since(began)

    async def _finished(self, coroutine: Any, began: Clocks) -> tuple[Any, float, float]:
        try:
            result = await coroutine
        except Exception as exc:
            if not self.as_called or _survives(exc):
                raise
            result = Raised(exc)
        return result, *used_since(began)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timed) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


def _survives(error: BaseException) -> bool:
    """Whether a future can raise an exception, and pickle passes it on from another process as it is."""
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        return False
    if not worker.here.is_worker:
        return True
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - its class may raise anything when pickled or unpickled
        return False


class Within:
    """Calls a function in a context; a coroutine function is also awaited in it."""

    def __init__(self, context: contextvars.Context, function: Any) -> None:
        self.context, self.function = context, function
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function in the context."""
        result = self.context.run(self.function, *args, **kwargs)
        return self._awaited(result) if inspect.iscoroutinefunction(self.function) else result

    async def _awaited(self, coroutine: Any) -> Any:
        return await asyncio.get_running_loop().create_task(coroutine, context=self.context)

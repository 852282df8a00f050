"""Functions that tests name in auto_offload and transparent_offload, in a module of their own that workers import."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

lock = threading.Lock()
log: list[int] = []
variable: contextvars.ContextVar[str] = contextvars.ContextVar("named_variable", default="unset")


def where(value: Any = None, *, fail: bool = False) -> tuple[Any, int, str]:
    """Return the value, and the process and thread that computed it."""
    if fail:
        raise ValueError(f"of {value}")
    return value, os.getpid(), threading.current_thread().name


def mutates(values: list[int]) -> str:
    """Change the argument, and return the thread."""
    values.append(len(values))
    return threading.current_thread().name


def logs(value: int) -> str:
    """Change a global, and return the thread."""
    log.append(value)
    return threading.current_thread().name


def calls_another(value: int) -> tuple[Any, int, str]:
    """Call another listed function."""
    return where(value)


def waits_for(_path: str) -> bytes:
    """Wait for a byte in a pipe."""
    with open(_path, "rb", buffering=0) as pipe:  # noqa: PTH123
        return pipe.read(1)


def spins(seconds: float) -> int:
    """Compute for the given time, and return the process."""
    ends, value = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        for number in range(500):  # samples should see Python code, and not the call that reads the clock
            value += number * number
    return os.getpid()


def under_lock(value: int) -> tuple[Any, int, str]:
    """Call a listed function while holding a lock."""
    with lock:
        return where(value)


def sets(value: str) -> tuple[str, str]:
    """Set a context variable; return its previous value, and the thread."""
    before = variable.get()
    variable.set(value)
    return before, threading.current_thread().name


def makes_task() -> Any:
    """Make a task from within a plain function."""
    return asyncio.get_running_loop().create_task(asyncio.sleep(0, threading.current_thread().name))


async def awaited_sets(value: str) -> tuple[str, str]:
    """Set a context variable; return its previous value, and the thread."""
    await asyncio.sleep(0)
    return sets(value)


class Shape:
    """Methods of each kind."""

    def __init__(self, side: int) -> None:
        self.side = side

    def area(self) -> tuple[int, int]:
        """Return the area, and the process."""
        return self.side**2, os.getpid()

    def grows(self) -> tuple[int, str]:
        """Change the object, and return the thread."""
        self.side += 1
        return self.side, threading.current_thread().name

    @staticmethod
    def static(value: int) -> tuple[int, int]:
        """Return the value, and the process."""
        return value, os.getpid()

    @classmethod
    def made(cls) -> tuple[str, int]:
        """Return the name of the class, and the process."""
        return cls.__name__, os.getpid()


def numbers() -> Iterator[int]:
    """A generator."""
    yield 1


async def awaited(value: Any = None, hold: Callable[[], Any] | None = None) -> tuple[Any, int, str]:
    """Return the value, and the process and thread; suspends on the way."""
    await asyncio.sleep(0)
    if hold is not None:
        hold()
    return value, os.getpid(), threading.current_thread().name


async def awaited_spins(seconds: float) -> int:
    """Compute for the given time, and return the process."""
    await asyncio.sleep(0)
    return spins(seconds)


def handler_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A coroutine that calls ``function`` without await, below other plain calls."""

    def below() -> Any:
        return function(*args, **kwargs)

    async def handler() -> Any:
        await asyncio.sleep(0)
        return below()

    return handler()


class Refused(Exception):
    """An exception that does not pickle by itself: its arguments are not those of its constructor."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"refused: {code}")
        self.code, self.where = code, where


def raises(kind: str, _value: Any = None) -> None:
    """Raise an exception that a future cannot hold or that does not pickle."""
    if kind == "refused":
        raise Refused(7, where="here")
    errors: dict[str, BaseException] = {
        "stop": StopIteration(3), "exit": SystemExit(4), "cancelled": asyncio.CancelledError("mine"),
        "interrupt": KeyboardInterrupt(), "group": ExceptionGroup("several", [ValueError(1), KeyError(2)]),
        "nested": ExceptionGroup("several", [Refused(8, where="there")]),
    }  # fmt: skip
    raise errors[kind]


def promises(value: Any) -> Any:
    """Return a coroutine, for the caller to await."""
    return awaited(value)


def takes(**kwargs: Any) -> list[str]:
    """Take arguments of any name."""
    return sorted(kwargs)


def recurses(depth: int) -> int:
    """Call itself."""
    return recurses(depth - 1) + 1 if depth else 0


def fib(number: int) -> tuple[int, int]:
    """Call itself, twice each time; return the process too."""
    return (number, os.getpid()) if number < 2 else (fib(number - 1)[0] + fib(number - 2)[0], os.getpid())


def even(depth: int) -> bool:
    """Call itself by way of another function."""
    return odd(depth - 1) if depth else True


def odd(depth: int) -> bool:
    """See ``even``."""
    return even(depth - 1) if depth else False


def reports(value: Any = None) -> tuple[Any, str, str]:
    """Return the exception that the caller is handling."""
    return value, traceback.format_exc(), threading.current_thread().name


local = threading.local()


def uses_local() -> str:
    """Use a ``threading.local``."""
    return str(vars(local)) + threading.current_thread().name


model: dict[str, int] | None = None


def predicts(value: int) -> tuple[int, int]:
    """Use a global set by the program at start-up; return the process too."""
    assert model is not None
    return model["a"] + value, os.getpid()


async def awaited_raises(kind: str) -> None:
    """Raise after a turn of the loop."""
    await asyncio.sleep(0)
    raises(kind)


async def awaited_even(depth: int) -> bool:
    """Call itself by way of another coroutine function."""
    return await awaited_odd(depth - 1) if depth else True


async def awaited_odd(depth: int) -> bool:
    """See ``awaited_even``."""
    return await awaited_even(depth - 1) if depth else False

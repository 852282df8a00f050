"""Functions decorated with ``@offload`` for the tests, in a module of their own that workers import by name."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import loopwatch


@loopwatch.offload
def pid() -> int:
    """Return the process that this runs in."""
    return os.getpid()


@loopwatch.offload(max_concurrency=4)
def add(left: int, right: int = 1) -> int:
    """Add two numbers."""
    return left + right


@loopwatch.offload
async def later(value: int) -> tuple[int, int]:
    """Return the value and the process, after a moment."""
    await asyncio.sleep(0.001)
    return value, os.getpid()


@loopwatch.offload
def fails(words: str) -> None:
    """Raise."""
    raise ValueError(words)


@loopwatch.offload
async def nested() -> tuple[int, int]:
    """Call another offloaded function from within a worker."""
    return os.getpid(), await pid()


class Shapes:
    """Methods of each kind."""

    def __init__(self, side: int) -> None:
        self.side = side

    @loopwatch.offload
    def area(self) -> tuple[int, int]:
        """A method."""
        return self.side**2, os.getpid()

    @staticmethod
    @loopwatch.offload
    def static(value: int) -> tuple[int, int]:
        """A static method."""
        return value, os.getpid()

    @loopwatch.offload
    @classmethod
    def named(cls) -> tuple[str, int]:
        """A class method."""
        return cls.__name__, os.getpid()


@loopwatch.offload(to="thread")
def thread_name() -> str:
    """Return the thread that this runs in."""
    return threading.current_thread().name


@loopwatch.offload(to="thread", timeout=0.05)
def waits(event: threading.Event) -> None:
    """Wait for an event, longer than allowed."""
    event.wait(30)


@loopwatch.offload(to="thread")
async def nested_threads(depth: int) -> set[str]:
    """Call itself from within a thread; return the threads it was in."""
    below = await nested_threads(depth - 1) if depth else set()
    return {threading.current_thread().name, *below}


@loopwatch.offload(to="inline")
def here() -> str:
    """Return the thread that this runs in."""
    return threading.current_thread().name


def _burn(seconds: float) -> int:
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass
    return os.getpid()


@loopwatch.offload(to="auto")
def computes(seconds: float, _ballast: Any = None) -> int:
    """Use a processor for a while."""
    return _burn(seconds)


@loopwatch.offload(to="auto")
def burns(seconds: float) -> int:
    """Use a processor for a while."""
    return _burn(seconds)


@loopwatch.offload(to="auto", max_concurrency=1)
def burns_one(seconds: float, _data: bytes) -> int:
    """Use a processor for a while."""
    return _burn(seconds)


@loopwatch.offload(to="auto", max_concurrency=1)
def burns_other(seconds: float, _data: bytes) -> int:
    """Use a processor for a while."""
    return _burn(seconds)


@loopwatch.offload(to="auto")
def naps(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return threading.current_thread().name


def numbers() -> Iterator[int]:
    """A generator, which cannot be offloaded."""
    yield 1

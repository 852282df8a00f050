"""Calls of the conformance suite for backends: importable wherever a backend runs them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from loopwatch.offloading.decorator import offload


def double(value: int) -> int:
    """Return twice the value."""
    return 2 * value


async def doubled_later(value: int) -> int:
    """Return twice the value, a turn of some loop later."""
    await asyncio.sleep(0)
    return 2 * value


def fail(words: str) -> None:
    """Raise."""
    raise ValueError(words)


def interrupt() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def stop() -> None:
    """Raise what a future cannot be given."""
    raise StopIteration


def note(path: Path, number: int) -> None:
    """Append a number to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")


def hold(began: str, opened: str, value: Any = None) -> Any:
    """Write to the pipe ``began``, wait for a byte in the pipe ``opened``, return ``value``."""
    with Path(began).open("wb", buffering=0) as writing:
        writing.write(b".")
    with Path(opened).open("rb", buffering=0) as waiting:
        waiting.read(1)
    return value


@offload(max_concurrency=4)
def add(left: int, right: int = 1) -> int:
    """Add two numbers."""
    return left + right


@offload
async def later(value: int) -> tuple[int, int]:
    """Return the value and the process, after a moment."""
    await asyncio.sleep(0.001)
    return value, os.getpid()


class Shapes:
    """A class with an offloaded method."""

    def __init__(self, side: int) -> None:
        self.side = side

    @offload
    def area(self) -> tuple[int, int]:
        """Return the square of the side, and the process."""
        return self.side**2, os.getpid()

"""Calls for the conformance of backends: importable wherever they run."""

from __future__ import annotations

import asyncio
from pathlib import Path


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
    with path.open("a") as file:
        file.write(f"{number}\n")

"""What the pools of ``pool.py`` are asked to do; a module that every worker can import."""

from __future__ import annotations

import time
from typing import Any


def nothing() -> None:
    """Do nothing: the trip is what is measured."""


def same(value: Any) -> Any:
    """Return what came."""
    return value


def dicts(count: int) -> list[dict[str, Any]]:
    """Return many small objects."""
    return [{"number": number, "text": str(number)} for number in range(count)]


def count(items: list[Any]) -> int:
    """Return how many there are."""
    return len(items)


def square(shared: Any, number: int) -> int:
    """Count in slot ``number`` of a ``SharedBuffer`` that this call has run, work a little, return the square."""
    shared.add(number, 1)
    time.sleep(0.0005)
    return number * number

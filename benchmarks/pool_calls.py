"""The calls of the pools of ``pool.py``: a module that every worker can import."""

from __future__ import annotations

import time
from typing import Any


def nothing() -> None:
    """Do nothing: only the trip is measured."""


def same(value: Any) -> Any:
    """Return the argument."""
    return value


def dicts(count: int) -> list[dict[str, Any]]:
    """Return many small objects."""
    return [{"number": number, "text": str(number)} for number in range(count)]


def count(items: list[Any]) -> int:
    """Return the number of items."""
    return len(items)


def square(shared: Any, number: int) -> int:
    """Count in slot ``number`` of a ``SharedBuffer`` that this call has run, work a little, return the square."""
    shared.add(number, 1)
    time.sleep(0.0005)
    return number * number

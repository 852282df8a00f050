"""Functions run by the interpreter tests, imported there by name, without anything that cannot be imported there."""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Any

from loopwatch.workers import worker

LOCAL: list[int] = []


def where() -> tuple[bool, int, int]:
    """Return whether offloaded functions run inline here, the process, and what this interpreter's module is."""
    return worker.here.is_worker, os.getpid(), id(LOCAL)


def notify_and_wait(began: int, opened: int, value: Any = None) -> Any:
    """Write to one pipe, then read from another."""
    os.write(began, b".")
    os.read(opened, 1)
    return value


def keep_the_gil(began: int, opened: int) -> int:
    """The same in C code that holds its interpreter's GIL."""
    os.write(began, b".")
    return int(ctypes.PyDLL(None).read(opened, ctypes.create_string_buffer(1), 1))


def count() -> int:
    """Return how often this was called in this interpreter."""
    LOCAL.append(1)
    return len(LOCAL)


class Custom(Exception):
    """An exception with two arguments, which cannot be unpickled."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


def raise_custom() -> None:
    """Raise an exception that cannot be unpickled."""
    raise Custom(1, 2)


def lock() -> Any:
    """Return an object that cannot be pickled."""
    import threading

    return threading.Lock()


def log() -> None:
    """Log."""
    logging.getLogger("inside").warning("from inside")

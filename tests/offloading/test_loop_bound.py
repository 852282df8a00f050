"""Objects bound to a loop or a thread are found among arguments, without running any of the program's code."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import Any

from loopwatch.offloading.loop_bound import MOST_LOOKED_AT, of_a_loop
from tests.workers.helpers import Proxy


class Holder:
    """An object that holds another one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def test_objects_of_a_loop() -> None:
    """asyncio's objects are found inside containers and objects, cycles are handled, and other objects pass."""

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        cycle: list[Any] = []
        cycle.append(cycle)
        for value in (asyncio.Event(), [asyncio.Event()], {"a": (asyncio.Event(),)}, Holder([asyncio.Event()])):
            assert of_a_loop(((value,), {})) == "asyncio.locks.Event"
        assert of_a_loop(((), {"key": future})) == "_asyncio.Future"
        for value in (cycle, [1, "a", b"b", None], Holder(3), asyncio.CancelledError(), asyncio.sleep, asyncio):
            assert of_a_loop(((value,), {})) == ""

    asyncio.run(main())


def test_objects_of_a_thread() -> None:
    """Thread-bound objects are found as well: a database connection bound to a thread, a ``threading.local``."""
    connection = sqlite3.connect(":memory:")
    for value, kind in ((Holder(connection), "sqlite3.Connection"), ([threading.local()], "_thread._local")):
        assert of_a_loop(((value,), {})) == kind
    connection.close()


def test_large_arguments_are_inspected_in_part() -> None:
    """A bounded number of objects is inspected, including objects that cannot be bound to a loop."""
    numbers = [1] * (10 * MOST_LOOKED_AT)
    assert of_a_loop((([asyncio.Event(), numbers],), {})) == ""
    assert of_a_loop((([numbers, asyncio.Event()],), {})) == "asyncio.locks.Event"


def test_arguments_that_raise_on_access() -> None:
    """Arguments that raise on access raise nothing into the program."""
    assert of_a_loop(((Proxy(),), {})) == ""

"""What speaks against suspending a plain call: locks that its callers can be seen to hold."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loopwatch.workers import held

lock = threading.Lock()


def here() -> str:
    """What the guard says of its callers."""
    return held.why_not_here(sys._getframe())


class Holder:
    """Has a lock as an attribute, one in a slot, and one that only a method gives."""

    __slots__ = ("__dict__", "in_slot")

    def __init__(self) -> None:
        self.own = threading.RLock()
        self.in_slot = threading.Condition()

    def lock_for(self, _name: str) -> Any:
        """Return a lock."""
        return self.own

    def in_block(self) -> str:
        with self.own:
            return here()

    def with_slot(self) -> str:
        with self.in_slot:
            for _ in range(1):
                answer = here()
        return answer

    def by_call(self) -> str:
        with self.lock_for("x"):
            return here()

    def after(self) -> str:
        with self.own:
            pass
        return here()


def of_module() -> str:
    with contextlib.nullcontext(), lock:
        return deeper()


def deeper() -> str:
    return here()


def acquired() -> str:
    lock.acquire()
    try:
        return here()
    finally:
        lock.release()


def released() -> str:
    lock.acquire()
    lock.release()
    return here()


def owned() -> str:
    own = threading.RLock()
    own.acquire()
    try:
        return here()
    finally:
        own.release()


def one_line() -> str:
    with lock: return here()  # fmt: skip # noqa: E701


def nested_function() -> str:
    def inside() -> None:
        with lock:
            pass

    inside()
    return here()


@contextlib.contextmanager
def session() -> Iterator[None]:
    yield


def other_context() -> str:
    with session():
        return here()


class Dying:
    """Calls from its finalizer."""

    said: str = ""

    def __del__(self) -> None:
        Dying.said = here()


HOLDING = {
    "a lock of the module, below another call": (of_module, "of_module() holds lock"),
    "an attribute": (lambda: Holder().in_block(), "Holder.in_block() holds self.own"),
    "a slot": (lambda: Holder().with_slot(), "Holder.with_slot() holds self.in_slot"),
    "what a call returned, by its name": (lambda: Holder().by_call(), "Holder.by_call() holds self.lock_for('x')"),
    "acquire": (acquired, "acquired() holds lock"),
    "acquire of a re-entrant lock": (owned, "owned() holds own"),
    "one line": (one_line, "one_line() holds lock"),
}


@pytest.mark.parametrize("name", HOLDING)
def test_lock_is_seen(name: str) -> None:
    """A lock that a caller holds, however it is reached, is named with the function that holds it."""
    function, said = HOLDING[name]
    assert function() == said
    assert not lock.locked()


@pytest.mark.parametrize("function", [here, lambda: Holder().after(), released, nested_function, other_context])
def test_no_lock(function: Any) -> None:
    """A lock that was given back, one of another function, and a context that is no lock are nothing to fear."""
    assert function() == ""


def test_asyncio_lock_is_no_obstacle() -> None:
    """An asyncio lock is waited for without holding the loop, so that its holder may be suspended."""

    async def main() -> str:
        async with asyncio.Lock():
            return here()

    assert asyncio.run(main()) == ""


def test_finalizer() -> None:
    """A finalizer may run in the midst of anything, and is not suspended."""
    Dying()
    assert Dying.said == "Dying.__del__() may run in the midst of anything"


def test_import(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a module is imported its lock is held."""
    (tmp_path / "imported_by_held.py").write_text("from tests.workers.test_held import here\nsaid = here()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import imported_by_held  # type: ignore[import-not-found]

    assert imported_by_held.said == "a module is being imported, and its lock is held"

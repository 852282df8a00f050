"""Locks held by the callers of a plain call are found, so that the call is not suspended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from loopwatch.offloading import lock_check
from tests.workers.helpers import Proxy

lock = threading.Lock()


def here() -> str:
    """Return what the lock check reports of its callers."""
    return lock_check.why_not_here(sys._getframe())


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


def later_item() -> str:
    with lock, contextlib.nullcontext(here()) as answer:
        return answer


def in_except() -> str:
    with lock:
        try:
            raise KeyError
        except KeyError:
            with session():
                return here()


def counted() -> str:
    own = threading.Semaphore(1)
    own.acquire()
    try:
        return here()
    finally:
        own.release()


class Handler(logging.Handler):
    """Runs the lock check inside ``emit``, while its lock is held by a method (until Python 3.12)."""

    said = ""

    def emit(self, _record: logging.LogRecord) -> None:
        self.said = here()


def in_handler() -> str:
    handler = Handler()
    handler.handle(logging.makeLogRecord({}))
    handler.close()
    return handler.said


def without_source() -> str:
    names: dict[str, Any] = {"here": here, "lock": lock}
    exec("def unread():\n    with lock:\n        return here()", names)
    return str(names["unread"]())


HOLDING = {
    "a lock of the module, below another call": (of_module, "of_module() holds lock"),
    "an attribute": (lambda: Holder().in_block(), "Holder.in_block() holds self.own"),
    "a slot": (lambda: Holder().with_slot(), "Holder.with_slot() holds self.in_slot"),
    "what a call returned, by its name": (lambda: Holder().by_call(), "Holder.by_call() holds self.lock_for('x')"),
    "acquire": (acquired, "acquired() holds lock"),
    "acquire of a re-entrant lock": (owned, "owned() holds own"),
    "one line": (one_line, "one_line() holds lock"),
    "a with of several, before its body": (later_item, "later_item() holds lock"),
    "around an except and another with": (in_except, "in_except() holds lock"),
    "acquire of a semaphore that is used up": (counted, "counted() holds own"),
    "an acquire of its own": (
        in_handler,
        f"Handler.handle() holds self{'.lock' if sys.version_info >= (3, 13) else ''}",
    ),
    "no source": (without_source, "unread() may hold a lock (lock), its source cannot be read"),
}


@pytest.mark.parametrize("name", HOLDING)
def test_lock_is_seen(name: str) -> None:
    """A lock held by a caller, however it is reached, is named with the function that holds it."""
    function, said = HOLDING[name]
    assert function() == said
    assert not lock.locked()


@pytest.mark.parametrize("function", [here, lambda: Holder().after(), released, nested_function, other_context])
def test_no_lock(function: Any) -> None:
    """A released lock, a lock of another function, and a context manager that is no lock are ignored."""
    assert function() == ""


def test_asyncio_lock_is_ignored() -> None:
    """An asyncio lock is ignored: waiting for it does not hold the loop, so its holder may be suspended."""

    async def main() -> str:
        async with asyncio.Lock():
            return here()

    assert asyncio.run(main()) == ""


def test_finalizer() -> None:
    """A finalizer may run at any point, and is not suspended."""
    Dying()
    assert Dying.said == "Dying.__del__() may run in the midst of anything"


def test_import(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a module is imported its import lock is held."""
    (tmp_path / "imported_by_held.py").write_text("from tests.offloading.test_lock_check import here\nsaid = here()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import imported_by_held  # type: ignore[import-not-found]

    assert imported_by_held.said == "a module is being imported, and its lock is held"


def test_signal_handler() -> None:
    """A signal handler runs between any two instructions, and is not suspended."""
    said = []

    def handles(_number: int, _frame: Any) -> None:
        said.append(here())

    before = signal.signal(signal.SIGUSR1, handles)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert said == ["test_signal_handler.<locals>.handles() handles a signal, in the midst of anything"]


class EnteredProxy(Proxy):
    """A proxy that is a context manager, and raises for anything else."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def __getattr__(self, _name: str) -> Any:
        raise RuntimeError("outside")


def test_proxy_that_raises() -> None:
    """An object that raises on access does not raise into the program."""
    with EnteredProxy():
        assert here() == ""


def test_long_function_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a long function only the enclosing ``with`` statements are parsed, to keep the check short."""
    many = "".join(f"    x{number} = {number}\n" for number in range(3000))
    source = f"import threading\nlock = threading.Lock()\ndef long(f):\n    with lock:\n    {many}        return f()\n"
    source = source.replace("\n    x", "\n        x")
    file = tmp_path / "long.py"
    file.write_text(source)
    names: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), names)
    parsed, real = [], lock_check.ast.parse

    def parse(text: str, *args: Any, **options: Any) -> Any:
        parsed.append(text.count("\n"))
        return real(text, *args, **options)

    monkeypatch.setattr(lock_check.ast, "parse", parse)
    assert names["long"](here) == "long() holds lock"
    assert 0 < len(parsed) < 5
    assert max(parsed) < 5


def test_acquire_in_a_long_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An acquire behind hundreds of other names is found too, without disassembling the whole function."""
    many = "\n    ".join(f"here.name{number} = here.name{number // 2 * 2 + 1} = {number}" for number in range(300))
    source = (
        f"def long(here, lock):\n    {many}\n    lock.acquire()\n    try: return here()\n    finally: lock.release()\n"
    )
    file = tmp_path / "long.py"
    file.write_text(source)
    names: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), names)
    monkeypatch.delattr(lock_check.dis, "get_instructions")

    def asks() -> str:
        return here()

    assert names["long"](asks, threading.Lock()) == "long() holds lock"

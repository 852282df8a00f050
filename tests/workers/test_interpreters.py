"""Subinterpreters: calls run in parallel in another interpreter, which is closed when it is no longer needed.

Where Python has no ``concurrent.interpreters`` (before 3.14) but real interpreters (3.13), a stand-in makes them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch import ConfigError, NotPicklable, OffloadError, TaskTimeout
from loopwatch.workers import interpreters
from loopwatch.workers.interpreters import InterpreterBackend, gil_enabled, has_interpreters
from loopwatch.workers.options import CallOptions
from tests.conftest import Run
from tests.offloading import offloaded
from tests.workers import inside
from tests.workers.helpers import script, stats_add_up

PLAIN = CallOptions()
REAL = importlib.util.find_spec("concurrent.interpreters") is not None
STAND_IN = not REAL and importlib.util.find_spec("_interpreters") is not None
needs_interpreters = pytest.mark.skipif(not (REAL or STAND_IN), reason="needs Python 3.14, or 3.13 and a stand-in")

PATCH = "" if REAL else "interpreters._library = lambda: __import__('tests.workers.subinterpreters', fromlist=['x'])\n"
"""What a program of its own needs before it makes a backend."""


def count() -> int:
    """Return how many interpreters there are."""
    if REAL:
        return len(importlib.import_module("concurrent.interpreters").list_all())
    from tests.workers import subinterpreters

    return subinterpreters.count()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Subinterpreters, real or by the stand-in; their number is the same afterwards as before."""
    if not REAL:
        from tests.workers import subinterpreters

        monkeypatch.setattr(interpreters, "_library", lambda: subinterpreters)
    before = count()
    yield
    assert count() == before


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, Callable[[], Any], Callable[[], Any]]]:
    """Two pipes: the descriptors for a call, how to wait until the call has begun, and how to release it."""
    (began, notify), (wait, opened) = os.pipe(), os.pipe()

    async def entered() -> None:
        there = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(began, there.set)
        await there.wait()
        loop.remove_reader(began)
        os.read(began, 1)

    yield notify, wait, entered, lambda: os.write(opened, b".")
    for descriptor in (began, notify, wait, opened):
        os.close(descriptor)


@asynccontextmanager
async def backend_of(workers: int = 1, **options: Any) -> AsyncIterator[InterpreterBackend]:
    """Interpreters that are closed at the end, with stats that add up."""
    backend = InterpreterBackend(workers, **options)
    try:
        yield backend
    finally:
        await backend.close()
        stats_add_up(backend.stats())


# -- whether there are any --------------------------------------------------------------------------------------------


def test_which_python_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 has subinterpreters; an older one is refused with what is needed and the alternative."""
    assert has_interpreters() == (sys.version_info >= (3, 14))
    monkeypatch.setattr(interpreters, "has_interpreters", lambda: False)
    with pytest.raises(OffloadError, match=r"needs Python 3\.14 or newer, this is 3\.\d+: use to='process'"):
        InterpreterBackend()


def test_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a GIL, unless the interpreter says that there is none."""
    asked = getattr(sys, "_is_gil_enabled", None)
    assert gil_enabled() is (True if asked is None else asked())
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert gil_enabled() is False
    monkeypatch.delattr(sys, "_is_gil_enabled")
    assert gil_enabled() is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"workers": 0}, "workers=0: must be a whole number"), ({"max_queue": 0}, "max_queue=0: must be a whole number")],
)
def test_bad_arguments(arguments: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invalid arguments are refused."""
    monkeypatch.setattr(interpreters, "_library", lambda: None)
    with pytest.raises(ConfigError, match=words):
        InterpreterBackend(**arguments)


# -- running calls -----------------------------------------------------------------------------------------------------


@needs_interpreters
def test_elsewhere_in_the_same_process(library: None, run: Run) -> None:
    """A call runs in this process, with modules of its own that persist between calls, where offloading is inline."""

    async def main() -> None:
        async with backend_of() as backend:
            is_inside, pid, module = await backend.submit(inside.where, (), {}, PLAIN)
            assert (is_inside, pid) == (True, os.getpid())
            assert module != inside.where()[2]
            assert [await backend.submit(inside.count, (), {}, PLAIN) for _ in range(3)] == [1, 2, 3]
            assert inside.LOCAL == []
            assert inside.where()[0] is False
            assert count() == 2

    run(main())


@needs_interpreters
def test_parallel(library: None, run: Run, pipes: tuple[int, int, Callable[[], Any], Callable[[], Any]]) -> None:
    """A call that holds its interpreter's GIL in C code does not hold the loop."""
    notify, wait, entered, let_go = pipes

    async def main() -> None:
        async with backend_of() as backend:
            call = backend.submit(inside.keep_the_gil, (notify, wait), {}, PLAIN)
            await entered()
            await asyncio.sleep(0)
            assert not call.done()
            let_go()
            assert await call == 1

    run(main())


@needs_interpreters
def test_decorated_functions(library: None, run: Run) -> None:
    """Functions decorated with ``@offload``, and those they call, run inline there; methods and coroutines too."""

    async def main() -> None:
        async with backend_of(2) as backend:
            here = os.getpid()
            shapes = offloaded.Shapes(3)
            calls = {
                backend.submit(offloaded.add, (1,), {"right": 2}, PLAIN): 3,
                backend.submit(offloaded.later, (7,), {}, PLAIN): (7, here),
                backend.submit(offloaded.nested, (), {}, PLAIN): (here, here),
                backend.submit(shapes.area, (), {}, PLAIN): (9, here),
            }
            for call, expected in calls.items():
                assert await call == expected
            moved = loopwatch.offload(to=backend)(inside.count)
            assert await moved() + await moved() >= 2
            assert moved.explain().endswith("runs on interpreters: as configured")

    run(main())


@needs_interpreters
def test_errors(library: None, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a call arrives as itself with its remote traceback; one that cannot be pickled is named."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    only_here = types.ModuleType("only_here")
    exec("def function(): pass", only_here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", only_here)

    async def main() -> None:
        async with backend_of() as backend:
            with pytest.raises(ValueError, match="on purpose") as caught:
                await backend.submit(offloaded.fails, ("on purpose",), {}, PLAIN)
            assert "raise ValueError(words)" in str(caught.value.__cause__)
            with pytest.raises(OffloadError, match=r"Custom: 1 and 2, which cannot be sent as it is"):
                await backend.submit(inside.raise_custom, (), {}, PLAIN)
            with pytest.raises(OffloadError, match=r"sys\.exit\(3\)"):
                await backend.submit(sys.exit, (3,), {}, PLAIN)
            with pytest.raises(NotPicklable, match=r"the result \(_thread\.lock\) cannot be sent back"):
                await backend.submit(inside.lock, (), {}, PLAIN)
            with pytest.raises(NotPicklable, match=r"the function \(builtins\.function\) cannot be sent"):
                backend.submit(lambda: 3, (), {}, PLAIN)
            with pytest.raises(NotPicklable, match=r"argument 2 \(_thread\.lock\) cannot be sent"):
                backend.submit(max, (1, threading.Lock()), {}, PLAIN)
            with pytest.raises(NotPicklable, match=r"could not be read in the interpreter: .*only_here"):
                await backend.submit(only_here.function, (), {}, PLAIN)
            assert await backend.submit(math.factorial, (5,), {}, PLAIN) == 120
        assert backend.stats().started == 1

    run(main())


@needs_interpreters
def test_closures_by_value(library: None, run: Run) -> None:
    """With the extra ``closures`` a lambda or closure needs no name."""
    pytest.importorskip("cloudpickle")
    offset = 5

    async def main() -> None:
        async with backend_of() as backend:
            assert await backend.submit(lambda value: value + offset, (1,), {}, PLAIN) == 6

    run(main())


# -- their life -------------------------------------------------------------------------------------------------------


@needs_interpreters
def test_timeout(library: None, run: Run, pipes: tuple[int, int, Callable[[], Any], Callable[[], Any]]) -> None:
    """A call that times out goes on in its interpreter, another one replaces it, and both are closed in the end."""
    notify, wait, entered, let_go = pipes

    async def main() -> None:
        async with backend_of() as backend:
            call = backend.submit(inside.notify_and_wait, (notify, wait), {}, CallOptions(timeout=0.01))
            await entered()
            with pytest.raises(TaskTimeout, match=r"notify_and_wait ran longer than 0\.01 s"):
                await call
            assert await backend.submit(inside.count, (), {}, PLAIN) == 1
            assert count() == 3
            let_go()
        for thread in threading.enumerate():
            if thread.name == "loopwatch-interpreters":
                await asyncio.to_thread(thread.join, 30)

    run(main())


@needs_interpreters
def test_idle_interpreters_are_closed(library: None, run: Run) -> None:
    """An idle interpreter is closed after a while, and the next call gets a new one."""

    async def main() -> None:
        async with backend_of() as backend:
            backend._idle_for = 0.01
            for number in (1, 2):
                assert await backend.submit(inside.count, (), {}, PLAIN) == 1
                for thread in threading.enumerate():
                    if thread.name == "loopwatch-interpreters":
                        await asyncio.to_thread(thread.join, 30)
                assert count() == 1
                assert backend.stats().started == number

    run(main())


class _Broken:
    """Interpreters that fail in one of their methods."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.closed = 0

    def create(self) -> _Broken:
        return self

    def exec(self, code: str) -> None:
        if self.method == "exec":
            raise RuntimeError("no exec")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.method == "call" and args:
            raise RuntimeError("no call")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("method", "words"), [("exec", "could not be prepared: no exec"), ("call", "could not run the call: no call")]
)
def test_broken_interpreters(run: Run, monkeypatch: pytest.MonkeyPatch, method: str, words: str) -> None:
    """An interpreter that fails or cannot be prepared fails each of its calls, and is closed."""

    async def main() -> None:
        library = _Broken(method)
        monkeypatch.setattr(interpreters, "_library", lambda: library)
        async with backend_of() as backend:
            for _ in range(2):
                with pytest.raises(OffloadError, match=f"interpreters: an interpreter {words}"):
                    await backend.submit(inside.count, (), {}, PLAIN)
        assert library.closed == (2 if method == "exec" else 1)
        assert backend.stats().failed == 2

    run(main())


@needs_interpreters
def test_functions_of_a_script(tmp_path: Path) -> None:
    """Functions of a script run there by name, in the same directory; idle interpreters do not delay the exit."""
    done = script(
        tmp_path,
        f"""
        import asyncio, os
        from loopwatch.workers import interpreters
        {PATCH}
        from loopwatch.workers.options import CallOptions

        class Pair:
            def __init__(self, left, right): self.left, self.right = left, right

        def swap(pair): return Pair(pair.right, pair.left), os.getcwd()

        async def main():
            backend = interpreters.InterpreterBackend(2)
            os.chdir("/")
            pair, folder = await backend.submit(swap, (Pair(1, 2),), {{}}, CallOptions())
            print(isinstance(pair, Pair), pair.left, pair.right, folder, os.getcwd())

        if __name__ == "__main__": asyncio.run(main())
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 2 1 / /\n", "")


@needs_interpreters
def test_exit_with_a_stuck_interpreter(tmp_path: Path) -> None:
    """A program whose call never ends in its interpreter still exits."""
    done = script(
        tmp_path,
        f"""
        import asyncio, time
        from loopwatch import TaskTimeout
        from loopwatch.workers import interpreters
        {PATCH}
        from loopwatch.workers.options import CallOptions

        async def main():
            backend = interpreters.InterpreterBackend(1)
            try: await backend.submit(time.sleep, (10_000,), {{}}, CallOptions(timeout=0.05))
            except TaskTimeout as error: print(error)

        if __name__ == "__main__": asyncio.run(main())
        """,
    )
    words = "sleep ran longer than 0.05 s; a thread cannot be stopped, a plain function goes on\n"
    assert (done.returncode, done.stdout) == (0, words), done.stderr

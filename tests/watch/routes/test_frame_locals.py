"""Reading a frame of another thread leaves the frame, its variables and their lives as they are."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from loopwatch.watch.routes.frame_locals import variables


class Thing:
    """An object that can be watched."""


class Stage:
    """A coroutine in a thread: it stands still inside an await each time until it is told to go on."""

    def __init__(self) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        self.result: Any = None

    async def stand(self) -> None:
        self.there.set()
        assert self.go.wait(20)
        self.go.clear()

    async def serve(self, scope: Thing, count: int) -> tuple[Thing, int]:
        response = Thing()
        self.born = weakref.ref(response)
        await self.stand()
        del response
        self.is_gone = self.born() is None
        await self.stand()
        count += 1
        return scope, count

    def run(self) -> None:
        self.result = asyncio.run(self.serve(Thing(), 7))

    def frames(self) -> tuple[FrameType, FrameType]:
        """Return the frame of :meth:`serve` and the one above it."""
        assert self.there.wait(20)
        self.there.clear()
        assert self.thread.ident is not None
        callee, frame = None, sys._current_frames()[self.thread.ident]
        while frame.f_code is not Stage.serve.__code__:
            callee, frame = frame, frame.f_back  # type: ignore[assignment]
        assert callee is not None
        return frame, callee


@contextmanager
def standing(run: Callable[[Stage], object] = Stage.run) -> Iterator[Stage]:
    stage = Stage()
    stage.thread = threading.Thread(target=run, args=(stage,))  # type: ignore[attr-defined]
    stage.thread.start()  # type: ignore[attr-defined]
    try:
        yield stage
    finally:
        for _ in range(2):
            stage.go.set()
            stage.thread.join(0.1)  # type: ignore[attr-defined]
        stage.thread.join(20)  # type: ignore[attr-defined]


def test_arguments_are_read_and_nothing_else_is_kept() -> None:
    """The variables asked for are found; a variable that the function deletes afterwards is freed at once, though it
    was read, and its reference count is what it was."""
    with standing() as stage:
        frame, callee = stage.frames()
        response = stage.born()
        count = sys.getrefcount(response)
        found = variables(frame, callee, ("scope", "response", "missing"))
        assert found is not None
        assert [type(value).__name__ for value in found] == ["Thing", "Thing", "NoneType"]
        assert found[1] is response
        del found
        assert sys.getrefcount(response) == count
        del frame, callee, response
        stage.go.set()
        stage.frames()
        assert stage.is_gone
    assert stage.result[1] == 8


@pytest.mark.parametrize("switch", [sys.setprofile, sys.settrace], ids=["profile", "trace"])
def test_program_under_a_profiler_or_tracer_keeps_its_variables(switch: Any) -> None:
    """Beside a profile or trace function in Python, thousands of readings change no variable of a busy coroutine."""
    reads = 0
    over = threading.Event()
    wrong: list[str] = []

    def watch(frame: FrameType, event: str, arg: object) -> Any:
        return watch

    async def inner() -> int:
        return sum(range(20))

    async def busy(scope: str, limit: int) -> None:
        total = 0
        for number in range(limit):
            before = total
            total += await inner()
            if total != before + 190 or scope != "scope" or total != 190 * (number + 1):
                wrong.append(f"{number}: {before} {total} {scope}")

    def run() -> None:
        switch(watch)
        try:
            asyncio.run(busy("scope", 20_000))
        finally:
            switch(None)
            over.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not over.is_set():
            callee, frame = None, sys._current_frames().get(thread.ident or 0)
            while frame is not None:
                if frame.f_code.co_qualname.endswith("busy"):
                    reads += variables(frame, callee, ("scope", "total")) is not None
                callee, frame = frame, frame.f_back
    finally:
        sys.setswitchinterval(interval)
        thread.join(30)
    assert wrong == []
    assert reads > 0 or (switch is sys.settrace and sys.version_info < (3, 13))


def test_frame_that_awaits_no_coroutine_is_not_read() -> None:
    """A frame that runs code of its own, or a plain function, is not read: a profiler may be at work for it."""
    frame = sys._getframe()
    assert variables(frame, None, ("frame",)) is None

    def plain() -> object:
        return variables(frame, sys._getframe(), ("frame",))

    assert plain() is None


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="locals are a view")
def test_traced_frame_is_not_read() -> None:
    """Before 3.13 the frame of a function that a debugger stands in is left alone: it works with the same dict."""
    with standing() as stage:
        frame, callee = stage.frames()
        frame.f_trace = lambda *_: None
        assert variables(frame, callee, ("scope",)) is None
        frame.f_trace = None
        assert variables(frame, callee, ("scope",)) is not None
        del frame, callee
    gc.collect()

"""Stacks of real threads and real loops, and the name of the call at a real frame."""

from __future__ import annotations

import asyncio
import linecache
import sys
import textwrap
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from loopwatch.testing import RecordingSink
from loopwatch.watch import stacks
from loopwatch.watch.stacks import MAX_WALK, RawFrame, RawStack, _called_path, call_at, take, to_frames


@contextmanager
def standing(function: Callable[[Callable[[], None]], object]) -> Iterator[FrameType]:
    """Run ``function`` in a thread; the callback it gets blocks, and its innermost frame is yielded."""
    there, go_on = threading.Event(), threading.Event()

    def stand() -> None:
        there.set()
        go_on.wait()

    thread = threading.Thread(target=function, args=(stand,))
    thread.start()
    try:
        assert there.wait(10)
        assert thread.ident is not None
        yield sys._current_frames()[thread.ident]
    finally:
        go_on.set()
        thread.join()


def names(stack: RawStack) -> list[str]:
    return [frame.function for frame in to_frames(stack.frames)]


def on_a_loop(callbacks: int, position: int) -> Callable[[Callable[[], None]], None]:
    """Return a thread's function: a loop with ``callbacks`` ready callbacks, of which one stands still."""

    def run(stand: Callable[[], None]) -> None:
        loop = asyncio.new_event_loop()

        def handler() -> None:
            stand()

        for index in range(callbacks):
            loop.call_soon(handler if index == position else lambda: None)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()

    return run


@pytest.mark.parametrize(("callbacks", "position"), [(1, 0), (5, 0), (5, 2), (5, 4)])
def test_stack_is_cut_at_the_handle(callbacks: int, position: int) -> None:
    """Only the frames of the callback are kept; the handle is returned, with its position in the pass."""
    with standing(on_a_loop(callbacks, position)) as frame:
        stack, handle = take(frame, None, 50)
    assert isinstance(handle, asyncio.Handle)
    assert names(stack)[0].endswith("run.<locals>.handler")
    assert not any("run_forever" in name or name.startswith("Handle.") for name in names(stack))
    assert (stack.position, stack.planned) == (position, callbacks + 1)
    assert stack.behind == callbacks - position


def test_stack_of_a_task() -> None:
    """Inside a task the stack begins with its coroutine, outermost first once it is named."""

    async def inner(stand: Callable[[], None]) -> None:
        stand()

    async def outer(stand: Callable[[], None]) -> None:
        await inner(stand)

    with standing(lambda stand: asyncio.run(outer(stand))) as frame:
        stack, handle = take(frame, None, 50)
    found = [name.rpartition(".")[2] for name in names(stack)]
    assert found[:3] == ["outer", "inner", "stand"]
    assert handle is not None


def test_base_cuts_where_there_is_no_handle() -> None:
    """For other loops the stack ends at the known frame below all callbacks."""
    base: list[tuple[int, types.CodeType]] = []

    def below(stand: Callable[[], None]) -> None:
        frame = sys._getframe()
        base.append((id(frame), frame.f_code))
        callback(stand)

    def callback(stand: Callable[[], None]) -> None:
        stand()

    with standing(below) as frame:
        stack, handle = take(frame, base[0], 50)
        wrong, _ = take(frame, (base[0][0], callback.__code__), 50)
    assert names(stack)[0].endswith("callback")
    assert handle is None
    assert (stack.position, stack.planned, stack.behind) == (None, None, 0)
    assert any(name.endswith("below") for name in names(wrong)), "another frame at the same address is not the base"


def deep(levels: int, stand: Callable[[], None]) -> None:
    if levels:
        deep(levels - 1, stand)
    else:
        stand()


@pytest.fixture
def recursion() -> Iterator[None]:
    """Allow a recursion of 5,000 levels in threads."""
    limit, size = sys.getrecursionlimit(), threading.stack_size(64 * 1024 * 1024)
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)
    threading.stack_size(size)


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_deep_recursion_is_bounded(recursion: None, most: int) -> None:
    """Of 5,000 levels as many frames are kept as allowed: the innermost are there, and the walk ends after 2,000."""
    with standing(lambda stand: deep(5000, stand)) as frame:
        stack, _ = take(frame, None, most)
        whole, _ = take(frame, None, 10**6)
    assert len(stack.frames) == most
    assert stack.frames[: most - most // 4] == whole.frames[: most - most // 4]
    assert stack.frames[most - most // 4 :] == whole.frames[len(whole.frames) - most // 4 :]
    assert len(whole.frames) == MAX_WALK


def test_bound_keeps_both_ends() -> None:
    """Of a longer stack the innermost three quarters and the outermost quarter are kept."""
    with standing(lambda stand: deep(100, stand)) as frame:
        stack, _ = take(frame, None, 20)
        whole, _ = take(frame, None, 1000)
    assert len(stack.frames) == 20
    assert stack.frames == whole.frames[:15] + whole.frames[-5:]


def test_own_frames_are_hidden() -> None:
    """Frames of this package are neither shown nor counted: code waiting in a sink shows its caller's frame."""
    sink, waiting = RecordingSink(), threading.Event()

    def waits() -> None:
        waiting.set()
        with pytest.raises(AssertionError):
            sink.wait(timeout=0.5)

    thread = threading.Thread(target=waits)
    thread.start()
    waiting.wait()
    seen: list[RawStack] = []
    while thread.is_alive() and not any("wait_for" in name for stack in seen for name in names(stack)):
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is not None:
            seen.append(take(frame, None, 50)[0])
        del frame
    thread.join()
    files = {raw.code.co_filename for stack in seen for raw in stack.frames}
    assert __file__ in files
    assert not any(stacks.is_own(file) for file in files)


def test_no_frame_is_kept() -> None:
    """A captured stack does not keep the program's objects alive."""
    import gc
    import weakref

    class Big:
        pass

    references: list[weakref.ref[Big]] = []

    def holder(stand: Callable[[], None]) -> None:
        big = Big()
        references.append(weakref.ref(big))
        stand()

    with standing(holder) as frame:
        stack, _ = take(frame, None, 50)
        del frame
    gc.collect()
    assert references[0]() is None
    assert any(name.endswith("holder") for name in names(stack))


def test_new_calls_are_distinguished() -> None:
    """On request take() reports whether the outermost call was seen before; a second call of the function is new."""

    def handler(stand: Callable[[], None]) -> None:
        stand()

    for _ in range(2):
        base: list[tuple[int, types.CodeType]] = []

        def below(stand: Callable[[], None], base: list[tuple[int, types.CodeType]] = base) -> None:
            frame = sys._getframe()
            base.append((id(frame), frame.f_code))
            handler(stand)

        with standing(below) as frame:
            fresh = [take(frame, base[0], 50, mark_calls=True)[0].fresh for _ in range(3)]
            assert not take(frame, base[0], 50)[0].fresh
        assert fresh == [True, False, False]


# -- the call of a frame --------------------------------------------------------------------------------------------


class Standing:
    """Finds the frame of a file's function at the moment it calls a C function, or imports."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[tuple[RawFrame, RawStack]] = []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        importing = event == "call" and frame.f_code.co_filename.startswith("<frozen importlib")
        caller = frame if event == "c_call" else frame.f_back if importing or self._is_target(frame, event) else None
        if caller is not None and caller.f_code.co_filename == self.file:
            stack, _ = take(caller, None, 50)
            self.found.append((stack.frames[0], stack))

    def _is_target(self, frame: FrameType, event: str) -> bool:
        return event == "call" and frame.f_code.co_name.startswith("target")


def calls_of(tmp_path: Path, source: str, name: str = "called.py") -> list[str | None]:
    """Run ``main()`` of ``source`` as a file, and return the result of call_at() at each of its calls."""
    path = tmp_path / name
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    module = types.ModuleType("called")
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    exec(code, vars(module))
    standing = Standing(str(path))
    sys.setprofile(standing)
    try:
        module.main()
    finally:
        sys.setprofile(None)
    linecache.clearcache()
    return [call_at(raw, stack.globals) for raw, stack in standing.found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import time\ndef main():\n    time.sleep(0)", "time.sleep"),
        ("from time import sleep as zzz\ndef main():\n    zzz(0)", "time.sleep"),
        ("import math as m\ndef main():\n    return 1 + m.factorial(3)", "math.factorial"),
        ("import os.path as p\ndef main():\n    p.os.getpid()", "posixpath.os.getpid"),
        (
            "import threading\nlock = threading.Lock()\ndef main():\n    lock.acquire()",
            ".acquire",
        ),
        ("def main():\n    ''.join([]).strip()", ".strip"),
        ("def main():\n    sorted([3, 1])", "builtins.sorted"),
        ("def main():\n    local = sorted\n    local([3, 1])", "local"),
        ("import time\ndef main():\n    time.sleep(\n        # why\n        0,\n    )", "time.sleep"),
        ("import time\ndef main():\n    x = '名前é'; time.sleep(0); y = 'ü'", "time.sleep"),
        ("import time\ndef main():\n    'ünï'.encode().decode().title()", ".title"),
        ("import time\ndef main():\n    [time.sleep(x) for x in (0,)]", "time.sleep"),
        ("import time\ndef main():\n    list(time.sleep(x) for x in (0,))", "time.sleep"),
        ("import time\ndef main():\n    (lambda: time.sleep(0))()", "time.sleep"),
        ("import re\ndef main():\n    re.compile('a').match('a')", ".match"),
        ("def target(): pass\ndef main():\n    target()", "called.target"),
        ("class A:\n    def target(self): pass\ndef main():\n    A().target()", ".target"),
        ("def main():\n    import wave", "builtins.__import__"),
        ("def main():\n    from colorsys import rgb_to_hsv as f", "builtins.__import__"),
    ],
)
def test_call_is_named(tmp_path: Path, source: str, expected: str) -> None:
    """The innermost call at that instruction is named as it is imported, a method by its name alone."""
    for module in ("wave", "colorsys"):
        sys.modules.pop(module, None)
    found = calls_of(tmp_path, source)
    assert expected in found


def test_odd_source_gives_no_warning() -> None:
    """Invalid escapes such as "\\d", which the parser warns of, and deep nesting cause no warning and no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _called_path('time.sleep(len("\\d\\.") * 0)') == ("time", "sleep")
        assert _called_path("subprocess \\\n.run('\\'')") == ("subprocess", "run")
    assert _called_path("f(" * 500 + ")" * 500) is None
    assert _called_path("-" * 9000 + "1") is None


def test_nested_calls_are_distinguished(tmp_path: Path) -> None:
    """Of several calls on one line each is named at its own instruction."""
    source = "import math\ndef main():\n    math.floor(math.sqrt(abs(-4.5)) + math.exp(0))"
    assert calls_of(tmp_path, source) == ["builtins.abs", "math.sqrt", "math.exp", "math.floor"]


def test_await_expression(tmp_path: Path) -> None:
    """A frame suspended in an await is named after the awaited call."""
    source = """
        import asyncio

        async def target_of_an_await():
            seen.append(asyncio.current_task().get_coro().cr_frame)
            await asyncio.sleep(0)

        async def outer():
            await target_of_an_await()

        seen = []
        """
    path = tmp_path / "awaits.py"
    path.write_text(textwrap.dedent(source))
    module = types.ModuleType("awaits")
    exec(compile(path.read_text(), str(path), "exec"), vars(module))
    found: list[str | None] = []

    async def main() -> None:
        task = asyncio.ensure_future(module.outer())
        await asyncio.sleep(0)
        stack, _ = take(task.get_coro().cr_frame, None, 50)
        found.append(call_at(stack.frames[0], stack.globals))
        await task

    asyncio.run(main())
    assert found == ["awaits.target_of_an_await"]


def test_executed_text_has_no_source(tmp_path: Path) -> None:
    """Code made by exec has no file to read: no name, no error."""
    frames: list[RawStack] = []
    exec("keep()", {"keep": lambda: frames.append(take(sys._getframe(1), None, 5)[0])})
    assert call_at(frames[0].frames[0], frames[0].globals) is None


def test_missing_file(tmp_path: Path) -> None:
    """A file that is gone, or never was, gives no name."""
    frames: list[RawStack] = []
    code = compile("keep()", str(tmp_path / "gone.py"), "exec")
    exec(code, {"keep": lambda: frames.append(take(sys._getframe(1), None, 5)[0])})
    assert call_at(frames[0].frames[0], frames[0].globals) is None


@pytest.mark.parametrize("text", ["", "x = 1\n", "()\n", "\x00\x00\n", "keep(((\n", "é" * 400 + "\n"])
def test_file_that_was_changed_since(tmp_path: Path, text: str) -> None:
    """A file that was changed since gives no name or a wrong one, and no error."""
    path = tmp_path / "changed.py"
    path.write_text("def main(keep):\n    keep(1)\n")
    frames: list[RawStack] = []
    space: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    space["main"](lambda _: frames.append(take(sys._getframe(1), None, 5)[0]))
    path.write_text("\n" + text, encoding="utf-8")
    linecache.clearcache()
    found = call_at(frames[0].frames[0], frames[0].globals)
    assert found is None or isinstance(found, str)


def test_instruction_that_calls_nothing() -> None:
    """Before the first instruction, and where no call is made, there is no name."""
    code = test_instruction_that_calls_nothing.__code__
    assert call_at(RawFrame(code, code.co_firstlineno, -1, __name__), globals()) is None
    assert call_at(RawFrame(code, code.co_firstlineno, 10**6, __name__), globals()) is None


def test_naming_a_call_runs_no_code() -> None:
    """Naming a call runs no code of the named objects: neither a proxy's attributes nor a lazy import."""
    asked: list[str] = []

    class Lazy:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise AttributeError(name)

        def __call__(self) -> None: ...

    class LazyModule(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattribute__(name)

    space: dict[str, Any] = {"lazy": Lazy(), "late": LazyModule("late")}
    for root in ("lazy", "late"):
        assert isinstance(stacks._resolve((root, "load"), space), str)
    assert asked == []

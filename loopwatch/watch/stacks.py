"""Reads a thread's stack as plain data: the running callback, its place in the pass, the frames above the loop.

Never keeps a frame: a frame that outlives its call would free the program's objects in the watcher's thread. Locals
are read of asyncio's own frames (``Handle._run``, ``_run_once``), of loopwatch's, and of web frameworks where they
serve a request (:mod:`loopwatch.watch.routes`), never of the program's.
"""
# Loading pathlib takes 4 ms in every watched process.
# ruff: noqa: PTH120

from __future__ import annotations

import ast
import asyncio.base_events
import asyncio.events
import gc
import linecache
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

from loopwatch.core import greenlets
from loopwatch.core.dataclasses import dataclass
from loopwatch.core.frame_marks import mark
from loopwatch.core.frames import module_of
from loopwatch.core.text import MAX_PATH, printable
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.core.unseen import unseen_file
from loopwatch.events import Frame
from loopwatch.system.gc_monitor import GcMonitor
from loopwatch.watch.probes.heartbeat import Heartbeat
from loopwatch.watch.routes import finder
from loopwatch.watch.routes.finder import Request

_NAMED = (FunctionType, BuiltinFunctionType, type, type(lru_cache(lambda: None)))

_ESCAPE = re.compile(r"\\.", re.DOTALL)
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""Exceptions of the parser, the last two for code nested too deeply (``Parser/pegen.c``)."""

MAX_SOURCE = 10_000
"""Characters of source read to name a call."""

MAX_WALK = 2000
"""Frames walked from the innermost one; a deeper recursion is truncated there."""

CALLER_FRAMES = 30
"""Frames kept of a thread that begins to collect garbage, or submits a call."""

_HANDLE_FILE = asyncio.events.__file__
_LOOP_FILE = asyncio.base_events.__file__
_OWN = os.path.dirname(os.path.dirname(__file__)) + "/"
_DISCOVERY_FILE = unseen_file(_OWN + "watch/discovery.py")
"""File whose ``run_forever`` frame marks the start of a compiled loop, which has no frames."""
_BRIDGE_FILE = _OWN + "offloading/bridge.py"
"""File whose ``_steps`` begins a separate stack, a greenlet's, above that of the loop."""
_GC_CALLBACK = GcMonitor._note.__code__
_HEARTBEAT = Heartbeat._beat.__code__
_STARTS_OURS = OwnThread._begin.__code__
"""Code in which the loop's thread starts a thread of the agent; the program's frames are below."""
_SHOWN = (_OWN + "demo/app.py",)
"""Files of this package that stand for the user's code."""


class RawFrame(NamedTuple):
    """One frame as found: cheap to take, turned into a :class:`Frame` later.

    Attributes:
        code, line, lasti, module: the code, and where in it the call is.
        was_seen: whether this very call was on the stack when an earlier one was taken; True where that is not known.
    """

    code: CodeType
    line: int
    lasti: int
    module: str
    was_seen: bool = True


@dataclass(slots=True)
class RawStack:
    """A stack at one moment, innermost frame first, without the loop's machinery.

    Attributes:
        frames: bounded; a longer stack is truncated to three quarters innermost and one quarter outermost frames.
        globals: module namespace of the innermost frame, to resolve the name it is calling.
        fresh: whether the outermost frame belongs to a call not seen before; set only on request.
        in_gc: whether the thread was in the agent's garbage collector callback.
        position, planned: index of the handle in its pass, and number of handles of the pass; None if not seen. Within
            nest_asyncio the number is not known.
        starts_ours: whether it was starting a thread of the agent, such as after a fork.
        is_heartbeat: whether it shows the agent's heartbeat.
    """

    frames: tuple[RawFrame, ...]
    globals: Mapping[str, Any] | None = None
    fresh: bool = False
    in_gc: bool = False
    position: int | None = None
    planned: int | None = None
    starts_ours: bool = False
    is_heartbeat: bool = False

    @property
    def behind(self) -> int:
        """Number of handles behind the running one in its pass."""
        return self.planned - self.position - 1 if self.planned is not None and self.position is not None else 0


def take(
    frame: FrameType,
    base: tuple[int, CodeType] | None,
    max_frames: int,
    *,
    mark_calls: bool = False,
    root: greenlets.Reference | None = None,
    requests: list[Request] | None = None,
) -> tuple[RawStack, Any]:
    """Return the stack above the loop, and asyncio's running handle, None if not seen.

    Args:
        frame: innermost frame of the thread, from :func:`sys._current_frames`.
        base: (id, code) of the innermost frame below the loop's callbacks, where known.
        max_frames: frames kept.
        mark_calls: whether to find out which calls are new, see :mod:`loopwatch.core.frame_marks`.
        root: the greenlet that runs the loop, whose frames are below those of any other one.
        requests: takes the requests that the thread is serving; None: they are not searched for.
    """
    callee: FrameType | None = None
    handle: Any = None
    frames: list[RawFrame] = []
    names: Mapping[str, Any] | None = None
    stack = RawStack(())
    current: FrameType | None = frame
    for _ in range(MAX_WALK):
        if current is None or (base is not None and id(current) == base[0] and current.f_code is base[1]):
            break
        code = current.f_code
        if code.co_name == "_run" and code.co_filename == _HANDLE_FILE:
            handle = current.f_locals.get("self")
            _read_pass(stack, current.f_back)
            break
        if code.co_name == "_run_once" and code.co_filename == _LOOP_FILE:
            break
        if code.co_name == "run_forever" and code.co_filename in (_LOOP_FILE, _DISCOVERY_FILE):
            break
        if not is_own(code.co_filename):
            if not frames:
                names = current.f_globals
            if requests is not None:
                finder.see(current, callee, requests)
            frames.append(_raw(current, was_seen=not (mark_calls and mark(current) is False)))
        elif code is _GC_CALLBACK:
            stack.in_gc = True
        elif code is _HEARTBEAT:
            stack.is_heartbeat = True
        elif code is _STARTS_OURS:
            stack.starts_ours = True
            frames.clear()
        callee, current = current, current.f_back or below(current)
        if current is None and root is not None:
            current, root = greenlets.frame_of(root), None
    stack.frames, stack.globals = _bounded(frames, max_frames), names
    # Callbacks may have neither handle nor task to identify them (uvloop), and frames of two calls the same address.
    stack.fresh = bool(frames) and not frames[-1].was_seen
    return stack, handle


def of_caller(frame: FrameType) -> RawStack:
    """Return the stack of the calling thread from ``frame`` outwards, its innermost frames."""
    frames: list[RawFrame] = []
    current: FrameType | None = frame
    while current is not None and len(frames) < CALLER_FRAMES:
        if not is_own(current.f_code.co_filename):
            frames.append(_raw(current))
        current = current.f_back
    return RawStack(tuple(frames))


def _raw(frame: FrameType, *, was_seen: bool = True) -> RawFrame:
    code, module = frame.f_code, module_of(frame)
    line = frame.f_lineno or code.co_firstlineno
    if not module:
        line = _template_line(frame, line)
    return RawFrame(code, line, frame.f_lasti, module, was_seen)


def _template_line(frame: FrameType, line: int) -> int:
    """Return the line in the template, where ``line`` is one of the code that Jinja2 has made from it.

    The namespace of that code has no name, and maps its lines: ``debug_info = "1=13&3=20"``
    (``CodeGenerator.visit_Template`` in jinja2/compiler.py, ``Template.get_corresponding_lineno``).
    """
    known: object = dict.get(frame.f_globals, "debug_info")
    if type(known) is not str or len(known) > MAX_SOURCE:
        return line
    found = 1
    for pair in known.split("&"):
        template_line, _, code_line = pair.partition("=")
        if not (template_line.isdecimal() and code_line.isdecimal()):
            return line
        if int(code_line) > line:
            break
        found = int(template_line)
    return found


def below(frame: FrameType) -> FrameType | None:
    """Return the frame below a bridged step, if ``frame`` begins one; see :mod:`loopwatch.offloading.bridge`."""
    if frame.f_code.co_name != "_steps" or frame.f_code.co_filename != _BRIDGE_FILE:
        return None
    hub = getattr(frame.f_locals.get("seat"), "hub", None)
    found: FrameType | None = getattr(hub, "gr_frame", None)
    return found


def _read_pass(stack: RawStack, frame: FrameType | None) -> None:
    """Read the position of the handle in its pass from the frame of ``_run_once``, asyncio's or nest_asyncio's."""
    if frame is None or frame.f_code.co_name != "_run_once":
        return
    if frame.f_code.co_filename == _LOOP_FILE:
        values = frame.f_locals
        position, planned = values.get("i"), values.get("ntodo")
        if isinstance(position, int) and isinstance(planned, int):
            stack.position, stack.planned = position, planned
    elif module_of(frame) == "nest_asyncio":
        position = frame.f_locals.get("_")
        stack.position = position if isinstance(position, int) else None


def _bounded(frames: list[RawFrame], most: int) -> tuple[RawFrame, ...]:
    if len(frames) <= most:
        return tuple(frames)
    outer = most // 4
    return tuple(frames[: most - outer] + frames[len(frames) - outer :])


@lru_cache(maxsize=256)
def is_own(file: str) -> bool:
    """Whether ``file`` belongs to this package's machinery, which is never shown."""
    return file.removeprefix("<").startswith(_OWN) and file not in _SHOWN


def to_frame(raw: RawFrame) -> Frame:
    """Return the :class:`Frame` of a raw frame; its names are printable and bounded."""
    code = raw.code
    return Frame(printable(code.co_qualname), printable(raw.module), printable(code.co_filename, MAX_PATH), raw.line)


def to_frames(raw: Iterable[RawFrame]) -> tuple[Frame, ...]:
    """Return the :class:`Frame` of each frame of a raw stack, outermost first."""
    return tuple(to_frame(item) for item in reversed(tuple(raw)))


def call_at(raw: RawFrame, names: Mapping[str, Any] | None) -> str | None:
    """Return the dotted name of the function that ``raw`` is calling, ``time.sleep``; ``.acquire`` for a method.

    The instruction's source range (PEP 657) is read from the file and parsed; nothing is evaluated. Returns None where
    there is no source, or no call.
    """
    text = _source_of(raw.code, raw.lasti)
    if text is None:
        return None
    path = _called_path(text)
    if path is None:
        return None
    return _resolve(path, names or {})


def _source_range(code: CodeType, lasti: int) -> tuple[int, int, int, int] | None:
    for index, (first, last, begin, end) in enumerate(code.co_positions()):
        if index == lasti // 2:
            if first is None or last is None or begin is None or end is None:
                return None
            return first, last, begin, end
    return None


def _source_of(code: CodeType, lasti: int) -> str | None:
    file = code.co_filename
    if lasti < 0 or type(file) is not str or len(file) > MAX_SOURCE:
        return None
    found = _source_range(code, lasti)
    if found is None or found[1] - found[0] > 50:
        return None
    first, last, begin, end = found
    try:
        texts = [linecache.getline(file, number) for number in range(first, last + 1)]
    except (OSError, ValueError):  # a name that no file can have: a null character, a surrogate (os.stat)
        return None
    if sum(map(len, texts)) > MAX_SOURCE:
        return None
    lines = [text.encode("utf-8", "surrogatepass") for text in texts]
    if not lines or not lines[0]:
        return None
    # Columns are byte offsets.
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][begin:]
    return b"".join(lines).decode(errors="replace")


@lru_cache(maxsize=512)
def _called_path(text: str) -> tuple[str, ...] | None:
    """Return the dotted path of the function that the expression ``text`` calls; "" stands for an unknown object."""
    # The parser warns of escapes such as "\\d", as if the program did; the contents of strings do not matter here.
    text = _ESCAPE.sub(lambda match: " " if match[0].endswith("\n") else "_", text)
    try:
        node: ast.AST = ast.parse(f"({text})", mode="eval").body
    except _UNREADABLE:
        node = _first_import(text) or ast.Pass()
    if isinstance(node, ast.Await):
        node = node.value
    if isinstance(node, ast.Import | ast.ImportFrom):
        return ("builtins", "__import__")
    if not isinstance(node, ast.Call):
        return None
    path: list[str] = []
    callee: ast.AST = node.func
    while isinstance(callee, ast.Attribute):
        path.append(callee.attr)
        callee = callee.value
    path.append(callee.id if isinstance(callee, ast.Name) else "")
    return tuple(reversed(path))


def _first_import(text: str) -> ast.stmt | None:
    try:
        return ast.parse(text.strip()).body[0]
    except (*_UNREADABLE, IndexError):
        return None


def _resolve(path: tuple[str, ...], names: Mapping[str, Any]) -> str:
    """Turn a path as written into an importable name: ``np.sort`` into ``numpy.sort``."""
    root, rest = path[0], path[1:]
    builtins = names.get("__builtins__")
    fallback = vars(builtins) if isinstance(builtins, ModuleType) else builtins if isinstance(builtins, dict) else {}
    found = names.get(root, fallback.get(root)) if root else None
    # Only objects of the interpreter's own types are read: a proxy or a lazy module would run the program's code.
    if issubclass(type(found), ModuleType):
        return ".".join((str(ModuleType.__getattribute__(found, "__name__")), *rest))
    if issubclass(type(found), _NAMED):
        module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        if isinstance(module, str) and isinstance(name, str):
            return ".".join((module, name, *rest))
    if root == "builtins":
        return ".".join(path)
    return "." + path[-1] if rest else root


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from running while frames are walked.

    Before 3.12, reading ``f_back`` may start a collection, and with it arbitrary Python callbacks, during the walk.
    """
    if sys.version_info >= (3, 12) or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

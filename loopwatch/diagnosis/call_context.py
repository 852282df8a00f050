"""Where a blocking line stands: whether its function may await, and if not, who calls it. Pure.

A remedy that needs ``await`` is no remedy in a plain callback or in ``__del__``. Code flags say what a function is, the
frames around it who called it; nothing of the program is run or read.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from types import CodeType

from loopwatch.core.dataclasses import dataclass
from loopwatch.events import Frame
from loopwatch.watch.stacks import RawFrame, to_frame

CO_COROUTINE = 0x80 | 0x100 | 0x200
"""``CO_COROUTINE``, ``CO_ITERABLE_COROUTINE``, ``CO_ASYNC_GENERATOR`` (Include/cpython/code.h)."""

_CO_GENERATOR = 0x20

_INLINE = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
"""Functions that are part of the function around them."""


class Kind(enum.Enum):
    """What the function of the blocking line is.

    Attributes:
        COROUTINE: a coroutine function: it may await.
        CALLED: a plain function that a coroutine of the user's code calls, directly or through others of it.
        CALLED_BACK: a plain function that a library calls.
        CALLBACK: a plain function that the loop calls, outside of a task.
        FINALIZER: ``__del__``.
        CONTEXT_MANAGER: ``__enter__`` or ``__exit__``.
        SPECIAL: another special method, such as ``__init__`` or ``__getattr__``.
        SIGNAL_HANDLER: a handler of ``signal.signal``.
        UNKNOWN: cannot be known, such as without a sample.
    """

    COROUTINE = enum.auto()
    CALLED = enum.auto()
    CALLED_BACK = enum.auto()
    CALLBACK = enum.auto()
    FINALIZER = enum.auto()
    CONTEXT_MANAGER = enum.auto()
    SPECIAL = enum.auto()
    SIGNAL_HANDLER = enum.auto()
    UNKNOWN = enum.auto()


_SPECIAL = {
    "__del__": Kind.FINALIZER,
    "__enter__": Kind.CONTEXT_MANAGER,
    "__exit__": Kind.CONTEXT_MANAGER,
    # A call of an object, which is called like any function.
    "__call__": None,
}


@dataclass(frozen=True, slots=True)
class CallContext:
    """Where a blocking line stands.

    Attributes:
        kind: what its function is.
        function: qualified name of that function.
        caller: qualified name of the nearest coroutine of the user's code that (indirectly) calls it, "" if there is
            none.
        library: dotted name of the library function that calls it, "" if none does.
        is_short: whether its calls are short, and many of them made up the block.
    """

    kind: Kind = Kind.UNKNOWN
    function: str = ""
    caller: str = ""
    library: str = ""
    is_short: bool = False


NOWHERE = CallContext()
"""Nothing is known."""


def is_coroutine(code: CodeType) -> bool:
    """Whether ``code`` is that of a coroutine function or asynchronous generator."""
    return bool(code.co_flags & CO_COROUTINE)


def is_generator(code: CodeType) -> bool:
    """Whether ``code`` is that of a generator, plain or asynchronous."""
    return bool(code.co_flags & (_CO_GENERATOR | 0x200))


def find(
    culprit: Frame | None,
    frames: Sequence[RawFrame],
    is_user: Callable[[Frame], bool],
    handlers: frozenset[CodeType] = frozenset(),
    *,
    in_task: bool,
) -> CallContext:
    """Return where the line of ``culprit`` stands.

    Args:
        culprit: the responsible frame.
        frames: a stack that shows it, innermost frame first.
        is_user: whether a frame is the user's own code.
        handlers: code of the registered signal handlers.
        in_task: whether a task was running.
    """
    at = next((index for index, raw in enumerate(frames) if to_frame(raw) == culprit), None)
    if at is None:
        return NOWHERE
    outward = [raw for raw in frames[at:] if raw.code.co_name not in _INLINE]
    if not outward:
        return NOWHERE
    own, callers = outward[0], outward[1:]
    function = to_frame(own).function
    caller = next((raw for raw in callers if is_coroutine(raw.code) and is_user(to_frame(raw))), None)
    library = _library(callers, is_user)
    caller_name = "" if caller is None else to_frame(caller).function
    return CallContext(_kind(own, callers, library, handlers, in_task), function, caller_name, library)


def _kind(
    own: RawFrame, callers: Sequence[RawFrame], library: str, handlers: frozenset[CodeType], in_task: bool
) -> Kind:
    between = [own, *_until_coroutine(callers)]
    if any(raw.code in handlers for raw in between):
        return Kind.SIGNAL_HANDLER
    if is_coroutine(own.code):
        return Kind.COROUTINE
    for raw in between:
        special = _special(raw.code.co_name)
        if special is not None:
            return special
    if any(is_coroutine(raw.code) for raw in callers):
        return Kind.CALLED_BACK if library else Kind.CALLED
    # Without a coroutine on the stack of a task, part of the stack is missing: truncated, or a C coroutine.
    return Kind.UNKNOWN if in_task else Kind.CALLBACK


def _until_coroutine(callers: Sequence[RawFrame]) -> list[RawFrame]:
    """Return the plain functions around a line, up to the coroutine that calls them."""
    found = []
    for raw in callers:
        if is_coroutine(raw.code):
            break
        found.append(raw)
    return found


def _special(name: str) -> Kind | None:
    if not (name.startswith("__") and name.endswith("__")):
        return None
    return _SPECIAL.get(name, Kind.SPECIAL)


def _library(callers: Sequence[RawFrame], is_user: Callable[[Frame], bool]) -> str:
    """Return the outermost function of a library between a line and the user's coroutine that calls it."""
    found = ""
    for raw in callers:
        frame = to_frame(raw)
        if is_coroutine(raw.code) and is_user(frame):
            break
        if not is_user(frame):
            found = f"{frame.module}.{frame.function}" if not found or not is_coroutine(raw.code) else found
    return found

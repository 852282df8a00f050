"""Decides whether ``@loopwatch.offload`` is offered for a culprit: only where it can be followed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from types import CodeType

from loopwatch.diagnosis.call_context import CallContext, Kind, is_coroutine, is_generator
from loopwatch.watch.stacks import RawFrame, RawStack, to_frame

_KINDS = (Kind.COROUTINE, Kind.CALLED)
"""Where the caller can await the offloaded function instead."""


def can_be_offloaded(context: CallContext, own: RawFrame | None, stacks: Sequence[RawStack]) -> bool:
    """Return whether the culprit may be decorated with ``@loopwatch.offload``, by all that its code tells.

    It is a function of a module, so that a worker finds it by its name; no generator, and no method, as the object
    would have to be sent along; a coroutine function only if it awaits nothing, as what it awaits belongs to the loop.
    Its caller is the user's code, which can await it. Its calls last: short ones would be slower in a worker.

    Args:
        context: where the culprit's line stands.
        own: the culprit's frame, None if it is not on the stack of the loop's thread.
        stacks: of all samples.
    """
    if own is None or context.kind not in _KINDS or context.library:
        return False
    code = own.code
    if is_generator(code) or "<" in code.co_qualname or _takes_object(code):
        return False
    return not (is_coroutine(code) and awaits(code)) and lasts(own, stacks)


def _takes_object(code: CodeType) -> bool:
    return bool(code.co_argcount) and code.co_varnames[0] in ("self", "cls")


def awaits(code: CodeType) -> bool:
    """Return whether ``code`` has an ``await``, ``async for`` or ``async with``.

    Example:
        >>> async def awaiting(task): return await task
        >>> async def computing(number): return 2 ** number
        >>> awaits(awaiting.__code__), awaits(computing.__code__)
        (True, False)
    """
    import opcode  # with the first stall

    return opcode.opmap["GET_AWAITABLE"] in code.co_code[::2]


def lasts(own: RawFrame, stacks: Sequence[RawStack]) -> bool:
    """Return whether the calls of a function last milliseconds, by the samples.

    A function that is called over and over is missing in some of the samples between the first and the last that show
    it. If in two or more, its calls are short beside the few milliseconds between two samples.
    """
    shows = [any(raw.code is own.code for raw in stack.frames) for stack in stacks if stack.frames]
    if True not in shows:
        return False
    first, last = shows.index(True), len(shows) - shows[::-1].index(True)
    return shows[first:last].count(False) < 2


def frame_of(frames: Sequence[RawFrame], culprit: object) -> RawFrame | None:
    """Return the raw frame of ``culprit`` in ``frames``, the innermost one; None if it is not among them."""
    return next((raw for raw in frames if to_frame(raw) == culprit), None)

"""A marked call is recognised again, and the mark is invisible to others."""

from __future__ import annotations

import sys
from types import FrameType

from loopwatch.core.frame_marks import mark


def called() -> FrameType:
    return sys._getframe()


def test_mark_stays_with_the_call_and_does_not_show() -> None:
    """The first check of a call finds no mark, each later one does; ``f_trace_lines`` reads True all the time."""
    frame = sys._getframe()
    assert [mark(frame) for _ in range(3)] == [False, True, True]
    assert frame.f_trace_lines is True


def test_each_call_begins_without_a_mark() -> None:
    """A frame object at the address of an earlier marked one is not taken for it."""
    assert [mark(called()) for _ in range(200)] == [False] * 200


def test_frame_with_line_tracing_off_is_left_alone() -> None:
    """A frame with line tracing switched off by a debugger is left alone."""
    frame = called()
    frame.f_trace_lines = False
    assert mark(frame) is None
    assert frame.f_trace_lines is False


def test_lines_of_a_marked_call_are_traced() -> None:
    """A debugger started within a marked call stops at the lines that follow."""
    lines: list[int] = []

    def trace(frame: FrameType, event: str, _arg: object) -> object:
        lines.append(frame.f_lineno - frame.f_code.co_firstlineno)
        return trace

    def debugged() -> None:
        frame = sys._getframe()
        assert mark(frame) is False
        frame.f_trace = trace  # type: ignore[assignment]
        sys.settrace(trace)  # type: ignore[arg-type]
        len("")
        len("")
        sys.settrace(before)

    before = sys.gettrace()
    debugged()
    assert [line for line in lines if line in (5, 6, 7)] == [5, 6, 7]

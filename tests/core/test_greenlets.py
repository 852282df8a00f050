"""Greenlets are found where the program has loaded them, and nothing else is taken for one."""

from __future__ import annotations

import sys
from types import FrameType, ModuleType
from typing import Any

import pytest

from loopwatch.core import greenlets


@pytest.mark.parametrize("stub", [None, ModuleType("greenlet")])
def test_without_greenlets(monkeypatch: pytest.MonkeyPatch, stub: ModuleType | None) -> None:
    """Where the module is not loaded, or a stub of it is, there is no greenlet and no frame."""
    monkeypatch.setitem(sys.modules, "greenlet", stub)
    assert greenlets.here() is None
    assert greenlets.frame_of(None) is None


def test_only_frames_are_returned() -> None:
    """What is no frame is not taken for one."""

    class Odd:
        gr_frame = object()

    odd = Odd()
    assert greenlets.frame_of(greenlets.weakref.ref(odd)) is None


def test_the_greenlet_that_waits_is_found() -> None:
    """The frame of the greenlet that switched to another one is its innermost."""
    greenlet = pytest.importorskip("greenlet")
    seen: list[Any] = []
    root = greenlets.here()
    greenlet.greenlet(lambda: seen.append(greenlets.frame_of(root))).switch()
    (frame,) = seen
    assert isinstance(frame, FrameType)
    assert frame.f_code is sys._getframe().f_code
    assert greenlets.frame_of(root) is None

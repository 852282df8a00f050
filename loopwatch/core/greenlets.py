"""Finds the frames of a greenlet that waits for another one, as below SQLAlchemy's asyncio layer.

Where code runs in a greenlet, the frames of its thread end at the first call in it; the greenlet that switched to it
has the frames of the loop. That is a stack of its own.
"""

from __future__ import annotations

import weakref
from types import FrameType
from typing import Any

from loopwatch.core.patches import loaded

Reference = weakref.ref[Any]


def here() -> Reference | None:
    """Return the current greenlet of the calling thread, held weakly; None unless the program has loaded greenlet."""
    getcurrent = getattr(loaded("greenlet"), "getcurrent", None)  # a stub of the module may stand in for it
    return weakref.ref(getcurrent()) if callable(getcurrent) else None


def frame_of(reference: Reference | None) -> FrameType | None:
    """Return the innermost frame of a greenlet that waits for another one; None if it runs, or has ended."""
    found = None if reference is None else reference()
    frame: object = getattr(found, "gr_frame", None)
    return frame if type(frame) is FrameType else None

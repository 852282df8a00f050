"""Remembers where the latest calls were submitted to process pools.

A pool pickles the arguments in a thread of its own, which keeps the GIL meanwhile: that thread's stack does not show
whose arguments they are.
"""

from __future__ import annotations

from collections import deque
from types import FrameType

from loopwatch.core.originals import time
from loopwatch.watch.stacks import RawStack, of_caller

KEPT = 32
"""Submissions that are kept, the latest ones."""
LONGEST = 10.0
"""Seconds for which a submission may wait to be pickled and still be found."""


class Submitters:
    """The latest submissions, of the whole process. Keeps code objects, and nothing of the program's data."""

    def __init__(self) -> None:
        self._known: deque[tuple[float, RawStack]] = deque(maxlen=KEPT)

    def note(self, frame: FrameType) -> None:
        """Note a submission by the caller of ``frame``, on its thread."""
        self._known.append((time.monotonic(), of_caller(frame)))

    def latest(self, before: float) -> RawStack | None:
        """Return the stack of the latest submission before that time (``time.monotonic`` seconds), None if too old."""
        found = next(((at, stack) for at, stack in reversed(tuple(self._known)) if at <= before), None)
        return None if found is None or before - found[0] > LONGEST else found[1]

    def forget(self) -> None:
        """Forget all, as when nothing is watched any more."""
        self._known.clear()

"""Records when the garbage collector ran, and what a thread was doing that began a full collection."""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Generic, NamedTuple, TypeVar

from loopwatch.core.originals import time
from loopwatch.core.patches import ListItem

FULL = 2
"""Generation of a full collection (``gc.collect()``)."""
FULL_KEPT = 8
"""Full collections of which is kept what their thread was doing."""
Seen = TypeVar("Seen")


class Collection(NamedTuple, Generic[Seen]):
    """A full collection: when it began and ended (``time.monotonic`` seconds), in which thread, and what it was in."""

    since: float
    until: float
    thread: int
    seen: Seen


class GcMonitor(Generic[Seen]):
    """Records when the garbage collector ran, in any thread: a collection keeps the GIL.

    Args:
        failed: called with an exception of the monitor itself, which has then stopped.
        look: called with the innermost frame of a thread that begins a full collection; returns what to keep of it.
    """

    def __init__(self, failed: Callable[[BaseException], object], look: Callable[[FrameType], Seen]) -> None:
        self._failed, self._look = failed, look
        self._begun: tuple[int, Seen] | None = None
        self._full: deque[Collection[Seen]] = deque(maxlen=FULL_KEPT)
        self._spans: deque[tuple[float, float]] = deque(maxlen=256)
        self._since: float | None = None
        self._entry: ListItem | None = None

    def start(self) -> None:
        """Register with ``gc.callbacks``."""
        if self._entry is None:
            self._entry = ListItem(gc.callbacks, self._note)

    def stop(self) -> None:
        """Unregister from ``gc.callbacks``."""
        if self._entry is not None:
            self._entry.undo()
            self._entry = None

    def _note(self, phase: str, info: Mapping[str, int]) -> None:
        if info["generation"] == 0:
            return
        try:
            if phase == "start":
                caller = sys._getframe().f_back
                if info["generation"] >= FULL and caller is not None:
                    self._begun = threading.get_ident(), self._look(caller)
                self._since = time.monotonic()
            elif self._since is not None:
                ended = time.monotonic()
                self._spans.append((self._since, ended))
                if self._begun is not None:
                    self._full.append(Collection(self._since, ended, *self._begun))
                self._since = self._begun = None
        except Exception as exc:  # noqa: BLE001 - the interpreter would print it at each collection
            self.stop()
            self._failed(exc)

    def within(self, start: float, end: float) -> float:
        """Return the seconds spent collecting between ``start`` and ``end`` (``time.monotonic``)."""
        spans = list(self._spans)
        if self._since is not None:
            spans.append((self._since, end))
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in spans)

    def elsewhere(self, start: float, end: float, thread: int | None) -> Seen | None:
        """Return what was seen of the longest full collection between two times in another thread than ``thread``."""
        known, since, begun = list(self._full), self._since, self._begun
        if since is not None and begun is not None:
            known.append(Collection(since, end, *begun))
        found = [each for each in known if each.since < end and each.until > start]
        longest = max(found, key=lambda each: min(each.until, end) - max(each.since, start), default=None)
        return None if longest is None or longest.thread == thread else longest.seen

    def forget(self, before: float) -> None:
        """Drop what was kept of collections that ended ``before`` that time."""
        while self._full and self._full[0].until < before:
            self._full.popleft()

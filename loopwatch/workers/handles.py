"""Descriptors that travel beside a pickle: they cannot be pickled, but passed to another process (SCM_RIGHTS).

Whoever pickles or unpickles for a worker opens a :class:`Passage`; objects that own a descriptor use it in their
``__reduce__`` and in the function that rebuilds them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Passage:
    """The descriptors of one message, by index.

    Args:
        received: descriptors that came with the message; those that nobody took are closed at the end.
    """

    def __init__(self, received: Sequence[int] = ()) -> None:
        self.sent: list[int] = []
        self._received: dict[int, int] = dict(enumerate(received))

    def add(self, descriptor: int) -> int:
        """Have ``descriptor`` (which stays its owner's) sent along; return its index."""
        if descriptor not in self.sent:
            self.sent.append(descriptor)
        return self.sent.index(descriptor)

    def take(self, index: int) -> int:
        """Return a descriptor of one's own for what was sent as ``index``."""
        return os.dup(self._received[index])

    def close(self) -> None:
        """Close what was received."""
        for descriptor in self._received.values():
            os.close(descriptor)
        self._received = {}


_open = threading.local()


def current() -> Passage | None:
    """Return the passage of the message that this thread is pickling or unpickling, None outside."""
    return getattr(_open, "passage", None)


@contextmanager
def passing(passage: Passage) -> Iterator[Passage]:
    """Make ``passage`` the current one of this thread."""
    before = current()
    _open.passage = passage
    try:
        yield passage
    finally:
        _open.passage = before

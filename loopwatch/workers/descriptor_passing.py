"""Passes file descriptors beside a pickle: they cannot be pickled, only sent to another process (SCM_RIGHTS).

Code that pickles or unpickles for a worker opens a :class:`Passage`; objects that own a descriptor use it in their
``__reduce__`` and in their rebuild function.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Sequence

from loopwatch.core.process_state import one
from loopwatch.errors import NotPicklable

MOST = 64
"""Descriptors that one message can carry; the kernel's limit is 253 (SCM_MAX_FD in unix(7))."""


ANCILLARY = socket.CMSG_LEN(MOST * array.array("i").itemsize) if hasattr(socket, "CMSG_LEN") else 0
"""Bytes of ancillary data for :data:`MOST` descriptors."""


TRUNCATED = int(getattr(socket, "MSG_CTRUNC", 0))
"""Flag of ``recvmsg``: descriptors were lost, as the process has no room for them."""


def received(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in the ancillary data from ``socket.recvmsg``."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


class Duplicates:
    """Duplicated descriptors, closed with the last reference to this object."""

    __slots__ = ("numbers",)

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def follow(self, originals: Sequence[int]) -> None:
        """Duplicate those of ``originals`` that are not duplicated yet."""
        for each in originals[len(self.numbers) :]:
            self.numbers.append(os.dup(each))

    def __len__(self) -> int:
        return len(self.numbers)

    def __del__(self) -> None:
        while self.numbers:
            os.close(self.numbers.pop())


NONE = Duplicates()


class Passage:
    """The descriptors of one message, by index.

    Args:
        received: descriptors that came with the message; :meth:`close` closes them.
    """

    def __init__(self, received: Sequence[int] = ()) -> None:
        self.sent: list[int] = []
        self._received: dict[int, int] = dict(enumerate(received))

    def add(self, descriptor: int) -> int:
        """Send ``descriptor``, which stays its owner's, with the message; return its index."""
        if descriptor not in self.sent:
            if len(self.sent) == MOST:
                raise NotPicklable(f"one call or result can carry {MOST} shared buffers, not more")
            self.sent.append(descriptor)
        return self.sent.index(descriptor)

    def take(self, index: int) -> int:
        """Return a duplicate, which the caller owns, of the descriptor that was sent as ``index``."""
        return os.dup(self._received[index])

    def close(self) -> None:
        """Close the received descriptors."""
        for descriptor in self._received.values():
            os.close(descriptor)
        self._received = {}


class _Open(threading.local):
    """The passage of the message that a thread is pickling or unpickling."""

    passage: Passage | None = None


_open = one(_Open)


def current() -> Passage | None:
    """Return the passage of the message that this thread is pickling or unpickling, None outside."""
    return _open.passage


class passing:  # noqa: N801 - a context manager, and cheaper than by ``contextlib``
    """Context manager that makes ``passage`` the current one of this thread."""

    __slots__ = ("_before", "_passage")

    def __init__(self, passage: Passage) -> None:
        self._passage = passage

    def __enter__(self) -> Passage:
        self._before = current()
        _open.passage = self._passage
        return self._passage

    def __exit__(self, *error: object) -> None:
        _open.passage = self._before

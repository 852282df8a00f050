"""Whether a descriptor that was kept is still ours.

A program that becomes a daemon may close every descriptor there is, and its own files and sockets get the numbers of
ours: whoever went on would write into them, take their connections, close them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


class LostError(OSError):
    """Descriptors of ours were closed by others."""


Mark = tuple[int, int] | None
"""What is behind a descriptor: device and inode, which every socket has too; None where that cannot be told."""


def mark(fd: int) -> Mark:
    """Return what is behind ``fd`` now; costs a microsecond.

    Example:
        >>> ours, theirs = os.pipe()
        >>> before = mark(ours)
        >>> _ = os.dup2(theirs, ours)
        >>> mark(ours) == before
        False
    """
    try:
        found = os.fstat(fd)
    except OSError:  # nothing any more; or a socket of Windows
        return None
    return found.st_dev, found.st_ino


def mark_of(path: Path) -> Mark:
    """Return what stands at ``path`` now, where it is not followed if it is a link."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def close(fd: int, before: Mark) -> None:
    """Close ``fd`` unless it is somebody else's by now.

    Args:
        fd: the descriptor.
        before: its :func:`mark` when it was opened.
    """
    if mark(fd) == before:
        os.close(fd)


def close_socket(kept: socket.socket, before: Mark) -> None:
    """Close a socket; what is somebody else's by now is only let go of."""
    if mark(kept.fileno()) == before:
        kept.close()
    else:
        kept.detach()

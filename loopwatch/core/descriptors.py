"""Detects whether a stored file descriptor still refers to what the agent opened.

A program that becomes a daemon may close all descriptors, and its own files and sockets then reuse the numbers. Using a
stale descriptor would write into them, accept their connections or close them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


class LostError(OSError):
    """Descriptors of the agent were closed by other code."""


Mark = tuple[int, int] | None
"""Identity of an open file: device and inode, which every socket has too; None where it is unknown."""


def mark(fd: int) -> Mark:
    """Return the identity of what ``fd`` refers to now; costs a microsecond.

    Example:
        >>> ours, theirs = os.open(os.devnull, os.O_RDONLY), os.open(os.curdir, os.O_RDONLY)
        >>> before = mark(ours)
        >>> _ = os.dup2(theirs, ours)
        >>> mark(ours) == before
        False
        >>> os.close(ours); os.close(theirs)
    """
    try:
        found = os.fstat(fd)
    except OSError:  # closed; or a Windows socket
        return None
    return found.st_dev, found.st_ino


def mark_of(path: Path) -> Mark:
    """Return the identity of what is at ``path`` now; a symbolic link is not followed."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def close(fd: int, before: Mark) -> None:
    """Close ``fd``, unless its number now refers to something else.

    Args:
        fd: the descriptor.
        before: its :func:`mark` when it was opened.
    """
    if mark(fd) == before:
        os.close(fd)


def close_socket(kept: socket.socket, before: Mark) -> None:
    """Close a socket; detach it instead if its descriptor now refers to something else."""
    if mark(kept.fileno()) == before:
        kept.close()
    else:
        kept.detach()

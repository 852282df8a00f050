"""Where the files of a process lie, how they are named, and how they are kept private."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

CLOEXEC, NOFOLLOW = getattr(os, "O_CLOEXEC", 0), getattr(os, "O_NOFOLLOW", 0)
"""Flags of open(2) that Windows does not have."""


def is_ours(found: os.stat_result) -> bool:
    """Whether a file belongs to this process's user; always where files have no such owner."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def journal_path(setting: str, pid: int) -> Path:
    """Return the journal of process ``pid`` for ``Config.journal``, a file or a directory.

    Example:
        >>> str(journal_path("/var/log/stalls.jsonl", 123))
        '/var/log/stalls.123.jsonl'
    """
    base = base_of(setting)
    return base.with_name(f"{base.name}.{pid}.jsonl")


def hang_path(setting: str, pid: int) -> Path:
    """Return the hang file of process ``pid``, beside its journal.

    Example:
        >>> str(hang_path("/var/log/stalls.jsonl", 123))
        '/var/log/stalls.123.hang'
    """
    return journal_path(setting, pid).with_suffix(".hang")


def base_of(setting: str) -> Path:
    """Return the common beginning of the names that ``setting`` stands for."""
    path = Path(setting)
    if path.is_dir():
        return path / "loopwatch"
    return path.with_suffix("") if path.suffix == ".jsonl" else path


def printable(text: str) -> str:
    """Return ``text`` on one line, with what could steer a terminal (or not be encoded) shown as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def open_private(path: Path) -> int:
    """Open a file for appending that nobody else may read, making it if need be; return the descriptor.

    Raises:
        OSError: it is a symbolic link, no regular file or another user's, or cannot be opened.
    """
    # O_RDWR: the last byte is read, and a named pipe opens at once (fifo(7)), to be refused below.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | CLOEXEC | NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # In a directory that others may write, somebody else could have laid it out to read along.
        if not is_ours(found):
            raise PermissionError(errno.EPERM, "the file belongs to another user", str(path))
        if hasattr(os, "fchmod"):
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd

"""Paths of a process's files (journal, hang file), and how to open them: readable by their owner only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
"""Flags of open(2), where the system has them: follow no link, do not block, take no controlling terminal."""


def why_not_ours(found: os.stat_result) -> str:
    """Return why an opened file must not be used, "" for a regular file of this process's user with a single name.

    Any user who may write to the directory could have put it there, to read along or to get another file changed.
    """
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return "it belongs to another user"
    if found.st_nlink > 1:
        return f"it is a hard link to a file that has {found.st_nlink} names"
    return ""


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
    """Return the common prefix of the file names for ``setting``."""
    path = Path(setting)
    if path.is_dir():
        return path / "loopwatch"
    return path.with_suffix("") if path.suffix == ".jsonl" else path


def open_private(path: Path) -> int:
    """Open a file for appending, readable by its owner only; create it if needed; return the descriptor.

    Raises:
        OSError: it is a symbolic or hard link, no regular file or another user's (and is left as it is), or cannot be
            opened; the text names the path, the reason and the remedy.
    """
    # O_RDWR: the last byte is read, and a named pipe opens at once (fifo(7)), to be refused below.
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | FLAGS, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise _refused(path, "it is a symbolic link") from None
        raise
    try:
        if reason := why_not_ours(os.fstat(fd)):
            raise _refused(path, reason)
        if hasattr(os, "fchmod"):
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refused(path: Path, reason: str) -> OSError:
    advice = "remove it, or set journal to a directory that only this user may write to"
    return PermissionError(errno.EPERM, f"not written to, as {reason}; {advice}", str(path))

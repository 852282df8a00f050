"""Paths and names of the files of a process (journal, hang file), opened so that only their owner can read them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
"""Flags of open(2), as far as the system has them, with which nothing is followed, waited for or taken as terminal."""


def why_not_ours(found: os.stat_result) -> str:
    """Return why an opened file is left alone, "" for a file of this process's user that has this one name.

    Whoever may write to the directory could have laid it out, to read along or to have a file of ours changed.
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
    """Return the common beginning of the names that ``setting`` stands for."""
    path = Path(setting)
    if path.is_dir():
        return path / "loopwatch"
    return path.with_suffix("") if path.suffix == ".jsonl" else path


def open_private(path: Path) -> int:
    """Open a file for appending that nobody else may read, making it if need be; return the descriptor.

    Raises:
        OSError: it is a link of either kind, no regular file or another user's (which is left as it is), or cannot be
            opened; the text names the path, why, and what to do.
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

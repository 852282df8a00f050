"""Anonymous shared memory (memfd_create(2)). Loaded in workers too, so it imports nothing else of the package."""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def sealed(name: str, size: int) -> int:
    """Return the descriptor of ``size`` zeroed bytes, whose size no process can change.

    If another process that has the descriptor truncated it, the next access here would raise SIGBUS.

    Args:
        name: shown in ``/proc/PID/maps``.
        size: bytes.

    Raises:
        AttributeError: this system has no such files.
        OSError: there is no descriptor or memory left.
    """
    fd = _above_standard(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd, size)
        if hasattr(fcntl, "F_ADD_SEALS"):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _above_standard(fd: int) -> int:
    """Return ``fd``, or a duplicate above 2 if it took the number of a standard stream that the program has closed.

    Data written to standard streams by number must not end up in this file.
    """
    if fd > 2:
        return fd
    try:
        return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    finally:
        os.close(fd)

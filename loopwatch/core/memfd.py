"""Memory without a name that processes share (memfd_create(2)). Loaded in workers too, so that it imports nothing."""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def sealed(name: str, size: int) -> int:
    """Return the descriptor of ``size`` zeroed bytes, whose size no process can change.

    Were it cut by another process that has it, the next access here would be a SIGBUS.

    Args:
        name: for ``/proc/PID/maps``.
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
    """Return a descriptor above those of standard input, output and error, which a program may have closed.

    What is then written to them by their numbers must not land here.
    """
    if fd > 2:
        return fd
    try:
        return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    finally:
        os.close(fd)

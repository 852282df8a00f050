"""Chooses and opens the Prometheus port of each process of a program; listening on a port is what reserves it.

A program of one process gets the configured port, or an error. A worker process gets the first free one of
:data:`SPAN` ports from the configured one on: a replacement worker takes the port that became free.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwatch.core.patches import loaded
from loopwatch.errors import ConfigError

SPAN = 64
"""Number of ports, from the configured one on, that the processes of a program may take."""
BACKLOG = 16
"""Connections that may wait to be accepted."""
_FORKED = 0x40
"""``PF_FORKNOEXEC`` of a process's flags (include/linux/sched.h): forked, and has not called exec since."""

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """The address on which a process listens.

    Attributes:
        listener: the listening socket, non-blocking.
        host: as configured.
        base: the configured port; for port 0 the free port that was found.
        port: the port in use.
    """

    listener: socket.socket
    host: str
    base: int
    port: int

    @property
    def url(self) -> str:
        """The URL to scrape."""
        return f"http://{authority(self.host, self.port)}/metrics"


def authority(host: str, port: int) -> str:
    """Return host and port as they stand in a URL.

    Example:
        >>> authority("::1", 9464)
        '[::1]:9464'
    """
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str) -> list[Address]:
    """Return the addresses of ``host`` on this machine.

    Raises:
        ConfigError: there are none.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            f"prometheus_host={host!r}: must be an address of this machine, such as '127.0.0.1' or '0.0.0.0' ({reason})"
        ) from None
    return [(family, address) for family, _, _, _, address in found]


def take(host: str, port: int, addresses: list[Address], *, first_free: bool) -> Place:
    """Listen on ``port``, or on the first free port from there on.

    Args:
        host: as configured; for messages and :attr:`Place.host`.
        port: 0 for any free port.
        addresses: the addresses of ``host``, see :func:`resolve`.
        first_free: whether one of the next :data:`SPAN` - 1 ports will do as well.

    Raises:
        ConfigError: no such port can be opened; the message names host, port, and what to do.
    """
    wanted = range(port, min(port + SPAN, 65536)) if port and first_free else range(port, port + 1)
    for each in wanted:
        try:
            listener = _listen(addresses, each)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise ConfigError(_refused(host, each, exc)) from None
            continue
        taken: int = listener.getsockname()[1]
        return Place(listener, host, port or taken, taken)
    where = f"{authority(host, wanted[0])}"
    if len(wanted) > 1:
        raise ConfigError(
            f"prometheus_port={port}: no port from {where} to {wanted[-1]} is free; configure another one"
        )
    raise ConfigError(
        f"prometheus_port={port}: {where} is in use by another program; choose another port, "
        "or 0 for any free one, or stop what listens there"
    )


def _listen(addresses: list[Address], port: int) -> socket.socket:
    """Listen on the first address that this machine has; a port that is in use raises OSError."""
    failed: OSError | None = None
    for family, address in addresses:
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:  # no IPv6 here
            failed = failed or exc
            continue
        try:
            # Closed connections then do not keep the port, a program that listens does (socket(7)). On Windows the
            # option would let two programs share it.
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], port, *address[2:]))
            listener.listen(BACKLOG)  # of two sockets bound at once, only one can listen
            listener.setblocking(False)
        except OSError as exc:
            listener.close()
            if exc.errno == errno.EADDRINUSE:
                raise
            failed = failed or exc
        else:
            return listener
    raise failed or OSError(errno.EADDRNOTAVAIL, "no address")


def _refused(host: str, port: int, exc: OSError) -> str:
    if exc.errno in (errno.EACCES, errno.EPERM):
        return f"prometheus_port={port}: this user may not open it on {host}; choose one from 1024 on"
    if exc.errno == errno.EADDRNOTAVAIL:
        return (
            f"prometheus_host={host!r}: must be an address of this machine, such as '127.0.0.1' or '0.0.0.0'; "
            f"port {port} cannot be opened on it"
        )
    return f"prometheus_port={port}: cannot be opened on {host}: {exc.strerror}; choose another port or prometheus_host"


# ------------------------------------------------------------------------------------------- kind of process


def is_worker() -> bool:
    """Whether this process is one of several that run the same program: forked, or started by multiprocessing."""
    if "--multiprocessing-fork" in sys.orig_argv:  # multiprocessing's spawn, on every system
        return True
    process = loaded("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return True
    try:
        flags = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & _FORKED)


def is_inside_pool() -> bool:
    """Whether this process belongs to one of loopwatch's own pools: its parent reports its work."""
    worker = loaded("loopwatch.workers.worker")
    if worker is not None and worker.here.is_worker:
        return True
    return any("from loopwatch.workers import worker" in word for word in sys.orig_argv[1:3])  # its fork server

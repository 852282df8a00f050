"""Which port a process of a family takes, so that Prometheus finds each of them: to listen on it is the lock.

A program on its own gets the port that it was told, or an error. A worker process gets the first of :data:`SPAN` ports
from there on which nobody listens: one that is started in place of another takes the port that became free.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwatch._patches import loaded
from loopwatch.core.originals import time
from loopwatch.errors import ConfigError

SPAN = 64
"""Ports from the configured one on that the processes of a program may take."""
BACKLOG = 16
"""Connections that may wait to be accepted."""
PATIENCE = 0.5
"""s in which who listens on a port says who it is."""
ANSWER = 4096
"""Bytes of what it says at most."""
_FORKED = 0x40
"""``PF_FORKNOEXEC`` of a process's flags (include/linux/sched.h): forked, and has executed no program since."""

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is to be found.

    Attributes:
        listener: the socket, which listens and does not block.
        host: as it was configured.
        base: port that was configured; of port 0 the one that was free.
        port: port that was taken.
    """

    listener: socket.socket
    host: str
    base: int
    port: int

    @property
    def url(self) -> str:
        """Where it is scraped."""
        return f"http://{authority(self.host, self.port)}/metrics"


def authority(host: str, port: int) -> str:
    """Return host and port as a URL has them.

    Example:
        >>> authority("::1", 9464)
        '[::1]:9464'
    """
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str) -> list[Address]:
    """Return the addresses that ``host`` means on this machine.

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
    """Listen on ``port``, or on the first free one from there on.

    Args:
        host: for messages.
        port: 0 for any that is free.
        addresses: what ``host`` means, see :func:`resolve`.
        first_free: whether one of the next :data:`SPAN` - 1 will do as well.

    Raises:
        ConfigError: names host, port, and what to do.
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
    """Listen on the first address that this machine has; whoever listens on one already keeps it."""
    failed: OSError | None = None
    for family, address in addresses:
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:  # no IPv6 here
            failed = failed or exc
            continue
        try:
            # Past connections do not keep the port; a program that listens on it does (socket(7)). On Windows the
            # option would let two share it.
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], port, *address[2:]))
            listener.listen(BACKLOG)  # of two that were bound at once only one can
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


# ---------------------------------------------------------------------------------------------------- who is who


def is_worker() -> bool:
    """Whether this process is one of several that run the same program: forked, or started by multiprocessing."""
    if "--multiprocessing-fork" in sys.orig_argv:  # how multiprocessing starts what it spawns, on every system
        return True
    process = loaded("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return True
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & _FORKED)


def is_inside_pool() -> bool:
    """Whether this process belongs to one of loopwatch's own pools: its parent tells what it does."""
    worker = loaded("loopwatch.workers.worker")
    if worker is not None and worker.INSIDE:
        return True
    return any("from loopwatch.workers import worker" in word for word in sys.orig_argv[1:3])  # its fork server


def gives_way(port: int, addresses: list[Address]) -> bool:
    """Whether who listens on ``port`` is of our family, so that the next one does for us.

    That is loopwatch in a process that we descend from; or loopwatch at all where the port comes from the environment,
    which every process of a session or container may have inherited.
    """
    holder = ask(addresses, (port,))
    from_environment = os.environ.get("LOOPWATCH_PROMETHEUS_PORT", "").strip() == str(port)
    return any(from_environment or _is_relative(who) for who in holder.values())


def _is_relative(who: Mapping[str, Any]) -> bool:
    if who.get("pid") in _ancestors():
        return True
    # Elsewhere than on Linux a worker that was forked is not known as such: see is_worker.
    return not Path("/proc/self/stat").exists() and who.get("parent") == os.getppid() != 1


def _ancestors() -> list[int]:
    found: list[int] = []
    pid = os.getppid()
    while pid > 1 and len(found) < 64:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def ask(addresses: Iterable[Address], at: Iterable[int], patience: float = PATIENCE) -> dict[int, Mapping[str, Any]]:
    """Ask who listens on each port, all at once; return what those that are loopwatch say of themselves, by port.

    Args:
        addresses: where, as :func:`resolve` returned them.
        at: ports.
        patience: s that all of it may take.
    """
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    asked = [
        (family, (everywhere.get(address[0], address[0]), port, *address[2:]))
        for family, address in addresses
        for port in at
    ]
    heard: dict[socket.socket, bytearray] = {}
    said: dict[int, Mapping[str, Any]] = {}
    ends = time.monotonic() + patience
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for family, address in asked:
            client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            client.setblocking(False)
            if client.connect_ex(address) in (0, errno.EINPROGRESS):
                selector.register(client, selectors.EVENT_WRITE, address[1])
        while selector.get_map() and (left := ends - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                client = key.fileobj  # type: ignore[assignment]
                try:
                    done = _converse(client, heard)
                except OSError:  # nobody listens there, or it hung up
                    done = True
                if not done:
                    selector.modify(client, selectors.EVENT_READ, key.data)
                    continue
                selector.unregister(client)
                who = _identity(bytes(heard.get(client, b"")))
                if who is not None:
                    said[key.data] = who
    return said


def _converse(client: socket.socket, heard: dict[socket.socket, bytearray]) -> bool:
    """Go on with one conversation; return whether it is over."""
    if client not in heard:
        heard[client] = bytearray()
        client.sendall(b"GET /self HTTP/1.0\r\n\r\n")  # a few bytes always fit
        return False
    data = client.recv(ANSWER)
    heard[client] += data
    return not data or len(heard[client]) > ANSWER


def _identity(answer: bytes) -> Mapping[str, Any] | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        return None
    try:
        who = json.loads(body)
    except ValueError:
        return None
    return who if isinstance(who, dict) and "loopwatch" in who else None

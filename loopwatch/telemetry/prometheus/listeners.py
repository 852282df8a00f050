"""Listening TCP sockets of this machine, and their owners (``/proc/net/tcp`` and ``tcp6``, Linux only)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Iterable
from typing import NamedTuple

_LISTENING = b"0A"
"""``TCP_LISTEN`` (include/net/tcp_states.h)."""
_MOST_OTHERS = 1000
"""Lines of other sockets after which reading ends; the kernel lists listening sockets first (``tcp_get_idx`` in
net/ipv4/tcp_ipv4.c), and there may be a hundred thousand connections."""
_MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv6 address that stands for an IPv4 address (RFC 4291, 2.5.5.2)."""


class Listener(NamedTuple):
    """A listening socket.

    Attributes:
        address: bytes in network order, 4 or 16 of them.
        port: its port.
        uid: user that made it.
        inode: number of the socket; no other socket has it as long as this one exists.
    """

    address: bytes
    port: int
    uid: int
    inode: int


def read(ports: Collection[int]) -> list[Listener] | None:
    """Return the sockets that listen on ``ports``, None where the system does not list them."""
    found: list[Listener] = []
    listed = False
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path, "rb") as lines:  # noqa: PTH123 - a line at a time
                found += parse(lines, ports)
                listed = True
        except OSError:  # not Linux, or no IPv6
            continue
    return found if listed else None


def parse(lines: Iterable[bytes], ports: Collection[int]) -> list[Listener]:
    """Return the listening sockets in a table as the kernel writes it; other lines are skipped.

    Example:
        >>> line = b"0: 0100007F:24F8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 4711 1"
        >>> parse([line], {9464})
        [Listener(address=b'\\x7f\\x00\\x00\\x01', port=9464, uid=1000, inode=4711)]
    """
    found: list[Listener] = []
    others = 0
    for line in lines:
        words = line.split(None, 10)
        try:
            if words[3] != _LISTENING:
                others += 1
                if others > _MOST_OTHERS:
                    break
                continue
            address, _, port = words[1].partition(b":")
            number = int(port, 16)
            if number in ports:
                found.append(Listener(_packed(address), number, int(words[7]), int(words[9])))
        except (IndexError, ValueError):  # the header line
            continue
    return found


def reached(listening: Iterable[Listener], family: socket.AddressFamily, host: str, port: int) -> Listener | None:
    """Return the socket that a connection to ``host`` and ``port`` reaches, None if there is none.

    The kernel prefers an exact address to a wildcard, and IPv4 to a socket for both (``inet_lhash2_lookup`` and
    ``compute_score`` in net/ipv4/inet_hashtables.c). Several are of one user (``SO_REUSEPORT`` in socket(7)).
    """
    wanted = socket.inet_pton(family, host.partition("%")[0])
    fits = {wanted: 0, bytes(len(wanted)): 2}
    if family == socket.AF_INET:
        fits |= {_MAPPED + wanted: 1, bytes(16): 3}
    here = [each for each in listening if each.port == port and each.address in fits]
    return min(here, key=lambda each: (fits[each.address], each.inode), default=None)


def _packed(words: bytes) -> bytes:
    """Return an address from its hexadecimal 32-bit numbers."""
    raw = bytes.fromhex(words.decode("ascii"))
    if sys.byteorder == "big":
        return raw
    return b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))

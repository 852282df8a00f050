"""Functions for workers that break the protocol in every way."""

from __future__ import annotations

import os
import pickle
import random
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any

from loopwatch.workers import protocol
from loopwatch.workers.protocol import Kind


def _channel() -> socket.socket:
    """Return the socket to the parent."""
    for descriptor in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
    raise AssertionError("this is no worker")


def _head(id: int, size: int, kind: int, *, flags: int = 0, buffers: int = 0, descriptors: int = 0) -> bytes:
    return protocol._HEAD.pack(id, size, 0, 0, 0, kind, flags, buffers, descriptors)


def _frame(id: int, kind: int, pickled: bytes) -> bytes:
    return _head(id, len(pickled), kind) + pickled


class Exits:
    """Ends the program that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (3,)


BROKEN = {
    "noise": random.Random(4).randbytes(300_000),
    "kind": _head(1, 0, 99),
    "flags": _head(1, 0, Kind.RESULT, flags=255),
    "negative size": _head(1, 2**63, Kind.RESULT),
    "no memory": _head(1, 2**46, Kind.RESULT),
    "buffer": _head(1, 2, Kind.RESULT, buffers=1) + protocol._BUFFER.pack(2**64 - 1, 0) + b"xx",
    "descriptors": _head(1, 2, Kind.RESULT, descriptors=3) + b"xx",
    "failure": _frame(1, Kind.READY, b"xxxxx"),
    "half a failure": _frame(1, Kind.READY, pickle.dumps(5)),
}
"""What a parent cannot go on after."""
LOST = {
    "no pickle": _frame(0, Kind.LOG, b"xxxxx"),
    "no record": _frame(0, Kind.LOG, pickle.dumps(5)),
    "exits": _frame(0, Kind.LOG, pickle.dumps(Exits())),
    "unknown call": _frame(2**64 - 1, Kind.RESULT, b"xxxxx"),
    "ready again": _frame(0, Kind.READY, b""),
}
"""What it can do without."""


def send(data: bytes, *, wait: bool) -> str:
    """Send the parent bytes that are no result."""
    _channel().sendall(data)
    if wait:
        time.sleep(600)
    return "done"


def send_descriptors(times: int) -> None:
    """Send descriptors without a frame."""
    channel = _channel()
    for _ in range(times):
        socket.send_fds(channel, [LOST["no pickle"]], 60 * [channel.fileno()])
    time.sleep(600)


def send_without_end(seconds: float) -> str:
    """Send records faster than they can be read."""
    channel, many = _channel(), 1000 * LOST["no pickle"]
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        channel.sendall(many)
    return "done"


def cut_shared_memory() -> list[str]:
    """Truncate all memory shared with the parent; return the attempts and the errors."""
    tried = []
    for path in Path("/proc/self/map_files").iterdir():
        try:
            if "memfd:loopwatch" in str(path.readlink()):
                with path.open("r+b") as file:
                    file.truncate(0)
                tried.append("cut")
        except PermissionError as exc:
            tried.append(str(exc.strerror))
    for descriptor in range(3, 64):
        try:
            os.ftruncate(descriptor, 0)
            tried.append("cut")
        except OSError:
            continue
    return tried

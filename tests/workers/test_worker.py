"""The worker's side by itself: how it waits for the next call."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from loopwatch.workers import pickling, protocol, worker
from loopwatch.workers.protocol import Kind


@pytest.fixture
def ends() -> Iterator[tuple[worker.Worker, socket.socket]]:
    """A worker served in this process, and the parent's end of its socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs, mmap.mmap(-1, worker.SHARED_SIZE) as shared:
        yield worker.Worker(theirs, shared), ours


def call(number: int) -> memoryview:
    """Return a call of ``abs``."""
    packed = pickling.encode_call(abs, (-number,), {}, None, by_value=False)
    (part,) = protocol.frame(Kind.CALL, number, packed.pickle, flags=packed.flags)
    return part


def answer(channel: socket.socket) -> int:
    """Return the next result."""
    frames: list[protocol.Frame] = []
    receiver = protocol.Receiver(frames.append)
    while not frames:
        receiver.feed(channel.recv(4096))
    value: int = pickling.decode(frames[0].pickle, frames[0].buffers)
    return value


def test_quick_succession(ends: tuple[worker.Worker, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a call that came at once the worker polls for the next without sleeping, yielding to others; it answers a
    call that comes then, and sees the end of the stream.
    """
    serving, channel = ends
    looked = threading.Event()
    give_way = os.sched_yield
    monkeypatch.setattr(worker, "MOMENT", 60.0)
    monkeypatch.setattr(os, "sched_yield", lambda: (looked.set(), give_way())[1])
    thread = threading.Thread(target=serving.serve)
    thread.start()
    for number in (1, 2):
        channel.sendall(call(number))
        assert answer(channel) == number
        assert looked.wait(30)
        looked.clear()
    channel.sendall(protocol.frame(Kind.STOP)[0])
    thread.join()


def test_no_succession(ends: tuple[worker.Worker, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """If calls do not come in quick succession the worker sleeps until the next one, without polling."""
    serving, channel = ends
    looks: list[None] = []
    monkeypatch.setattr(worker, "MOMENT", 0.0)
    monkeypatch.setattr(os, "sched_yield", lambda: looks.append(None))
    thread = threading.Thread(target=serving.serve)
    thread.start()
    for number in (1, 2):
        channel.sendall(call(number))
        assert answer(channel) == number
    channel.close()
    thread.join()
    assert looks == []

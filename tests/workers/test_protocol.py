"""Frames: however the stream is split, the received frames equal the frames that were sent."""

from __future__ import annotations

import doctest
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwatch.workers import protocol
from loopwatch.workers.protocol import Frame, Kind

SIZES = (0, 1, 200, protocol.LEAST_APART - 1, protocol.LEAST_APART, protocol.LEAST_APART + 1)


def stream_of(frames: list[tuple[Kind, int, bytes, list[Any]]]) -> bytes:
    """Return the bytes of frames, concatenated."""
    parts = [
        part
        for kind, id, data, buffers in frames
        for part in protocol.frame(kind, id, data, map(memoryview, buffers), run=5, cpu=4, flags=3, descriptors=2)
    ]
    return b"".join(parts)


def check(seen: list[Frame], frames: list[tuple[Kind, int, bytes, list[Any]]]) -> None:
    """Compare received frames with those sent, types included."""
    assert len(seen) == len(frames)
    for frame, (kind, id, data, buffers) in zip(seen, frames, strict=True):
        head = frame.head
        assert (head.kind, head.id, head.run, head.cpu, head.flags, head.descriptors) == (kind, id, 5, 4, 3, 2)
        assert bytes(frame.pickle) == data
        assert [(type(each), bytes(each)) for each in frame.buffers] == [(type(each), bytes(each)) for each in buffers]


def small_frames() -> list[tuple[Kind, int, bytes, list[Any]]]:
    """Return frames of every shape, short enough to be split anywhere."""
    return [
        (Kind.STOP, 0, b"", []),
        (Kind.CALL, 2**64 - 1, b"pickle", []),
        (Kind.RESULT, 3, b"", [b""]),
        (Kind.RESULT, 4, b"x", [b"abc", bytearray(b"defg"), bytearray()]),
        (Kind.LOG, 0, b"last", []),
    ]


def test_cut_anywhere() -> None:
    """Frames of every shape survive being split in two at every byte, and byte by byte."""
    frames = small_frames()
    data = stream_of(frames)
    for cut in range(len(data) + 1):
        seen: list[Frame] = []
        receiver = protocol.Receiver(seen.append)
        receiver.feed(data[:cut])
        receiver.feed(data[cut:])
        check(seen, frames)
    seen = []
    receiver = protocol.Receiver(seen.append)
    for index in range(len(data)):
        receiver.feed(data[index : index + 1])
    check(seen, frames)


def test_truncated_frame_is_not_delivered() -> None:
    """A truncated frame is never delivered, wherever it was truncated."""
    data = stream_of([(Kind.RESULT, 4, b"x", [b"abc", bytearray(b"defg")])])
    for cut in range(len(data)):
        seen: list[Frame] = []
        protocol.Receiver(seen.append).feed(data[:cut])
        assert seen == []


@given(st.data())
@settings(max_examples=60)
def test_any_pieces(data: st.DataObject) -> None:
    """Any frames in any chunks, fed or received in place, are decoded as they were sent."""
    count = data.draw(st.integers(1, 5))
    size = st.sampled_from(SIZES)
    frames = []
    for id in range(count):
        buffers = [
            data.draw(st.sampled_from((bytes, bytearray)))(os.urandom(data.draw(size)))
            for _ in range(data.draw(st.integers(0, 3)))
        ]
        frames.append((data.draw(st.sampled_from(Kind)), id, os.urandom(data.draw(size)), buffers))
    stream = memoryview(stream_of(frames))
    seen: list[Frame] = []
    receiver = protocol.Receiver(seen.append)
    while stream:
        piece = stream[: data.draw(st.sampled_from((1, 7, 33, 1000, protocol.FEED, protocol.SLICE)))]
        target = receiver.target
        if target is not None and data.draw(st.booleans()):
            piece = piece[: len(target)]
            target[: len(piece)] = piece
            receiver.filled(len(piece))
        else:
            receiver.feed(piece)
        stream = stream[len(piece) :]
    check(seen, frames)
    assert receiver.target is None


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("size", [1, 1000, 10_000_000])
def test_room(size: int, readonly: bool) -> None:
    """The buffer is an ordinary bytes or bytearray holding the data written through the view."""
    made, view = protocol.room(size, readonly=readonly)
    content = os.urandom(size)
    view[:] = content
    del view
    assert type(made) is (bytes if readonly else bytearray) and made == content
    if not readonly:
        made.append(1)  # nothing holds on to it
        assert len(made) == size + 1


def test_example() -> None:
    """The example in the documentation is correct."""
    assert doctest.testmod(protocol).failed == 0

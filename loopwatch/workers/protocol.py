"""The protocol between parent and worker: frames of a header, a pickle, and out-of-band buffers (PEP 574).

Pure framing: nothing here opens a socket or unpickles. A frame is

    header      id, size, three times, kind, flags, numbers of buffers and descriptors (see :class:`Head`)
    table       for each buffer: size, whether it is read-only
    body        the pickle, then the buffers, byte after byte

Large pickles and buffers are received directly into their final objects: no copy, and no memory that has to be zeroed
(``bytearray(50_000_000)`` alone takes 20 ms).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

SLICE = 1 << 18
"""Bytes that are sent or received at once: a tenth of a millisecond of copying."""

FEED = 1 << 16
"""Bytes that are received at once while their frame is unknown; for more, the allocator asks the system."""

LEAST_APART = 1 << 16
"""Bytes from which on a buffer is sent out of band instead of inside the pickle."""

MOST_BUFFERS = (1 << 16) - 1
"""Out-of-band buffers of one pickle, at most."""

LARGEST = 1 << 47
"""Bytes of a pickle or buffer, at most: a size that no process has room for is garbage."""

_HEAD = struct.Struct("<QQQQQBBHH")
_BUFFER = struct.Struct("<QB")
HEAD_SIZE = _HEAD.size


class Kind(IntEnum):
    """Kind of a frame."""

    SETUP = 0
    """To the worker, once: how to prepare itself."""
    CALL = 1
    STOP = 2
    """To the worker: end, after all frames sent before."""
    READY = 3
    """From the worker: it can take calls; or, with an error, it cannot."""
    RESULT = 4
    ERROR = 5
    """From the worker: the call raised."""
    LOG = 6
    """From the worker: a log record for the parent's logging."""
    SKIPPED = 7
    """From the worker: the call was cancelled before it began."""
    FAILED = 8
    """From the worker: the call could not be read, or its result could not be sent."""
    PREPARE = 9
    """To the worker, after SETUP: call this before anything else."""


RESULT, ERROR, LOG, SKIPPED = Kind.RESULT, Kind.ERROR, Kind.LOG, Kind.SKIPPED  # used for each call


class Head(NamedTuple):
    """The header of a frame.

    Attributes:
        id: of the call.
        size: bytes of the pickle.
        began: when the call began, by ``time.perf_counter_ns`` (results only).
        run: ns that the call ran (results only).
        cpu: ns of processor time of its thread meanwhile (results of traced calls only).
        kind: a :class:`Kind`.
        flags: see ``SLICED``, ``NAMED`` and ``PLEASE_RECYCLE``.
        buffers: number of out-of-band buffers.
        descriptors: number of descriptors that are passed with the frame.
    """

    id: int
    size: int
    began: int
    run: int
    cpu: int
    kind: int
    flags: int
    buffers: int
    descriptors: int


SLICED = 1
"""The pickle holds a large container in slices: see :mod:`loopwatch.workers.pickling`."""
PLEASE_RECYCLE = 2
"""The worker exceeds its memory limit and is to be replaced."""
NAMED = 4
"""The pickle begins with that of the function, which is pickled by name."""
_ALL_FLAGS = SLICED | PLEASE_RECYCLE | NAMED
_LAST_KIND = max(Kind)


class BrokenFrame(ValueError):  # noqa: N818 - the name says what was received
    """The data received is no frame: the other side is broken, or something else writes to its socket."""


def _head_of(data: Any, start: int = 0) -> Head:
    head = Head._make(_HEAD.unpack_from(data, start))
    if head.kind > _LAST_KIND or head.flags > _ALL_FLAGS:
        raise BrokenFrame(f"kind {head.kind} with flags {head.flags}")
    return head


class Frame(NamedTuple):
    """A received frame: its header, its pickle and its buffers."""

    head: Head
    pickle: Any
    buffers: list[Any]


def frame(
    kind: Kind,
    id: int = 0,
    pickle: Any = b"",
    buffers: Sequence[memoryview] = (),
    *,
    began: int = 0,
    run: int = 0,
    cpu: int = 0,
    flags: int = 0,
    descriptors: int = 0,
) -> list[memoryview]:
    """Return the parts of a frame in the order in which they are to be sent."""
    if not buffers and len(pickle) < LEAST_APART:
        return [memoryview(_HEAD.pack(id, len(pickle), began, run, cpu, kind, flags, 0, descriptors) + pickle)]
    views = list(buffers)
    head = _HEAD.pack(id, len(pickle), began, run, cpu, kind, flags, len(views), descriptors)
    table = b"".join(_BUFFER.pack(view.nbytes, view.readonly) for view in views)
    if len(pickle) < LEAST_APART:
        return [memoryview(b"".join((head, table, pickle))), *views]
    return [memoryview(head + table), memoryview(pickle), *views]


def room(size: int, *, readonly: bool) -> tuple[Any, memoryview]:
    """Return an uninitialized object of ``size`` bytes, and a view to write it through.

    ``bytes`` if it is to be read-only, else ``bytearray``. Neither is zeroed, as no source is given (CPython's
    Objects/bytesobject.c, Objects/bytearrayobject.c).
    """
    import ctypes  # imported for large frames only

    if readonly:
        make = ctypes.pythonapi.PyBytes_FromStringAndSize
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
        made = make(None, size)
        address = id(made) + bytes.__basicsize__ - 1
        return made, memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    make = ctypes.pythonapi.PyByteArray_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
    made = make(None, size)
    return made, memoryview(made)


class Receiver:
    """Assembles frames from the pieces in which they arrive.

    Args:
        deliver: called with each complete frame.

    Example:
        >>> seen = []
        >>> receiver = Receiver(seen.append)
        >>> for part in frame(Kind.CALL, 7, b"pickle"):
        ...     receiver.feed(part)
        >>> seen[0].head.id, bytes(seen[0].pickle)
        (7, b'pickle')
    """

    def __init__(self, deliver: Callable[[Frame], None]) -> None:
        self._deliver = deliver
        self._rest = b""
        self._head: Head | None = None
        self._table: list[tuple[int, int]] = []
        self._objects: list[Any] = []
        self._target: memoryview | None = None

    @property
    def target(self) -> memoryview | None:
        """Where to receive the next bytes, if they belong to a large object; then call :meth:`filled`."""
        return self._target

    def filled(self, count: int) -> None:
        """Record that ``count`` bytes were received into :attr:`target`."""
        target = self._target
        assert target is not None
        self._target = target[count:] if count < len(target) else None
        if self._target is None:
            self._next_object()

    def feed(self, data: Any) -> None:
        """Take bytes that were not received into :attr:`target`.

        Raises:
            BrokenFrame: they are no frame, and nothing after them can be read. :meth:`filled` raises it, too.
            MemoryError: there is no room for a frame; the same holds.
        """
        if not self._rest and self._target is None and len(data) >= HEAD_SIZE:
            head = _head_of(data)
            if not head.buffers and len(data) == HEAD_SIZE + head.size < LEAST_APART:  # one small frame, as usual
                self._deliver(Frame(head, data[HEAD_SIZE:], []))
                return
        data = bytes(data) if not self._rest else self._rest + data
        self._rest = b""
        start, view = 0, memoryview(data)
        while True:
            if self._target is not None:
                count = min(len(self._target), len(data) - start)
                self._target[:count] = view[start : start + count]
                start += count
                self.filled(count)
                if start == len(data):
                    return
                continue
            if len(data) - start < HEAD_SIZE:
                break
            head = _head_of(data, start)
            body = start + HEAD_SIZE + _BUFFER.size * head.buffers
            if len(data) < body:
                break
            if not head.buffers and head.size < LEAST_APART:
                if len(data) < body + head.size:
                    break
                start = body + head.size
                self._deliver(Frame(head, view[body:start], []))
                continue
            table = [_BUFFER.unpack_from(data, start + HEAD_SIZE + _BUFFER.size * i) for i in range(head.buffers)]
            self._head, self._table, self._objects = head, [(head.size, 1), *table], []
            start = body
            self._next_object()
        if start < len(data):
            self._rest = data[start:]

    def _next_object(self) -> None:
        """Allocate the next object of a large frame, or deliver the frame."""
        assert self._head is not None
        while len(self._objects) < len(self._table):
            size, readonly = self._table[len(self._objects)]
            if size > LARGEST:
                raise BrokenFrame(f"{size:,} bytes")
            made, view = room(size, readonly=bool(readonly)) if size else (b"" if readonly else bytearray(), None)
            self._objects.append(made)
            if view is not None:
                self._target = view
                return
        head, objects = self._head, self._objects
        self._head, self._objects = None, []
        self._deliver(Frame(head, objects[0], objects[1:]))

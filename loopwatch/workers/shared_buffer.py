"""Memory shared by parent and workers, with a lock and atomic operations across processes.

The memory has no name (memfd_create(2)): it is freed with the last process that uses it, however that process ends.
"""

from __future__ import annotations

import functools
import importlib
import math
import mmap
import operator
import os
import struct
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from loopwatch.core import memfd
from loopwatch.core.originals import time
from loopwatch.core.process_state import one
from loopwatch.errors import ConfigError, NotPicklable, OffloadError
from loopwatch.workers import descriptor_passing

if sys.platform != "win32":
    import fcntl

_SLOT = 8
"""Bytes of a slot, and of the range of a lock."""
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of fcntl(2): type, whence, start, length, pid."""
_LOCK_START = 1 << 62
"""Start of the range that ``lock()`` takes, beyond every slot: ranges may lie beyond the end of a file."""
_LOOK_AGAIN = 1.0
"""Seconds after which ``wait()`` checks by itself: a process may be killed between its store and its notify."""
_POLL = 0.001
"""Seconds between two checks where there is no futex."""
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYONE = 2**31 - 1
# Before 3.13 a mapping keeps a second descriptor of its own (CPython's Modules/mmapmodule.c).
_UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class _Buffers:
    """The shared buffers of this process.

    Attributes:
        known: buffers by token: one that arrives again, or comes back, is the same object.
        held: the descriptors through which this process holds, or awaits, a lock.
    """

    def __init__(self) -> None:
        self.known: weakref.WeakValueDictionary[bytes, SharedBuffer] = weakref.WeakValueDictionary()
        self.held: dict[object, int] = {}


_buffers = one(_Buffers)


class SharedBuffer(mmap.mmap):
    """Memory shared by this process and the workers that it is passed to.

    It is an ``mmap``: it has slices, ``len`` and the buffer protocol, so ``memoryview(shared)`` and
    ``numpy.frombuffer(shared, dtype)`` are writable and copy nothing. It is zeroed, and uses memory only as it is
    written. As an argument or result of an offloaded call its descriptor is passed, not its content; an array over it
    would be copied. Linux; elsewhere an unlinked temporary file is used, without lock and atomic operations; not on
    Windows.

    Args:
        nbytes: its size in bytes, which is fixed.

    Raises:
        ConfigError: ``nbytes`` is no int above 0.
        OffloadError: on Windows.
        OSError: the system has no descriptor or address space left for it.

    Example:
        >>> with SharedBuffer(1024) as shared:
        ...     shared[:5] = b"hello"
        ...     shared.add(1, 7), shared.load(1), len(shared)
        (0, 7, 1024)
    """

    _fd: int
    _token: bytes
    _nbytes: int
    _release: weakref.finalize[[int], SharedBuffer]

    def __new__(cls, nbytes: int) -> Self:
        if isinstance(nbytes, bool) or not isinstance(nbytes, int) or not 0 < nbytes <= sys.maxsize:
            raise ConfigError(f"nbytes={nbytes!r}: must be an int of bytes above 0, such as 4096")
        return cls._over(_allocate(nbytes), os.urandom(16))

    @classmethod
    def _over(cls, fd: int, token: bytes) -> Self:
        """Map the memory behind ``fd``, which the buffer owns from now on."""
        try:
            self = super().__new__(cls, fd, 0, **_UNTRACKED)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._token, self._nbytes = fd, token, len(self)
        self._release = weakref.finalize(self, os.close, fd)
        self._release.atexit = False  # the kernel does it, and other exit handlers may still use the memory
        _buffers.known[token] = self
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        passage = descriptor_passing.current()
        if passage is None:
            raise NotPicklable(
                "SharedBuffer: only a call to a worker can carry it; pass it as an argument of an offloaded function, "
                "or send bytes(shared) for a copy"
            )
        self._check_open()
        return _rebuild, (passage.add(self._fd), self._token)

    @property
    def nbytes(self) -> int:
        """Size in bytes, also after ``close()``."""
        return self._nbytes

    def size(self) -> int:
        """Size in bytes; unlike that of ``mmap``, without a request to the descriptor."""
        return self._nbytes

    @property
    def closed(self) -> bool:  # type: ignore[override]  # typeshed has an attribute; it is read-only in mmap, too
        """Whether it was closed."""
        return not self._release.alive

    def close(self) -> None:
        """Release descriptor and mapping in this process; the memory is freed with the last process that has it.

        While views (a ``memoryview``, an array) are in use the mapping stays, so that they remain valid; it is then
        released with the last view and the buffer, or by another ``close()``. Without any ``close()``, dropping
        the last reference does all of it.
        """
        self._release()
        try:
            super().close()
        except BufferError:
            pass  # views are in use

    def __exit__(self, *error: object) -> None:
        self.close()  # mmap's own would not call it

    def __repr__(self) -> str:
        return f"<SharedBuffer nbytes={self._nbytes}{' closed' if self.closed else ''}>"

    def array(self, dtype: Any, shape: int | Sequence[int] | None = None) -> Any:
        """Return a writable numpy array over the memory, without a copy.

        Args:
            dtype: as numpy takes it.
            shape: of the array, which begins at byte 0; by default flat, with as many items as fit.

        Raises:
            ConfigError: numpy is not installed.
            ValueError: the buffer is too small for ``shape``, or closed.
        """
        try:
            numpy: Any = importlib.import_module("numpy")
        except ImportError:
            raise ConfigError("numpy is not installed: pip install numpy") from None
        dtype = numpy.dtype(dtype)
        if shape is None:
            shape = self._nbytes // max(dtype.itemsize, 1)
        # Not ndarray(buffer=...): it does not keep the buffer from being closed (numpy's BufferConverter releases it).
        return numpy.frombuffer(self, dtype, int(numpy.prod(shape))).reshape(shape)

    @contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """Exclude every other ``lock()`` of this memory: in other processes, in threads, and in this thread too.

        The kernel releases it when its holder ends, even by ``kill -9``; half-done changes of the holder stay. It
        blocks the thread: in a coroutine, take it in an executor. Reads and writes of the memory do not check the lock.

        Args:
            timeout: seconds to wait for it; None waits for ever, 0 tries once.

        Raises:
            TimeoutError: another holder kept it for so long.
            OffloadError: not on Linux.
            ValueError: the buffer is closed.

        Example:
            >>> shared = SharedBuffer(8)
            >>> with shared.lock(timeout=5):
            ...     shared[0] += 1
        """
        with self._locked(_LOCK_START, _deadline(timeout)):
            yield

    def load(self, index: int) -> int:
        """Return slot ``index``: the signed 64-bit integer at byte ``index * 8``.

        The operations ``load store add exchange compare_exchange`` are atomic towards each other, in all processes and
        threads, and independent of ``lock()``. They are not atomic towards writes through a view. Values wrap around at
        64 bits. A process killed within one leaves the old or the new value. Each costs some 10 us: Python has no
        atomic instructions, so a kernel lock per slot replaces them.

        Raises:
            IndexError: there is no such slot.
            OffloadError: not on Linux.
            ValueError: the buffer is closed.
        """
        return self._change(index, lambda old: old)

    def store(self, index: int, value: int) -> None:
        """Set slot ``index`` to ``value``; see :meth:`load`."""
        self._change(index, lambda _old: value)

    def add(self, index: int, n: int) -> int:
        """Add ``n`` to slot ``index``; return the old value. See :meth:`load`."""
        return self._change(index, lambda old: old + n)

    def exchange(self, index: int, value: int) -> int:
        """Set slot ``index`` to ``value``; return the old value. See :meth:`load`."""
        return self._change(index, lambda _old: value)

    def compare_exchange(self, index: int, expected: int, new: int) -> int:
        """Set slot ``index`` to ``new`` if it is ``expected``; return the old value. See :meth:`load`."""
        return self._change(index, lambda old: new if old == _signed(expected) else old)

    def wait(self, index: int, expected: int, timeout: float | None = None) -> bool:
        """Block the thread until slot ``index`` is no longer ``expected``; return False after ``timeout`` seconds.

        The process that changes the slot calls :meth:`notify`; without that, the change is seen within a second. A
        change that is reverted meanwhile may go unseen. It sleeps in the kernel (futex(2), on the low 32 bits) on
        x86-64 and arm64, and polls elsewhere. Raises as :meth:`load` does.

        Example:
            >>> shared = SharedBuffer(8)
            >>> shared.wait(0, expected=0, timeout=0)
            False
        """
        deadline, expected = _deadline(timeout), _signed(expected)
        while self.load(index) == expected:
            left = min(deadline - time.monotonic(), _LOOK_AGAIN)
            if left <= 0:
                return False
            if self._futex(index, _FUTEX_WAIT, expected, left) is None:
                time.sleep(min(left, _POLL))
        return True

    def notify(self, index: int, count: int | None = None) -> int:
        """Wake waiters (see :meth:`wait`) of slot ``index``: ``count`` of them, or all.

        Returns:
            How many were woken; always 0 where they poll.
        """
        self._offset(index)
        if count is not None and count < 1:
            return 0  # futex(2) would wake one
        return self._futex(index, _FUTEX_WAKE, _EVERYONE if count is None else min(count, _EVERYONE)) or 0

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the SharedBuffer is closed")

    def _offset(self, index: int) -> int:
        self._check_open()
        slots = self._nbytes // _SLOT
        if not 0 <= operator.index(index) < slots:
            raise IndexError(f"slot {index}: {self._nbytes} bytes have {slots} slots of {_SLOT}, counted from 0")
        return index * _SLOT

    def _change(self, index: int, change: Callable[[int], int]) -> int:
        offset = self._offset(index)
        with self._locked(offset, math.inf):
            # A memoryview stores an item with one memcpy; struct.pack_into writes zeros first (Modules/_struct.c).
            slot = memoryview(self)[offset : offset + _SLOT].cast("q")
            old = slot[0]
            new = _signed(change(old))
            if new != old:
                slot[0] = new
            return old

    @contextmanager
    def _locked(self, start: int, deadline: float) -> Iterator[None]:
        """Hold the lock of the bytes from ``start`` on.

        An open file description lock (fcntl(2)) belongs to the description that open(2) creates. Descriptors that were
        forked or passed share it, so each acquisition opens the memory anew: then it excludes threads as well as
        processes, and is released with its only descriptor.
        """
        if not hasattr(fcntl, "F_OFD_SETLK"):
            raise OffloadError("SharedBuffer: lock and atomic operations need Linux (F_OFD_SETLK in fcntl(2))")
        self._check_open()
        holder = object()
        fd = _buffers.held[holder] = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            _acquire(fd, start, deadline)
            yield
        finally:
            if holder in _buffers.held:  # else this is a fork of the holder
                # Unlocked explicitly, as a child between its fork and its exec still has the descriptor.
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start))
                _let_go(holder)

    def _futex(self, index: int, operation: int, value: int, timeout: float = 0.0) -> int | None:
        """Call futex(2) on the low half of a slot; None where the system call is not known."""
        offset = self._offset(index) + (0 if sys.byteorder == "little" else 4)
        syscall = _futex_call()
        if syscall is None:
            return None
        import ctypes

        word = ctypes.c_uint32.from_buffer(self, offset)  # also keeps the mapping alive
        seconds = (ctypes.c_long * 2)(int(timeout), int(timeout % 1 * 1e9))
        return int(syscall(ctypes.byref(word), operation, value & 0xFFFFFFFF, seconds))


def _rebuild(index: int, token: bytes) -> SharedBuffer:
    """Return the buffer that was passed. Two threads at once may map it twice, which does no harm."""
    known = _buffers.known.get(token)
    if known is not None and not known.closed:
        return known
    passage = descriptor_passing.current()
    if passage is None:
        raise NotPicklable("SharedBuffer: its pickle is of no use without the descriptor that was sent beside it")
    return SharedBuffer._over(passage.take(index), token)


def _allocate(nbytes: int) -> int:
    """Return the descriptor of ``nbytes`` of unnamed memory."""
    if sys.platform == "win32":
        raise OffloadError("SharedBuffer is not supported on Windows: it needs memory that is passed by descriptor")
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(nbytes)
            return os.dup(file.fileno())
    return memfd.sealed("loopwatch", nbytes)


def _signed(value: int) -> int:
    """Wrap ``value`` around at 64 bits."""
    return (operator.index(value) + 2**63) % 2**64 - 2**63


def _deadline(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConfigError(f"timeout={timeout!r}: must be a number of seconds, 0 or more, or None for ever")
    return time.monotonic() + timeout


def _flock(kind: int, start: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, _SLOT, 0)


def _acquire(fd: int, start: int, deadline: float) -> None:
    wanted = _flock(fcntl.F_WRLCK, start)
    if deadline == math.inf:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, wanted)
        return
    pause = 0.0001
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
            return
        except BlockingIOError:
            left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the lock of the SharedBuffer was held by others until the timeout")
        time.sleep(min(pause, left))
        pause = min(pause * 2, 0.005)


def _let_go(holder: object) -> None:
    fd = _buffers.held.pop(holder, None)
    if fd is not None:
        os.close(fd)


def _after_fork_in_child() -> None:
    """Close the descriptors of locks: a lock stays with its holder, and a child must not keep it after the holder."""
    for holder in list(_buffers.held):
        _let_go(holder)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@functools.cache
def _futex_call() -> Callable[..., int] | None:
    """Return futex(2), which the C library does not export; None where its number is not known."""
    number = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine)  # asm/unistd_64.h, asm-generic/unistd.h
    if number is None or sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    import ctypes

    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
    return functools.partial(call, number)

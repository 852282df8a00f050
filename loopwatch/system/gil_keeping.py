"""Reads small files of ``/proc`` without releasing the GIL; loaded by the watcher's thread, as ctypes takes a while.

Python's own functions release it for each of the three system calls of a reading. Where a loop makes long calls that
keep the GIL one after the other, the next one begins in that moment, and the reader waits until its end. The kernel
takes a few microseconds for these files, less than for a switch between threads.
"""

from __future__ import annotations

import ctypes
import os

_SIZE = 512
_FLAGS = os.O_RDONLY | os.O_CLOEXEC

_library = ctypes.PyDLL(None)
_open, _read, _close = _library.open, _library.read, _library.close
_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
_read.argtypes, _read.restype = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t], ctypes.c_ssize_t
_close.argtypes = [ctypes.c_int]


def read_file(path: str) -> str | None:
    """Return the first 512 bytes of a file as text, None where it cannot be read."""
    descriptor = _open(path.encode(), _FLAGS)
    if descriptor < 0:  # no such file here, or the thread has ended
        return None
    try:
        buffer = ctypes.create_string_buffer(_SIZE)
        size = _read(descriptor, buffer, _SIZE)
    finally:
        _close(descriptor)
    return buffer.raw[:size].decode(errors="replace") if size >= 0 else None

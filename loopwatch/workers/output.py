"""Copies workers' standard output and error to those of this process, line by line and with a prefix.

Only for pools with ``prefix_output``: other workers write to the inherited streams directly. Each worker has a pipe for
either stream in place of its descriptors 1 and 2, so that the output of C code and of child processes is included; a
wrapper around ``sys.stdout`` would miss it. The loop reads the pipes a little at a time; threads write, as a terminal
or pipe of this process may be slow or stuck. If one is, only the workers wait, in their ``write``.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import select
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from loopwatch.core import log
from loopwatch.core.originals import time
from loopwatch.core.process_state import living, one
from loopwatch.core.threads.untraced import UntracedThread
from loopwatch.workers import descriptor_passing

READ = 1 << 15
"""Bytes read from one pipe in one turn of the loop."""
LONGEST_LINE = 1 << 20
"""Bytes from which on a line is split."""
MOST_WAITING = 1 << 21
"""Bytes waiting to be written, beyond which pipes are not read."""
IN_ONE = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512
"""Bytes that are written to a pipe in one piece, with nothing of other writers in between (pipe(7))."""
LINGER = 1.0
"""Seconds after which an idle writer thread ends."""
PATIENCE = 1.0
"""Seconds that the end of a pool, or of the program, waits for unwritten output."""
STREAMS = (1, 2)


class Output:
    """The pipes of all workers of one pool.

    Args:
        loop: of the pool.
        prefix: returns the line prefix for the pid of a worker.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, prefix: Callable[[int], str]) -> None:
        self._loop, self._prefix = loop, prefix
        self._pid = os.getpid()
        self._writers = [_Writer(number, self._on_room) for number in STREAMS]
        self._taps: set[_Tap] = set()

    def tap(self, pid: int) -> descriptor_passing.Duplicates:
        """Return pipes to replace a worker's descriptors 1 and 2; nothing if none can be opened."""
        theirs = descriptor_passing.Duplicates()
        ours: list[int] = []
        try:
            for _ in STREAMS:
                read, write = os.pipe()
                theirs.numbers.append(write)
                ours.append(read)
                os.set_blocking(read, False)
        except OSError as exc:
            log.write(logging.WARNING, "loopwatch: the output of worker %d is not prefixed: %s", pid, exc)
            for each in ours:
                os.close(each)
            return descriptor_passing.NONE
        prefix = self._prefix(pid).encode(errors="backslashreplace")
        for read, writer in zip(ours, self._writers, strict=True):
            tap = _Tap(read, prefix, writer, self)
            self._taps.add(tap)
            self.listen(tap)
        return theirs

    def listen(self, tap: _Tap) -> None:
        """Read a pipe, unless its writer is full."""
        if not tap.writer.is_full:
            self._loop.add_reader(tap.descriptor, tap.readable)

    def on_full(self, writer: _Writer) -> None:
        """Stop reading the pipes of a writer that is full."""
        for tap in self._taps:
            if tap.writer is writer:
                self._loop.remove_reader(tap.descriptor)

    def on_end(self, tap: _Tap) -> None:
        """Close a pipe whose other end is closed everywhere."""
        self._loop.remove_reader(tap.descriptor)
        self._taps.discard(tap)
        tap.close()

    def _on_room(self, writer: _Writer) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._go_on, writer)

    def _go_on(self, writer: _Writer) -> None:
        for tap in self._taps:
            if tap.writer is writer:
                self.listen(tap)

    async def close(self) -> None:
        """Write the remaining output of the workers, which have ended; give up after :data:`PATIENCE` seconds."""
        for tap in list(self._taps):
            tap.drain()
            self.on_end(tap)
        written = [asyncio.Event() for _ in self._writers]
        for writer, event in zip(self._writers, written, strict=True):
            writer.finish(lambda event=event: self._loop.call_soon_threadsafe(event.set))  # type: ignore[misc]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                for event in written:
                    await event.wait()

    def abandon(self, *, owns_loop: bool) -> None:
        """Close the pipes without the loop; a forked child leaves their content to its parent."""
        for tap in self._taps:
            if owns_loop:
                self._loop.remove_reader(tap.descriptor)
            if os.getpid() == self._pid:
                tap.drain()
            tap.close()
        self._taps.clear()


class _Tap:
    """The read end of one pipe; splits its output into lines."""

    def __init__(self, descriptor: int, prefix: bytes, writer: _Writer, output: Output) -> None:
        self.descriptor, self.writer = descriptor, writer
        self._prefix, self._output = prefix, output
        self._begun: list[bytes] = []
        """The beginning of an unfinished line."""
        self._size = 0
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False

    def close(self) -> None:
        """Close the pipe; a second call does nothing."""
        self._close()

    def readable(self) -> None:
        """Read one slice."""
        if self._read() is None:
            self._end_line()
            self._output.on_end(self)
        elif self.writer.is_full:
            self._output.on_full(self.writer)

    def drain(self) -> None:
        """Read the rest, at most what a pipe holds: other processes may have the other end and keep writing."""
        most = LONGEST_LINE  # as much as a pipe can hold, see F_SETPIPE_SZ in fcntl(2)
        while most > 0 and (count := self._read()):
            most -= count
        self._end_line()

    def _read(self) -> int | None:
        """Read one slice; return its size, None at the end."""
        try:
            data = os.read(self.descriptor, READ)
        except (BlockingIOError, InterruptedError):
            return 0
        if not data:
            return None
        lines, newline, rest = data.rpartition(b"\n")
        if newline:
            self._write_lines(b"".join((*self._begun, lines)))
            self._begun, self._size = [], 0
        if rest:
            self._begun.append(rest)
            self._size += len(rest)
            if self._size >= LONGEST_LINE:
                self._end_line()
        return len(data)

    def _end_line(self) -> None:
        if self._begun:
            self._write_lines(b"".join(self._begun))
            self._begun, self._size = [], 0

    def _write_lines(self, lines: bytes) -> None:
        self.writer.put(b"".join((self._prefix, lines.replace(b"\n", b"\n" + self._prefix), b"\n")))


class _Writer:
    """Writes to a descriptor of this process, in a thread that exists while there is something to write.

    Args:
        number: 1 or 2.
        on_room: called in the thread when the writer is no longer full.
    """

    def __init__(self, number: int, on_room: Callable[[_Writer], None]) -> None:
        self.is_full = False
        self._number, self._on_room = number, on_room
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._thread: threading.Thread | None = None
        self._finished: Callable[[], object] | None = None
        living(_Writer).add(self)

    def put(self, lines: bytes) -> None:
        """Queue whole lines for writing."""
        with self._changed:
            if self._thread is None:
                thread = UntracedThread(self._work, "loopwatch-output")
                try:
                    thread.start()
                except RuntimeError:  # the system allows no more threads, or the interpreter ends: the lines are lost
                    return
                self._thread = thread
            self._waiting.append(lines)
            self._size += len(lines)
            if self._size >= MOST_WAITING:
                self.is_full = True  # until the thread finds room, and reports it
            self._changed.notify_all()

    def finish(self, finished: Callable[[], object]) -> None:
        """Call ``finished``, in any thread, when all is written."""
        with self._changed:
            self._finished = finished
            self._changed.notify_all()
            if self._thread is None:
                finished()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and self._finished is None:
                    self._changed.wait(LINGER)
                if not self._waiting:
                    self._thread = None
                    if self._finished is not None:
                        with contextlib.suppress(RuntimeError):  # the loop is closed
                            self._finished()
                    self._changed.notify_all()
                    return
                lines = self._waiting.popleft()
            # The descriptor may be closed, its reader gone, the disk full: these lines are lost then.
            with contextlib.suppress(OSError), _one_at_a_time[self._number]:
                self._write(lines)
            with self._changed:
                self._size -= len(lines)
                has_room = self.is_full and self._size <= MOST_WAITING // 2
                if has_room:
                    self.is_full = False
            if has_room:
                self._on_room(self)

    def _write(self, lines: bytes) -> None:
        stream = (sys.__stdout__, sys.__stderr__)[self._number - 1]
        if stream is None or stream.closed:  # the number may belong to another file by now
            return
        for piece in _pieces(lines):
            left = memoryview(piece)
            while left:
                try:
                    left = left[os.write(self._number, left) :]
                except BlockingIOError:
                    select.select([], [self._number], [])

    def wait(self, ends: float) -> None:
        """Wait until all is written, or until ``time.monotonic()`` is ``ends``."""
        with self._changed:
            self._finished = self._finished or (lambda: None)
            self._changed.notify_all()
            while self._thread is not None and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)


def _pieces(lines: bytes) -> Iterator[bytes]:
    """Split at line ends into pieces that are each written in one, except lines that are longer than that."""
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + IN_ONE) + 1 or lines.find(b"\n", start) + 1
        yield lines[start:end]
        start = end


class _Locks(dict[int, threading.Lock]):
    """A lock for each descriptor, as several pools may write to it."""

    def renew(self) -> None:
        """Replace the locks, as a thread that holds one may not exist any more."""
        self.update((number, threading.Lock()) for number in STREAMS)

    __init__ = renew


_one_at_a_time = one(_Locks)


def _wait_for_all() -> None:
    ends = time.monotonic() + PATIENCE
    for writer in list(living(_Writer)):
        writer.wait(ends)


def _forget_all() -> None:
    """Reset in a forked child, where the threads that may hold the locks do not exist."""
    living(_Writer).clear()
    _one_at_a_time.renew()


atexit.register(_wait_for_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

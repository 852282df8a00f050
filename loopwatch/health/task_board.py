"""The task board: shared memory in which workers of process pools record their current task for the parent to read.

It is an anonymous file (``memfd_create``): workers open it as ``/proc/PID/fd/N`` of their parent, and it vanishes once
all processes that mapped it are gone, however they end. Workers import this module too, so it imports next to nothing.

Each worker writes only to its own slot; words are 8 bytes, which processors store atomically.
"""

from __future__ import annotations

import mmap
import os
import sys
from struct import Struct
from typing import NamedTuple

from loopwatch.core import memfd
from loopwatch.core.process_state import one

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SLOTS = 512
"""Workers that can be alive at once; the tasks of further ones are unknown."""
RING = 64
"""Latest tasks of a worker whose times are kept; a pool hands out fewer before it takes their results."""
PROBES = 64
"""Slots that a worker probes for a free one."""

# Indexes of the words of a slot.
PID, STAGE, SINCE, NUMBER, DONE, BUSY, CPU, OVERHEAD = range(8)
_HEAD = 8
_ENTRY = 4
_WORDS = _HEAD + RING * _ENTRY
SIZE = SLOTS * _WORDS * 8

STARTING, READY = 1, 2
_BEGIN, _ENDED, _HEADER = Struct("@2q").pack_into, Struct("@4q").pack_into, Struct("@4q").pack_into


class Address(NamedTuple):
    """Where a worker finds the task board of its parent.

    Attributes:
        pid: process id of the parent.
        fd: descriptor in the parent.
        device, inode: identity of the file, as descriptor numbers are reused.
    """

    pid: int
    fd: int
    device: int
    inode: int


class Run(NamedTuple):
    """Times of a finished task in seconds; ``start`` and ``end`` are ``time.monotonic``, the same in all processes."""

    start: float
    end: float
    cpu: float


class Now(NamedTuple):
    """The entry of one worker at this moment.

    Attributes:
        ready: whether it has begun to ask for tasks.
        number: number of its current task, None if it has none.
        since: start of that task, ``time.monotonic`` seconds.
        done: number of tasks it has finished.
        busy, cpu: run time and CPU seconds of those.
        overhead: CPU seconds between tasks: the cost of arguments and results.
    """

    ready: bool
    number: int | None
    since: float
    done: int
    busy: float
    cpu: float
    overhead: float


def _place(number: int) -> int:
    """Return the offset of a task in a slot's ring; the upper half of its number may be the number of a job."""
    return (number + (number >> 32)) % RING * _ENTRY


_NOTHING = memoryview(bytes(SIZE)).cast("q")


class TaskBoard:
    """The parent's side of the task board. Any thread may read.

    Raises:
        OSError, AttributeError: this system does not support memfd.

    Example:
        >>> board = TaskBoard()
        >>> slot = claim(board.address, pid=42)
        >>> slot.words[slot.base + DONE] = 7
        >>> board.now(board.slot_of(42)).done
        7
        >>> slot.close(); board.close()
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._fd = memfd.sealed("loopwatch-pools", SIZE)
        try:
            self._map = mmap.mmap(self._fd, SIZE)
            found = os.fstat(self._fd)
        except BaseException:
            os.close(self._fd)
            raise
        self.address = Address(self.pid, self._fd, found.st_dev, found.st_ino)
        self._words = memoryview(self._map).cast("q")

    def close(self) -> None:
        """Release the memory; workers that have it mapped may go on writing, and later reads find it empty."""
        words, self._words = self._words, _NOTHING
        if _is_at(self._fd, self.address):
            words.release()
            self._map.close()
            os.close(self._fd)
        else:  # a program that became a daemon closed all descriptors: mmap's copy may be another file now
            one(_Lost).append(self._map)

    def abandon(self) -> None:
        """Release the parent's task board in a forked child."""
        self.close()

    def slot_of(self, pid: int) -> int | None:
        """Return the index of the slot that worker ``pid`` has taken, None if it has none."""
        words, start = self._words, pid % SLOTS
        for probe in range(PROBES):
            index = (start + probe) % SLOTS
            if words[index * _WORDS + PID] == pid:
                return index
        return None

    def now(self, index: int) -> Now:
        """Return the entry in slot ``index``."""
        words, base = self._words, index * _WORDS
        number = words[base + NUMBER]
        since = words[base + SINCE]
        return Now(
            words[base + STAGE] == READY,
            number - 1 if number else None,
            since / 1e9,
            words[base + DONE],
            words[base + BUSY] / 1e9,
            words[base + CPU] / 1e9,
            words[base + OVERHEAD] / 1e9,
        )

    def finished(self, index: int, number: int) -> Run | None:
        """Return the times of finished task ``number``, None if the slot does not have them."""
        words = self._words
        at = index * _WORDS + _HEAD + _place(number)
        if words[at] != number + 1:
            return None
        start, end, cpu = words[at + 1 : at + 4]
        return Run(start / 1e9, end / 1e9, cpu / 1e9) if words[at] == number + 1 else None

    def free(self, index: int) -> None:
        """Clear the slot of a worker that is gone, for another to claim."""
        base = index * _WORDS
        self._words[base : base + _WORDS] = memoryview(bytes(8 * _WORDS)).cast("q")


class _Lost(list[mmap.mmap]):
    """Maps that must never be closed: that would close a descriptor of the program."""


def _is_at(fd: int, address: Address) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (address.device, address.inode)


class Slot:
    """The worker's side: the slot that it has claimed, as words and as bytes.

    Structs in native byte order store word by word, in the order of their fields.
    """

    __slots__ = ("_busy", "_cpu", "_done", "_map", "_overhead", "base", "words")

    def __init__(self, mapped: mmap.mmap, base: int) -> None:
        self._map = mapped
        self.words = memoryview(mapped).cast("q")
        self.base = base
        self._done = self._busy = self._cpu = self._overhead = 0

    def close(self) -> None:
        """Release the memory; the slot keeps its contents."""
        self.words.release()
        self._map.close()

    def ready(self) -> None:
        """Record that the worker is initialized and asks for tasks."""
        self.words[self.base + STAGE] = READY

    def begin(self, number: int, now: int, between: int) -> None:
        """Record that task ``number`` begins at ``now`` (``time.monotonic_ns``), after ``between`` ns of CPU overhead.

        The overhead is the CPU time since the last task ended: for its result and the arguments of this one.
        """
        if between:
            self._overhead += between
            self.words[self.base + OVERHEAD] = self._overhead
        _BEGIN(self._map, (self.base + SINCE) * 8, now, number + 1)

    def end(self, number: int, start: int, now: int, cpu: int) -> None:
        """Record that task ``number`` ran from ``start`` to ``now`` and used ``cpu`` ns of CPU."""
        base, mapped = self.base, self._map
        self._done += 1
        self._busy += now - start
        self._cpu += cpu
        _ENDED(mapped, (base + _HEAD + _place(number)) * 8, number + 1, start, now, cpu)
        _HEADER(mapped, (base + NUMBER) * 8, 0, self._done, self._busy, self._cpu)


def claim(address: Address, pid: int) -> Slot | None:
    """Claim a slot for worker ``pid``; None without a task board or a free slot. Never waits, never raises."""
    if fcntl is None or sys.platform != "linux":
        return None
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        found = os.stat(path)  # noqa: PTH116 - before opening it, which has effects on some kinds of files
        if (found.st_dev, found.st_ino) != (address.device, address.inode):
            return None
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (address.device, address.inode):
            return None
        return _take(fd, mmap.mmap(fd, SIZE), pid)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _take(fd: int, mapped: mmap.mmap, pid: int) -> Slot | None:
    words = memoryview(mapped).cast("q")
    for probe in range(PROBES):
        index = (pid + probe) % SLOTS
        base = index * _WORDS
        if words[base + PID]:
            continue
        try:  # two workers may try the same free slot; closing the descriptor releases the lock
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 8, base * 8)
        except OSError:
            continue
        if not words[base + PID]:
            words[base + STAGE] = STARTING
            words[base + PID] = pid
            words.release()
            return Slot(mapped, base)
    words.release()
    mapped.close()
    return None

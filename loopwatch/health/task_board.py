"""Memory that the workers of process pools write to and their parent reads: what each one runs, and since when.

It is a file without a name (``memfd_create``): workers find it as ``/proc/PID/fd/N`` of their parent, and nothing is
left of it once all who have mapped it are gone, however they end. Loaded in workers too, so that it imports next to
nothing.

Every worker has one slot, and only it writes to that; words are 8 bytes, which processors store in one piece.
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
"""Workers that can be alive at once; of further ones it is not known what they run."""
RING = 64
"""Tasks of a worker whose times its parent can still ask for; a pool hands out fewer before it takes the results."""
PROBES = 64
"""Slots that a worker tries."""

# Words of a slot.
PID, STAGE, SINCE, NUMBER, DONE, BUSY, CPU, OVERHEAD = range(8)
_HEAD = 8
_ENTRY = 4
_WORDS = _HEAD + RING * _ENTRY
SIZE = SLOTS * _WORDS * 8

STARTING, READY = 1, 2
_BEGIN, _ENDED, _HEADER = Struct("@2q").pack_into, Struct("@4q").pack_into, Struct("@4q").pack_into


class Address(NamedTuple):
    """Where a worker finds the board of its parent.

    Attributes:
        pid: of the parent.
        fd: its descriptor.
        device, inode: what is to be found there; numbers of descriptors are used again.
    """

    pid: int
    fd: int
    device: int
    inode: int


class Run(NamedTuple):
    """One finished task, in s; ``start`` and ``end`` are those of ``time.monotonic``, the same in all processes."""

    start: float
    end: float
    cpu: float


class Now(NamedTuple):
    """One worker at this moment.

    Attributes:
        ready: whether it has begun to ask for tasks.
        number: of the task that it runs, None if it runs none.
        since: ``time.monotonic`` s when it began that.
        done: tasks it has finished.
        busy, cpu: s that those took, and used of a processor.
        overhead: s of processor time between tasks: what arguments and results cost it.
    """

    ready: bool
    number: int | None
    since: float
    done: int
    busy: float
    cpu: float
    overhead: float


def _place(number: int) -> int:
    """Return where in a slot's ring a task is noted; the upper half of its number may be that of a job."""
    return (number + (number >> 32)) % RING * _ENTRY


_NOTHING = memoryview(bytes(SIZE)).cast("q")


class TaskBoard:
    """The parent's side. Any thread may read.

    Raises:
        OSError, AttributeError: this system has no such files.

    Example:
        >>> board = Board()
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
        """Let go of it; workers that have it keep writing where nobody reads, and who asks still finds nothing."""
        words, self._words = self._words, _NOTHING
        if _is_at(self._fd, self.address):
            words.release()
            self._map.close()
            os.close(self._fd)
        else:  # a program that becomes a daemon has closed all descriptors, and mmap's copy has its number no more
            one(_Lost).append(self._map)

    def abandon(self) -> None:
        """Let go of the parent's in a forked child."""
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
        """Return what the worker of slot ``index`` is about."""
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
        """Return how task ``number`` went, None if it is not this worker that ran it."""
        words = self._words
        at = index * _WORDS + _HEAD + _place(number)
        if words[at] != number + 1:
            return None
        start, end, cpu = words[at + 1 : at + 4]
        return Run(start / 1e9, end / 1e9, cpu / 1e9) if words[at] == number + 1 else None

    def free(self, index: int) -> None:
        """Have the slot of a worker that is gone taken by another."""
        base = index * _WORDS
        self._words[base : base + _WORDS] = memoryview(bytes(8 * _WORDS)).cast("q")


class _Lost(list[mmap.mmap]):
    """Maps that must not be closed: with them somebody else's descriptor would be."""


def _is_at(fd: int, address: Address) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (address.device, address.inode)


class Slot:
    """The worker's side: a slot that it has taken, as words and as the bytes that they are.

    Structs in the machine's own order store word by word, in the order of their fields.
    """

    __slots__ = ("_busy", "_cpu", "_done", "_map", "_overhead", "base", "words")

    def __init__(self, mapped: mmap.mmap, base: int) -> None:
        self._map = mapped
        self.words = memoryview(mapped).cast("q")
        self.base = base
        self._done = self._busy = self._cpu = self._overhead = 0

    def close(self) -> None:
        """Let go of the memory; what was written stays."""
        self.words.release()
        self._map.close()

    def ready(self) -> None:
        """It has been prepared and asks for tasks."""
        self.words[self.base + STAGE] = READY

    def begin(self, number: int, now: int, between: int) -> None:
        """Task ``number`` begins at ``now`` (``time.monotonic_ns``); ``between`` ns of CPU went into what came before.

        That is what was used since the last one ended: for its result, and for the arguments of this one.
        """
        if between:
            self._overhead += between
            self.words[self.base + OVERHEAD] = self._overhead
        _BEGIN(self._map, (self.base + SINCE) * 8, now, number + 1)

    def end(self, number: int, start: int, now: int, cpu: int) -> None:
        """Task ``number`` has run from ``start`` to ``now`` and used ``cpu`` ns of a processor."""
        base, mapped = self.base, self._map
        self._done += 1
        self._busy += now - start
        self._cpu += cpu
        _ENDED(mapped, (base + _HEAD + _place(number)) * 8, number + 1, start, now, cpu)
        _HEADER(mapped, (base + NUMBER) * 8, 0, self._done, self._busy, self._cpu)


def claim(address: Address, pid: int) -> Slot | None:
    """Take a slot for worker ``pid``, None if there is no board, or none is free. Never waits, never raises."""
    if fcntl is None or sys.platform != "linux":
        return None
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        found = os.stat(path)  # noqa: PTH116 - first: to open what is no file may have effects
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
        try:  # two workers may look at the same free slot; the lock goes when the descriptor is closed
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

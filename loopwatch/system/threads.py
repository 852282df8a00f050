"""Facts about threads and the process, from the kernel and the interpreter. Linux first; elsewhere None.

Files are opened for each reading: no descriptor stays open, and a forked child reads its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from loopwatch.core.originals import time
from loopwatch.core.patches import loaded

MAX_THREADS = 256
"""Maximum threads whose clocks are compared to find the one that uses most processor time."""

# Numbers from arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h: the calls that block.
_SYSCALLS: Mapping[str, Mapping[int, str]] = {
    "x86_64": {
        0: "read", 1: "write", 2: "open", 4: "stat", 5: "fstat", 6: "lstat", 7: "poll", 16: "ioctl", 17: "pread64",
        18: "pwrite64", 19: "readv", 20: "writev", 23: "select", 26: "msync", 34: "pause", 35: "nanosleep",
        42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4",
        72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 78: "getdents",
        82: "rename", 83: "mkdir", 84: "rmdir", 87: "unlink", 128: "rt_sigtimedwait", 130: "rt_sigsuspend",
        162: "sync", 202: "futex", 217: "getdents64", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid",
        257: "openat", 262: "newfstatat", 270: "pselect6", 271: "ppoll", 275: "splice", 277: "sync_file_range",
        281: "epoll_pwait", 285: "fallocate", 288: "accept4", 295: "preadv", 296: "pwritev", 299: "recvmmsg",
        306: "syncfs", 307: "sendmmsg", 318: "getrandom", 326: "copy_file_range", 40: "sendfile", 332: "statx",
        426: "io_uring_enter", 437: "openat2", 441: "epoll_pwait2", 449: "futex_waitv",
    },
    "aarch64": {
        22: "epoll_pwait", 25: "fcntl", 29: "ioctl", 32: "flock", 35: "unlinkat", 45: "truncate", 46: "ftruncate",
        47: "fallocate", 56: "openat", 61: "getdents64", 63: "read", 64: "write", 65: "readv", 66: "writev",
        67: "pread64", 68: "pwrite64", 69: "preadv", 70: "pwritev", 71: "sendfile", 72: "pselect6", 73: "ppoll",
        76: "splice", 79: "newfstatat", 80: "fstat", 81: "sync", 82: "fsync", 83: "fdatasync", 84: "sync_file_range",
        95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 133: "rt_sigsuspend",
        137: "rt_sigtimedwait", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg",
        212: "recvmsg", 227: "msync", 242: "accept4", 243: "recvmmsg", 260: "wait4", 267: "syncfs", 269: "sendmmsg",
        276: "renameat2", 278: "getrandom", 285: "copy_file_range", 291: "statx", 426: "io_uring_enter",
        437: "openat2", 441: "epoll_pwait2", 449: "futex_waitv",
    },
}  # fmt: skip
_NAMES = _SYSCALLS.get(os.uname().machine if hasattr(os, "uname") else "", {})

_LINUX = sys.platform == "linux"
_PAGE = 4096
_open, _read, _close = os.open, os.read, os.close

_GROUPS = "/sys/fs/cgroup"
"""Mount point of the control groups."""

RUNNING = "running"
"""In place of a system call: the thread is on a processor, or waits for one."""


class Scheduled(NamedTuple):
    """The scheduler's account of a thread (``sched_info`` in Linux include/linux/sched.h).

    Attributes:
        cpu: seconds it ran.
        run_queue: seconds it was runnable but waited for a processor, also while a quota held its cgroup back.
        runs: how many times it was given a processor.
    """

    cpu: float
    run_queue: float
    runs: int


class Clocks(NamedTuple):
    """Clocks of a thread and its process, in seconds; None where the system has no such clock.

    Attributes:
        at: time of the reading (``time.monotonic``).
        cpu: processor time of the thread.
        process_cpu: processor time of the process.
        run_queue: time the thread was runnable but waited for a processor.
        runs: how many times the thread was given a processor.
    """

    at: float
    cpu: float | None
    process_cpu: float
    run_queue: float | None
    runs: int | None = None


class ThreadFacts:
    """One thread of this process, readable from any other. Create it on the thread itself: :meth:`here`."""

    __slots__ = ("ident", "name", "native_id")

    def __init__(self, ident: int, native_id: int, name: str) -> None:
        self.ident, self.native_id, self.name = ident, native_id, name

    @classmethod
    def here(cls) -> ThreadFacts:
        """Return the facts of the calling thread."""
        return cls(threading.get_ident(), threading.get_native_id(), thread_name())

    def cpu(self) -> float | None:
        """Return the processor seconds of the thread, None where the system has no such clock."""
        return thread_cpu(self.native_id)

    def scheduled(self) -> Scheduled | None:
        """Return the scheduler's account (``/proc/PID/task/TID/schedstat``), None where that does not exist."""
        return scheduled(self.native_id)

    def clocks(self, *, files: bool = True) -> Clocks:
        """Read all clocks; the scheduler's account, which is read from a file, last, and only if ``files``."""
        at, cpu, process_cpu = time.monotonic(), self.cpu(), time.process_time()
        found = self.scheduled() if files else None
        if found is None:
            return Clocks(at, cpu, process_cpu, None)
        return Clocks(at, cpu, process_cpu, found.run_queue, found.runs)

    def waiting_in(self, *, channel: bool = True) -> tuple[str | None, str | None]:
        """Return (system call, kernel function) that the thread is in; ``running`` if it is on a processor.

        Args:
            channel: whether to read the kernel function.
        """
        text = _read_thread(self.native_id, "syscall")
        if text is None:
            return None, None
        number = text.partition(" ")[0].strip()
        if number == RUNNING:
            return RUNNING, None
        name = _NAMES.get(int(number), f"syscall {number}") if number.lstrip("-").isdigit() else None
        found = _read_thread(self.native_id, "wchan") if channel else None
        return name, found if found not in ("", "0") else None


def thread_name() -> str:
    """Return the name of the calling thread.

    A thread started by C code has no thread object yet; ``threading.current_thread()`` would create a permanent one,
    visible to the program (``_DummyThread`` in CPython's Lib/threading.py).
    """
    ident = threading.get_ident()
    known = threading._active.get(ident)  # type: ignore[attr-defined]
    return f"thread {threading.get_native_id()}" if known is None else str(known.name)


def scheduled(native_id: int) -> Scheduled | None:
    """Return the scheduler's account of a thread of this process."""
    text = _read_thread(native_id, "schedstat")
    fields = text.split() if text else ()
    return Scheduled(int(fields[0]) / 1e9, int(fields[1]) / 1e9, int(fields[2])) if len(fields) >= 3 else None


def thread_cpu(native_id: int) -> float | None:
    """Return the processor seconds of a thread of this process, None if it has ended or there is no such clock.

    The clock's id is computed from the thread's id as the kernel defines it (``CPUCLOCK_*`` in Linux
    ``include/linux/posix-timers_types.h``): the kernel refuses that of a finished thread, whereas
    ``pthread_getcpuclockid`` would read freed memory.
    """
    if not _LINUX:
        return None
    try:
        return time.clock_gettime((~native_id << 3) | 6)
    except OSError:
        return None


ThreadId = tuple[int | None, int]
"""(ident, native id) of a thread: idents are reused as soon as a thread has ended, the kernel's ids late."""


def thread_clocks() -> dict[ThreadId, float]:
    """Return the processor seconds of the first 256 Python threads, without releasing the GIL."""
    threads = threading.enumerate()[:MAX_THREADS]
    ids = [(thread.ident, thread.native_id) for thread in threads if thread.native_id is not None]
    clocks = ((thread, thread_cpu(thread[1])) for thread in ids)
    return {thread: cpu for thread, cpu in clocks if cpu is not None}


def throttled() -> float | None:
    """Return the seconds that processor quotas have held back this process's cgroup and its ancestors; None if unknown.

    Each group counts what its own quota has cost, not its ancestors' quotas (``throttled_time`` of ``cfs_bandwidth`` in
    Linux kernel/sched/fair.c).
    """
    for path in _cpu_stat_paths():
        found = [seconds for each in (path, *_above(path)) if (seconds := _throttled_in(each)) is not None]
        if found:
            return sum(found)
    return None


def _above(path: str) -> Iterator[str]:
    """Yield the ``cpu.stat`` files of the ancestors of the group of ``path``."""
    folder = path.rpartition("/")[0].rpartition("/")[0]
    while len(folder) > len(_GROUPS):
        yield f"{folder}/cpu.stat"
        folder = folder.rpartition("/")[0]


def _throttled_in(path: str) -> float | None:
    for line in (read_kernel(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == "throttled_usec":
            return int(value) / 1e6
        if key == "throttled_time":
            return int(value) / 1e9
    return None


def _cpu_stat_paths() -> list[str]:
    text = read_kernel("/proc/self/cgroup") or ""
    paths = []
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            paths.append(f"/sys/fs/cgroup{path}/cpu.stat")
            paths.append(f"/sys/fs/cgroup/unified{path}/cpu.stat")  # beside version 1
        elif "cpu" in controllers.split(","):
            paths.append(f"/sys/fs/cgroup/{controllers}{path}/cpu.stat")
            paths.append(f"/sys/fs/cgroup/cpu{path}/cpu.stat")
    # Inside a container the path is often the host's: the container's own group is mounted at the top.
    return [*paths, "/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"]


def _read_thread(native_id: int, name: str) -> str | None:
    """Return the text of a file of one thread, without releasing the GIL once the watcher has loaded the reader."""
    return _read_keeping(f"/proc/self/task/{native_id}/{name}")


def _read_keeping(path: str) -> str | None:
    keeping = loaded("loopwatch.system.gil_keeping")
    return read_kernel(path) if keeping is None else keeping.read_file(path)


def load_reader() -> None:
    """Load the reader that keeps the GIL, where there is one; never on a loop's thread, as it takes milliseconds."""
    if _LINUX:
        with contextlib.suppress(Exception):  # no ctypes, or no executable memory for it, or forbidden by an audit hook
            import loopwatch.system.gil_keeping  # noqa: F401


def traced() -> bool:
    """Whether a debugger is attached to this process (``TracerPid`` in ``/proc/self/status``)."""
    text = _read_keeping("/proc/self/status") or ""
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in text.splitlines())


def read_kernel(path: str, *, whole: bool = False) -> str | None:
    """Return the text of a file of ``/proc`` or ``/sys``; None where it does not exist or cannot be read.

    Ten times cheaper than a file object: these files are read while a loop is blocked. Calls functions bound at import:
    programs replace ``open`` or ``os.read`` to check what the threads of their loops do.

    Args:
        path: of the file.
        whole: whether it may be longer than 4 KiB; otherwise it is read once.
    """
    if not _LINUX:
        return None
    try:
        descriptor = _open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no such file here, or the thread has ended
        return None
    parts = []
    try:
        while part := _read(descriptor, _PAGE):
            parts.append(part)
            if not whole:
                break
    except OSError:
        return None
    finally:
        _close(descriptor)
    return b"".join(parts).decode(errors="replace")

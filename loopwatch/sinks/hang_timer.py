"""The hang timer: faulthandler's C thread writes the stack of a hang during which no Python can run.

The watcher re-arms the timer again and again; it expires only when the watcher is kept from running for long, and
writes to a private file beside the journal, which survives ``kill -9``. A process has only one such timer: it is left
alone if other code uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loopwatch.core import descriptors
from loopwatch.core.patches import Patch, PatchSet, loaded
from loopwatch.core.threads.own_thread import until_one_less
from loopwatch.events import Cause, Evidence, Frame, Stall
from loopwatch.sinks.files import FLAGS, hang_path, open_private, why_not_ours
from loopwatch.sinks.hang_file import HangDump, hang_header, parse_hang

_NEVER = float("-inf")

_CLOCK_SLACK = 0.1
"""Seconds; file times come from the kernel's coarse clock (inode_set_ctime_current in Linux fs/inode.c)."""


class _Held:
    """A context manager that a forked child can drop: a generator would release the parent's lock there, by and by."""

    def __init__(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._enter, self._leave = enter, leave

    def __enter__(self) -> None:
        self._enter()

    def __exit__(self, *_exc: object) -> None:
        self._leave()


class HangTimer:
    """Keeps faulthandler's timer armed for the loops of this process.

    Args:
        setting: ``Config.journal``.
        hang_after: seconds; the timer expires between half of it and all of it after the interpreter stopped.
        patches: used to notice that other code uses the timer.
    """

    def __init__(self, setting: str, hang_after: float, patches: PatchSet) -> None:
        import faulthandler  # here: a sub-interpreter may import this module, but not faulthandler

        self._faulthandler = faulthandler
        self.path = hang_path(setting, os.getpid())
        self._hang_after = hang_after
        self._patches = patches
        self._lock = threading.RLock()
        self._file: int | None = None
        self._mark: descriptors.Mark = None
        self._closed = False
        self._armed = False
        self._armed_at = _NEVER
        self._threads: dict[int, str] = {}
        self._written = 0
        self._dumps: deque[HangDump] = deque(maxlen=32)
        self._arming: int | None = None  # ident of the arming thread
        # pytest arms the timer around each test, if configured to.
        self._yielded = loaded("_pytest.faulthandler") is not None
        self._watching: list[Patch] = []
        if not self._yielded:
            for name in ("dump_traceback_later", "cancel_dump_traceback_later"):
                self._watching.append(patches.around(faulthandler, name, self._noticed))

    def tick(self, now: float, threads: Mapping[int, str], pace: float) -> None:
        """Re-arm the timer if it is due; in the watcher's thread.

        Args:
            now: ``time.monotonic`` seconds.
            threads: name of each loop by ident of its thread.
            pace: seconds to the next tick at most, while Python runs.

        Raises:
            OSError: the file cannot be written.
        """
        # Without a loop there may be no further tick to disarm it.
        if self._yielded or (threads == self._threads and now - self._armed_at < self._hang_after / 2):
            return
        with self._lock:
            if self._closed or self._yielded or (not threads and self._file is None):
                return
            self._see_whether_lost()
            self._keep_dump()
            if dict(threads) != self._threads or self._file is None:
                self._begin(dict(threads))
            self._armed_at = now
            self._arm(max(self._hang_after, 2 * pace) if threads else None)

    def dump_of(self, loop: str, since: float, until: float) -> tuple[Frame, ...]:
        """Return the stack that was written while ``loop`` was blocked; () if there is none.

        Args:
            loop: name of the loop.
            since, until: bounds of the block, seconds since the epoch; a stack from outside belongs to another event,
                such as a stopped process.
        """
        with self._lock:
            if not self._closed:
                self._see_whether_lost()
                self._keep_dump()
            during = [
                dump.frames
                for dump in self._dumps
                if dump.loop == loop and since - _CLOCK_SLACK <= dump.at <= until + _CLOCK_SLACK
            ]
        return during[-1] if during else ()

    def disarm(self) -> None:
        """Disarm the timer; the next tick arms it again."""
        with self._lock:
            self._disarm()
            self._armed_at = _NEVER

    def close(self) -> None:
        """Disarm the timer and remove the file."""
        with self._lock:
            self._closed = True
            self._disarm()
            for patch in self._watching:
                self._patches.undo(patch)
            if self._file is not None:
                descriptors.close(self._file, self._mark)
                self._file = None
                if self._mark is not None and self._mark == descriptors.mark_of(self.path):
                    self.path.unlink(missing_ok=True)  # not a file that has replaced it

    def abandon(self) -> None:
        """Close the file in a forked child: it is the parent's, as is the timer."""
        self._closed = True
        for patch in self._watching:
            self._patches.undo(patch)
        if self._file is not None:
            descriptors.close(self._file, self._mark)
            self._file = None

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that keeps the timer disarmed, for a fork.

        In a child forked while it is armed, the next use of the timer and the exit of the interpreter wait for ever
        for the timer's thread (``cancel_dump_traceback_later`` in CPython's Modules/faulthandler.c).
        """
        return _Held(self._hold, self._lock.release)

    def _hold(self) -> None:
        self._lock.acquire()  # released when the context is left
        try:
            if self._armed and not self._yielded:
                until_one_less(self._disarm)
            self._armed_at = _NEVER
        except BaseException:  # a signal handler of the program may raise
            self._lock.release()
            raise

    def _disarm(self) -> None:
        if self._armed and not self._yielded:
            self._arm(None)

    def _arm(self, seconds: float | None) -> None:
        self._arming = threading.get_ident()
        try:
            if seconds is not None and self._file is not None:
                self._faulthandler.dump_traceback_later(seconds, file=self._file)
            else:
                self._faulthandler.cancel_dump_traceback_later()
            self._armed = seconds is not None
        finally:
            self._arming = None

    def _see_whether_lost(self) -> None:
        """Disarm if the descriptor now belongs to a file of the program, which reused its number."""
        if self._file is not None and descriptors.mark(self._file) != self._mark:
            self._disarm()
            self._file, self._armed_at = None, _NEVER

    def _begin(self, threads: dict[int, str]) -> None:
        if self._file is None:
            self._file = open_private(self.path)
            self._mark = descriptors.mark(self._file)
        self._threads = threads
        os.ftruncate(self._file, 0)
        self._written = os.write(self._file, hang_header(os.getpid(), threads).encode())

    def _keep_dump(self) -> None:
        """Keep the stacks of a dump for its stall and clear the file: Python runs, so the hang is over."""
        if self._file is None or os.fstat(self._file).st_size <= self._written:
            return
        self._disarm()  # waits for the timer's thread, which may still be writing
        self._armed_at = _NEVER
        found = os.fstat(self._file)
        text = os.pread(self._file, found.st_size, 0).decode(errors="replace")
        self._dumps.extend(dataclasses.replace(dump, at=found.st_mtime) for dump in parse_hang(text))
        self._begin(self._threads)

    def _noticed(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._arming != threading.get_ident():
            with self._lock:  # or the watcher could arm it once more, over the new one
                self._yielded = True
        return original(*args, **kwargs)


def leftover_hangs(setting: str, hang_after: float) -> list[Stall]:
    """Return the hangs in which earlier processes of this journal ended, and remove their files.

    If several processes read at the same time, one gets each hang. Links and files of other users are left alone.

    Args:
        setting: ``Config.journal``.
        hang_after: seconds, the minimum length of such a hang.

    Raises:
        OSError: the directory cannot be read.
    """
    own = hang_path(setting, 0)
    ours = re.compile(re.escape(own.name.removesuffix("0.hang")) + r"([0-9]{1,9})\.hang")
    found = []
    for path in sorted(own.parent.iterdir()):
        match = ours.fullmatch(path.name)
        if match is None or _alive(int(match[1])):
            continue
        found += [_stall(number, dump, hang_after) for number, dump in enumerate(_taken(path))]
    return found


def _taken(path: Path) -> list[HangDump]:
    """Read a hang file and remove it; empty if it is not this user's, or another process was first."""
    try:
        fd = os.open(path, os.O_RDONLY | FLAGS)
    except OSError:
        return []
    with open(fd, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(fd)
        if why_not_ours(status):
            return []
        dumps = [dataclasses.replace(dump, at=status.st_mtime) for dump in parse_hang(file.read())]
    try:
        path.unlink()
    except OSError:
        return []
    return dumps


def _stall(number: int, dump: HangDump, hang_after: float) -> Stall:
    frames = dump.frames
    return Stall(
        id=f"{dump.pid:x}-{int(dump.at):x}-hang{number or ''}",
        loop=dump.loop,
        pid=dump.pid,
        started_at=dump.at - hang_after,
        duration=hang_after,
        uncertainty=hang_after / 2,
        ongoing=True,
        cause=Cause.UNKNOWN,
        evidence=Evidence(wall=hang_after),
        leaf=frames[-1] if frames else None,
        stack=frames,
        remedy=f"it was last seen in {frames[-1]}." if frames else "",
    )


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

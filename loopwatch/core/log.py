"""Logging of loopwatch: one printable line per record, to logging, or to the original stderr without a handler.

Without any handler Python writes warnings to ``sys.stderr`` (:data:`logging.lastResort`). The program may have replaced
that stream to capture its own output, and descriptor 2 below it may be a file of the program by now.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from loopwatch.core.process_state import one
from loopwatch.core.text import MAX_LINE, printable

try:
    from fcntl import F_DUPFD_CLOEXEC, fcntl
    from select import POLLOUT, poll
except ImportError:  # Windows; or gevent, which takes poll() out of select
    poll = None  # type: ignore[assignment,misc]

logger = logging.getLogger("loopwatch")

_PYTHONS = getattr(logging, "_StderrHandler", None)
"""Class of Python's own handler of last resort; a program may have installed another one."""

STDERR = 2
MAX_BYTES = 4096
"""Maximum bytes of one write to stderr: PIPE_BUF, which a pipe takes as a whole or not at all (pipe(7))."""
MAX_WAITING = 20
"""Maximum lines buffered while stderr is full, or replaced by the program."""
MAX_TRACEBACK = 50
"""Maximum lines of a traceback; the last ones are kept."""


def write(
    level: int,
    text: str,
    *args: object,
    error: BaseException | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Log a line to the logger ``loopwatch``.

    Args:
        level: as in :mod:`logging`.
        text, args: format and arguments, as in :mod:`logging`; shown on one line of at most :data:`MAX_LINE`
            characters.
        error: exception whose traceback is logged too.
        extra: attributes of the record.

    Raises:
        Exception: whatever a handler of the program raises.
    """
    if not logger.isEnabledFor(level):
        return
    line = printable(text % args if args else text, MAX_LINE)
    file, number, function, _ = logger.findCaller(stacklevel=2)
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, level, file, number, line, (), info, function, extra)
    if error is not None:
        record.exc_text = _traceback(error)
    last = logging.lastResort
    if logger.hasHandlers() or last is None or type(last) is not _PYTHONS:
        logger.handle(record)
    elif level >= last.level and logger.filter(record):
        stderr.write(line if error is None else f"{line}\n{(record.exc_text or '')[-MAX_LINE:]}")


def _traceback(error: BaseException) -> str:
    """Return the traceback as a formatter would write it, each line printable."""
    try:
        lines = "".join(traceback.format_exception(error)).splitlines()
    except Exception:  # noqa: BLE001 - the text of an exception comes from code of the program
        lines = []
    return "\n".join(printable(line, MAX_LINE) for line in lines[-MAX_TRACEBACK:])


class Stderr:
    """Standard error as it was at the start, for lines that logging has no handler for.

    A line is written only while descriptor 2 still refers to the same file (device and inode): what the program has put
    in its place is never written to. No duplicate is kept open for that: it would keep a pipe open whose reader waits
    until all writers have closed it, as parents of daemons do. Each write uses a duplicate for some microseconds, so
    that the file that was checked is the one written to.

    Never waits for a stderr that is blocked (a full pipe, a stopped terminal) or closed: the last :data:`MAX_WAITING`
    lines are written as soon as it is back, at the latest when the agent stops; others are lost.
    """

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._pid = 0
        self.begin()

    def begin(self) -> None:
        """Take the current descriptor 2 as standard error; none if it is closed."""
        self._mark = _mark(STDERR)

    @property
    def waiting(self) -> int:
        """Number of buffered lines."""
        return len(self._waiting)

    def write(self, text: str) -> None:
        """Write ``text`` and a newline in one piece; never blocks, never raises."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._waiting.clear()  # lines of a forked child's parent
        line = text.encode("utf-8", "backslashreplace")
        if len(line) >= MAX_BYTES:
            line = line[: MAX_BYTES - 1].decode("utf-8", "ignore").encode()  # no partial character
        self._waiting.append(line + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write buffered lines, as many as stderr takes now."""
        fd = self._duplicate() if self._waiting and self._pid == os.getpid() else None
        if fd is None:
            return
        try:
            while self._waiting and _takes_more(fd):
                line = self._waiting.popleft()
                try:
                    os.write(fd, line)
                except BlockingIOError:  # the program has made it non-blocking
                    self._waiting.appendleft(line)
                    return
                except OSError:
                    return  # no reader is left, or the disk is full
        except IndexError:
            pass  # another thread was faster
        finally:
            if _mark(fd) == self._mark:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _duplicate(self) -> int | None:
        """Return a new descriptor, above 2 and closed on exec, of the original stderr; None if that is gone."""
        if self._mark is None:
            return None
        try:
            fd: int = os.dup(STDERR) if poll is None else fcntl(STDERR, F_DUPFD_CLOEXEC, STDERR + 1)
        except OSError:
            return None
        if _mark(fd) == self._mark:
            return fd
        os.close(fd)
        return None


def _mark(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _takes_more(fd: int) -> bool:
    """Whether a write would not block: a pipe has room for :data:`MAX_BYTES` (``pipe_poll`` in fs/pipe.c)."""
    if poll is None:
        return True
    waiting = poll()
    waiting.register(fd, POLLOUT)
    return bool(waiting.poll(0))


stderr = one(Stderr)
"""The instance of this process."""

"""The journal: stalls as JSON lines, one file per process; ``kill -9`` costs one line at most.

.. code-block:: text

    stalls.123.jsonl      {"type": "header", "schema": "loopwatch.journal/1", ...}   one line per record
                          {"type": "stall", "id": ..., ...}                          Stall.to_dict()
                          {"type": "flagged", "name": ..., ...}                      FlaggedFunction.to_dict()
                          {"type": "lag", "loop": ..., ...}                          LagRecord.to_dict()
    stalls.123.1.jsonl    the previous file above, after rotation
    stalls.123.hang       see :mod:`loopwatch.sinks.hang_file`

Its reader is :mod:`loopwatch.report.reader`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwatch._version import __version__
from loopwatch.core import descriptors
from loopwatch.core.originals import time
from loopwatch.events import FlaggedFunction, LagRecord, Stall
from loopwatch.sinks.files import open_private

SCHEMA = "loopwatch.journal/1"


class JournalWriter:
    """Appends stalls to the journal of one process; for a single thread. A forked child needs its own.

    Each line is one ``write`` to a descriptor in append mode, so a process killed at any time leaves whole lines
    and at most one torn one. A file that would pass half of ``max_bytes`` is renamed to ``NAME.<pid>.1.jsonl``,
    replacing an older one.

    Args:
        path: of the file, see :func:`loopwatch.sinks.files.journal_path`. Opened at the first write, with mode
            0600; a symbolic link or another user's file is refused.
        max_bytes: size limit of the file and its predecessor together.

    Attributes:
        path: of the file.
        dropped: records left out because their line would not fit; a stall, even without its stacks.

    Example:
        >>> writer = JournalWriter(journal_path("/var/log/stalls.jsonl", os.getpid()), 1 << 20)  # doctest: +SKIP
        >>> writer.write(stall)  # doctest: +SKIP
        True
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.dropped = 0
        self._limit = max_bytes // 2
        self._started_at = time.time()
        self._fd: int | None = None
        self._mark: descriptors.Mark = None
        self._lock = threading.Lock()  # a setting may replace it in the midst of a write of the sink thread
        self._is_closed = False

    def write(self, stall: Stall) -> bool:
        """Append one stall; return False if it was too large (see ``dropped``).

        Raises:
            OSError: the file cannot be opened, rotated or written (disk full); no torn line is left behind.
        """
        header = self._header()
        return self._write(header, _stall_line(stall, self._limit - len(header)))

    def emit(self, stall: Stall, flagged: FlaggedFunction | None, _span: Any = None) -> None:
        """Append a stall, and the function that it flagged.

        Raises:
            OSError: as :meth:`write`.
        """
        self.write(stall)
        if flagged is not None:
            self.write_flagged(flagged)

    def write_flagged(self, function: FlaggedFunction) -> bool:
        """Append a function that has just been flagged; as :meth:`write`."""
        return self._write_record({"type": "flagged", **function.to_dict()})

    def write_lag(self, record: LagRecord) -> bool:
        """Append the lag of a loop; as :meth:`write`."""
        return self._write_record({"type": "lag", **record.to_dict()})

    @property
    def is_begun(self) -> bool:
        """Whether something has been written."""
        return self._fd is not None

    def _write_record(self, record: Mapping[str, Any]) -> bool:
        header, line = self._header(), _line(record)
        return self._write(header, line if len(line) <= self._limit - len(header) else None)

    def _write(self, header: bytes, line: bytes | None) -> bool:
        if line is None:
            self.dropped += 1
            return False
        with self._lock:
            fd = self._current(header)
            if os.fstat(fd).st_size + len(line) > self._limit:
                self._end()
                self.path.replace(self.path.with_name(f"{self.path.stem}.1.jsonl"))
                fd = self._current(header)
            _append(fd, line)
            if self._is_closed:
                self._end()
        return True

    def close(self) -> None:
        """Close the file; a late write opens it once more, and leaves it closed."""
        with self._lock:
            self._is_closed = True
            self._end()

    def abandon(self) -> None:
        """Close the file in a forked child: it is the parent's. Nothing is buffered, so nothing is written twice."""
        self._end()

    def _end(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            descriptors.close(fd, self._mark)

    def _current(self, header: bytes) -> int:
        """Return a descriptor of the file that is at ``path`` now.

        It may have been moved or removed (logrotate, a clean-up, a container that shares both directory and process
        id): no report would read further lines there, so a new file is begun.
        """
        if self._fd is not None:
            with contextlib.suppress(FileNotFoundError):
                found = self.path.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) == self._mark == descriptors.mark(self._fd):
                    return self._fd
            self._end()
        fd = open_private(self.path)
        try:
            _append(fd, _line_end(fd) + header)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._mark = fd, descriptors.mark(fd)
        return fd

    def _header(self) -> bytes:
        return _line(
            {
                "type": "header",
                "schema": SCHEMA,
                "version": __version__,
                "pid": os.getpid(),
                "python": platform.python_version(),
                "started_at": self._started_at,
                # Only the name: arguments and paths may hold secrets.
                "argv0": Path(sys.argv[0]).name if getattr(sys, "argv", None) else "",
            }
        )


def _line(record: Mapping[str, object]) -> bytes:
    # Pure ASCII: names with surrogates (undecodable file names) come back as they were.
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _stall_line(stall: Stall, limit: int) -> bytes | None:
    """Return the line, without its longest fields if it would pass ``limit``; None if even that is too long."""
    record: dict[str, object] = {"type": "stall", **stall.to_dict()}
    for more in ((), ("profile",), ("stack",), ("context", "remedy")):
        for name in more:
            del record[name]
        line = _line(record)
        if len(line) <= limit:
            return line
    return None


def _line_end(fd: int) -> bytes:
    """Return the line end that is missing after a killed process with the same id (containers: always 1)."""
    size = os.fstat(fd).st_size
    return b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b""


def _append(fd: int, line: bytes) -> None:
    start = os.fstat(fd).st_size
    written = os.write(fd, line)
    if written == len(line):
        return
    # write(2): a full disk, a quota or RLIMIT_FSIZE first take a part. Truncate that, unless other data follows it.
    if os.fstat(fd).st_size == start + written:
        os.ftruncate(fd, start)
    raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written")

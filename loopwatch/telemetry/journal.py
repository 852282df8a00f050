"""The journal: stalls as JSON lines, one file per process, written so that ``kill -9`` costs one line at most.

It writes and reads files and knows their formats; what the records mean is the business of
:mod:`loopwatch.telemetry.report`. Beside a journal may stand a *hang file*: the stack that faulthandler's own C
thread wrote while the interpreter could not run (see :func:`parse_hang`).

.. code-block:: text

    stalls.123.jsonl      {"type": "header", "schema": "loopwatch.journal/1", ...}   one line a record
                          {"type": "stall", "id": ..., ...}                          Stall.to_dict()
    stalls.123.1.jsonl    what the file above was before it was rotated
    stalls.123.hang       {"schema": "loopwatch.hang/1", "pid": 123, "threads": {"0x00007f12ab34cd56": "main"}}
                          Timeout (0:00:02)!
                          Thread 0x00007f12ab34cd56 (most recent call first):
                            File "/srv/app/images.py", line 42 in resize
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import errno
import functools
import glob
import json
import os
import platform
import re
import stat
import struct
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from loopwatch import __version__
from loopwatch.errors import LoopwatchError
from loopwatch.events import Frame, StackCount, Stall

SCHEMA = "loopwatch.journal/1"
HANG_SCHEMA = "loopwatch.hang/1"

TORN = "torn last line, the process was killed or is still writing"
"""The one reason in :class:`Skipped` that is normal."""

_FOREIGN_AFTER = 100  # lines without one record, after which a file counts as not ours
_LONGEST_LINE = 64 * 1024 * 1024  # bytes; a binary file may have no line end at all
_YEAR_10000 = 253402300800.0  # s since the epoch
_HANG_TAIL = 8 * 1024 * 1024  # bytes; the last dump is what counts


# ---------------------------------------------------------------------------------------------- names


def journal_path(setting: str, pid: int) -> Path:
    """Return the journal of process ``pid`` for ``Config.journal``, a file or a directory.

    Example:
        >>> str(journal_path("/var/log/stalls.jsonl", 123))
        '/var/log/stalls.123.jsonl'
    """
    base = _base(setting)
    return base.with_name(f"{base.name}.{pid}.jsonl")


def hang_path(setting: str, pid: int) -> Path:
    """Return the hang file of process ``pid``, beside its journal.

    Example:
        >>> str(hang_path("/var/log/stalls.jsonl", 123))
        '/var/log/stalls.123.hang'
    """
    return journal_path(setting, pid).with_suffix(".hang")


def _base(setting: str) -> Path:
    path = Path(setting)
    if path.is_dir():
        return path / "loopwatch"
    return path.with_suffix("") if path.suffix == ".jsonl" else path


def printable(text: str) -> str:
    """Return ``text`` on one line, with what could steer a terminal (or not be encoded) shown as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# --------------------------------------------------------------------------------------------- writing


class JournalWriter:
    """Appends stalls to one process's journal; for one thread, and for one process: a fork needs its own.

    Each line is one ``write`` to a descriptor in append mode, so a process killed at any time leaves whole lines
    and at most one torn one. When the file would pass half of ``max_bytes`` it becomes ``NAME.<pid>.1.jsonl``, in
    place of an older one.

    Args:
        path: of the file, see :func:`journal_path`. Opened at the first write, with mode 0600; a symbolic link, or a
            file of another user, is refused.
        max_bytes: bytes that the file and its predecessor may take together.

    Attributes:
        path: of the file.
        dropped: stalls left out because one line of them would not fit, even without its stacks.

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

    def write(self, stall: Stall) -> bool:
        """Append one stall; return False if it was left out as too large (see ``dropped``).

        Raises:
            OSError: the file cannot be opened, rotated or written (disk full); no torn line is left behind.
        """
        header = self._header()
        line = _stall_line(stall, self._limit - len(header))
        if line is None:
            self.dropped += 1
            return False
        fd = self._current(header)
        if os.fstat(fd).st_size + len(line) > self._limit:
            self.close()
            self.path.replace(self.path.with_name(f"{self.path.stem}.1.jsonl"))
            fd = self._current(header)
        _append(fd, line)
        return True

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def abandon(self) -> None:
        """Drop the file in a forked child: it is the parent's. Nothing is buffered, so nothing is written twice."""
        self.close()

    def _current(self, header: bytes) -> int:
        """Return a descriptor of the file that stands at ``path`` now.

        Somebody may have moved or removed it (logrotate, a clean-up, a container that shares both directory and
        process id): writing on would go where no report looks, so a new one is begun.
        """
        if self._fd is not None:
            mine = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                found = self.path.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                    return self._fd
            self.close()
        fd = _open_private(self.path)
        try:
            _append(fd, _line_end(fd) + header)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
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


def hang_header(pid: int, threads: Mapping[int, str]) -> str:
    """Return the first line of a hang file: which threads run which loops.

    Args:
        pid: process id.
        threads: name of the loop by identifier of its thread (``Thread.ident``).

    Example:
        >>> hang_header(7, {0x7F12AB34CD56: "main"})
        '{"schema": "loopwatch.hang/1", "pid": 7, "threads": {"0x00007f12ab34cd56": "main"}}\\n'
    """
    # As CPython's Python/traceback.c prints it: an unsigned long in hexadecimal, filled up with zeros.
    digits = struct.calcsize("L") * 2
    names = {f"0x{ident:0{digits}x}": name for ident, name in threads.items()}
    return json.dumps({"schema": HANG_SCHEMA, "pid": pid, "threads": names}) + "\n"


def _line(record: Mapping[str, object]) -> bytes:
    # Pure ASCII: names with surrogates (undecodable file names) come back as they were.
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _stall_line(stall: Stall, limit: int) -> bytes | None:
    """Return the line, without what is longest in it where it would pass ``limit``; None if even that is too long."""
    record: dict[str, object] = {"type": "stall", **stall.to_dict()}
    for more in ((), ("profile",), ("stack",), ("context", "remedy")):
        for name in more:
            del record[name]
        line = _line(record)
        if len(line) <= limit:
            return line
    return None


def _open_private(path: Path) -> int:
    # O_RDWR: the last byte is read, and a named pipe opens at once (fifo(7)), to be refused below.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # In a directory that others may write, somebody else could have laid it out to read along.
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the file belongs to another user", str(path))
        os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _line_end(fd: int) -> bytes:
    """Return the line end that a killed process with the same id (containers: always 1) did not come to write."""
    size = os.fstat(fd).st_size
    return b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b""


def _append(fd: int, line: bytes) -> None:
    start = os.fstat(fd).st_size
    written = os.write(fd, line)
    if written == len(line):
        return
    # write(2): a full disk, a quota or RLIMIT_FSIZE first take a part. Cut it off, unless somebody wrote behind it.
    if os.fstat(fd).st_size == start + written:
        os.ftruncate(fd, start)
    raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written")


# --------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Header:
    """What a process says of itself at the start of its journal; once a run, rotated files repeat it.

    Attributes:
        file: path it was read from.
        pid: process id.
        started_at: seconds since the epoch, start of the agent.
        version: of loopwatch.
        python: version of the interpreter.
        argv0: name of the program, without its directory.
    """

    file: str
    pid: int
    started_at: float
    version: str = ""
    python: str = ""
    argv0: str = ""


@dataclass(frozen=True, slots=True)
class HangDump:
    """The stack of a loop's thread, written by faulthandler while the loop was blocked.

    Attributes:
        loop: name of the loop.
        pid: process id.
        frames: outermost first; functions are unqualified names, modules ``""``: that is all faulthandler tells.
        at: seconds since the epoch at which it was written (the file's time), 0 if unknown.
    """

    loop: str
    pid: int
    frames: tuple[Frame, ...]
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was passed over in one file.

    Attributes:
        file: its path.
        lines: how many lines, None for the whole file.
        reason: why; :data:`TORN` is normal.
    """

    file: str
    lines: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class JournalContents:
    """Everything found in a set of journals.

    Attributes:
        stalls: in order of ``started_at``; the early notice of a block is there only if its end was not journaled.
        headers: in order of ``started_at``, one for each run of a process.
        hangs: last dump of each loop in each hang file.
        skipped: what was passed over.
        files: paths that were read.
    """

    stalls: tuple[Stall, ...] = ()
    headers: tuple[Header, ...] = ()
    hangs: tuple[HangDump, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    files: tuple[str, ...] = ()


def read_journals(target: str) -> JournalContents:
    """Read one journal or many.

    Args:
        target: a file, a directory, a glob pattern, or the name that was configured as ``journal`` (``stalls.jsonl``
            where only ``stalls.123.jsonl`` and ``stalls.123.1.jsonl`` exist).

    Raises:
        LoopwatchError: nothing there, not readable, or no loopwatch journal at all; one line that names the file,
            what is wrong and the remedy. A bad file among good ones is told in ``skipped`` instead.

    Example:
        >>> contents = read_journals("/var/log/loopwatch")  # doctest: +SKIP
        >>> sum(stall.duration for stall in contents.stalls)  # doctest: +SKIP
        12.25
    """
    try:
        paths, named = _find(target)
    except OSError as exc:
        raise LoopwatchError(f"{printable(target)}: {exc.strerror}; check its name and who may read it") from None
    parts: list[_Part] = []
    faults: list[Skipped] = []
    for path in paths:
        try:
            parts.append(_read_hang(path) if path.suffix == ".hang" else _read_journal(path))
        except _NotOursError as exc:
            if named and path == paths[0]:
                raise LoopwatchError(f"{printable(str(path))}: {exc}; {exc.remedy}") from None
            faults.append(Skipped(str(path), None, str(exc)))
    if not parts:
        first = faults[0]
        name, more = printable(Path(first.file).name), f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise LoopwatchError(
            f"{printable(target)}: no loopwatch journal in it: {name} {first.reason}{more}; "
            "give the file or directory that is configured as journal"
        )
    return _merge(parts, faults)


@dataclass(slots=True)
class _Part:
    """What one file holds, not yet put together with the others."""

    file: str
    stalls: list[tuple[float, Stall]] = dataclasses.field(default_factory=list)  # with started_at of the run's header
    headers: list[Header] = dataclasses.field(default_factory=list)
    hangs: tuple[HangDump, ...] = ()
    skipped: list[Skipped] = dataclasses.field(default_factory=list)


class _NotOursError(Exception):
    """A file that cannot be read as one of ours; caught in this module, never seen outside."""

    def __init__(self, reason: str, remedy: str = "give the file or directory that is configured as journal") -> None:
        super().__init__(reason)
        self.remedy = remedy


def _find(target: str) -> tuple[list[Path], bool]:
    """Return the files that ``target`` means, and whether the first was named itself (its faults are errors then)."""
    path = Path(target)
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.suffix in (".jsonl", ".hang")]
        if not found:
            raise LoopwatchError(
                f"{printable(target)}: no *.jsonl file in this directory; "
                "set journal to it (LOOPWATCH_JOURNAL) and let a stall happen"
            )
        return sorted(found), False
    if path.exists():
        hang = path.with_suffix(".hang")
        return [path, hang] if path.suffix == ".jsonl" and hang.exists() else [path], True
    if glob.has_magic(target):
        # Path.glob() takes no absolute pattern.
        matched = [Path(name) for name in glob.glob(target)]  # noqa: PTH207
    else:
        base = _base(target)
        ours = re.compile(re.escape(base.name) + r"\.\d+((\.1)?\.jsonl|\.hang)")
        folder = base.parent
        matched = [entry for entry in folder.iterdir() if ours.fullmatch(entry.name)] if folder.is_dir() else []
    matched = [entry for entry in matched if not entry.is_dir()]
    if not matched:
        raise LoopwatchError(
            f"{printable(target)}: no such journal; "
            "give the file or directory that is configured as journal (LOOPWATCH_JOURNAL)"
        )
    return sorted(matched), False


def _read_journal(path: Path) -> _Part:
    part = _Part(str(path))
    counts: dict[str, int] = {}
    foreign = ""  # schema of another major version, while we are in its lines
    run = 0.0
    interned = _Interner()
    for number, (raw, whole) in enumerate(_lines(path)):
        record = _json_object(raw)
        kind = record.get("type") if record else None
        header = _header_of(record, str(path)) if record and kind == "header" else None
        stall = _stall_of(record) if record and kind == "stall" and not foreign else None
        if header:
            foreign, run = "", header.started_at
            part.headers.append(header)
        elif stall:
            part.stalls.append((run, interned.stall(stall)))
        else:
            if record and kind == "header" and str(record.get("schema")).startswith("loopwatch.journal/"):
                foreign = printable(str(record["schema"]))
            reason = f"of schema {foreign}" if foreign else _why_passed_over(record, kind, whole)
            counts[reason] = counts.get(reason, 0) + 1
        if number + 1 >= _FOREIGN_AFTER and not (part.headers or part.stalls):
            break
    if not (part.headers or part.stalls):
        if foreign:
            raise _NotOursError(
                f"was written in schema {foreign}, this version reads {SCHEMA}", "update loopwatch to read it"
            )
        raise _NotOursError("is empty" if not counts else "is not a loopwatch journal, no line is a record of one")
    part.skipped.extend(Skipped(str(path), count, reason) for reason, count in counts.items())
    return part


def _why_passed_over(record: Mapping[str, object] | None, kind: object, whole: bool) -> str:
    if record is None:
        return "not readable, cut off or foreign" if whole else TORN
    if isinstance(kind, str) and kind not in ("header", "stall"):
        return "of a kind that this version does not know"
    return "not a record of a stall"


def _read_hang(path: Path) -> _Part:
    with _opened(path) as file:
        first = file.readline(_LONGEST_LINE)
        size = os.fstat(file.fileno()).st_size
        file.seek(max(len(first), size - _HANG_TAIL))
        text = (first + file.read()).decode("utf-8", "replace")
        at = os.fstat(file.fileno()).st_mtime
    if _hang_threads(text) is None:
        raise _NotOursError("is empty" if not text else "is not a hang file, its first line is no header of one")
    return _Part(str(path), hangs=tuple(dataclasses.replace(dump, at=at) for dump in parse_hang(text)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[typing.BinaryIO]:
    try:
        # Reading a pipe or a device could go on for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise _NotOursError("is not a regular file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise _NotOursError("is gone", "it was removed or rotated meanwhile, try again") from None
    except PermissionError:
        raise _NotOursError("cannot be read", "journals are private (mode 0600), read it as their owner") from None
    except OSError as exc:
        raise _NotOursError(f"cannot be read: {exc.strerror}", "check the disk") from None


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield each line that is not blank, and whether it has its line end."""
    with _opened(path) as file:
        while raw := file.readline(_LONGEST_LINE):
            if not raw.isspace():
                yield raw, raw.endswith(b"\n")


def _json_object(raw: bytes | str) -> dict[str, object] | None:
    try:
        # RecursionError: "[[[[..." is what a foreign file may well hold.
        record: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _header_of(record: Mapping[str, object], file: str) -> Header | None:
    if not re.fullmatch(re.escape(SCHEMA) + r"(\.\d+)*", str(record.get("schema"))):
        return None
    fields = {name: record.get(name, "") for name in ("pid", "started_at", "version", "python", "argv0")}
    data: dict[str, typing.Any] = {"file": file, **fields}
    return Header(**data) if _fits(Header)(data) and 0 <= data["started_at"] < _YEAR_10000 else None


def _stall_of(record: Mapping[str, object]) -> Stall | None:
    if not _fits(Stall)(record):
        return None
    try:
        stall = Stall.from_dict(record)
    except (KeyError, TypeError, ValueError):
        return None
    # A report computes with these two: dates end with the year 9999, and a NaN fails every comparison.
    return stall if 0 <= stall.started_at < _YEAR_10000 and 0 <= stall.duration < _YEAR_10000 else None


def _merge(parts: Iterable[_Part], faults: Iterable[Skipped]) -> JournalContents:
    parts = list(parts)
    stalls: dict[tuple[float, int, str], Stall] = {}
    headers: dict[tuple[int, float], Header] = {}
    for part in parts:
        for header in part.headers:
            headers.setdefault((header.pid, header.started_at), header)
        for run, stall in part.stalls:
            # The run belongs to the key: in containers every run has the same process id.
            key = (run, stall.pid, stall.id)
            known = stalls.get(key)
            if known is None or (known.ongoing, stall.duration) >= (stall.ongoing, known.duration):
                stalls[key] = stall
    return JournalContents(
        stalls=tuple(sorted(stalls.values(), key=lambda stall: (stall.started_at, stall.pid, stall.id))),
        headers=tuple(sorted(headers.values(), key=lambda header: (header.started_at, header.pid))),
        hangs=tuple(sorted((dump for part in parts for dump in part.hangs), key=lambda dump: (dump.at, dump.pid))),
        skipped=(*(fault for part in parts for fault in part.skipped), *faults),
        files=tuple(part.file for part in parts),
    )


class _Interner:
    """Makes equal frames and stacks of one file the same object: they repeat, and are most of a journal."""

    def __init__(self) -> None:
        self._known: dict[object, object] = {}

    def stall(self, stall: Stall) -> Stall:
        profile = tuple(StackCount(self._stack(item.stack), item.count) for item in stall.profile)
        return dataclasses.replace(stall, stack=self._stack(stall.stack), profile=profile)

    def _stack(self, stack: tuple[Frame, ...]) -> tuple[Frame, ...]:
        known = self._known.get(stack)
        if known is None:
            known = self._known[stack] = tuple(self._known.setdefault(frame, frame) for frame in stack)
        return typing.cast("tuple[Frame, ...]", known)


# ------------------------------------------------------------------------------------------ hang files


def parse_hang(text: str) -> tuple[HangDump, ...]:
    """Return what the last dump in a hang file says of the threads named in its header; never raises.

    Example:
        >>> dump = 'Timeout (0:00:02)!\\nThread 0x00000000000000ff (most recent call first):\\n'
        >>> dump += '  File "/srv/app.py", line 12 in inner\\n  File "/srv/app.py", line 34 in outer\\n'
        >>> [str(frame) for frame in parse_hang(hang_header(7, {255: "main"}) + dump)[0].frames]
        ['outer (/srv/app.py:34)', 'inner (/srv/app.py:12)']
    """
    header = _hang_threads(text)
    if header is None:
        return ()
    pid, threads = header
    complete = text[: text.rfind("\n") + 1]  # a torn last line could name half a function
    for dump in reversed(re.split(r"^Timeout \(", complete, flags=re.MULTILINE)):
        stacks = _hang_stacks(dump)
        found = tuple(HangDump(threads[ident], pid, stacks[ident]) for ident in threads if stacks.get(ident))
        if found:
            return found
    return ()


# Python/traceback.c: "Thread 0x... (most recent call first):", "Current thread 0x...", from 3.14 with "[name]".
_THREAD = re.compile(r"(?:Current t|T)hread (0x[0-9a-f]{1,32})\b.*")
_FRAME = re.compile(r'  File "?(.*?)"?, line ([0-9]{1,9}|\?\?\?) in (.*)')
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))")


def _hang_threads(text: str) -> tuple[int, dict[str, str]] | None:
    header = _json_object(text.partition("\n")[0])
    if header is None or not str(header.get("schema")).startswith(HANG_SCHEMA):
        return None
    pid, threads = header.get("pid"), header.get("threads")
    if not (_fits(int)(pid) and isinstance(pid, int) and isinstance(threads, dict)):
        return None
    return pid, {str(ident): str(name) for ident, name in threads.items()}


def _hang_stacks(dump: str) -> dict[str, tuple[Frame, ...]]:
    """Return the frames of each thread, outermost first."""
    stacks: dict[str, list[Frame]] = {}
    current: list[Frame] = []
    for line in dump.split("\n"):
        if thread := _THREAD.fullmatch(line):
            current = stacks.setdefault(thread[1], [])
        elif frame := _FRAME.fullmatch(line):
            file, number, function = frame.groups()
            current.append(Frame(_unescaped(function), "", _unescaped(file), int(number) if number.isdigit() else 0))
    return {ident: tuple(reversed(frames)) for ident, frames in stacks.items()}


def _unescaped(text: str) -> str:
    """Undo faulthandler's escapes (it prints ASCII only), or names in other scripts could not be read."""
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), text)


# ----------------------------------------------------------------------------- types of foreign records


@functools.cache
def _fits(hint: object) -> Callable[[object], bool]:
    """Return a check whether a value out of JSON has the type ``hint``, down to the last field of a record.

    The records themselves take anything, and a report that met a text for a duration would fail far from the file
    that is at fault.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        choices = tuple(_fits(arg) for arg in args)
        return lambda value: any(fits(value) for fits in choices)
    if origin is tuple:
        return _fits_tuple(args)
    if origin is collections.abc.Mapping:
        return lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _fits_record(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda value: isinstance(value, str) and value in hint.__members__.values()
    if hint is float:
        # 1e308 as an integer literal would not go into a float.
        return lambda value: isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
    if hint is int:
        return lambda value: type(value) is int and abs(value) < 2**63
    return lambda value: isinstance(value, typing.cast("type", hint))


def _fits_tuple(args: tuple[object, ...]) -> Callable[[object], bool]:
    if args[-1] is Ellipsis:
        item = _fits(args[0])
        return lambda value: isinstance(value, list | tuple) and all(item(entry) for entry in value)
    items = tuple(_fits(arg) for arg in args)
    return lambda value: (
        isinstance(value, list | tuple)
        and len(value) == len(items)
        and all(fits(entry) for fits, entry in zip(items, value, strict=True))
    )


def _fits_record(record: type) -> Callable[[object], bool]:
    hints = typing.get_type_hints(record)
    known = {field.name: _fits(hints[field.name]) for field in dataclasses.fields(record)}
    needed = {
        field.name
        for field in dataclasses.fields(record)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def fits(value: object) -> bool:
        # Fields of a later version are passed over, as from_dict() does.
        return (
            isinstance(value, dict)
            and needed <= value.keys()
            and all(known[name](entry) for name, entry in value.items() if name in known)
        )

    return fits

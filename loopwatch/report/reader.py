"""Reads journals and hang files, whole, torn, rotated or foreign; the tables of the report interpret them."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
import stat
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loopwatch.core.text import shown
from loopwatch.errors import LoopwatchError
from loopwatch.events import FlaggedFunction, Frame, LagRecord, StackCount, Stall
from loopwatch.sinks.files import base_of
from loopwatch.sinks.hang_file import HangDump, hang_threads, parse_hang
from loopwatch.sinks.journal import SCHEMA
from loopwatch.sinks.json_checks import fits, json_object

TORN = "torn last line, the process was killed or is still writing"
"""The one reason in :class:`Skipped` that is normal."""

_FOREIGN_AFTER = 100  # lines without a record after which a file is no journal
_LONGEST_LINE = 64 * 1024 * 1024  # bytes; a binary file may have no line end at all
_YEAR_10000 = 253402300800.0  # seconds since the epoch
_HANG_TAIL = 8 * 1024 * 1024  # bytes; only the last dump is needed


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a journal: describes its process; once per run, repeated in rotated files.

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
class Skipped:
    """Lines of a file that were skipped, or the whole file.

    Attributes:
        file: its path.
        lines: number of lines, None for the whole file.
        reason: why; :data:`TORN` is normal.
    """

    file: str
    lines: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class JournalContents:
    """Everything found in a set of journals.

    Attributes:
        stalls: sorted by ``started_at``; includes the early notice of a block only if its end was not journaled.
        expected: expected blocks, which are no stalls; sorted likewise.
        headers: sorted by ``started_at``, one per run of a process.
        hangs: last dump of each loop in each hang file.
        lags: lag of the loops, sorted by ``started_at``.
        skipped: skipped lines and files.
        files: paths of the files that were read.
    """

    stalls: tuple[Stall, ...] = ()
    expected: tuple[Stall, ...] = ()
    headers: tuple[Header, ...] = ()
    hangs: tuple[HangDump, ...] = ()
    lags: tuple[LagRecord, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    files: tuple[str, ...] = ()


def read_journals(target: str) -> JournalContents:
    """Read one journal or many.

    Args:
        target: a file, a directory, a glob pattern, or the name that was configured as ``journal`` (``stalls.jsonl``
            where only ``stalls.123.jsonl`` and ``stalls.123.1.jsonl`` exist).

    Raises:
        LoopwatchError: nothing there, not readable, or no loopwatch journal at all; one line that names the file,
            the problem and the remedy. A bad file among good ones is reported in ``skipped`` instead.

    Example:
        >>> contents = read_journals("/var/log/loopwatch")  # doctest: +SKIP
        >>> sum(stall.duration for stall in contents.stalls)  # doctest: +SKIP
        12.25
    """
    try:
        paths, named = _find(target)
    except OSError as exc:
        raise LoopwatchError(f"{shown(target)}: {exc.strerror}; check its name and who may read it") from None
    parts: list[_Part] = []
    faults: list[Skipped] = []
    for path in paths:
        try:
            parts.append(_read_hang(path) if path.suffix == ".hang" else _read_journal(path))
        except _NotOursError as exc:
            if named and path == paths[0]:
                raise LoopwatchError(f"{shown(str(path))}: {exc}; {exc.remedy}") from None
            faults.append(Skipped(str(path), None, str(exc)))
    if not parts:
        first = faults[0]
        name, more = shown(Path(first.file).name), f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise LoopwatchError(
            f"{shown(target)}: no loopwatch journal in it: {name} {first.reason}{more}; "
            "give the file or directory that is configured as journal"
        )
    return _merge(parts, faults)


@dataclass(slots=True)
class _Part:
    """Contents of one file, before they are merged."""

    file: str
    stalls: list[tuple[float, Stall]] = dataclasses.field(default_factory=list)  # with started_at of the run's header
    headers: list[Header] = dataclasses.field(default_factory=list)
    hangs: tuple[HangDump, ...] = ()
    lags: list[LagRecord] = dataclasses.field(default_factory=list)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)


class _NotOursError(Exception):
    """The file is no readable journal or hang file; caught in this module."""

    def __init__(self, reason: str, remedy: str = "give the file or directory that is configured as journal") -> None:
        super().__init__(reason)
        self.remedy = remedy


def _find(target: str) -> tuple[list[Path], bool]:
    """Return the files that ``target`` means, and whether it names the first one (whose faults are then errors)."""
    path = Path(target)
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.suffix in (".jsonl", ".hang")]
        if not found:
            raise LoopwatchError(
                f"{shown(target)}: no *.jsonl file in this directory; "
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
        base = base_of(target)
        ours = re.compile(re.escape(base.name) + r"\.\d+((\.1)?\.jsonl|\.hang)")
        folder = base.parent
        matched = [entry for entry in folder.iterdir() if ours.fullmatch(entry.name)] if folder.is_dir() else []
    matched = [entry for entry in matched if not entry.is_dir()]
    if not matched:
        raise LoopwatchError(
            f"{shown(target)}: no such journal; "
            "give the file or directory that is configured as journal (LOOPWATCH_JOURNAL)"
        )
    return sorted(matched), False


def _read_journal(path: Path) -> _Part:
    reading = _JournalLines(str(path))
    for number, (raw, whole) in enumerate(_lines(path)):
        reading.add(json_object(raw), whole=whole)
        if number + 1 >= _FOREIGN_AFTER and reading.is_empty:
            break
    return reading.finished()


class _JournalLines:
    """Parser of one journal, fed line by line.

    Args:
        file: its name.
    """

    def __init__(self, file: str) -> None:
        self._part = _Part(file)
        self._skipped: dict[str, int] = {}
        self._foreign = ""  # schema of another major version, while within its lines
        self._run = 0.0
        self._interned = _Interner()

    @property
    def is_empty(self) -> bool:
        """Whether there was no record so far."""
        return not (self._part.headers or self._part.stalls)

    def add(self, record: Mapping[str, object] | None, *, whole: bool) -> None:
        """Add the record of a line, None if it has none; ``whole`` if the line has its end."""
        kind = record.get("type") if record else None
        if record and kind == "header":
            self._add_header(record)
        elif self._foreign:
            self._skip(f"of schema {self._foreign}")
        elif record and kind == "stall" and (stall := _stall_of(record)):
            self._part.stalls.append((self._run, self._interned.stall(stall)))
        elif record and kind == "lag" and (lag := _lag_of(record)):
            self._part.lags.append(lag)
        elif kind != "flagged" or not fits(FlaggedFunction)(record):
            self._skip(_why_passed_over(record, kind, whole))
        # The report recomputes flagged functions from stalls: their records may be rotated away while they still block.

    def _add_header(self, record: Mapping[str, object]) -> None:
        header = _header_of(record, self._part.file)
        if header:
            self._foreign, self._run = "", header.started_at
            self._part.headers.append(header)
            return
        if str(record.get("schema")).startswith("loopwatch.journal/"):
            self._foreign = shown(str(record["schema"]))
        self._skip(f"of schema {self._foreign}" if self._foreign else _why_passed_over(record, "header", True))

    def _skip(self, reason: str) -> None:
        self._skipped[reason] = self._skipped.get(reason, 0) + 1

    def finished(self) -> _Part:
        """Return the contents of the file.

        Raises:
            _NotOursError: it has no record.
        """
        if self.is_empty and self._foreign:
            raise _NotOursError(
                f"was written in schema {self._foreign}, this version reads {SCHEMA}", "update loopwatch to read it"
            )
        if self.is_empty:
            raise _NotOursError(
                "is not a loopwatch journal, no line is a record of one" if self._skipped else "is empty"
            )
        self._part.skipped.extend(Skipped(self._part.file, count, reason) for reason, count in self._skipped.items())
        return self._part


def _why_passed_over(record: Mapping[str, object] | None, kind: object, whole: bool) -> str:
    if record is None:
        return "not readable, cut off or foreign" if whole else TORN
    if isinstance(kind, str) and kind not in ("header", "stall", "flagged", "lag"):
        return "of a kind that this version does not know"
    return "not a record of a stall"


def _read_hang(path: Path) -> _Part:
    with _opened(path) as file:
        first = file.readline(_LONGEST_LINE)
        size = os.fstat(file.fileno()).st_size
        file.seek(max(len(first), size - _HANG_TAIL))
        text = (first + file.read()).decode("utf-8", "replace")
        at = os.fstat(file.fileno()).st_mtime
    if hang_threads(text) is None:
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
    """Yield each non-blank line, and whether it has its line end."""
    with _opened(path) as file:
        while raw := file.readline(_LONGEST_LINE):
            if not raw.isspace():
                yield raw, raw.endswith(b"\n")


def _header_of(record: Mapping[str, object], file: str) -> Header | None:
    if not re.fullmatch(re.escape(SCHEMA) + r"(\.\d+)*", str(record.get("schema"))):
        return None
    fields = {name: record.get(name, "") for name in ("pid", "started_at", "version", "python", "argv0")}
    data: dict[str, typing.Any] = {"file": file, **fields}
    return Header(**data) if fits(Header)(data) and 0 <= data["started_at"] < _YEAR_10000 else None


def _stall_of(record: Mapping[str, object]) -> Stall | None:
    if not fits(Stall)(record):
        return None
    try:
        stall = Stall.from_dict(record)
    except (KeyError, TypeError, ValueError):
        return None
    # The report computes with these two: dates end with the year 9999, and a NaN fails every comparison.
    return stall if 0 <= stall.started_at < _YEAR_10000 and 0 <= stall.duration < _YEAR_10000 else None


def _lag_of(record: Mapping[str, object]) -> LagRecord | None:
    if not fits(LagRecord)(record):
        return None
    try:
        lag = LagRecord.from_dict(record)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    times = (lag.started_at, lag.seconds, lag.threshold, *(late for late, _ in lag.lags))
    is_sound = all(0 <= each < _YEAR_10000 for each in times) and all(count >= 0 for _, count in lag.lags)
    return lag if is_sound else None


def _merge(parts: Iterable[_Part], faults: Iterable[Skipped]) -> JournalContents:
    parts = list(parts)
    stalls: dict[tuple[float, int, str], Stall] = {}
    headers: dict[tuple[int, float], Header] = {}
    for part in parts:
        for header in part.headers:
            headers.setdefault((header.pid, header.started_at), header)
        for run, stall in part.stalls:
            # The run is part of the key: in containers every run has the same process id.
            key = (run, stall.pid, stall.id)
            known = stalls.get(key)
            if known is None or (known.ongoing, stall.duration) >= (stall.ongoing, known.duration):
                stalls[key] = stall
    blocks = sorted(stalls.values(), key=lambda stall: (stall.started_at, stall.pid, stall.id))
    return JournalContents(
        stalls=tuple(block for block in blocks if block.expected is None),
        expected=tuple(block for block in blocks if block.expected is not None),
        headers=tuple(sorted(headers.values(), key=lambda header: (header.started_at, header.pid))),
        hangs=tuple(sorted((dump for part in parts for dump in part.hangs), key=lambda dump: (dump.at, dump.pid))),
        lags=tuple(sorted({lag for part in parts for lag in part.lags}, key=lambda lag: (lag.started_at, lag.pid))),
        skipped=(*(fault for part in parts for fault in part.skipped), *faults),
        files=tuple(part.file for part in parts),
    )


class _Interner:
    """Shares equal frames and stacks of one file: they repeat, and make up most of a journal."""

    def __init__(self) -> None:
        self._known: dict[object, object] = {}

    def stall(self, stall: Stall) -> Stall:
        """Return ``stall`` with shared frames and stacks."""
        profile = tuple(StackCount(self._stack(item.stack), item.count) for item in stall.profile)
        return dataclasses.replace(stall, stack=self._stack(stall.stack), profile=profile)

    def _stack(self, stack: tuple[Frame, ...]) -> tuple[Frame, ...]:
        known = self._known.get(stack)
        if known is None:
            known = self._known[stack] = tuple(self._known.setdefault(frame, frame) for frame in stack)
        return typing.cast("tuple[Frame, ...]", known)

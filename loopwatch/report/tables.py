"""The tables of a report: pure functions from stalls to rows, and :class:`Report`, which holds all tables.

Nothing here reads a file, a clock or the terminal, so the same journal always gives the same report.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from loopwatch.config import Config
from loopwatch.diagnosis.flagging import OFFLOADABLE, Flagging
from loopwatch.diagnosis.own_part import Parts, parts_of
from loopwatch.diagnosis.own_part import total as total_of
from loopwatch.events import Cause, FlaggedFunction, Frame, Severity, Stall
from loopwatch.report.reader import Header, JournalContents

ROUTE = "http.route"

_CLOCK_SLACK = 0.05  # seconds; file times come from the kernel's coarse clock, which lags behind time.time()


@dataclass(frozen=True, slots=True)
class CulpritRow:
    """One function that held the loop, over all its stalls; times in seconds.

    Attributes:
        name: qualified name with its module, ``[starved]`` and the like if no code is to blame.
        file, line: its line with the most blocked time; ``""`` and 0 without a culprit.
        lines: number of different lines of it that held the loop.
        times: number of stalls.
        total, max, p50: seconds: sum, longest, median.
        causes: (cause, number of stalls), most frequent first.
        victims: callbacks, timers and events waiting at the end of these stalls.
        routes: (``http.route``, number of stalls), most frequent first.
        remedy: of its longest stall.
        starved: seconds of ``total`` without a processor.
        throttled: part of ``starved`` that the CPU limit of the container took; the rest went to other processes.
        errors: number of stalls of severity ``error``.
    """

    name: str
    file: str
    line: int
    lines: int
    times: int
    total: float
    max: float
    p50: float
    causes: tuple[tuple[str, int], ...]
    victims: int
    routes: tuple[tuple[str, int], ...]
    remedy: str
    starved: float
    throttled: float
    errors: int


@dataclass(frozen=True, slots=True)
class FlaggedRow:
    """One function that was flagged, by the rule of :mod:`loopwatch.diagnosis.flagging`; times in seconds.

    Attributes:
        name: ``module:qualname``.
        file, line: where it blocked when last flagged.
        flagged: how often it was flagged, over all processes.
        first_at: seconds since the epoch at which it was first flagged.
        processes: names of the processes in which it was flagged.
        stalls, blocked: number and seconds of its stalls there, of causes that offloading cures.
        worst_minute: the most seconds that it blocked one process within a minute.
        victims: callbacks, timers and events waiting at the end of these stalls.
        cause: the one with the most blocked time.
        causes: (cause, number of stalls), most frequent first.
        remedy: of its latest stall of that cause.
    """

    name: str
    file: str
    line: int
    flagged: int
    first_at: float
    processes: tuple[str, ...]
    stalls: int
    blocked: float
    worst_minute: float
    victims: int
    cause: Cause
    causes: tuple[tuple[str, int], ...]
    remedy: str


@dataclass(frozen=True, slots=True)
class CauseRow:
    """One cause: number of stalls, seconds in total, longest in seconds, share of all blocked time (0 to 1)."""

    cause: Cause
    times: int
    total: float
    max: float
    share: float


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """Expected blocks of one reason, over all processes; times in seconds.

    Attributes:
        reason: such as ``start-up of uvicorn``.
        times, total: number of blocks, seconds in total.
        processes: number of process runs.
        longest: the longest block: name of its culprit, file, line, seconds.
    """

    reason: str
    times: int
    total: float
    processes: int
    longest: tuple[str, str, int, float]


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One run of one process; times in seconds.

    Attributes:
        name: program and process id, with a run number if the id was reused.
        pid: process id.
        argv0, python, version: as in the journal's header; empty if that is lost.
        started_at: seconds since the epoch, 0 if unknown.
        loops: names of the blocked loops.
        times, total, max: number of stalls, seconds in total, longest.
    """

    name: str
    pid: int
    argv0: str
    python: str
    version: str
    started_at: float
    loops: tuple[str, ...]
    times: int
    total: float
    max: float


@dataclass(frozen=True, slots=True)
class Unended:
    """A block without a journaled end: the process hung, was killed in it, or is still in it.

    Attributes:
        process: name of the process, as in :class:`ProcessRow`.
        pid: process id.
        loop: name of the loop.
        at: seconds since the epoch at which it was last seen blocked.
        blocked: seconds that it had been blocked by then at least, 0 if unknown.
        where: the culprit, or the innermost frame of the dump; None if unknown.
        stack: frames, outermost first.
        cause: why it blocked, None if only a stack dump is known.
    """

    process: str
    pid: int
    loop: str
    at: float
    blocked: float
    where: Frame | None
    stack: tuple[Frame, ...]
    cause: Cause | None


@dataclass(frozen=True, slots=True)
class Bucket:
    """Seconds blocked in one slice of time; ``start`` and ``end`` are seconds since the epoch."""

    start: float
    end: float
    blocked: float


# --------------------------------------------------------------------------------------------- tables


def frame_name(frame: Frame) -> str:
    """Return ``module.function``, or the function alone if the module is unknown."""
    return f"{frame.module}.{frame.function}" if frame.module else frame.function


def culprit_name(stall: Stall) -> str:
    """Return the name under which a stall is counted: its culprit, or ``[cause]``."""
    return frame_name(stall.culprit) if stall.culprit else f"[{stall.cause}]"


def culprits(contents: JournalContents) -> tuple[CulpritRow, ...]:
    """Return the culprits, most blocked time first."""
    groups: dict[tuple[str, str], list[Stall]] = defaultdict(list)
    for stall in contents.stalls:
        groups[culprit_name(stall), stall.culprit.file if stall.culprit else ""].append(stall)
    rows = [_culprit_row(name, file, stalls) for (name, file), stalls in groups.items()]
    return tuple(sorted(rows, key=lambda row: (-row.total, row.name, row.file)))


def _culprit_row(name: str, file: str, stalls: Sequence[Stall]) -> CulpritRow:
    lines: dict[int, float] = defaultdict(float)
    for stall in stalls:
        if stall.culprit:
            lines[stall.culprit.line] += stall.duration
    durations = [stall.duration for stall in stalls]
    longest = max(stalls, key=lambda stall: stall.duration)
    parts = parts_of_all(stalls)
    return CulpritRow(
        name=name,
        file=file,
        line=max(lines, key=lambda line: (lines[line], -line)) if lines else 0,
        lines=len(lines),
        times=len(stalls),
        total=math.fsum(durations),
        max=longest.duration,
        p50=statistics.median(durations),
        causes=_counted(str(stall.cause) for stall in stalls),
        victims=sum(stall.victims or 0 for stall in stalls),
        routes=_counted(stall.context[ROUTE] for stall in stalls if ROUTE in stall.context),
        remedy=longest.remedy,
        starved=parts.starved,
        throttled=parts.throttled,
        errors=errors(stalls),
    )


def errors(stalls: Iterable[Stall]) -> int:
    """Return the number of stalls of severity ``error``."""
    return sum(stall.severity is Severity.ERROR for stall in stalls)


def flagged(contents: JournalContents) -> tuple[FlaggedRow, ...]:
    """Return the functions that were flagged at any time, most blocked time first.

    They are recomputed from the stalls, per process and with the default ``flag_after`` and ``flag_window``: the
    journal's own record of a flagged function may be rotated away while that function goes on blocking.
    """
    runs = Runs(contents.headers)
    groups: dict[tuple[str, str, str], dict[str, list[Stall]]] = defaultdict(lambda: defaultdict(list))
    for stall in sorted(contents.stalls, key=_end):
        who = stall.culprit
        if who is not None and stall.cause in OFFLOADABLE and not stall.ongoing:
            process = runs.name(runs.of(stall.pid, stall.started_at))
            groups[who.module, who.function, who.file][process].append(stall)
    rows = [row for by_process in groups.values() if (row := _flagged_row(by_process)) is not None]
    return tuple(sorted(rows, key=lambda row: (-row.blocked, row.name, row.file)))


def _flagged_row(by_process: Mapping[str, Sequence[Stall]]) -> FlaggedRow | None:
    flagged = {process: _flaggings(stalls) for process, stalls in by_process.items()}
    processes = sorted(process for process, functions in flagged.items() if functions)
    if not processes:
        return None
    functions = [function for process in processes for function in flagged[process]]
    stalls = [stall for process in processes for stall in by_process[process]]
    last = max(functions, key=lambda function: function.last_at)
    spent: dict[Cause, list[float]] = defaultdict(list)
    for stall in stalls:
        spent[stall.cause].append(stall.duration)
    cause = min(spent, key=lambda cause: (-math.fsum(spent[cause]), cause))
    return FlaggedRow(
        name=last.name,
        file=last.culprit.file,
        line=last.culprit.line,
        flagged=len(functions),
        first_at=min(function.last_at for function in functions),
        processes=tuple(processes),
        stalls=len(stalls),
        blocked=math.fsum(stall.duration for stall in stalls),
        worst_minute=max(_worst_minute(by_process[process]) for process in processes),
        victims=sum(stall.victims or 0 for stall in stalls),
        cause=cause,
        causes=_counted(str(stall.cause) for stall in stalls),
        remedy=max((stall for stall in stalls if stall.cause == cause), key=_end).remedy,
    )


def _flaggings(stalls: Iterable[Stall]) -> list[FlaggedFunction]:
    """Return one record for each time that the function which caused ``stalls`` was flagged."""
    config = Config()
    flagging = Flagging(config.flag_after, config.flag_window, max_culprits=1)
    return [function for stall in stalls if (function := flagging.add(stall)) is not None]


def _worst_minute(stalls: Sequence[Stall]) -> float:
    """Return the most seconds blocked by stalls that end within one minute; ``stalls`` are sorted by end."""
    first, within, worst = 0, 0.0, 0.0
    for stall in stalls:
        within += stall.duration
        while _end(stalls[first]) <= _end(stall) - 60:
            within -= stalls[first].duration
            first += 1
        worst = max(worst, within)
    return worst


def _end(stall: Stall) -> float:
    return stall.started_at + stall.duration


def by_cause(contents: JournalContents) -> tuple[CauseRow, ...]:
    """Return the blocked time by cause, most first."""
    groups: dict[Cause, list[float]] = defaultdict(list)
    for stall in contents.stalls:
        groups[stall.cause].append(stall.duration)
    whole = blocked(contents) or 1.0
    rows = [
        CauseRow(cause, len(times), math.fsum(times), max(times), math.fsum(times) / whole)
        for cause, times in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.total, row.cause)))


def expected(contents: JournalContents) -> tuple[ExpectedRow, ...]:
    """Return the expected blocks by reason, most blocked time first."""
    runs = Runs(contents.headers)
    groups: dict[str, list[Stall]] = defaultdict(list)
    for block in contents.expected:
        groups[block.expected or ""].append(block)
    rows = []
    for reason, blocks in groups.items():
        longest = max(blocks, key=lambda block: block.duration)
        place = (longest.culprit.file, longest.culprit.line) if longest.culprit else ("", 0)
        row = ExpectedRow(
            reason=reason,
            times=len(blocks),
            total=math.fsum(block.duration for block in blocks),
            processes=len({runs.of(block.pid, block.started_at) for block in blocks}),
            longest=(culprit_name(longest), *place, longest.duration),
        )
        rows.append(row)
    return tuple(sorted(rows, key=lambda row: (-row.total, row.reason)))


def blocked(contents: JournalContents) -> float:
    """Return the seconds that all loops together were blocked."""
    return math.fsum(stall.duration for stall in contents.stalls)


def parts_of_all(stalls: Iterable[Stall]) -> Parts:
    """Return how much of the blocked time was without a processor."""
    return total_of(parts_of(stall) for stall in stalls)


class Runs:
    """Distinguishes runs of processes: a process id does not, in a container it is the same after each restart."""

    def __init__(self, headers: Iterable[Header]) -> None:
        self._headers: dict[int, list[Header]] = defaultdict(list)
        for header in sorted(headers, key=lambda header: header.started_at):
            self._headers[header.pid].append(header)

    def of(self, pid: int, at: float) -> tuple[int, int]:
        """Return (pid, number of its run at the time ``at``, from 1)."""
        starts = [header.started_at for header in self._headers.get(pid, ())]
        return pid, max(1, bisect_right(starts, at + _CLOCK_SLACK))

    def header(self, run: tuple[int, int]) -> Header | None:
        """Return the header of a run, None if it is lost."""
        known = self._headers.get(run[0], [])
        return known[run[1] - 1] if len(known) >= run[1] else None

    def name(self, run: tuple[int, int]) -> str:
        """Return a display name: ``app.py (pid 7)``, with the run number if there are several."""
        header = self.header(run)
        again = f", run {run[1]}" if len(self._headers.get(run[0], ())) > 1 else ""
        return f"{header.argv0 if header and header.argv0 else 'process'} (pid {run[0]}{again})"

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for pid, headers in self._headers.items():
            yield from ((pid, number + 1) for number in range(len(headers)))


def processes(contents: JournalContents) -> tuple[ProcessRow, ...]:
    """Return every run of a process with a header or a stall, most blocked time first."""
    runs = Runs(contents.headers)
    groups: dict[tuple[int, int], list[Stall]] = {run: [] for run in runs}
    for stall in contents.stalls:
        groups.setdefault(runs.of(stall.pid, stall.started_at), []).append(stall)
    rows = []
    for run, stalls in groups.items():
        header = runs.header(run)
        row = ProcessRow(
            name=runs.name(run),
            pid=run[0],
            argv0=header.argv0 if header else "",
            python=header.python if header else "",
            version=header.version if header else "",
            started_at=header.started_at if header else 0.0,
            loops=tuple(sorted({stall.loop for stall in stalls})),
            times=len(stalls),
            total=math.fsum(stall.duration for stall in stalls),
            max=max((stall.duration for stall in stalls), default=0.0),
        )
        rows.append(row)
    return tuple(sorted(rows, key=lambda row: (-row.total, row.pid, row.started_at)))


def unended(contents: JournalContents) -> tuple[Unended, ...]:
    """Return the blocks with a recorded begin but no end, latest first.

    There are two sources: the early notice of a stall (``ongoing``), and the dump of faulthandler. A later entry of
    the same loop in the same run of the process means that the loop went on after all.
    """
    runs = Runs(contents.headers)
    ends: dict[tuple[tuple[int, int], str], float] = {}
    found: dict[tuple[tuple[int, int], str], Unended] = {}
    for stall in (*contents.stalls, *contents.expected):
        run = runs.of(stall.pid, stall.started_at)
        end = stall.started_at + stall.duration
        if not stall.ongoing:
            ends[run, stall.loop] = max(end, ends.get((run, stall.loop), end))
            continue
        where = stall.culprit or stall.leaf
        found[run, stall.loop] = Unended(
            runs.name(run), stall.pid, stall.loop, end, stall.duration, where, stall.stack, stall.cause
        )
    for dump in contents.hangs:
        run = runs.of(dump.pid, dump.at)
        notice = found.get((run, dump.loop))
        if notice is None:
            where = dump.frames[-1] if dump.frames else None
            name = runs.name(run)
            found[run, dump.loop] = Unended(name, dump.pid, dump.loop, dump.at, 0.0, where, dump.frames, None)
        elif dump.at >= notice.at - notice.blocked:
            # Both are the same block: its length counts from its begin to the later of the two.
            at = max(dump.at, notice.at)
            found[run, dump.loop] = dataclasses.replace(
                notice,
                at=at,
                blocked=at - (notice.at - notice.blocked),
                where=notice.where or (dump.frames[-1] if dump.frames else None),
                stack=notice.stack or dump.frames,
            )
    open_ones = [hang for key, hang in found.items() if ends.get(key, -math.inf) < hang.at - _CLOCK_SLACK]
    return tuple(sorted(open_ones, key=lambda hang: (-hang.at, hang.pid, hang.loop)))


def timeline(stalls: Sequence[Stall], columns: int, span: tuple[float, float] | None = None) -> tuple[Bucket, ...]:
    """Return ``columns`` equal slices of time, each with the seconds of it that were blocked.

    Args:
        stalls: stalls to count; one that spans several slices is divided among them.
        columns: number of slices.
        span: begin and end, seconds since the epoch; default: first begin and last end of the stalls.
    """
    if not stalls:
        return ()
    start, end = span or time_span(stalls)
    step = max(end - start, 1e-3) / columns
    sums = [0.0] * columns
    for stall in stalls:
        first = (stall.started_at - start) / step
        last = first + stall.duration / step
        for column in range(max(0, int(first)), min(columns - 1, int(last)) + 1):
            sums[column] += (min(last, column + 1) - max(first, column)) * step
    return tuple(Bucket(start + i * step, start + (i + 1) * step, max(0.0, value)) for i, value in enumerate(sums))


def time_span(stalls: Sequence[Stall]) -> tuple[float, float]:
    """Return begin of the first and end of the last of ``stalls`` (at least one), in seconds since the epoch."""
    return min(stall.started_at for stall in stalls), max(stall.started_at + stall.duration for stall in stalls)


def _counted(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, slots=True)
class Report:
    """All tables of one journal, computed once and shown as text, as a page or as JSON.

    Attributes:
        contents: contents of the journal.
        runs: the runs of processes.
        span: begin of the first stall and end of the last, seconds since the epoch; None without stalls.
        blocked: seconds that all loops together were blocked.
        parts: how much of it was without a processor.
        culprits, flagged, causes, expected, processes, unended: results of the functions of this module.
    """

    contents: JournalContents
    runs: Runs
    span: tuple[float, float] | None
    blocked: float
    parts: Parts
    culprits: tuple[CulpritRow, ...]
    flagged: tuple[FlaggedRow, ...]
    causes: tuple[CauseRow, ...]
    expected: tuple[ExpectedRow, ...]
    processes: tuple[ProcessRow, ...]
    unended: tuple[Unended, ...]

    @classmethod
    def of(cls, contents: JournalContents) -> Report:
        """Compute all tables of ``contents``.

        Example:
            >>> Report.of(JournalContents()).blocked
            0.0
        """
        return cls(
            contents=contents,
            runs=Runs(contents.headers),
            span=time_span(contents.stalls) if contents.stalls else None,
            blocked=blocked(contents),
            parts=parts_of_all(contents.stalls),
            culprits=culprits(contents),
            flagged=flagged(contents),
            causes=by_cause(contents),
            expected=expected(contents),
            processes=processes(contents),
            unended=unended(contents),
        )

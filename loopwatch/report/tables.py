"""From a journal to an answer: pure functions that make tables, text, JSON and collapsed stacks of it.

Nothing here reads a file, a clock or the terminal, so the same journal always gives the same report.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import textwrap
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from loopwatch.config import Config
from loopwatch.core.text import shown
from loopwatch.diagnosis.flagging import OFFLOADABLE, Flagging
from loopwatch.events import Cause, FlaggedFunction, Frame, Stall
from loopwatch.report.reader import TORN, Header, JournalContents

SCHEMA = "loopwatch.report/1"
ROUTE = "http.route"

_LEVELS = " ▁▂▃▄▅▆▇█"
_CLOCK_SLACK = 0.05  # s; file times come from the kernel's coarse clock, which lags behind time.time()


@dataclass(frozen=True, slots=True)
class CulpritRow:
    """One function that held the loop, over all its stalls; times in seconds.

    Attributes:
        name: qualified name with its module, ``[starved]`` and the like where no code is to blame.
        file, line: where it blocked longest; ``""`` and 0 without a culprit.
        lines: in how many different lines of it the loop was held.
        times: number of stalls.
        total, max, p50: seconds: sum, longest, median.
        causes: (cause, number of stalls), most frequent first.
        victims: callbacks, timers and events that waited at the end of these stalls.
        routes: (``http.route``, number of stalls), most frequent first.
        remedy: of its longest stall.
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


@dataclass(frozen=True, slots=True)
class FlaggedRow:
    """One function that kept blocking: flagged, by the rule of :mod:`loopwatch.diagnosis.flagging`; times in seconds.

    Attributes:
        name: ``module:qualname``.
        file, line: where it blocked when it was flagged last.
        flagged: how often it was flagged, over all processes.
        first_at: seconds since the epoch at which it was flagged first.
        processes: names of the processes in which it was.
        stalls, blocked: number and seconds of its stalls there, as far as running it off the loop cures them.
        worst_minute: the most seconds that one process was blocked by it within a minute.
        victims: callbacks, timers and events that waited at the end of these stalls.
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
    """Blocks that were expected for one reason, over all processes; times in seconds.

    Attributes:
        reason: such as ``start-up of uvicorn``.
        times, total: number of blocks, seconds in total.
        processes: in how many runs of processes.
        longest: of the longest: name of its culprit, file, line, seconds.
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
        name: program and process id, with a number where an id was used again.
        pid: process id.
        argv0, python, version: as in the journal's header; empty if it is lost.
        started_at: seconds since the epoch, 0 if unknown.
        loops: names of the loops that were held.
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
    """A block whose end was never journaled: the process hung, was killed in it, or is in it now.

    Attributes:
        process: name of the process, as in :class:`ProcessRow`.
        pid: process id.
        loop: name of the loop.
        at: seconds since the epoch at which it was last seen blocked.
        blocked: seconds it was blocked by then at least, 0 if unknown.
        where: the culprit, or the innermost frame of the dump; None if nothing was seen.
        stack: frames, outermost first.
        cause: why, None where only a stack dump tells of it.
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
    """Return ``module.function``, or the function alone where the module is unknown."""
    return f"{frame.module}.{frame.function}" if frame.module else frame.function


def culprit_name(stall: Stall) -> str:
    """Return the name under which a stall is counted: its culprit, or ``[cause]``."""
    return frame_name(stall.culprit) if stall.culprit else f"[{stall.cause}]"


def culprits(contents: JournalContents) -> tuple[CulpritRow, ...]:
    """Return who held the loop, the most blocked time first."""
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
    )


def flagged(contents: JournalContents) -> tuple[FlaggedRow, ...]:
    """Return the functions that were flagged at any time, the most blocked time first.

    They are found anew from the stalls, in each process apart and with the default ``flag_after`` and ``flag_window``:
    the journal's own record of a flagged function may be rotated away while that function goes on blocking.
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
    told = {process: _flaggings(stalls) for process, stalls in by_process.items()}
    processes = sorted(process for process, functions in told.items() if functions)
    if not processes:
        return None
    functions = [function for process in processes for function in told[process]]
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
    """Return each time that the one function which caused ``stalls`` became flagged."""
    config = Config()
    flagging = Flagging(config.flag_after, config.flag_window, max_culprits=1)
    return [function for stall in stalls if (function := flagging.add(stall)) is not None]


def _worst_minute(stalls: Sequence[Stall]) -> float:
    """Return the most seconds blocked by stalls that end within one minute; they are in order of their end."""
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
    """Return the blocks that were expected, by reason, the most blocked time first."""
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
    """Return the seconds that all loops together were held."""
    return math.fsum(stall.duration for stall in contents.stalls)


class Runs:
    """Tells runs of processes apart: a process id alone does not, in a container it is the same after each restart."""

    def __init__(self, headers: Iterable[Header]) -> None:
        self._headers: dict[int, list[Header]] = defaultdict(list)
        for header in sorted(headers, key=lambda header: header.started_at):
            self._headers[header.pid].append(header)

    def of(self, pid: int, at: float) -> tuple[int, int]:
        """Return (pid, number of its run that was under way at ``at``, from 1)."""
        starts = [header.started_at for header in self._headers.get(pid, ())]
        return pid, max(1, bisect_right(starts, at + _CLOCK_SLACK))

    def header(self, run: tuple[int, int]) -> Header | None:
        """Return the header of a run, None if it is lost."""
        known = self._headers.get(run[0], [])
        return known[run[1] - 1] if len(known) >= run[1] else None

    def name(self, run: tuple[int, int]) -> str:
        """Return a name for people: ``app.py (pid 7)``, and which run where there are several."""
        header = self.header(run)
        again = f", run {run[1]}" if len(self._headers.get(run[0], ())) > 1 else ""
        return f"{header.argv0 if header and header.argv0 else 'process'} (pid {run[0]}{again})"

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for pid, headers in self._headers.items():
            yield from ((pid, number + 1) for number in range(len(headers)))


def processes(contents: JournalContents) -> tuple[ProcessRow, ...]:
    """Return every run of a process that left a header or a stall, the most blocked first."""
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
    """Return the blocks that were seen to begin but not to end, the latest first.

    They are known from two sides: the early notice of a stall (``ongoing``), and the dump of faulthandler. A later
    entry of the same loop in the same run of the process means that the loop got on after all.
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
            # Both saw the same block: its length counts from its begin to the later of the two.
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
        stalls: whose time to count; a stall that spans several slices is divided among them.
        columns: number of slices.
        span: seconds since the epoch, from and to; default from the first begin to the last end.
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


# ----------------------------------------------------------------------------------------------- text


def to_text(contents: JournalContents, width: int = 100, top: int = 10) -> str:
    """Return the report for a terminal.

    Args:
        contents: what :func:`~loopwatch.sinks.journal.read_journals` found.
        width: columns of the terminal; lines are cut or wrapped to it, 40 at least.
        top: how many culprits and processes to tell of.
    """
    width = max(40, width)
    sections = [
        _text_headline(contents, width),
        _section("NEVER ENDED", [_text_unended(hang, width) for hang in unended(contents)]),
        _section("WORST CULPRITS", _text_culprits(contents, width, top)),
        _section("FLAGGED FUNCTIONS", _text_flagged(contents, width, top)),
        _section("BY CAUSE", _text_causes(contents)),
        _section("EXPECTED, NOT COUNTED ABOVE", [_text_expected(row, width) for row in expected(contents)]),
        _section("TIMELINE", _text_timeline(contents, width, top)),
        _section("PROCESSES", _text_processes(contents, top)),
        _section("PASSED OVER", [_text_skipped(contents)]),
    ]
    lines = [line for section in sections for line in section]
    return "\n".join(cut(line, width) for line in lines).rstrip("\n") + "\n"


def seconds(value: float) -> str:
    """Return a length of time for people.

    Example:
        >>> seconds(0.1234), seconds(2.5), seconds(61), seconds(7380)
        ('123 ms', '2.50 s', '1 min 1 s', '2 h 3 min')
    """
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.995:
        return f"{value:.2f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(at: float) -> str:
    """Return date and time in UTC, which is the same on every reader's machine."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f} s since the epoch"


def flagged_sentence(row: FlaggedRow) -> str:
    """Return how often a function was flagged and what it cost, in one sentence."""
    first = f"{'' if row.flagged == 1 else 'first '}at {clock(row.first_at)} UTC"
    where = row.processes[0] if len(row.processes) == 1 else _plural(len(row.processes), "process", "es")
    cost = f"{seconds(row.blocked)} in total, {seconds(row.worst_minute)} in its worst minute"
    waited = f", {row.victims} waited" if row.victims else ""
    told = f"flagged {times(row.flagged)}, {first}, in {where}"
    return shown(f"{told}: {_plural(row.stalls, 'stall')}, {cost}{waited} ({_tally(row.causes)})")


def cut(line: str, width: int) -> str:
    """Return ``line`` cut to ``width`` characters; what is left out becomes one ellipsis in its middle third."""
    if len(line) <= width:
        return line
    tail = width // 3
    return f"{line[: width - tail - 1]}…{line[len(line) - tail :]}"


def times(count: int) -> str:
    """Return ``once`` or ``N times``."""
    return "once" if count == 1 else f"{count:,} times"


def headline(contents: JournalContents) -> str:
    """Return the finding in one sentence."""
    if not contents.stalls:
        return "No stall was journaled."
    worst = culprits(contents)[0]
    whole = blocked(contents)
    count = len(contents.stalls)
    who = f"by {shown(worst.name)}{_place(worst.file, worst.line)}"
    if count == 1:
        return f"The event loop was held once, for {seconds(whole)}, {who}."
    share = f"{worst.total / whole:.0%}" if worst.total < whole else "all"
    return f"The event loop was held {times(count)} for {seconds(whole)} in total, {share} of it {who}."


def hang_sentence(hang: Unended) -> str:
    """Return what is known of a block that never ended, in one sentence."""
    where = f"in {frame_name(hang.where)} ({hang.where.file}:{hang.where.line})" if hang.where else "in unknown code"
    span = f", for at least {seconds(hang.blocked)}" if hang.blocked else ""
    return shown(f"{hang.process}, loop {hang.loop}: last seen blocked {where}{span}, at {clock(hang.at)} UTC")


def _section(title: str, blocks: Sequence[Sequence[str]]) -> list[str]:
    lines = [line for block in blocks for line in block]
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _text_headline(contents: JournalContents, width: int) -> list[str]:
    lines = textwrap.wrap(headline(contents), width)
    if contents.stalls:
        start, end = time_span(contents.stalls)
        lines.append(f"{clock(start)} to {clock(end)} UTC, {_plural(len(processes(contents)), 'process', 'es')}")
    return lines


def _text_unended(hang: Unended, width: int) -> list[str]:
    return textwrap.wrap(hang_sentence(hang), width - 2, subsequent_indent="  ")


def _place(file: str, line: int) -> str:
    return f" ({shown(file)}:{line})" if file else ""


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else ending}"


def _text_culprits(contents: JournalContents, width: int, top: int) -> list[list[str]]:
    rows = culprits(contents)
    blocks = [_text_culprit(number, row, width) for number, row in enumerate(rows[:top], 1)]
    rest = rows[top:]
    if rest:
        more = seconds(math.fsum(row.total for row in rest))
        blocks.append([f"and {_plural(len(rest), 'more culprit')}, {more} in total"])
    return blocks


def _text_culprit(number: int, row: CulpritRow, width: int) -> list[str]:
    more = f" and {_plural(row.lines - 1, 'other line')}" if row.lines > 1 else ""
    numbers = f"{times(row.times)}, {seconds(row.total)} in total, p50 {seconds(row.p50)}, longest {seconds(row.max)}"
    waited = f", {row.victims} waited" if row.victims else ""
    lines = [f"{number:>2}. {shown(row.name)}{_place(row.file, row.line)}{more}", f"    {numbers}{waited}"]
    lines.append(f"    cause: {_tally(row.causes)}")
    if row.routes:
        lines.append(f"    routes: {_tally(row.routes)}")
    if row.remedy:
        lines.extend(textwrap.wrap(shown(row.remedy), width - 2, initial_indent="    -> ", subsequent_indent=" " * 7))
    return lines


def _text_flagged(contents: JournalContents, width: int, top: int) -> list[list[str]]:
    rows = flagged(contents)
    blocks = [_text_flagged_row(row, width) for row in rows[:top]]
    return blocks + ([[f"and {len(rows) - top} more"]] if len(rows) > top else [])


def _text_flagged_row(row: FlaggedRow, width: int) -> list[str]:
    return [
        f"{shown(row.name)}{_place(row.file, row.line)}",
        *textwrap.wrap(flagged_sentence(row), width - 2, initial_indent="    ", subsequent_indent="    "),
        *textwrap.wrap(shown(row.remedy), width - 2, initial_indent="    -> ", subsequent_indent=" " * 7),
    ]


def _tally(counts: Sequence[tuple[str, int]], top: int = 4) -> str:
    named = [f"{shown(name)} {count}" for name, count in counts[:top]]
    return ", ".join(named) + (f", and {len(counts) - top} more" if len(counts) > top else "")


def _text_causes(contents: JournalContents) -> list[list[str]]:
    rows = by_cause(contents)
    longest = max((len(row.cause) for row in rows), default=0)
    return [
        [
            f"{row.cause:<{longest}}  {seconds(row.total):>12}  {row.share:>4.0%}  {'█' * round(row.share * 20):<20}  "
            f"{times(row.times)}, longest {seconds(row.max)}"
        ]
        for row in rows
    ]


def _text_expected(row: ExpectedRow, width: int) -> list[str]:
    return textwrap.wrap(expected_sentence(row), width - 2, subsequent_indent="  ")


def expected_sentence(row: ExpectedRow) -> str:
    """Return what is known of blocks that were expected for one reason, in one sentence."""
    name, file, line, longest = row.longest
    where = _plural(row.processes, "process", "es")
    took = f"{row.reason}: {times(row.times)}, {seconds(row.total)} in total, in {where}"
    return f"{shown(took)}; longest {seconds(longest)} by {shown(name)}{_place(file, line)}"


def _text_timeline(contents: JournalContents, width: int, top: int) -> list[list[str]]:
    if not contents.stalls:
        return []
    runs = Runs(contents.headers)
    lanes: dict[str, list[Stall]] = defaultdict(list)
    for stall in contents.stalls:
        lanes[runs.name(runs.of(stall.pid, stall.started_at))].append(stall)
    span = time_span(contents.stalls)
    named = sorted(lanes, key=lambda name: (-math.fsum(stall.duration for stall in lanes[name]), name))[:top]
    columns = min(width - 4, 120)
    slices = {name: timeline(lanes[name], columns, span) for name in named}
    highest = max(bucket.blocked for lane in slices.values() for bucket in lane)
    blocks = []
    for name, lane in slices.items():
        bars = "".join(_bar(bucket.blocked, highest) for bucket in lane)
        blocks.append([shown(name), f"▕{bars}▏"] if len(lanes) > 1 else [f"▕{bars}▏"])
    first, last = clock(span[0]), clock(span[1]).split(" ")[-1]
    blocks.append([f" {first}{last:>{max(columns - len(first), len(last) + 1)}}"])
    blocks.append([f" one column is {seconds((span[1] - span[0]) / columns)}, a full one {seconds(highest)} blocked"])
    return blocks


def _bar(value: float, highest: float) -> str:
    if value <= 0 or highest <= 0:
        return _LEVELS[0]
    return _LEVELS[max(1, round(value / highest * (len(_LEVELS) - 1)))]


def _text_processes(contents: JournalContents, top: int) -> list[list[str]]:
    rows = processes(contents)
    blocks = [
        [
            f"{shown(row.name)}: {times(row.times) if row.times else 'never'} held"
            + (f", {seconds(row.total)} in total" if row.times else "")
            + (f"; since {clock(row.started_at)}" if row.started_at else "")
            + (f", Python {shown(row.python)}" if row.python else "")
        ]
        for row in rows[:top]
    ]
    return blocks + ([[f"and {len(rows) - top} more"]] if len(rows) > top else [])


def _text_skipped(contents: JournalContents) -> list[str]:
    # A torn last line is how a killed process's journal always ends: no news.
    return [skipped_sentence(item.file, item.lines, item.reason) for item in contents.skipped if item.reason != TORN]


def skipped_sentence(file: str, lines: int | None, reason: str) -> str:
    """Return what was passed over in one file, in one line."""
    return shown(f"{file}: {reason}" if lines is None else f"{file}: {_plural(lines, 'line')} {reason}")


# --------------------------------------------------------------------------------- for other programs


def to_json(contents: JournalContents) -> str:
    """Return the report as one JSON object; the shape is stable within ``loopwatch.report/1``.

    .. code-block:: text

        schema     "loopwatch.report/1"
        from, to   seconds since the epoch: first begin, last end; null without stalls
        times      number of stalls
        blocked    seconds in total
        culprits   [{name, file, line, lines, times, total, max, p50, causes: {cause: times}, victims,
                     routes: {route: times}, remedy}]                          see CulpritRow
        flagged    [{name, file, line, flagged, first_at, processes, stalls, blocked, worst_minute, victims,
                     cause, causes: {cause: times}, remedy}]                   see FlaggedRow
        causes     [{cause, times, total, max, share}]                         see CauseRow
        expected   [{reason, times, total, processes, longest: [name, file, line, seconds]}]
                                                                               see ExpectedRow
        processes  [{name, pid, argv0, python, version, started_at, loops, times, total, max}]
        unended    [{process, pid, loop, at, blocked, where, stack, cause}]    see Unended
        skipped    [{file, lines, reason}]
        stalls     [Stall.to_dict()] in order of time

    Numbers that JSON does not have (infinity) are null.
    """
    span = time_span(contents.stalls) if contents.stalls else (None, None)
    rows = [
        {**dataclasses.asdict(row), "causes": dict(row.causes), "routes": dict(row.routes)}
        for row in culprits(contents)
    ]
    report = {
        "schema": SCHEMA,
        "from": span[0],
        "to": span[1],
        "times": len(contents.stalls),
        "blocked": blocked(contents),
        "culprits": rows,
        "flagged": [{**dataclasses.asdict(row), "causes": dict(row.causes)} for row in flagged(contents)],
        "causes": [dataclasses.asdict(row) for row in by_cause(contents)],
        "expected": [dataclasses.asdict(row) for row in expected(contents)],
        "processes": [dataclasses.asdict(row) for row in processes(contents)],
        "unended": [dataclasses.asdict(hang) for hang in unended(contents)],
        "skipped": [dataclasses.asdict(item) for item in contents.skipped],
        "stalls": [stall.to_dict() for stall in contents.stalls],
    }
    return strict_json(report)


def strict_json(value: object) -> str:
    """Return JSON that every parser takes: pure ASCII, infinities and NaN as null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_collapsed(contents: JournalContents) -> str:
    """Return collapsed stacks, ``module.function;...;leaf N`` with N in milliseconds, for any flame graph tool.

    A stall with several sampled stacks is divided among them by their counts; one without any stack counts as
    ``[cause]``. What would break the format in a name (``;``, line ends) is shown as an escape.
    """
    weights: dict[tuple[str, ...], float] = defaultdict(float)
    for stall in contents.stalls:
        for stack, share in weighted_stacks(stall):
            weights[tuple(_escaped(frame_name(frame)) for frame in stack) or (f"[{stall.cause}]",)] += share * 1000
    lines = [f"{';'.join(stack)} {whole}" for stack, whole in _whole(weights).items() if whole]
    return "".join(f"{line}\n" for line in sorted(lines))


def weighted_stacks(stall: Stall) -> list[tuple[tuple[Frame, ...], float]]:
    """Return the stacks of a stall and the seconds each stands for; they sum up to its duration."""
    taken = [item for item in stall.profile if item.count > 0 and item.stack]
    whole = sum(item.count for item in taken)
    if not whole:
        return [(stall.stack, stall.duration)]
    return [(item.stack, stall.duration * (item.count / whole)) for item in taken]


def _whole(weights: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], int]:
    """Round to whole numbers whose sum is the rounded sum (largest remainder): many small stacks must not vanish."""
    rounded = {stack: math.floor(weight) for stack, weight in weights.items()}
    missing = round(math.fsum(weights.values())) - sum(rounded.values())
    by_remainder = sorted(weights, key=lambda stack: (rounded[stack] - weights[stack], stack))
    for stack in by_remainder[: max(0, missing)]:
        rounded[stack] += 1
    return rounded


def _escaped(name: str) -> str:
    return shown(name).replace(";", "\\x3b") or "?"

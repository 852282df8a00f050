"""A report as text for a terminal: headline, tables, timeline."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

from loopwatch.core.text import shown
from loopwatch.diagnosis.own_part import Parts
from loopwatch.diagnosis.starvation import NEIGHBOURS, QUOTA, is_notable
from loopwatch.events import Stall
from loopwatch.report.reader import TORN
from loopwatch.report.tables import (
    CauseRow,
    CulpritRow,
    ExpectedRow,
    FlaggedRow,
    ProcessRow,
    Report,
    Unended,
    errors,
    frame_name,
    timeline,
)

_LEVELS = " ▁▂▃▄▅▆▇█"


def to_text(report: Report, width: int = 100, top: int = 10) -> str:
    """Return the report for a terminal.

    Args:
        report: of a journal.
        width: columns of the terminal, 40 at least; lines are truncated or wrapped to it.
        top: number of culprits and processes to list.
    """
    width = max(40, width)
    sections = [
        _text_headline(report, width),
        _section("NEVER ENDED", [_text_unended(hang, width) for hang in report.unended]),
        _section("WORST CULPRITS", _text_culprits(report.culprits, width, top)),
        _section("FLAGGED FUNCTIONS", _text_flagged(report.flagged, width, top)),
        _section("BY CAUSE", _text_causes(report.causes)),
        _section("EXPECTED, NOT COUNTED ABOVE", [_text_expected(row, width) for row in report.expected]),
        _section("TIMELINE", _text_timeline(report, width, top)),
        _section("PROCESSES", _text_processes(report.processes, top)),
        _section("PASSED OVER", [_text_skipped(report)]),
    ]
    lines = [line for section in sections for line in section]
    return "\n".join(cut(line, width) for line in lines).rstrip("\n") + "\n"


def seconds(value: float) -> str:
    """Return a duration for people to read.

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
    line = f"flagged {times(row.flagged)}, {first}, in {where}"
    return shown(f"{line}: {_plural(row.stalls, 'stall')}, {cost}{waited} ({_tally(row.causes)})")


def cut(line: str, width: int) -> str:
    """Return ``line`` truncated to ``width`` characters, with one ellipsis in its middle third."""
    if len(line) <= width:
        return line
    tail = width // 3
    return f"{line[: width - tail - 1]}…{line[len(line) - tail :]}"


def times(count: int) -> str:
    """Return ``once`` or ``N times``."""
    return "once" if count == 1 else f"{count:,} times"


def headline(report: Report) -> str:
    """Return the finding in one sentence."""
    count, whole = len(report.contents.stalls), report.blocked
    if not count:
        return "No stall was journaled."
    worst = report.culprits[0]
    who = f"by {shown(worst.name)}{_place(worst.file, worst.line)}"
    if count == 1:
        return f"The event loop was held once, for {seconds(whole)}, {who}."
    share = f"{worst.total / whole:.0%}" if worst.total < whole else "all"
    return f"The event loop was held {times(count)} for {seconds(whole)} in total, {share} of it {who}."


def without_processor(parts: Parts) -> str:
    """Return how much of the blocked time was without a processor, and who took it; "" if that is not notable.

    Example:
        >>> without_processor(Parts(own=1.0, starved=1.0, throttled=0.75))
        '1.00 s (50%) without a processor: 750 ms CPU limit of the container, 250 ms other processes'
    """
    if not is_notable(parts):
        return ""
    taken = ((parts.throttled, QUOTA), (parts.starved - parts.throttled, NEIGHBOURS))
    named = ", ".join(f"{seconds(part)} {who}" for part, who in taken if part >= 0.01 * parts.starved)
    return f"{seconds(parts.starved)} ({parts.starved / (parts.own + parts.starved):.0%}) without a processor: {named}"


def hang_sentence(hang: Unended) -> str:
    """Return one sentence about a block that never ended."""
    where = f"in {frame_name(hang.where)} ({hang.where.file}:{hang.where.line})" if hang.where else "in unknown code"
    span = f", for at least {seconds(hang.blocked)}" if hang.blocked else ""
    return shown(f"{hang.process}, loop {hang.loop}: last seen blocked {where}{span}, at {clock(hang.at)} UTC")


def _section(title: str, blocks: Sequence[Sequence[str]]) -> list[str]:
    lines = [line for block in blocks for line in block]
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _text_headline(report: Report, width: int) -> list[str]:
    lines = textwrap.wrap(headline(report), width)
    if without := without_processor(report.parts):
        lines += textwrap.wrap(f"Of these, {without}.", width)
    if report.span is not None:
        start, end = report.span
        where = _plural(len(report.processes), "process", "es")
        severe = errors(report.contents.stalls)
        bad = f"; {_plural(severe, 'error')}: ten times the threshold, or a hang" if severe else ""
        lines.append(f"{clock(start)} to {clock(end)} UTC, {where}{bad}")
    return lines


def _text_unended(hang: Unended, width: int) -> list[str]:
    return textwrap.wrap(hang_sentence(hang), width - 2, subsequent_indent="  ")


def _place(file: str, line: int) -> str:
    return f" ({shown(file)}:{line})" if file else ""


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else ending}"


def _text_culprits(rows: Sequence[CulpritRow], width: int, top: int) -> list[list[str]]:
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
    if row.errors:
        numbers += f", {_plural(row.errors, 'error')}"
    lines = [f"{number:>2}. {shown(row.name)}{_place(row.file, row.line)}{more}", f"    {numbers}{waited}"]
    lines.append(f"    cause: {_tally(row.causes)}")
    if without := without_processor(Parts(row.total - row.starved, row.starved, row.throttled)):
        lines.extend(textwrap.wrap(without, width - 2, initial_indent="    ", subsequent_indent=" " * 7))
    if row.routes:
        lines.append(f"    routes: {_tally(row.routes)}")
    if row.remedy:
        lines.extend(textwrap.wrap(shown(row.remedy), width - 2, initial_indent="    -> ", subsequent_indent=" " * 7))
    return lines


def _text_flagged(rows: Sequence[FlaggedRow], width: int, top: int) -> list[list[str]]:
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


def _text_causes(rows: Sequence[CauseRow]) -> list[list[str]]:
    longest = max((len(row.cause) for row in rows), default=0)
    return [
        [
            f"{row.cause:<{longest}}  {seconds(row.total):>12}  {row.share:>4.0%}  {'█' * round(row.share * 20):<20}  "
            f"{times(row.times)}, longest {seconds(row.max)}"
        ]
        for row in rows
    ]


def _text_timeline(report: Report, width: int, top: int) -> list[list[str]]:
    runs, span = report.runs, report.span
    if span is None:
        return []
    lanes: dict[str, list[Stall]] = defaultdict(list)
    for stall in report.contents.stalls:
        lanes[runs.name(runs.of(stall.pid, stall.started_at))].append(stall)
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


def _text_processes(rows: Sequence[ProcessRow], top: int) -> list[list[str]]:
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


def _text_skipped(report: Report) -> list[str]:
    # A torn last line is normal: the journal of a killed process ends so.
    return [
        skipped_sentence(item.file, item.lines, item.reason) for item in report.contents.skipped if item.reason != TORN
    ]


def skipped_sentence(file: str, lines: int | None, reason: str) -> str:
    """Return one line about the skipped part of a file."""
    return shown(f"{file}: {reason}" if lines is None else f"{file}: {_plural(lines, 'line')} {reason}")


def _text_expected(row: ExpectedRow, width: int) -> list[str]:
    return textwrap.wrap(expected_sentence(row), width - 2, subsequent_indent="  ")


def expected_sentence(row: ExpectedRow) -> str:
    """Return one sentence about the expected blocks of one reason."""
    name, file, line, longest = row.longest
    where = _plural(row.processes, "process", "es")
    took = f"{row.reason}: {times(row.times)}, {seconds(row.total)} in total, in {where}"
    return f"{shown(took)}; longest {seconds(longest)} by {shown(name)}{_place(file, line)}"

"""Suggests a threshold from the lag and the stalls of a journal. Pure.

Above the threshold in force the journal has every block with its length. Below it there is only the lag of the
heartbeat: how late it came, which is the rest of a block that it came into, so that blocks are somewhat longer and more
frequent than the lag says.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from dataclasses import dataclass

from loopwatch.events import LagRecord, Stall
from loopwatch.report.reader import JournalContents
from loopwatch.report.text import clock, seconds

QUANTILE = 0.999
ENOUGH_BEATS = 10_000
"""Heartbeats for the quantile: ten lie above it."""
ENOUGH_BLOCKS = 3.0
"""Blocks that the wanted rate must have given in the observed time: with fewer, the next hour may look different."""
LOWEST = 0.01
"""Seconds; the least that is suggested: shorter blocks are common on any machine, and finding them has its price."""

WITHOUT_LAG = (
    "No threshold can be suggested: no lag is recorded in this journal. A process records it once it has run for a "
    "minute, later every ten minutes, and when it ends."
)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A suggested threshold.

    Attributes:
        value: seconds, None where the journal holds too little.
        reason: one sentence: what it rests on, or what is missing.
    """

    value: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Suggestions:
    """What a journal says about thresholds.

    Attributes:
        by_rate: the threshold that would give about the wanted number of stalls an hour in each loop.
        by_quantile: the :data:`QUANTILE` of the lag.
        in_force: the threshold in force, seconds; the highest one, if it was changed.
        rate: stalls an hour in each loop that it gave.
        hours: hours observed, of all loops together.
        beats: number of heartbeats.
        loops, processes: number of loops and of processes that were observed.
        start, end: of the observed time, seconds since the epoch.
    """

    by_rate: Suggestion
    by_quantile: Suggestion
    in_force: float
    rate: float
    hours: float
    beats: int
    loops: int
    processes: int
    start: float
    end: float


def suggest(contents: JournalContents, per_hour: float = 1.0) -> Suggestions | None:
    """Return suggested thresholds, None if the journal holds no lag.

    Args:
        contents: of a journal.
        per_hour: wanted stalls an hour in each loop.
    """
    records = contents.lags
    if not records:
        return None
    in_force = max(record.threshold for record in records)
    hours = math.fsum(record.seconds for record in records) / 3600
    durations = sorted((stall.duration for stall in _observed(contents) if stall.duration >= in_force), reverse=True)
    lags: Counter[float] = Counter()
    for record in records:
        for late, count in record.lags:
            lags[late] += count
    return Suggestions(
        by_rate=_by_rate(durations, lags, in_force, hours, per_hour),
        by_quantile=_by_quantile(lags),
        in_force=in_force,
        rate=len(durations) / hours if hours else 0.0,
        hours=hours,
        beats=lags.total(),
        loops=len({(record.pid, record.loop) for record in records}),
        processes=len({record.pid for record in records}),
        start=min(record.started_at for record in records),
        end=max(record.started_at + record.seconds for record in records),
    )


def _observed(contents: JournalContents) -> list[Stall]:
    """Return the finished stalls within the time of the lag records: others are counted in no hour."""
    spans: dict[int, list[LagRecord]] = defaultdict(list)
    for record in contents.lags:
        spans[record.pid].append(record)
    return [
        stall
        for stall in contents.stalls
        if not stall.ongoing
        and any(
            record.started_at <= stall.started_at <= record.started_at + record.seconds for record in spans[stall.pid]
        )
    ]


def _by_rate(
    durations: list[float], lags: Counter[float], in_force: float, hours: float, per_hour: float
) -> Suggestion:
    wanted, observed = per_hour * hours, seconds(3600 * hours)
    if wanted < ENOUGH_BLOCKS:
        needed = seconds(3600 * ENOUGH_BLOCKS / per_hour)
        return Suggestion(None, f"too little: {observed} were observed, {per_hour:g} an hour takes {needed}")
    rank = math.floor(wanted)
    if len(durations) >= rank:
        value = _rounded(durations[rank - 1])
        count = sum(duration >= value for duration in durations)
        return Suggestion(value, f"{count} blocks in {observed} lasted as long or longer, by their exact lengths")
    if (late := _exceeded_by(lags, rank)) is None or late >= in_force:
        return Suggestion(in_force, f"as it is: {len(durations)} blocks in {observed} lasted as long or longer")
    value = max(_rounded(late), LOWEST)
    count = sum(number for lag, number in lags.items() if lag >= value)
    least = ", which is the least that is of use" if value == LOWEST else ""
    return Suggestion(
        min(value, in_force),
        f"{count} heartbeats in {observed} were as late or later{least}; blocks are somewhat longer than that",
    )


def _by_quantile(lags: Counter[float]) -> Suggestion:
    beats = lags.total()
    if beats < ENOUGH_BEATS:
        return Suggestion(None, f"too little: {beats:,} heartbeats were recorded, the quantile takes {ENOUGH_BEATS:,}")
    late = _exceeded_by(lags, math.floor(beats * (1 - QUANTILE)))
    value = max(_rounded(late or 0.0), LOWEST)
    above = sum(count for lag, count in lags.items() if lag >= value)
    if value == LOWEST:
        return Suggestion(value, f"{beats - above:,} of {beats:,} heartbeats were less late, and less is of no use")
    return Suggestion(value, f"{beats - above:,} of {beats:,} heartbeats were less late")


def _exceeded_by(lags: Counter[float], rank: int) -> float | None:
    """Return the lag of the ``rank``-th latest heartbeat, None if there are fewer."""
    seen = 0
    for late in sorted(lags, reverse=True):
        seen += lags[late]
        if seen >= rank:
            return late
    return None


def _rounded(value: float) -> float:
    """Return ``value`` with two digits, rounded down, so that the block that it is taken from still reaches it.

    Example:
        >>> _rounded(0.2687), _rounded(3.0), _rounded(0.012)
        (0.26, 3.0, 0.012)
    """
    if value <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(value))
    nearest = round(value, digits)
    return nearest if nearest <= value else round(nearest - 10.0**-digits, digits)


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def suggestion_text(found: Suggestions | None, per_hour: float, width: int) -> str:
    """Return suggested thresholds for a terminal of ``width`` columns."""
    if found is None:
        return "\n".join(textwrap.wrap(WITHOUT_LAG, width)) + "\n"
    lines = ["SUGGESTED THRESHOLD"]
    for what, suggestion in (
        (f"for about {per_hour:g} {'stall' if per_hour == 1 else 'stalls'} an hour in each loop", found.by_rate),
        (f"the {QUANTILE:.1%} quantile of the lag", found.by_quantile),
    ):
        value = "    -" if suggestion.value is None else f"{suggestion.value:5.2g}"
        lines += textwrap.wrap(
            f"{what}: {suggestion.reason}.", width, initial_indent=f"  {value}  ", subsequent_indent=" " * 9
        )
    loops = f"{found.loops} {'loop' if found.loops == 1 else 'loops'}"
    processes = f"{found.processes} {'process' if found.processes == 1 else 'processes'}"
    observed = (
        f"In force was {found.in_force:g}, which gave {_shown(found.rate)} stalls an hour. Observed: {loops} in "
        f"{processes}, {seconds(found.hours * 3600)} in all, {found.beats:,} heartbeats, {clock(found.start)} to "
        f"{clock(found.end)} UTC."
    )
    lines += textwrap.wrap(observed, width, initial_indent="  ", subsequent_indent="  ")
    lines += textwrap.wrap(
        "In seconds; set it with --threshold or LOOPWATCH_THRESHOLD, for single routes and tasks with --thresholds.",
        width, initial_indent="  ", subsequent_indent="  ",
    )  # fmt: skip
    return "\n".join(lines) + "\n"

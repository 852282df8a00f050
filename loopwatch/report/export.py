"""A report for other programs: JSON, and collapsed stacks for flame graphs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping

from loopwatch.core.text import shown
from loopwatch.events import Frame, Stall
from loopwatch.report.reader import JournalContents
from loopwatch.report.tables import Report, errors, frame_name

SCHEMA = "loopwatch.report/1"


def to_json(report: Report) -> str:
    """Return the report as one JSON object; the shape is stable within ``loopwatch.report/1``.

    .. code-block:: text

        schema     "loopwatch.report/1"
        from, to   seconds since the epoch: first begin, last end; null without stalls
        times      number of stalls
        errors     number of them of severity "error"
        blocked    seconds in total
        starved    seconds of it without a processor
        throttled  seconds of these that the CPU limit of the container took; the rest went to other processes
        culprits   [{name, file, line, lines, times, total, max, p50, causes: {cause: times}, victims,
                     routes: {route: times}, remedy, starved, throttled, errors}]
                                                                               see CulpritRow
        flagged    [{name, file, line, flagged, first_at, processes, stalls, blocked, worst_minute, victims,
                     cause, causes: {cause: times}, remedy}]                   see FlaggedRow
        causes     [{cause, times, total, max, share}]                         see CauseRow
        expected   [{reason, times, total, processes, longest: [name, file, line, seconds]}]
                                                                               see ExpectedRow
        processes  [{name, pid, argv0, python, version, started_at, loops, times, total, max}]
        unended    [{process, pid, loop, at, blocked, where, stack, cause}]    see Unended
        skipped    [{file, lines, reason}]
        stalls     [Stall.to_dict()] sorted by time

    Numbers that JSON does not have (infinity) are null.
    """
    contents, span = report.contents, report.span or (None, None)
    shown_report = {
        "schema": SCHEMA,
        "from": span[0],
        "to": span[1],
        "times": len(contents.stalls),
        "errors": errors(contents.stalls),
        "blocked": report.blocked,
        "starved": report.parts.starved,
        "throttled": report.parts.throttled,
        "culprits": [
            {**dataclasses.asdict(row), "causes": dict(row.causes), "routes": dict(row.routes)}
            for row in report.culprits
        ],
        "flagged": [{**dataclasses.asdict(row), "causes": dict(row.causes)} for row in report.flagged],
        "causes": [dataclasses.asdict(row) for row in report.causes],
        "expected": [dataclasses.asdict(row) for row in report.expected],
        "processes": [dataclasses.asdict(row) for row in report.processes],
        "unended": [dataclasses.asdict(hang) for hang in report.unended],
        "skipped": [dataclasses.asdict(item) for item in contents.skipped],
        "stalls": [stall.to_dict() for stall in contents.stalls],
    }
    return strict_json(shown_report)


def strict_json(value: object) -> str:
    """Return JSON that every parser accepts: pure ASCII, infinities and NaN as null."""
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
    ``[cause]``. Characters of a name that would break the format (``;``, line ends) are escaped.
    """
    weights: dict[tuple[str, ...], float] = defaultdict(float)
    for stall in contents.stalls:
        for stack, share in weighted_stacks(stall):
            weights[tuple(_escaped(frame_name(frame)) for frame in stack) or (f"[{stall.cause}]",)] += share * 1000
    lines = [f"{';'.join(stack)} {whole}" for stack, whole in _whole(weights).items() if whole]
    return "".join(f"{line}\n" for line in sorted(lines))


def weighted_stacks(stall: Stall) -> list[tuple[tuple[Frame, ...], float]]:
    """Return the stacks of a stall with the seconds of each, which add up to its duration."""
    taken = [item for item in stall.profile if item.count > 0 and item.stack]
    whole = sum(item.count for item in taken)
    if not whole:
        return [(stall.stack, stall.duration)]
    return [(item.stack, stall.duration * (item.count / whole)) for item in taken]


def _whole(weights: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], int]:
    """Round to integers that add up to the rounded sum (largest remainder): many small stacks must not vanish."""
    rounded = {stack: math.floor(weight) for stack, weight in weights.items()}
    missing = round(math.fsum(weights.values())) - sum(rounded.values())
    by_remainder = sorted(weights, key=lambda stack: (rounded[stack] - weights[stack], stack))
    for stack in by_remainder[: max(0, missing)]:
        rounded[stack] += 1
    return rounded


def _escaped(name: str) -> str:
    return shown(name).replace(";", "\\x3b") or "?"

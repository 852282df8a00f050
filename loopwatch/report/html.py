"""The report as one self-contained HTML page: no network, no other file.

Names in a journal are untrusted text. They are embedded as escaped JSON, enter the page as text nodes only, and the
page's policy (CSP with the hashes of its one script and one style sheet) forbids everything else to run or to load.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Hashable
from dataclasses import fields
from importlib.resources import files

from loopwatch.core.text import shown
from loopwatch.diagnosis.own_part import parts_of
from loopwatch.diagnosis.starvation import NEIGHBOURS, QUOTA, WORTH_SAYING
from loopwatch.events import Evidence, Frame, Stall
from loopwatch.report import tables
from loopwatch.report.export import strict_json, weighted_stacks
from loopwatch.report.reader import TORN
from loopwatch.report.tables import Report
from loopwatch.report.text import (
    expected_sentence,
    flagged_sentence,
    hang_sentence,
    headline,
    seconds,
    skipped_sentence,
    to_text,
)

MAX_STALLS = 20_000
"""Stalls in one page, the longest ones: more slow down a browser. The page says how many are left out."""


def render(report: Report) -> str:
    """Return the page: tiles, timeline, culprits, flagged functions, flame graph and every stall.

    The page is interactive: sort, filter, drill down.

    Example:
        >>> from loopwatch.report.reader import read_journals
        >>> page = render(Report.of(read_journals("/var/log/loopwatch")))  # doctest: +SKIP
    """
    # Inside <script>, the HTML parser would read "</script>" and "<!--" before JSON is parsed.
    data = strict_json(_payload(report))
    for char in "<>&":
        data = data.replace(char, f"\\u{ord(char):04x}")
    style, script = _asset("style.css"), _asset("script.js")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _asset("page.html").format(
        policy=policy,
        style=style,
        script=script,
        data=data,
        headline=html.escape(headline(report)),
        text=html.escape(to_text(report, width=110)),
    )


def _asset(name: str) -> str:
    return (files("loopwatch.report") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Table:
    """Numbers distinct values: names, frames and stacks repeat in every stall."""

    def __init__(self) -> None:
        self.rows: list[object] = []
        self._known: dict[Hashable, int] = {}

    def number(self, key: Hashable, row: object = None) -> int:
        """Return the number of ``key``; ``row`` (default: ``key``) is its entry in the table."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.rows)
            self.rows.append(key if row is None else row)
        return found


class _Payload:
    """Turns stalls into rows of the page, and collects the tables that the rows refer to."""

    def __init__(self, runs: tables.Runs) -> None:
        self.runs = runs
        self.strings, self.frames, self.stacks = _Table(), _Table(), _Table()
        self.culprits, self.processes = _Table(), _Table()

    def row(self, stall: Stall) -> dict[str, object]:
        """Return the row of one stall."""
        culprit = stall.culprit
        who = tables.culprit_name(stall), culprit.file if culprit else ""
        parts = parts_of(stall)
        stacks = [(self._stack(stack or _stand_in(stall)), round(share, 6)) for stack, share in weighted_stacks(stall)]
        row: dict[str, object] = {
            "id": shown(stall.id),
            "at": stall.started_at,
            "s": stall.duration,
            "z": round(parts.starved, 6),
            "q": round(parts.throttled, 6),
            "c": str(stall.cause),
            "w": self.culprits.number(who, [shown(name) for name in who]),
            "line": culprit.line if culprit else 0,
            "p": self.processes.number(self.runs.of(stall.pid, stall.started_at)),
            "k": stacks,
            "f": self._stack(stall.stack) if stall.stack else -1,
            "l": self._string(stall.loop),
            "v": stall.victims,
            "more": self._string(stall.remedy),
            "task": self._string(stall.task or ""),
            "co": self._string(stall.coroutine or ""),
            "was": self._string(str(stall.was_in) if stall.was_in else ""),
            "n": list(stall.samples),
            "u": stall.uncertainty,
            "on": int(stall.ongoing),
            "sev": stall.severity.value,
            "x": [[shown(str(name)), shown(str(value))] for name, value in stall.context.items()],
            "e": [_fact(field.name, getattr(stall.evidence, field.name)) for field in fields(Evidence)],
        }
        return row

    def _string(self, text: str) -> int:
        return self.strings.number(shown(text))

    def _stack(self, stack: tuple[Frame, ...]) -> int:
        return self.stacks.number(stack, [self._frame(frame) for frame in stack])

    def _frame(self, frame: Frame) -> int:
        name = shown(tables.frame_name(frame))
        return self.frames.number(frame, [self._string(name), self._string(frame.file), frame.line])


def _payload(report: Report) -> dict[str, object]:
    contents, collected = report.contents, _Payload(report.runs)
    kept = contents.stalls
    if len(kept) > MAX_STALLS:
        longest = sorted(kept, key=lambda stall: -stall.duration)[:MAX_STALLS]
        kept = tuple(sorted(longest, key=lambda stall: stall.started_at))
    rows = [collected.row(stall) for stall in kept]
    runs = [run for run in collected.processes.rows if isinstance(run, tuple)]
    skipped = [skipped_sentence(item.file, item.lines, item.reason) for item in contents.skipped if item.reason != TORN]
    return {
        "stalls": rows,
        "leftOut": len(contents.stalls) - len(rows),
        "strings": collected.strings.rows,
        "frames": collected.frames.rows,
        "stacks": collected.stacks.rows,
        "culprits": collected.culprits.rows,
        "processes": [shown(collected.runs.name(run)) for run in runs],
        "runs": len(report.processes),
        "flagged": [_flagged(row) for row in report.flagged],
        "hangs": [hang_sentence(hang) for hang in report.unended],
        "expected": [expected_sentence(row) for row in report.expected],
        "skipped": skipped,
        "facts": [field.name.replace("_", " ") for field in fields(Evidence)],
        "notable": WORTH_SAYING,
        "takers": [QUOTA, NEIGHBOURS],
        "versions": sorted({shown(f"{h.version} on Python {h.python}") for h in contents.headers if h.version}),
    }


def _flagged(row: tables.FlaggedRow) -> list[str]:
    name, place, remedy = (shown(text) for text in (row.name, f"{row.file}:{row.line}", row.remedy))
    return [str(row.cause), name, place, flagged_sentence(row), remedy]


def _stand_in(stall: Stall) -> tuple[Frame, ...]:
    """Return a stack for a stall without one, so that the flame graph has it, as collapsed stacks do."""
    return (Frame(f"[{stall.cause}]", "", "", 0),)


_TIMES = frozenset(
    (
        *("wall", "cpu", "process_cpu", "run_queue", "throttled", "gc", "watcher_late"),
        *("watcher_starved", "gil_wait", "threshold"),
        *("longest_callback", "dominant_callback", "switch_interval"),
    )
)
_SHARES = frozenset(("moving", "syscall_share", "hog", "in_call", "uneven"))


def _fact(name: str, value: object) -> str:
    """Return a field of Evidence for people to read, ``""`` if it is empty or zero."""
    if value is None or value is False or value == 0:
        return ""
    if isinstance(value, float) and name in _TIMES:
        return f"{value * 1000:.1f} ms" if value < 1 else seconds(value)
    if isinstance(value, float) and name in _SHARES:
        return f"{value:.0%}"
    return "yes" if value is True else shown(str(value))

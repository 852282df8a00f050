"""Selects the health events of pools and processes to log: each once, when it begins, not when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from loopwatch.core import log
from loopwatch.events import Finding, PoolStats, WorkerState, WorkerStats
from loopwatch.health.finding_rules import family
from loopwatch.health.history import THREADS, Unwaited
from loopwatch.health.records import End, PoolReading

ORPHAN_AFTER = 60.0
"""Seconds a task may go on after its executor is shut down or gone: a program that does not wait may intend it."""
MOST_KEYS = 500
"""Subjects whose last line is remembered."""
MOST_LINES = 5
"""Lines logged at once; of further ones only their number is logged."""

_TOLD = (WorkerState.HUNG, WorkerState.ZOMBIE, WorkerState.ORPHAN)


class Line(NamedTuple):
    """One log line, and the extra attributes of its record."""

    text: str
    extra: dict[str, Any] | None = None

    def write(self, level: int) -> None:
        """Write it to the logger ``loopwatch``."""
        log.write(level, "loopwatch: %s", self.text, extra=self.extra)


class HealthLog:
    """Turns the changes between two polls into log lines, rate-limited by subject.

    The record of a finding carries it as ``record.loopwatch_finding`` (a dict).
    """

    def __init__(self) -> None:
        self._findings: set[tuple[str, str]] = set()
        self._workers: dict[tuple[str, int, str], float] = {}
        self._unwaited: dict[str, Unwaited] = {}
        self._crashes: dict[str, dict[str, int]] = {}
        self._ends_at = float("-inf")
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def of(
        self,
        readings: Sequence[PoolReading],
        findings: Iterable[Finding],
        ends: Iterable[End],
        now: float,
        interval: float,
    ) -> list[Line]:
        """Return the lines to write.

        Args:
            readings: of all pools.
            findings: current ones.
            ends: ends of child processes, oldest first.
            now: ``time.monotonic`` seconds.
            interval: seconds between two lines about one subject.
        """
        lines = [*self._of_findings(findings, now, interval), *self._of_ends(ends, now, interval)]
        present = {
            (each.stats.name, worker.pid, str(worker.state)) for each in readings for worker in each.stats.workers
        }
        self._workers = {key: since for key, since in self._workers.items() if key in present}
        for reading in readings:
            lines += self._of_workers(reading.stats, now, interval)
        self._unwaited = {each.stats.name: self._unwaited[each.stats.name] for each in readings}
        for reading in readings:
            if reading.stats.kind != "children":
                lines += self._of_crashes(reading.stats, now, interval)
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [Line(f"{len(lines) - MOST_LINES} more lines about pools and processes are left out")]
        return lines

    def _of_findings(self, findings: Iterable[Finding], now: float, interval: float) -> list[Line]:
        before, self._findings, lines = self._findings, set(), []
        for finding in findings:
            key = (finding.kind, finding.subject)
            self._findings.add(key)
            if key not in before and self._may_log(f"{finding.kind} {finding.subject}", now, interval):
                text = f"{finding.text}. {finding.remedy} [{finding.kind}]"
                lines.append(Line(text, {"loopwatch_finding": finding.to_dict()}))
        return lines

    def _of_ends(self, ends: Iterable[End], now: float, interval: float) -> list[Line]:
        lines = []
        for end in ends:
            if end.at <= self._ends_at or not end.is_accident:
                continue
            key = f"{end.reason} {end.place or end.name}"
            if self._may_log(key, now, interval):
                made = f", made at {end.place}," if end.place else ""
                text = f"child process {end.pid} ({end.name or 'unknown'}){made} died: {end.reason}{self._more(key)}"
                lines.append(Line(text))
        self._ends_at = now
        return lines

    def _of_workers(self, stats: PoolStats, now: float, interval: float) -> list[Line]:
        lines = []
        unwaited = self._unwaited.setdefault(stats.name, Unwaited()).of(stats, now)
        for worker in stats.workers:
            key = (stats.name, worker.pid, str(worker.state))
            if worker.state not in _TOLD:
                continue
            since = self._workers.setdefault(key, now)
            if since < 0 or not _is_harm(stats, worker, now - since, unwaited):
                continue
            self._workers[key] = -1.0  # logged
            about = f"{worker.state} {family(stats.name)}"
            if self._may_log(about, now, interval):
                lines.append(Line(_worker_words(stats, worker) + self._more(about)))
        return lines

    def _of_crashes(self, stats: PoolStats, now: float, interval: float) -> list[Line]:
        before = self._crashes.get(stats.name, {})
        lines = []
        for reason, count in stats.crashes.items():
            new = count - before.get(reason, 0)
            key = f"{reason} {family(stats.name)}"
            if new > 0 and self._may_log(key, now, interval):
                many = "a worker" if new == 1 else f"{new} workers"
                made = f", made at {stats.created_at}," if stats.created_at else ""
                lines.append(Line(f"{many} of {stats.name} ({stats.kind}){made} died: {reason}{self._more(key)}"))
        if stats.crashes:
            self._crashes.pop(stats.name, None)
            self._crashes[stats.name] = dict(stats.crashes)
            if len(self._crashes) > MOST_KEYS:
                del self._crashes[next(iter(self._crashes))]
        return lines

    def _may_log(self, key: str, now: float, interval: float) -> bool:
        last = self._last.get(key)
        if last is not None and now - last < interval:
            self._held[key] = self._held.get(key, 0) + 1
            return False
        self._last.pop(key, None)
        self._last[key] = now
        if len(self._last) > MOST_KEYS:
            oldest = next(iter(self._last))
            del self._last[oldest]
            self._held.pop(oldest, None)
        return True

    def _more(self, key: str) -> str:
        held = self._held.pop(key, 0)
        return f" [{held} more since the last line]" if held else ""


def _is_harm(stats: PoolStats, worker: WorkerStats, since: float, unwaited: Sequence[WorkerStats]) -> bool:
    """Whether a worker's state of the last ``since`` seconds is a problem rather than what healthy programs do."""
    if worker.state == WorkerState.ZOMBIE:
        return worker in unwaited
    if worker.state == WorkerState.ORPHAN:
        return not worker.calls or since >= ORPHAN_AFTER
    # Threads that consume a queue or serve as long as the program runs look hung, too: harmless without queued calls.
    return stats.kind not in THREADS or stats.queued > 0


def _worker_words(stats: PoolStats, worker: WorkerStats) -> str:
    who = "child process" if stats.kind == "children" else f"worker of {stats.name} ({stats.kind})"
    reason = f": {worker.reason}" if worker.reason else ""
    return f"{who} {worker.pid} is {_ARTICLE.get(str(worker.state), str(worker.state))}{reason}"


_ARTICLE = {"zombie": "a zombie", "orphan": "an orphan"}

"""The journal holds the lag of the loops in few lines: none is counted twice, and a short process leaves no file."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

import loopwatch
from loopwatch.core.histogram import Histogram
from loopwatch.events import LagRecord, LoopStats
from loopwatch.report.reader import read_journals
from loopwatch.sinks import lag_log
from loopwatch.sinks.files import journal_path
from loopwatch.sinks.journal import JournalWriter
from loopwatch.sinks.lag_log import FIRST, LONGEST, MAX_LOOPS, OTHER, LagLog
from loopwatch.watch.observation import LoopReading
from tests.conftest import Run
from tests.support.stalls import T0, make_stall


def reading(key: str, lags: list[float], watched_for: float, name: str = "main") -> LoopReading:
    histogram = Histogram()
    histogram.record_all(lags)
    return LoopReading(key, LoopStats(name, "asyncio", running=True), histogram, watched_for=watched_for)


def test_each_heartbeat_is_recorded_once() -> None:
    """A record holds the heartbeats and seconds since the one before it, also of a loop that ended meanwhile."""
    log = LagLog(now=100.0)
    log.add([reading("a", [0.001] * 5, 60.0)])
    (first,) = log.take(160.0, T0 + 60, 7, 0.1)
    assert (first.loop, first.pid, first.started_at, first.seconds, first.threshold) == ("main", 7, T0, 60.0, 0.1)
    assert [count for _, count in first.lags] == [5]
    assert first.lags[0][0] == pytest.approx(0.001, rel=0.06)
    log.add([reading("a", [0.001] * 5 + [0.2] * 2, 70.0)], is_last=True)
    log.add([reading("b", [0.001], 5.0)])
    (second,) = log.take(280.0, T0 + 180, 7, 0.1)
    assert (second.seconds, [count for _, count in second.lags]) == (15.0, [1, 2])
    log.add([reading("b", [0.001], 125.0)])
    assert log.take(400.0, T0 + 300, 7, 0.1) == []  # no heartbeat since


def test_spans_get_longer_and_names_are_bounded() -> None:
    """Spans double from one minute to ten; beyond 8 names, loops share one record."""
    log, now, spans = LagLog(now=0.0), 0.0, []
    for _ in range(6):
        spans.append(log.due - now)
        now = log.due
        log.take(now, T0 + now, 7, 0.1)
    assert spans == [FIRST, 120.0, 240.0, 480.0, LONGEST, LONGEST]
    log.add([reading(f"{n}", [0.001], 1.0, name=f"loop-{n}") for n in range(MAX_LOOPS + 3)])
    records = log.take(now, T0 + now, 7, 0.1)
    assert len(records) == MAX_LOOPS + 1
    assert (records[-1].loop, records[-1].seconds, [count for _, count in records[-1].lags]) == (OTHER, 3.0, [3])


RECORD = LagRecord("main", 7, T0, 60.0, 0.1, ((0.001, 59), (0.2, 1)))


def test_record_survives_the_journal(tmp_path: Path) -> None:
    """A record comes back as it was, beside stalls; one that is unsound is passed over and counted."""
    path = journal_path(f"{tmp_path}/", 7)
    writer = JournalWriter(path, 1 << 20)
    assert writer.write_lag(RECORD)
    assert writer.write(make_stall(pid=7))
    assert writer.write_lag(RECORD)  # the same line twice, as where a file was copied
    writer.close()
    bad = [
        {"lags": [[0.1]]}, {"lags": [[-0.1, 1]]}, {"lags": [[0.1, -1]]}, {"seconds": -1.0}, {"seconds": float("inf")},
        {"started_at": "x"}, {"pid": None},
    ]  # fmt: skip
    with path.open("a") as file:
        file.writelines(json.dumps({"type": "lag", **RECORD.to_dict(), **wrong}) + "\n" for wrong in bad)
    contents = read_journals(str(tmp_path))
    assert contents.lags == (RECORD,)
    assert len(contents.stalls) == 1
    assert [(skipped.lines, skipped.reason) for skipped in contents.skipped] == [(len(bad), "not a record of a stall")]
    assert LagRecord.from_dict(RECORD.to_dict()) == RECORD


def test_short_process_without_a_stall_leaves_no_journal(tmp_path: Path, run: Run) -> None:
    """A program that runs for less than a minute and is never blocked leaves no file."""
    loopwatch.install(journal=f"{tmp_path}/", log_level="CRITICAL", threshold=5.0)
    run(asyncio.sleep(0.2))
    loopwatch.uninstall()
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.measures
def test_lag_of_a_run_is_journaled(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lag of a block, and the seconds watched, are in the journal once the program has ended, in some lines."""
    monkeypatch.setattr(lag_log, "FIRST", 0.4)
    monkeypatch.setattr("loopwatch.sinks.service.LAG_EVERY", 0.1)
    loopwatch.install(journal=f"{tmp_path}/", log_level="CRITICAL", cpu_budget=1.0)
    begun = time.time()

    async def main() -> None:
        ends = time.monotonic() + 1.2
        while time.monotonic() < ends:
            await asyncio.sleep(0.005)
        time.sleep(0.3)
        await asyncio.sleep(0.1)

    run(main())
    loopwatch.uninstall()
    ended = time.time()
    records = read_journals(str(tmp_path)).lags
    assert 2 <= len(records) <= 5
    assert {(record.loop, record.threshold) for record in records} == {("main", 0.1)}
    assert 1.5 <= sum(record.seconds for record in records) <= ended - begun
    assert begun - 0.1 <= records[0].started_at
    late = [lag for record in records for lag, _ in record.lags]
    assert 0.1 < max(late) < 0.6
    assert sum(count for record in records for _, count in record.lags) >= 10

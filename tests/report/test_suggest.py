"""Suggested thresholds: exact above the threshold in force, from the lag below it, and none from too little."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loopwatch.cli.main import main
from loopwatch.events import LagRecord, Stall
from loopwatch.report.reader import JournalContents
from loopwatch.report.suggest import WITHOUT_LAG, Suggestion, suggest, suggestion_text
from loopwatch.sinks.files import journal_path
from loopwatch.sinks.journal import JournalWriter
from tests.support.stalls import T0, make_contents, make_stall

HOUR = 3600.0


def lag(*lags: tuple[float, int], hours: float = 10.0, pid: int = 100, threshold: float = 0.1) -> LagRecord:
    return LagRecord("main", pid, T0, hours * HOUR, threshold, lags)


def stalls(*durations: float) -> list[Stall]:
    return [make_stall(number, duration=duration) for number, duration in enumerate(durations)]


QUIET = lag((0.001, 36_000))


@pytest.mark.parametrize(
    ("durations", "lags", "per_hour", "value", "says"),
    [
        # Ten an hour are wanted and twenty were had: the hundredth longest of two hundred decides.
        ([0.1 + n / 1000 for n in range(200)], QUIET, 10.0, 0.20, "100 blocks in 10 h 0 min"),
        ([0.25] * 9 + [0.4], QUIET, 1.0, 0.25, "10 blocks"),
        ([0.25] * 9 + [0.4], QUIET, 0.3, 0.25, "10 blocks"),
        # Fewer than wanted: the lag below the threshold in force says where the rest is.
        ([0.3] * 2, lag((0.001, 36_000), (0.02, 500), (0.05, 20), (0.2, 2)), 1.0, 0.05, "22 heartbeats in 10 h 0 min"),
        ([], lag((0.001, 36_000)), 1.0, 0.01, "the least that is of use"),
        ([0.3] * 2, lag((0.001, 36_000), (0.3, 12)), 1.0, 0.1, "as it is: 2 blocks"),
        ([], lag(hours=10.0), 1.0, 0.1, "as it is: 0 blocks"),
        ([0.3] * 50, lag((0.001, 36_000), hours=2.0), 1.0, None, "2 h 0 min were observed, 1 an hour takes 3 h 0 min"),
    ],
)
def test_by_rate(durations: list[float], lags: LagRecord, per_hour: float, value: float | None, says: str) -> None:
    """The threshold for a rate is that of the blocks of the journal where they suffice, else that of the lag."""
    found = suggest(make_contents(*stalls(*durations), lags=(lags,)), per_hour)
    assert found is not None
    assert found.by_rate.value == value
    assert says in found.by_rate.reason
    assert found.rate == pytest.approx(len(durations) / (lags.seconds / HOUR))


@pytest.mark.parametrize(
    ("lags", "value", "says"),
    [
        (lag((0.001, 99_900), (0.04, 60), (0.09, 40)), 0.04, "99,900 of 100,000 heartbeats were less late"),
        (lag((0.001, 100_000)), 0.01, "less is of no use"),
        (lag((0.001, 9_999)), None, "too little: 9,999 heartbeats were recorded, the quantile takes 10,000"),
    ],
)
def test_by_quantile(lags: LagRecord, value: float | None, says: str) -> None:
    """The 99.9 % quantile takes ten thousand heartbeats."""
    found = suggest(make_contents(lags=(lags,)))
    assert found is not None
    assert (found.by_quantile.value, says in found.by_quantile.reason) == (value, True)


def test_suggested_rate_comes_true() -> None:
    """Of 10,000 random blocks in 100 hours, those as long as the suggested threshold are 5 an hour within 5 percent."""
    made = random.Random(7)
    durations = [0.1 + made.expovariate(10.0) for _ in range(10_000)]
    contents = make_contents(
        *(make_stall(number, started_at=T0 + 36 * number, duration=each) for number, each in enumerate(durations)),
        lags=(lag((0.001, 360_000), hours=100.0),),
    )
    found = suggest(contents, 5.0)
    assert found is not None
    assert found.by_rate.value is not None
    assert sum(each >= found.by_rate.value for each in durations) == pytest.approx(500, rel=0.05)


def test_only_what_was_observed_counts() -> None:
    """Hangs, stalls outside the recorded time, of other processes, and below the common threshold are left out."""
    others = (
        make_stall(90, duration=5.0, ongoing=True), make_stall(91, started_at=T0 - 9, duration=5.0),
        make_stall(92, pid=7, duration=5.0), make_stall(93, duration=0.05),
    )  # fmt: skip
    found = suggest(make_contents(*stalls(*[0.25] * 20), *others, lags=(lag((0.001, 36_000)),)))
    assert found is not None
    assert (found.rate, found.by_rate.value) == (2.0, 0.25)


def test_processes_are_added_up() -> None:
    """The hours of all loops count: ten stalls in five processes of two hours each are one an hour in each loop."""
    lags = tuple(lag((0.001, 7_000), hours=2.0, pid=pid) for pid in range(1, 6))
    made = [make_stall(number, pid=1 + number % 5, duration=0.3) for number in range(10)]
    found = suggest(make_contents(*made, lags=lags))
    assert found is not None
    assert (found.hours, found.beats, found.loops, found.processes) == (10.0, 35_000, 5, 5)
    assert (found.rate, found.by_rate.value) == (1.0, 0.3)


def test_without_lag() -> None:
    """A journal without lag gives no suggestion, and says when lag is recorded."""
    assert suggest(make_contents(*stalls(0.3))) is None
    assert " ".join(suggestion_text(None, 1.0, 60).split()) == WITHOUT_LAG
    assert suggest(JournalContents()) is None


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints both thresholds with their reasons, the one in force, and what they rest on."""
    writer = JournalWriter(journal_path(f"{tmp_path}/", 100), 1 << 20)
    for each in stalls(*[0.25] * 20):
        writer.write(each)
    writer.write_lag(lag((0.001, 36_000), (0.05, 10)))
    writer.close()
    assert main(["report", "--suggest-threshold", str(tmp_path), "--width", "200"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "SUGGESTED THRESHOLD",
        "   0.25  for about 1 stall an hour in each loop: 20 blocks in 10 h 0 min lasted as long or longer, by their "
        "exact lengths.",
        "   0.01  the 99.9% quantile of the lag: 36,000 of 36,010 heartbeats were less late, and less is of no use.",
        "  In force was 0.1, which gave 2 stalls an hour. Observed: 1 loop in 1 process, 10 h 0 min in all, 36,010 "
        "heartbeats, 2026-01-01 10:00:00 to 2026-01-01 20:00:00 UTC.",
        "  In seconds; set it with --threshold or LOOPWATCH_THRESHOLD, for single routes and tasks with --thresholds.",
    ]
    assert main(["report", "--suggest-threshold", "--per-hour", "0.1", str(tmp_path), "--width", "80"]) == 0
    assert "0.1 an hour takes 30 h 0 min" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["report", "--suggest-threshold", "--per-hour", "0", str(tmp_path)])
    assert "must be a number above 0, up to 3600" in capsys.readouterr().err


def test_width() -> None:
    """No line is longer than the terminal is wide."""
    found = suggest(make_contents(*stalls(*[0.25] * 20), lags=(QUIET,)))
    assert max(len(line) for line in suggestion_text(found, 1.0, 60).splitlines()) <= 60
    assert isinstance(found.by_rate if found else None, Suggestion)

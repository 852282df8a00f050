"""The report shows culprits, durations and causes, in numbers that add up."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stalls import T0, frame, make_contents, make_stall
from stalls import stalls as any_stall

from loopwatch.events import Cause, Evidence, StackCount, Stall
from loopwatch.report import html, tables
from loopwatch.report.export import to_collapsed, to_json
from loopwatch.report.reader import TORN, Header, JournalContents, Skipped, read_journals
from loopwatch.report.tables import Report
from loopwatch.report.text import to_text
from loopwatch.sinks.hang_file import HangDump
from loopwatch.sinks.journal import JournalWriter

lists_of_stalls = st.lists(any_stall, max_size=6)


def test_culprits_are_ranked_by_total_time_not_by_count() -> None:
    """One stall of 3 seconds ranks above ten of 0.1 seconds, and every number of a row is right."""
    small = [make_stall(i, duration=0.1, culprit=frame("app.small.often")) for i in range(10)]
    big = [
        make_stall(20, duration=0.5, culprit=frame(line=40), victims=3, context={"http.route": "/a"}),
        make_stall(21, duration=2.0, culprit=frame(line=44), victims=4, remedy="worst", cause=Cause.NATIVE_GIL),
        make_stall(22, duration=0.5, culprit=frame(line=40), victims=None, context={"http.route": "/a"}),
    ]
    first, second = tables.culprits(make_contents(*small, *big))
    assert (first.name, first.file, first.line, first.lines) == ("app.images.resize", "/srv/app/images.py", 44, 2)
    assert (first.times, first.total, first.max, first.p50) == (3, 3.0, 2.0, 0.5)
    assert first.causes == (("python", 2), ("native_gil", 1))
    assert (first.victims, first.routes, first.remedy) == (7, (("/a", 2),), "worst")
    assert (second.name, second.times, second.p50) == ("app.small.often", 10, 0.1)
    assert second.total == pytest.approx(1.0)


def test_functions_that_keep_blocking_are_reported() -> None:
    """Each process is judged by itself; the numbers are those of the processes in which a function was flagged."""
    often = [make_stall(i, victims=2, duration=0.5) for i in range(9)]
    often[1] = make_stall(1, duration=4.0, cause=Cause.IO, remedy="wait elsewhere")
    again = make_stall(100), make_stall(101), make_stall(102, culprit=frame(line=50))
    other = [make_stall(i, pid=101, duration=0.25) for i in range(5)]
    seldom = make_stall(0, pid=102), make_stall(7, pid=102), make_stall(14, pid=102)
    (row,) = tables.flagged(make_contents(*often, *again, *other, *seldom))
    assert (row.name, row.file, row.line) == ("app.images:resize", "/srv/app/images.py", 50)
    assert (row.flagged, row.first_at) == (3, T0 + 20.25)
    assert row.processes == ("app.py (pid 100)", "app.py (pid 101)")
    assert (row.stalls, row.victims) == (17, 16)
    assert row.blocked == pytest.approx(4.0 + 8 * 0.5 + 3 * 0.25 + 5 * 0.25)
    assert row.worst_minute == pytest.approx(4.0 + 6 * 0.5)
    assert (row.cause, row.causes, row.remedy) == (Cause.PYTHON, (("python", 16), ("io", 1)), again[0].remedy)


def test_stalls_that_offloading_does_not_cure_are_not_flagged() -> None:
    """Stalls without a culprit, of a lock or the garbage collector, ongoing, or far apart flag no function."""
    groups = (
        [make_stall(i, culprit=None) for i in range(5)],
        [make_stall(i, cause=cause) for i in range(5) for cause in (Cause.LOCK, Cause.GC, Cause.GIL)],
        [make_stall(i, ongoing=True) for i in range(5)],
        [make_stall(4 * i) for i in range(5)],
    )
    for stalls in groups:
        contents = make_contents(*stalls)
        assert tables.flagged(contents) == ()
        assert "FLAGGED FUNCTIONS" not in to_text(Report.of(contents))


def test_flagged_functions_are_in_text_and_json() -> None:
    """The text has counts, durations, causes and remedies, and the JSON has the same numbers."""
    contents = make_contents(*(make_stall(i, victims=2, duration=0.5) for i in range(3)))
    text = to_text(Report.of(contents), width=200)
    assert (
        """
FLAGGED FUNCTIONS
  app.images:resize (/srv/app/images.py:42)
      flagged once, at 2026-01-01 10:00:20 UTC, in app.py (pid 100): 3 stalls, 1.50 s in total, 1.50 s in its worst \
minute, 6 waited (python 3)
      -> Move it off the loop with @loopwatch.offload.
"""
        in text
    )
    (row,) = json.loads(to_json(Report.of(contents)))["flagged"]
    assert " ".join(row) == (
        "name file line flagged first_at processes stalls blocked worst_minute victims cause causes remedy"
    )
    assert (row["name"], row["stalls"], row["causes"]) == ("app.images:resize", 3, {"python": 3})


def test_only_the_worst_flagged_functions_are_listed() -> None:
    """Beyond the requested number, the text says how many more there are."""
    stalls = [make_stall(i, culprit=frame(f"app.f.f{j}"), duration=1 + j) for i in range(3) for j in range(5)]
    section = (
        to_text(Report.of(make_contents(*stalls)), top=2).partition("FLAGGED FUNCTIONS")[2].partition("BY CAUSE")[0]
    )
    assert re.findall(r"app.f:f\d", section) == ["app.f:f4", "app.f:f3"]
    assert section.rstrip().endswith("and 3 more")


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 50)), max_size=30))
def test_the_worst_minute_is_that_of_brute_force(blocks: list[tuple[float, float]]) -> None:
    """The worst minute is the one, of all minutes that end with a stall, with the most blocked time."""
    stalls = sorted((make_stall(0, started_at=at, duration=s) for at, s in blocks), key=tables._end)
    ends = [tables._end(stall) for stall in stalls]
    sums = [math.fsum(s.duration for s in stalls if end - 60 < tables._end(s) <= end) for end in ends]
    assert tables._worst_minute(stalls) == pytest.approx(max(sums, default=0.0), abs=1e-9)


def test_without_a_culprit_the_cause_is_the_name() -> None:
    """Stalls without a culprit are grouped by cause and have no file."""
    rows = tables.culprits(make_contents(*(make_stall(i, culprit=None, cause=Cause.STARVED) for i in range(3))))
    assert [(row.name, row.file, row.line, row.times) for row in rows] == [("[starved]", "", 0, 3)]


def test_shares_of_causes_sum_to_one() -> None:
    """Shares of causes are of the blocked time and sum to 1."""
    contents = make_contents(make_stall(0, duration=3.0, cause=Cause.IO), make_stall(1, duration=1.0))
    rows = tables.by_cause(contents)
    assert [(row.cause, row.times, row.total, row.max, row.share) for row in rows] == [
        (Cause.IO, 1, 3.0, 3.0, 0.75),
        (Cause.PYTHON, 1, 1.0, 1.0, 0.25),
    ]


def test_a_stall_over_several_slices_is_divided_among_them() -> None:
    """Of ten slices of 1 second, a stall from 2.5 to 4.25 gives them 0, 0, 0.5, 1, 0.25 and 0 seconds."""
    stall = make_stall(0, started_at=T0 + 2.5, duration=1.75)
    slices = tables.timeline([stall], 10, (T0, T0 + 10))
    assert [round(item.blocked, 6) for item in slices] == [0, 0, 0.5, 1.0, 0.25, 0, 0, 0, 0, 0]
    assert (slices[0].start, slices[-1].end) == (T0, T0 + 10)


@given(lists_of_stalls.filter(bool), st.integers(1, 200))
def test_the_timeline_loses_no_time(stalls: list[Stall], columns: int) -> None:
    """The slices sum up to the blocked time, for any stalls and any number of slices."""
    slices = tables.timeline(stalls, columns)
    assert len(slices) == columns
    whole = sum(stall.duration for stall in stalls)
    # Dates near 2e9 seconds have a resolution of 2.4e-7 seconds.
    assert math.isclose(sum(item.blocked for item in slices), whole, rel_tol=1e-6, abs_tol=1e-5)


def test_processes_of_one_id_are_distinguished_by_their_start() -> None:
    """A container that restarts its process 1 has two rows, each with its own stalls."""
    headers = (Header("f", 1, T0, argv0="app.py"), Header("f", 1, T0 + 100, argv0="app.py"), Header("g", 2, T0))
    stalls = (make_stall(1, pid=1, duration=1.0), make_stall(20, pid=1, duration=2.0), make_stall(21, pid=1))
    rows = tables.processes(JournalContents(stalls=stalls, headers=headers))
    assert [(row.name, row.times, row.total, row.max) for row in rows] == [
        ("app.py (pid 1, run 2)", 2, 2.25, 2.0),
        ("app.py (pid 1, run 1)", 1, 1.0, 1.0),
        ("process (pid 2)", 0, 0.0, 0.0),
    ]


def test_ongoing_record_without_an_end_is_a_hang() -> None:
    """An ongoing stall without a later record is reported with its culprit and minimum duration."""
    contents = make_contents(make_stall(0), make_stall(1, ongoing=True, duration=4.0, cause=Cause.NATIVE_GIL))
    (hang,) = tables.unended(contents)
    assert (hang.pid, hang.loop, hang.at, hang.blocked, hang.cause) == (100, "main", T0 + 14, 4.0, Cause.NATIVE_GIL)
    text = to_text(Report.of(contents), width=200)
    assert (
        "app.py (pid 100), loop main: last seen blocked in app.images.resize (/srv/app/images.py:42), "
        "for at least 4.00 s, at 2026-01-01 10:00:14 UTC"
    ) in text


def test_a_dump_without_an_end_is_a_hang() -> None:
    """faulthandler's dump of a process without later records is reported with its innermost frame."""
    dump = HangDump("main", 123, (frame("outer"), frame("inner", 12)), T0 + 50)
    (hang,) = tables.unended(make_contents(make_stall(0, pid=123), hangs=(dump,)))
    assert (hang.where, hang.blocked, hang.at) == (frame("inner", 12), 0.0, T0 + 50)


def test_a_block_that_ended_is_no_hang() -> None:
    """A final record at or after the dump or ongoing record proves that the loop went on; other loops prove nothing."""
    dump = HangDump("main", 100, (frame("inner"),), T0 + 2)
    notice = make_stall(0, ongoing=True, duration=2.0)
    ended = make_stall(0, id="final", duration=3.0)
    elsewhere = make_stall(1, loop="other")
    assert tables.unended(make_contents(ended, hangs=(dump,))) == ()
    assert tables.unended(make_contents(notice, make_stall(1))) == ()
    assert len(tables.unended(make_contents(elsewhere, hangs=(dump,)))) == 1


def test_the_next_run_does_not_end_the_hang_of_the_one_before() -> None:
    """Process 1 hung, was killed and restarted: stalls of its successor do not hide the hang."""
    headers = (Header("f", 1, T0, argv0="app.py"), Header("f", 1, T0 + 100, argv0="app.py"))
    stalls = (make_stall(1, pid=1, ongoing=True, duration=5.0), make_stall(20, pid=1))
    (hang,) = tables.unended(JournalContents(stalls=stalls, headers=headers))
    assert (hang.process, hang.at) == ("app.py (pid 1, run 1)", T0 + 15)


def test_ongoing_record_and_dump_of_one_block_are_one_hang() -> None:
    """The hang is reported once, with the culprit of the ongoing record and the duration up to the later source."""
    notice = make_stall(0, ongoing=True, duration=2.0)
    dump = HangDump("main", 100, (frame("inner"),), T0 + 9)
    (hang,) = tables.unended(make_contents(notice, hangs=(dump,)))
    assert (hang.where, hang.blocked, hang.at) == (frame(), 9.0, T0 + 9)


def test_text_has_all_sections() -> None:
    """Headline, culprit with place, counts, route, remedy, cause shares, timeline and processes are all there."""
    stalls = [make_stall(i, duration=0.5, victims=2, context={"http.route": "/thumb"}) for i in range(4)]
    stalls.append(make_stall(5, pid=101, duration=2.0, cause=Cause.SLEEP, culprit=frame("app.jobs.poll", 9)))
    text = to_text(Report.of(make_contents(*stalls)), width=100)
    headline = "The event loop was held 5 times for 4.00 s in total, 50% of it by app.images.resize"
    assert " ".join(text.split()).startswith(headline)
    assert "2026-01-01 10:00:00 to 2026-01-01 10:00:52 UTC, 2 processes" in text
    assert "1. app.images.resize (/srv/app/images.py:42)" in text
    assert "4 times, 2.00 s in total, p50 500 ms, longest 500 ms, 8 waited" in text
    assert "routes: /thumb 4" in text
    assert "-> Move it off the loop with @loopwatch.offload." in text
    assert re.search(r"sleep +2.00 s +50%  █{10} +once, longest 2.00 s", text)
    assert len(re.findall(r"▕.{96}▏", text)) == 2
    assert "app.py (pid 101): once held, 2.00 s in total" in text
    assert "NEVER ENDED" not in text


def test_expected_blocks_stand_apart(tmp_path: Path) -> None:
    """Blocks of a server's start-up are in a row of their own, and in no culprits, causes, sums or stacks."""
    start = "start-up of uvicorn"
    load = frame("app.models.load", 9)
    writer = JournalWriter(tmp_path / "j.100.jsonl", 1 << 20)
    for block in (
        make_stall(0, duration=0.9, expected=start, culprit=load),
        make_stall(1, duration=0.25, expected=start),
        make_stall(2, duration=0.5),
    ):
        writer.write(block)
    writer.close()
    contents = read_journals(str(tmp_path))
    assert [block.id for block in contents.stalls] == ["s2"]
    assert [block.id for block in contents.expected] == ["s0", "s1"]
    assert tables.expected(contents) == (
        tables.ExpectedRow(start, 2, 1.15, 1, ("app.models.load", "/srv/app/models.py", 9, 0.9)),
    )
    text = to_text(Report.of(contents))
    assert "app.models.load" not in text[: text.index("EXPECTED, NOT COUNTED ABOVE")]
    assert "start-up of uvicorn: 2 times, 1.15 s in total, in 1 process; longest 900 ms by app.models.load" in text
    data = json.loads(to_json(Report.of(contents)))
    assert (data["times"], data["blocked"], len(data["culprits"])) == (1, 0.5, 1)
    assert data["expected"][0]["total"] == pytest.approx(1.15)
    assert "load" not in to_collapsed(contents)
    assert "start-up of uvicorn: 2 times" in html.render(Report.of(contents))


def test_expected_block_ends_a_hang() -> None:
    """Any later record of the same loop ends a hang."""
    hang = make_stall(0, ongoing=True)
    assert len(tables.unended(make_contents(hang))) == 1
    assert tables.unended(make_contents(hang, expected=(make_stall(1, expected="start-up of uvicorn"),))) == ()


def test_report_of_an_empty_journal() -> None:
    """An empty journal gives a short report, not an empty or failing one."""
    header = Header("f", 7, T0, "0.1.0", "3.11.9", "app.py")
    text = to_text(Report.of(JournalContents(headers=(header,))))
    assert text.startswith("No stall was journaled.\n")
    assert "app.py (pid 7): never held" in text


def test_skipped_lines_are_reported_but_not_a_torn_last_line() -> None:
    """Foreign lines are reported with file and count; the torn end of a killed process's journal is normal."""
    skipped = (Skipped("a.jsonl", 3, "not readable"), Skipped("b.jsonl", 1, TORN), Skipped("c.jsonl", None, "is empty"))
    text = to_text(Report.of(make_contents(make_stall(), skipped=skipped)))
    assert "a.jsonl: 3 lines not readable" in text
    assert "c.jsonl: is empty" in text
    assert "b.jsonl" not in text


@settings(deadline=None)
@given(lists_of_stalls, st.integers(0, 200))
def test_text_of_any_stalls_fits_and_has_no_control_characters(stalls: list[Stall], width: int) -> None:
    """No line is wider than asked (40 at least), and no control character of a name reaches the terminal."""
    text = to_text(Report.of(make_contents(*stalls)), width=width)
    assert all(len(line) <= max(40, width) for line in text.split("\n"))
    assert all(char == "\n" or char.isprintable() for char in text)
    text.encode("utf-8")


@given(lists_of_stalls)
def test_json_is_strict_and_gives_the_stalls_back(stalls: list[Stall]) -> None:
    """Every parser accepts the JSON, and its stalls are equal to the original ones."""
    data = json.loads(to_json(Report.of(make_contents(*stalls))), parse_constant=pytest.fail)
    assert data["schema"] == "loopwatch.report/1"
    assert [Stall.from_dict(item) for item in data["stalls"]] == stalls
    assert data["times"] == len(stalls) == sum(row["times"] for row in data["culprits"])
    assert sum(row["total"] for row in data["causes"]) == pytest.approx(data["blocked"])


def test_json_shape_is_stable() -> None:
    """The JSON has exactly the documented keys, and infinity becomes null."""
    stall = make_stall(evidence=Evidence(wall=math.inf), context={"http.route": "/a"})
    data = json.loads(to_json(Report.of(make_contents(stall))))
    assert " ".join(data) == (
        "schema from to times errors blocked starved throttled culprits flagged causes expected processes unended "
        "skipped stalls"
    )
    (row,) = data["culprits"]
    assert (
        " ".join(row)
        == "name file line lines times total max p50 causes victims routes remedy starved throttled errors"
    )
    assert (row["causes"], row["routes"]) == ({"python": 1}, {"/a": 1})
    assert (data["from"], data["to"]) == (T0, T0 + 0.25)
    assert data["stalls"][0]["evidence"]["wall"] is None


def starving_stalls() -> tuple[Stall, ...]:
    """Return stalls of 4 seconds, 1.5 of them without a processor, 1 by quota: of resize, query, and none."""
    query = frame("app.db.query", 9)
    return (
        make_stall(0, duration=1.0, starved=0.5, throttled=0.5),
        make_stall(1, duration=1.0, starved=0.1, throttled=0.0),
        make_stall(2, duration=1.0, culprit=query, starved=0.05, throttled=0.0),
        make_stall(3, duration=1.0, culprit=None, cause=Cause.STARVED, starved=0.85, throttled=0.5),
    )


def test_time_without_a_processor_is_in_text() -> None:
    """Totals and culprits have the seconds and who took them, where it is 10 % of the blocked time at least."""
    text = to_text(Report.of(make_contents(*starving_stalls())), width=120)
    of_all = "1.50 s (38%) without a processor: 1.00 s CPU limit of the container, 500 ms other processes"
    assert f"Of these, {of_all}.\n" in text
    ranked = re.findall(r"^ +\d\. (\S+)|^ +(\S.*without a processor.*)$", text.partition("WORST")[2], re.MULTILINE)
    assert [name or words for name, words in ranked] == [
        "app.images.resize",
        "600 ms (30%) without a processor: 500 ms CPU limit of the container, 100 ms other processes",
        "[starved]",
        "850 ms (85%) without a processor: 500 ms CPU limit of the container, 350 ms other processes",
        "app.db.query",
    ]


@pytest.mark.parametrize(
    ("starved", "throttled", "words"),
    [
        (0.0, 0.0, None),
        (0.099, 0.099, None),
        (0.1, 0.0, "100 ms (10%) without a processor: 100 ms other processes"),
        (0.5, 0.4999, "500 ms (50%) without a processor: 500 ms CPU limit of the container"),
        (7.0, 9.0, "1.00 s (100%) without a processor: 1.00 s CPU limit of the container"),
        (math.nan, math.nan, None),
        (-1.0, 0.5, None),
    ],
)
def test_words_for_time_without_a_processor(starved: float, throttled: float, words: str | None) -> None:
    """Less than 10 % and what is no time are left out; no more is without a processor than was blocked."""
    report = Report.of(make_contents(make_stall(0, duration=1.0, starved=starved, throttled=throttled)))
    found = re.findall(r"\S.*without a processor.*", to_text(report, width=120))
    assert found == ([] if words is None else [f"Of these, {words}.", words])


def test_time_without_a_processor_is_in_json() -> None:
    """Totals, culprits and stalls have the seconds, notable or not."""
    data = json.loads(to_json(Report.of(make_contents(*starving_stalls()))))
    assert (data["starved"], data["throttled"]) == pytest.approx((1.5, 1.0))
    assert [(row["name"], row["starved"], row["throttled"]) for row in data["culprits"]] == [
        ("app.images.resize", pytest.approx(0.6), 0.5),
        ("[starved]", 0.85, 0.5),
        ("app.db.query", 0.05, 0.0),
    ]
    assert [(row["starved"], row["throttled"]) for row in data["stalls"]] == [
        (0.5, 0.5),
        (0.1, 0),
        (0.05, 0),
        (0.85, 0.5),
    ]


def test_journal_without_the_new_fields(tmp_path: Path) -> None:
    """Stalls of a journal that has no time without a processor count as having had one all the time."""
    file = tmp_path / "j.100.jsonl"
    writer = JournalWriter(file, 1 << 20)
    writer.write(make_stall(0, starved=0.2, throttled=0.1, was_in=frame()))
    writer.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        for name in ("starved", "throttled", "was_in"):
            line.pop(name, None)
        for name in ("runs", "watcher_runs", "handles", "uneven"):
            line.get("evidence", {}).pop(name, None)
    assert read_journals(str(tmp_path)).stalls[0].starved == 0.2
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    contents = read_journals(str(tmp_path))
    assert contents.skipped == ()
    assert [(stall.duration, stall.starved, stall.was_in) for stall in contents.stalls] == [(0.25, 0.0, None)]
    report = Report.of(contents)
    assert "without a processor" not in to_text(report)
    assert (report.culprits[0].starved, report.parts) == (0.0, (0.25, 0.0, 0.0))


def test_collapsed_stacks_divide_a_stall_by_its_samples() -> None:
    """Counts 3:1 of 1 second are 750 and 250 ms; without a profile the stack gets all; without both, the cause."""
    fast, slow = (frame("app.main.handle"), frame("app.a.fast")), (frame("app.main.handle"), frame("app.a.slow"))
    profile = (StackCount(slow, 3), StackCount(fast, 1))
    contents = make_contents(
        make_stall(0, duration=1.0, profile=profile),
        make_stall(1, duration=0.2, stack=slow),
        make_stall(2, duration=0.3, stack=(), cause=Cause.SUSPENDED),
    )
    assert to_collapsed(contents).splitlines() == [
        "[suspended] 300",
        "app.main.handle;app.a.fast 250",
        "app.main.handle;app.a.slow 950",
    ]


def test_collapsed_names_cannot_break_the_format() -> None:
    """Semicolons and line ends in names are shown as escapes."""
    stall = make_stall(stack=(frame("a;b\nc"), frame("app.\u2028f")), duration=1.0)
    assert to_collapsed(make_contents(stall)) == "a\\x3bb\\nc;app.\\u2028f 1000\n"


@given(lists_of_stalls)
def test_collapsed_stacks_sum_up_to_the_blocked_time(stalls: list[Stall]) -> None:
    """Rounding to milliseconds loses nothing in the sum, and every line has the form ``stack N``."""
    lines = to_collapsed(make_contents(*stalls)).splitlines()
    assert all(re.fullmatch(r"[^\n]+ [1-9][0-9]*", line) for line in lines)
    whole = sum(int(line.rpartition(" ")[2]) for line in lines)
    assert whole == pytest.approx(sum(stall.duration for stall in stalls) * 1000, abs=0.51, rel=1e-9)

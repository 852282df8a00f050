"""A function that keeps blocking is flagged: counted exactly, reported once, forgotten in time, within bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st

import loopwatch
from loopwatch.cli.main import main
from loopwatch.diagnosis.flagging import MAX_LOOPS, MAX_SPANS, OFFLOADABLE, Flagging
from loopwatch.events import Cause, Evidence, FlaggedFunction, Frame, Stall
from loopwatch.testing import RecordingSink

T0 = 1_767_261_600.0
WINDOW = 60.0
OTHERS = sorted(set(Cause) - OFFLOADABLE)


def ended(at: float, name: str = "resize", **fields: Any) -> Stall:
    """Return a stall of 0.25 seconds that ended ``at`` seconds after T0."""
    duration = fields.setdefault("duration", 0.25)
    defaults: dict[str, Any] = {
        "id": "s",
        "loop": "main",
        "started_at": T0 + at - duration,
        "cause": Cause.PYTHON,
        "evidence": Evidence(duration),
        "culprit": Frame(name, "app.images", "/srv/app/images.py", 41),
        "remedy": "Move it off the loop.",
        "offloadable": True,
    }
    return Stall(**(defaults | fields))


def newly_flagged(flagging: Flagging, *stalls: Stall) -> list[int]:
    """Return the indices of the stalls that newly flagged their function."""
    return [number for number, stall in enumerate(stalls) if flagging.add(stall) is not None]


def names(functions: Sequence[FlaggedFunction]) -> list[str]:
    return [function.culprit.function for function in functions]


# --------------------------------------------------------------------------------------- the rule


def test_the_third_stall_within_a_minute_flags() -> None:
    """The third stall within the window flags, earlier and later ones do not; stalls further apart flag nothing."""
    assert newly_flagged(Flagging(3, WINDOW, 20), *(ended(10.0 * i) for i in range(6))) == [2]
    assert newly_flagged(Flagging(3, WINDOW, 20), *(ended(30.0 * i) for i in range(6))) == []
    assert newly_flagged(Flagging(1, WINDOW, 20), ended(0)) == [0]


def test_record_of_a_flagged_function() -> None:
    """Every number of the record comes from the stalls in the window, times from the first begin to the last end."""
    flagging = Flagging(3, 30.0, 20)
    flagging.add(ended(0, duration=9.0))
    flagging.add(ended(40, cause=Cause.IO, duration=1.0, remedy="io", victims=4))
    flagging.add(ended(50, loop="second", victims=None))
    last = ended(60, duration=0.5, remedy="latest", victims=3)
    assert last.culprit is not None
    last = dataclasses.replace(last, culprit=dataclasses.replace(last.culprit, line=50))
    assert flagging.add(last) == FlaggedFunction(
        name="app.images:resize",
        culprit=Frame("resize", "app.images", "/srv/app/images.py", 50),
        stalls=3,
        window=30.0,
        blocked=1.75,
        blocked_per_minute=3.5,
        victims=7,
        cause=Cause.IO,
        causes=((Cause.PYTHON, 2), (Cause.IO, 1)),
        loops=("main", "second"),
        first_at=T0 + 39,
        last_at=T0 + 60,
        remedy="io",
        offloadable=True,
    )


def test_it_is_offloadable_as_its_latest_stall_is() -> None:
    """Whether a function can be offloaded is said of its latest stall of the cause that held the loop longest."""
    flagging = Flagging(2, WINDOW, 20)
    flagging.add(ended(0))
    flagging.add(ended(1, cause=Cause.IO, duration=0.125, offloadable=True))
    flagging.add(ended(2, offloadable=False))
    assert [function.offloadable for function in flagging.flagged(T0 + 3)] == [False]


def test_flagged_again_only_after_a_quiet_window() -> None:
    """A function at the limit is newly flagged once, and again only after a window without stalls."""
    at_the_edge = [ended(25.0 * i) for i in range(20)]
    after_a_rest = [ended(25.0 * 19 + 60 + i) for i in range(4)]
    assert newly_flagged(Flagging(3, WINDOW, 20), *at_the_edge, *after_a_rest) == [2, 22]


def test_it_cools_down_with_the_window() -> None:
    """A function stays flagged until too few of its stalls are younger than the window, to the instant."""
    flagging = Flagging(3, WINDOW, 20)
    newly_flagged(flagging, ended(0), ended(10), ended(20))
    assert names(flagging.flagged(T0 + 59.999)) == ["resize"]
    assert flagging.flagged(T0 + 60) == ()


def test_lines_are_one_function_files_and_modules_are_not() -> None:
    """Stalls at several lines of a function count together; a namesake in another file or module counts apart."""
    frames = [Frame("f", "m", "/m.py", line) for line in (1, 2, 3)]
    frames += [Frame("f", "m", "/other.py", 1), Frame("f", "n", "/m.py", 1), Frame("g", "m", "/m.py", 1)]
    flagging = Flagging(2, WINDOW, 20)
    assert newly_flagged(flagging, *(ended(i, culprit=frame) for i, frame in enumerate(frames))) == [1]
    (function,) = flagging.flagged(T0 + 9)
    assert (function.stalls, function.culprit.line) == (3, 3)


@pytest.mark.parametrize("cause", OTHERS)
def test_other_causes_are_not_counted(cause: Cause) -> None:
    """Causes that offloading does not cure neither flag a function nor add to a flagged one."""
    flagging = Flagging(2, WINDOW, 20)
    assert newly_flagged(flagging, ended(0), *(ended(1, cause=cause) for _ in range(5)), ended(2)) == [6]
    (function,) = flagging.flagged(T0 + 3)
    assert (function.stalls, function.causes) == (2, ((Cause.PYTHON, 2),))


def test_ongoing_and_culpritless_stalls_are_not_counted() -> None:
    """A block is counted when it has ended, and a stall without a culprit flags no function."""
    flagging = Flagging(1, WINDOW, 20)
    assert newly_flagged(flagging, ended(0, ongoing=True), ended(0, culprit=None)) == []
    assert flagging.flagged(T0) == ()


def test_worst_first() -> None:
    """Flagged functions are ordered by blocked time, not by the number of stalls."""
    flagging = Flagging(1, WINDOW, 20)
    for name, durations in {"often": [0.1] * 9, "long": [2.0], "most": [1.5, 1.5]}.items():
        newly_flagged(flagging, *(ended(0, name, duration=duration) for duration in durations))
    assert names(flagging.flagged(T0 + 1)) == ["most", "long", "often"]


def test_limits_change_at_run_time() -> None:
    """A higher limit or a shorter window cools down at once; with a lower limit the next stall flags."""
    flagging = Flagging(3, WINDOW, 20)
    newly_flagged(flagging, ended(0), ended(10), ended(20))
    flagging.after = 4
    assert flagging.flagged(T0 + 20) == ()
    flagging.after, flagging.window = 3, 15.0
    assert flagging.flagged(T0 + 20) == ()
    flagging.after = 2
    (function,) = flagging.flagged(T0 + 20)
    assert (function.stalls, function.window, function.blocked_per_minute) == (2, 15.0, 2.0)
    assert newly_flagged(flagging, ended(0, "other"), ended(1, "other")) == [1]


def test_clear() -> None:
    """After clear() nothing is flagged, and counting starts again."""
    flagging = Flagging(2, WINDOW, 20)
    newly_flagged(flagging, ended(0), ended(1))
    flagging.clear()
    assert flagging.flagged(T0 + 1) == ()
    assert newly_flagged(flagging, ended(2), ended(3)) == [1]


def test_a_clock_set_back_keeps_nothing_flagged_for_long() -> None:
    """Stalls more than a window in the future were counted before the clock was set back, and are dropped."""
    flagging = Flagging(2, WINDOW, 20)
    newly_flagged(flagging, ended(3600), ended(3601))
    assert flagging.flagged(T0) == ()
    assert newly_flagged(flagging, ended(0), ended(1)) == [1]


# ------------------------------------------------------------------------- against brute force

steps = st.lists(
    st.tuples(
        st.floats(0, 40),  # seconds since the stall before it ended
        st.sampled_from(["f", "g", "h"]),
        st.sampled_from([*sorted(OFFLOADABLE), Cause.GC]),
        st.floats(0.1, 9),
        st.none() | st.integers(0, 50),
        st.sampled_from(["main", "second"]),
        st.booleans(),
    ),
    max_size=25,
)


@given(steps, st.integers(1, 5), st.floats(0, 100))
def test_agrees_with_brute_force(steps: list[Any], after: int, later: float) -> None:
    """Newly flagged and flagged functions are always those found by a search through all stalls."""
    flagging, at = Flagging(after, WINDOW, 20), 0.0
    seen: list[Stall] = []
    known: dict[str, bool] = {}  # whether it was newly flagged and has not cooled down since
    for gap, name, cause, duration, victims, loop, ongoing in steps:
        at += gap
        stall = ended(at, name, cause=cause, duration=duration, victims=victims, loop=loop, ongoing=ongoing)
        counts = cause in OFFLOADABLE and not ongoing
        end = stall.started_at + stall.duration
        before = within(seen, name, end)
        if counts:
            seen.append(stall)
        newly = counts and len(before) + 1 >= after and not (before and known.get(name, False))
        if counts:
            known[name] = newly or (bool(before) and known.get(name, False))
        result = flagging.add(stall)
        assert (result is not None) == newly
        if result is not None:
            agrees(result, within(seen, name, end))
    now = T0 + at + later
    expected = [stalls for name in "fgh" if len(stalls := within(seen, name, now)) >= after]
    found = flagging.flagged(now)
    assert sorted(names(found)) == sorted(names_of(expected))
    for function in found:
        agrees(function, within(seen, function.culprit.function, now))
    assert [f.blocked for f in found] == sorted((f.blocked for f in found), reverse=True)


def within(stalls: Sequence[Stall], name: str, now: float) -> list[Stall]:
    return [
        stall
        for stall in stalls
        if stall.culprit and stall.culprit.function == name and stall.started_at + stall.duration > now - WINDOW
    ]


def names_of(groups: Sequence[Sequence[Stall]]) -> list[str]:
    return [group[0].culprit.function for group in groups if group[0].culprit]


def agrees(function: FlaggedFunction, stalls: Sequence[Stall]) -> None:
    """Compare a record with the stalls it is made of."""
    spent = {cause: sum(s.duration for s in stalls if s.cause == cause) for cause in {s.cause for s in stalls}}
    assert function.stalls == len(stalls)
    assert function.blocked == pytest.approx(sum(s.duration for s in stalls))
    assert function.blocked_per_minute == pytest.approx(function.blocked)  # the window is a minute
    assert function.victims == sum(s.victims or 0 for s in stalls)
    assert function.loops == tuple(sorted({s.loop for s in stalls}))
    assert dict(function.causes) == {cause: sum(s.cause == cause for s in stalls) for cause in spent}
    assert spent[function.cause] == pytest.approx(max(spent.values()))
    assert function.first_at == min(s.started_at for s in stalls)
    assert function.last_at == max(s.started_at + s.duration for s in stalls)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 0.5), min_size=MAX_SPANS, max_size=3 * MAX_SPANS), st.floats(0, 60))
def test_more_stalls_than_are_kept_separately(gaps: list[float], later: float) -> None:
    """Counts stay right to a hundredth of the window: no recent stall is missing, and old ones leave in time."""
    flagging, at = Flagging(1, WINDOW, 1), 0.0
    ends: list[float] = []
    for gap in gaps:
        at += gap
        stall = ended(at)
        ends.append(stall.started_at + stall.duration)
        flagging.add(stall)
    (history,) = flagging._known.values()
    assert len(history.spans) <= MAX_SPANS
    now = T0 + at + later
    least = sum(end > now - WINDOW for end in ends)
    most = sum(end > now - WINDOW - WINDOW / 100 for end in ends)
    found = flagging.flagged(now)
    assert least <= sum(function.stalls for function in found) <= most
    for function in found:
        assert function.blocked == pytest.approx(0.25 * function.stalls)


@given(st.lists(st.floats(-90, 90), max_size=60), st.floats(-90, 90))
def test_any_order_is_taken(ends: list[float], now: float) -> None:
    """With loops reported in turn, and clocks set back, the numbers stay within the sum of the stalls."""
    flagging = Flagging(1, WINDOW, 20)
    for end in ends:
        flagging.add(ended(end))
    for function in flagging.flagged(T0 + now):
        assert 1 <= function.stalls <= len(ends)
        assert function.first_at <= function.last_at


# ----------------------------------------------------------------------------------------- bounds


def test_functions_are_bounded() -> None:
    """Ten thousand functions that block once leave room for four times max_culprits, and the costly one stays."""
    flagging = Flagging(1, WINDOW, 5)
    flagging.add(ended(0, "costly", duration=5.0))
    for number in range(10_000):
        flagging.add(ended(number / 1000, f"f{number}"))
        assert len(flagging._known) <= 20
    found = names(flagging.flagged(T0 + 10))
    assert (found[0], len(found)) == ("costly", 20)
    assert "f9999" in found


def test_cooled_down_functions_are_evicted_first() -> None:
    """A function that cost much long ago is evicted before one that costs little now."""
    flagging = Flagging(1, WINDOW, 1)
    flagging.add(ended(0, "long ago", duration=50.0))
    for number in range(4):
        flagging.add(ended(100 + number, f"f{number}"))
    assert sorted(names(flagging.flagged(T0 + 104))) == ["f0", "f1", "f2", "f3"]


def test_a_new_function_can_come_up_among_costly_ones() -> None:
    """With a table full of costlier functions, a new one that keeps blocking is flagged all the same."""
    flagging = Flagging(3, WINDOW, 1)
    newly_flagged(flagging, *(ended(0, f"f{i % 4}", duration=9.0) for i in range(12)))
    assert newly_flagged(flagging, *(ended(1 + i, "new") for i in range(3))) == [2]


def test_nothing_is_flagged_without_culprits() -> None:
    """With max_culprits=0 no function is tracked or flagged."""
    flagging = Flagging(1, WINDOW, 0)
    assert newly_flagged(flagging, ended(0), ended(1)) == []
    assert flagging.flagged(T0 + 1) == ()


def test_names_of_loops_are_bounded() -> None:
    """A loop in each of a thousand threads does not make the record grow."""
    flagging = Flagging(1, WINDOW, 1)
    for number in range(1000):
        flagging.add(ended(number / 100, loop=f"thread-{number:04}"))
    (function,) = flagging.flagged(T0 + 10)
    assert (function.stalls, len(function.loops)) == (1000, MAX_LOOPS)


def test_concurrent_readers_and_writer() -> None:
    """While one thread adds and others read, nothing raises, and every record is consistent."""
    flagging, done = Flagging(1, WINDOW, 2), threading.Event()
    wrong: list[object] = []

    def read() -> None:
        try:
            while not done.is_set():
                for function in flagging.flagged(T0 + 20):
                    if function.blocked != 0.25 * function.stalls:
                        wrong.append(function)
        except Exception as exc:
            wrong.append(exc)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(3000):
        flagging.add(ended(number / 150, f"f{number % 50 if number % 3 else 0}"))
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


# ---------------------------------------------------------------------------------- a real program


def convert_image() -> None:
    time.sleep(0.15)


async def convert(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0.01)
        convert_image()
    await asyncio.sleep(0.01)


def test_a_function_that_blocks_three_times(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is flagged, reported once in log and journal, listed in snapshot and report, and cools down."""
    caplog.set_level(logging.WARNING, "loopwatch")
    seen: list[int] = []
    sink = RecordingSink()
    agent = loopwatch.install(
        threshold=0.1, journal=tmp_path / "stalls.jsonl", cpu_budget=1.0, heartbeat=0.01, on_stall=sink
    )
    agent.on_stall(lambda _stall: seen.append(len(mine(agent.flagged()))))
    run(convert(4))
    assert agent.flush()
    stalls = [stall for stall in sink.stalls if stall.culprit and stall.culprit.function == "convert_image"]
    assert len(stalls) == 4
    assert seen[-1] == 1

    (function,) = mine(agent.flagged())
    assert (function.stalls, function.cause, function.loops) == (4, Cause.SLEEP, ("main",))
    assert function.blocked == pytest.approx(sum(stall.duration for stall in stalls))
    assert function.name == f"{__name__}:convert_image"
    assert mine(agent.snapshot().flagged) == [function]

    (record,) = [record for record in caplog.records if "loopwatch_flagged" in vars(record)]
    assert record.getMessage().startswith(
        f"loopwatch: {__name__}:convert_image blocked the loop 3 times in the last 60 s"
    )
    assert record.levelno == logging.WARNING
    lines = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    (line,) = [line for line in lines if line["type"] == "flagged"]
    assert FlaggedFunction.from_dict(line) == FlaggedFunction.from_dict(vars(record)["loopwatch_flagged"])

    assert mine(agent.flagged(now=function.last_at + 60)) == []
    agent.configure(flag_after=5)
    assert mine(agent.flagged()) == []
    agent.configure(flag_after=4)
    assert mine(agent.flagged()) == [function]
    loopwatch.uninstall()
    assert mine(agent.flagged()) == [function]

    capsys.readouterr()
    assert main(["report", "--json", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["stalls"] for row in report["flagged"] if row["name"] == function.name] == [4]
    assert main(["report", "--width", "200", str(tmp_path)]) == 0
    section = capsys.readouterr().out.partition("FLAGGED FUNCTIONS")[2].partition("BY CAUSE")[0]
    assert f"{__name__}:convert_image" in section
    assert "4 stalls" in section


def mine(functions: Sequence[FlaggedFunction]) -> list[FlaggedFunction]:
    return [function for function in functions if function.culprit.function == "convert_image"]

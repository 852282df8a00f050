"""The records are frozen, plain, and unchanged by a trip through JSON, whatever they hold."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.events import (
    AgentStats,
    Cause,
    Evidence,
    ExpectedBlocks,
    FlaggedFunction,
    Frame,
    LagStats,
    LoopStats,
    Snapshot,
    StackCount,
    Stall,
)

Record = TypeVar("Record")

_finite = st.floats(allow_nan=False, allow_infinity=False)
_BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    int: st.integers(),
    float: _finite,
    bool: st.booleans(),
    Cause: st.sampled_from(Cause),
    Mapping[str, str]: st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    Mapping[str, int]: st.dictionaries(st.text(max_size=8), st.integers(0, 99), max_size=3),
    Mapping[str, float]: st.dictionaries(st.text(max_size=8), _finite, max_size=3),
    tuple[int, int]: st.tuples(st.integers(0, 200), st.integers(0, 200)),
    tuple[Cause, int]: st.tuples(st.sampled_from(Cause), st.integers(0, 200)),
}


def records(cls: type[Record]) -> st.SearchStrategy[Record]:
    """Return a strategy that fills every field of ``cls``, defaults included."""
    return st.builds(cls, **{name: _of(hint) for name, hint in typing.get_type_hints(cls).items()})


def _of(hint: Any) -> st.SearchStrategy[Any]:
    if hint in _BY_HINT:
        return _BY_HINT[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Mapping:
        return st.dictionaries(st.text(max_size=8), _of(arguments[1]), max_size=3)
    if typing.get_origin(hint) is tuple:
        return st.lists(_of(arguments[0]), max_size=3).map(tuple)
    if type(None) in arguments:
        return st.none() | _of(next(item for item in arguments if item is not type(None)))
    return records(hint)


ALL = (
    Frame,
    Evidence,
    StackCount,
    Stall,
    FlaggedFunction,
    LagStats,
    ExpectedBlocks,
    LoopStats,
    AgentStats,
    Snapshot,
)

FRAME = Frame("Images.resize", "app.images", "/srv/app/images.py", 41)
STALL = Stall(
    id="0a1b2c3d4e",
    loop="main",
    started_at=1_767_261_600.5,
    duration=0.312,
    cause=Cause.PYTHON,
    evidence=Evidence(wall=0.312, cpu=0.3, samples=9, moving=0.8, syscall="running", syscall_share=1.0),
    culprit=FRAME,
    leaf=FRAME,
    stack=(FRAME, FRAME),
    samples=(8, 9),
    context={"http.route": "/thumb"},
    profile=(StackCount((FRAME,), 5), StackCount((FRAME, FRAME), 4)),
)


def through_json(data: object) -> Any:
    return json.loads(json.dumps(data))


@given(records(Stall))
def test_stall_through_json(stall: Stall) -> None:
    """A stall is equal to itself after to_dict, JSON and from_dict, whatever its fields hold."""
    again = Stall.from_dict(through_json(stall.to_dict()))
    assert again == stall
    assert isinstance(again.cause, Cause)
    assert isinstance(again.samples, tuple)
    assert isinstance(again.stack, tuple)


@given(records(Evidence))
def test_evidence_through_json(evidence: Evidence) -> None:
    """Evidence survives JSON with every number bit by bit."""
    assert Evidence.from_dict(through_json(evidence.to_dict())) == evidence


@given(records(FlaggedFunction))
def test_flagged_function_through_json(function: FlaggedFunction) -> None:
    """A flagged function is equal to itself after JSON, with causes as enum members; unknown fields are ignored."""
    data = {**through_json(function.to_dict()), "severity": "high"}
    data["culprit"]["column"] = 4
    again = FlaggedFunction.from_dict(data)
    assert again == function
    assert all(isinstance(cause, Cause) for cause in (again.cause, *(cause for cause, _ in again.causes)))
    assert isinstance(again.loops, tuple)


@given(records(Snapshot))
def test_snapshot_is_json(snapshot: Snapshot) -> None:
    """A snapshot converts to JSON with the values of its records."""
    data = through_json(snapshot.to_dict())
    assert [LoopStats(**{**loop, "lag": None, "expected": ()}) for loop in data["loops"]] == [
        dataclasses.replace(loop, lag=None, expected=()) for loop in snapshot.loops
    ]
    assert [loop["expected"] for loop in data["loops"]] == [
        [through_json(blocks.to_dict()) for blocks in loop.expected] for loop in snapshot.loops
    ]
    assert [loop["lag"] and LagStats(**loop["lag"]) for loop in data["loops"]] == [loop.lag for loop in snapshot.loops]
    assert AgentStats(**data["agent"]) == snapshot.agent
    assert tuple(map(FlaggedFunction.from_dict, data["flagged"])) == snapshot.flagged
    assert (data["at"], data["pid"], data["tasks"]) == (snapshot.at, snapshot.pid, snapshot.tasks)


@pytest.mark.parametrize("cls", ALL)
def test_records_are_frozen_and_slotted(cls: type[Any]) -> None:
    """Records have no settable attribute and no ``__dict__``."""
    names = [field.name for field in dataclasses.fields(cls)]
    assert cls.__slots__ == tuple(names)
    assert cls.__dataclass_params__.frozen


def test_records_refuse_assignment() -> None:
    """An assignment to a field raises and leaves the record alone."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        STALL.duration = 0.0  # type: ignore[misc]
    assert STALL.duration == 0.312


@pytest.mark.parametrize("cls", ALL)
def test_every_field_is_documented(cls: type[Any]) -> None:
    """Each field is named in the docstring of its record."""
    missing = [field.name for field in dataclasses.fields(cls) if cls is not StackCount]
    assert [name for name in missing if name not in (cls.__doc__ or "")] == []


def test_fields_of_a_later_version_are_ignored() -> None:
    """Unknown fields of a journal of a later version are ignored, on every level."""
    data = through_json(STALL.to_dict())
    data["severity"] = "high"
    data["evidence"]["temperature"] = 99
    data["culprit"]["column"] = 4
    data["leaf"]["column"] = 4
    for item in data["stack"]:
        item["column"] = 4
    for item in data["profile"]:
        item["share"] = 0.5
        item["stack"][0]["column"] = 4
    assert Stall.from_dict(data) == STALL


def test_fields_with_a_default_may_be_absent() -> None:
    """A journal of an earlier version, without later fields, can be read too."""
    data = {
        "id": "a",
        "loop": "main",
        "started_at": 1.0,
        "duration": 0.2,
        "cause": "sleep",
        "evidence": {"wall": 0.2},
    }
    assert Stall.from_dict(data) == Stall("a", "main", 1.0, 0.2, Cause.SLEEP, Evidence(0.2))


STARVING = dataclasses.replace(
    STALL,
    cause=Cause.STARVED,
    culprit=None,
    starved=0.25,
    throttled=0.125,
    was_in=FRAME,
    evidence=Evidence(wall=0.312, runs=7, watcher_runs=3, handles=40, uneven=0.125),
)


def test_time_without_a_processor_through_json() -> None:
    """The seconds, the frame that is not to blame, and the counts of wake-ups survive JSON, as records."""
    data = through_json(STARVING.to_dict())
    assert (data["starved"], data["throttled"], data["was_in"]["function"]) == (0.25, 0.125, "Images.resize")
    assert [data["evidence"][name] for name in ("runs", "watcher_runs", "handles", "uneven")] == [7, 3, 40, 0.125]
    data["was_in"]["column"] = 4
    again = Stall.from_dict(data)
    assert again == STARVING
    assert again.was_in == FRAME and isinstance(again.was_in, Frame)


def test_journal_written_without_time_without_a_processor() -> None:
    """A stall of an earlier version has had a processor all the time, and its wake-ups are unknown."""
    data = through_json(STARVING.to_dict())
    for name in ("starved", "throttled", "was_in"):
        del data[name]
    for name in ("runs", "watcher_runs", "handles", "uneven"):
        del data["evidence"][name]
    again = Stall.from_dict(data)
    assert (again.starved, again.throttled, again.was_in) == (0.0, 0.0, None)
    found = again.evidence
    assert (found.runs, found.watcher_runs, found.handles, found.uneven) == (None, None, None, None)
    assert again.duration == STARVING.duration


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Stall)]), _json)
def test_damaged_stall_is_refused_in_the_documented_way(name: str, value: object) -> None:
    """With any field replaced by any JSON, from_dict gives a Stall or one of the three documented errors."""
    data = {**through_json(STALL.to_dict()), name: value}
    try:
        assert isinstance(Stall.from_dict(data), Stall)
    except (KeyError, TypeError, ValueError):
        pass


@pytest.mark.parametrize("data", [{}, {"id": "a"}, {**STALL.to_dict(), "cause": "boredom"}])
def test_invalid_stall_is_refused(data: dict[str, Any]) -> None:
    """A mapping without the required fields, or with a cause that does not exist, is an error."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Stall.from_dict(data)


def test_frame_reads_like_a_place() -> None:
    """str(frame) is function, file and line."""
    assert str(FRAME) == "Images.resize (/srv/app/images.py:41)"


def loop(busy: float | None, idle: float | None) -> LoopStats:
    return LoopStats("main", "asyncio", True, busy=busy, idle=idle)


def test_utilization_since_is_exact() -> None:
    """Three busy seconds of four between two readings are 0.75, whatever was before."""
    assert loop(13.0, 101.0).utilization_since(loop(10.0, 100.0)) == 0.75


@pytest.mark.parametrize(
    ("now", "earlier"),
    [
        (loop(None, 1.0), loop(0.0, 0.0)),
        (loop(1.0, None), loop(0.0, 0.0)),
        (loop(1.0, 1.0), loop(None, 0.0)),
        (loop(1.0, 1.0), loop(0.0, None)),
        (loop(1.0, 1.0), loop(1.0, 1.0)),
    ],
)
def test_utilization_since_is_none_where_unknown(now: LoopStats, earlier: LoopStats) -> None:
    """Without counters, or between two readings of the same moment, there is no utilization."""
    assert now.utilization_since(earlier) is None


_seconds = st.floats(0, 1e6)


@given(_seconds, _seconds, st.floats(1e-3, 1e6), st.floats(0, 1e6))
def test_utilization_since_is_a_share(busy: float, idle: float, more_busy: float, more_idle: float) -> None:
    """Growing counters give a share between 0 and 1, equal to busy / (busy + idle) of the increments."""
    share = loop(busy + more_busy, idle + more_idle).utilization_since(loop(busy, idle))
    assert share is not None
    assert 0 <= share <= 1
    assert share == pytest.approx(more_busy / (more_busy + more_idle), rel=1e-4, abs=1e-6)


def test_causes_are_those_of_the_journal_format() -> None:
    """The causes are these twelve words; any change is a change of the format."""
    assert [str(cause) for cause in Cause] == [
        "python", "native_gil", "native", "io", "sleep", "lock", "gil", "gc", "starved", "suspended", "overload",
        "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("duration", "threshold", "ongoing", "severity"),
    [
        (0.1, 0.1, False, "warning"),
        (0.999, 0.1, False, "warning"),
        (1.0, 0.1, False, "error"),
        (1.0, 0.5, False, "warning"),
        (5.0, 0.5, False, "error"),
        (0.6, 0.5, True, "error"),  # a hang: its end is not known
        (99.0, None, False, "warning"),  # a journal of an early version
    ],
)
def test_severity(duration: float, threshold: float | None, ongoing: bool, severity: str) -> None:
    """A stall is an error from ten times the threshold in force on, and while it is ongoing; it is in the mapping."""
    stall = dataclasses.replace(STALL, duration=duration, evidence=Evidence(1.0, threshold=threshold), ongoing=ongoing)
    assert stall.severity == severity
    assert stall.to_dict()["severity"] == severity
    assert Stall.from_dict(stall.to_dict()) == stall

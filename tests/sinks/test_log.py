"""The log sink: one line per culprit and interval, no stall lost from the count, hangs always logged."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from loopwatch.events import Cause, Evidence, ExpectedBlocks, FlaggedFunction, Frame, Stall, culprit_key
from loopwatch.sinks.log import LogSink, describe, describe_flagged
from loopwatch.testing import FakeClock


def frame(name: str) -> Frame:
    return Frame(name, "app.views", "/srv/app/views.py", 41)


def stall(name: str | None = "resize", **fields: Any) -> Stall:
    defaults: dict[str, Any] = {
        "id": "0a1b2c3d4e",
        "loop": "main",
        "started_at": 0.0,
        "duration": 0.312,
        "cause": Cause.PYTHON,
        "evidence": Evidence(0.312),
        "culprit": frame(name) if name else None,
        "remedy": "Move it off the loop.",
    }
    return Stall(**(defaults | fields))


class Logged:
    """A sink with a fake clock, and its log lines."""

    def __init__(self, caplog: pytest.LogCaptureFixture, *, interval: float = 60.0, culprits: int = 3) -> None:
        self.clock = FakeClock(1000.0)
        self.sink = LogSink(logging.WARNING, interval, culprits, clock=self.clock)
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    """A sink that writes one line per minute and culprit, and distinguishes three culprits."""
    caplog.set_level(logging.DEBUG, "loopwatch")
    return Logged(caplog)


def test_one_line_an_interval(logged: Logged) -> None:
    """A thousand stalls of one culprit within a minute are one line; the next line says how many were suppressed."""
    for _ in range(1000):
        logged.sink(stall())
        logged.clock.advance(0.0599)
    assert len(logged.lines) == 1
    logged.clock.now = 1060.0
    logged.sink(stall())
    assert len(logged.lines) == 2
    assert logged.lines[1].endswith(" [999 more from here since the last line]")
    logged.clock.advance(60.0)
    logged.sink(stall())
    assert "more from here" not in logged.lines[2]


def test_interval_is_exact(logged: Logged) -> None:
    """A line comes once the interval is over, not before."""
    logged.sink(stall())
    logged.clock.advance(59.999)
    logged.sink(stall())
    assert len(logged.lines) == 1
    logged.clock.advance(0.001)
    logged.sink(stall())
    assert len(logged.lines) == 2


def test_no_interval(caplog: pytest.LogCaptureFixture) -> None:
    """With an interval of 0 every stall has its line."""
    caplog.set_level(logging.DEBUG, "loopwatch")
    logged = Logged(caplog, interval=0.0)
    for _ in range(5):
        logged.sink(stall())
    assert len(logged.lines) == 5


def test_each_culprit_has_its_own_rate_limit(logged: Logged) -> None:
    """One noisy culprit does not suppress the lines of another."""
    for name in ("a", "b", "a", "b", "a"):
        logged.sink(stall(name))
    assert len(logged.lines) == 2
    logged.clock.advance(60)
    logged.sink(stall("b"))
    logged.sink(stall("a"))
    assert "[1 more" in logged.lines[2]
    assert "[2 more" in logged.lines[3]


def test_culprits_are_bounded(logged: Logged) -> None:
    """Beyond max_culprits all further culprits share one rate limit, and memory does not grow with them."""
    for number in range(1000):
        logged.sink(stall(f"f{number}"))
    assert len(logged.lines) == 4
    assert len(logged.sink._last) == 4
    logged.clock.advance(60)
    logged.sink(stall("f999"))
    assert logged.lines[-1].endswith("[996 more from here since the last line]")


def test_culprits_share_one_rate_limit(caplog: pytest.LogCaptureFixture) -> None:
    """With max_culprits 0 all culprits share one rate limit."""
    caplog.set_level(logging.DEBUG, "loopwatch")
    logged = Logged(caplog, culprits=0)
    for name in ("a", "b", None):
        logged.sink(stall(name))
    assert len(logged.lines) == 1


def test_stalls_without_a_culprit_are_limited_by_cause(logged: Logged) -> None:
    """Without a culprit the rate limit applies to the cause."""
    logged.sink(stall(None, cause=Cause.STARVED))
    logged.sink(stall(None, cause=Cause.STARVED))
    logged.sink(stall(None, cause=Cause.SUSPENDED))
    assert len(logged.lines) == 2


def test_hang_is_always_logged(logged: Logged) -> None:
    """An ongoing block is logged at once, with the suppressed count; its end is rate-limited as usual."""
    logged.sink(stall())
    logged.sink(stall())
    logged.sink(stall(ongoing=True, duration=2.0))
    logged.sink(stall(ongoing=True, duration=4.0))
    logged.sink(stall(duration=9.0))
    assert len(logged.lines) == 3
    assert "has been blocked for 2.00 s by resize" in logged.lines[1]
    assert "[1 more from here" in logged.lines[1]
    assert "has been blocked for 4.00 s" in logged.lines[2]


def test_record_carries_the_stall(logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    """The record carries level, logger and the stall itself, as plain JSON, for formatters and handlers."""
    logged.sink(stall(context={"http.route": "/thumb"}))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("loopwatch", logging.WARNING)
    found = vars(record)["loopwatch"]
    assert found["duration"] == 0.312
    assert found["culprit"]["function"] == "resize"
    assert Stall.from_dict(json.loads(json.dumps(found))) == stall(context={"http.route": "/thumb"})


def test_percent_signs_are_text(logged: Logged) -> None:
    """A percent sign in a name is not taken for a format."""
    logged.sink(stall("100%s_%d"))
    assert "100%s_%d" in logged.lines[0]


def test_level(caplog: pytest.LogCaptureFixture) -> None:
    """The line has the configured level; below the logger's own level nothing is written."""
    caplog.set_level(logging.ERROR, "loopwatch")
    LogSink(logging.INFO, 0, 20, clock=FakeClock())(stall())
    assert caplog.records == []
    LogSink(logging.CRITICAL, 0, 20, clock=FakeClock())(stall())
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {},
            "loop 'main' blocked 312 ms by resize (/srv/app/views.py:41): running Python code (python)."
            " Move it off the loop.",
        ),
        (
            {"duration": 2.345, "cause": Cause.SLEEP, "victims": 17, "remedy": ""},
            "loop 'main' blocked 2.35 s by resize (/srv/app/views.py:41): sleeping (sleep); 17 waited",
        ),
        (
            {"culprit": None, "cause": Cause.SUSPENDED, "remedy": ""},
            "loop 'main' blocked 312 ms: stopped, together with the whole process (suspended)",
        ),
        (
            {"leaf": frame("decode"), "coroutine": "handler", "remedy": "", "victims": 0},
            "loop 'main' blocked 312 ms by resize (/srv/app/views.py:41): running Python code (python),"
            " in decode; task handler",
        ),
        (
            {"context": {"http.route": "/t/{id}", "http.request.method": "GET"}, "coroutine": "x", "remedy": ""},
            "loop 'main' blocked 312 ms by resize (/srv/app/views.py:41): running Python code (python); GET /t/{id}",
        ),
        (
            {"context": {"http.route": "/t/{id}"}, "remedy": ""},
            "loop 'main' blocked 312 ms by resize (/srv/app/views.py:41): running Python code (python); /t/{id}",
        ),
        (
            {"duration": 0.62, "starved": 0.21, "throttled": 0.2, "remedy": "", "coroutine": "handler"},
            "loop 'main' blocked 620 ms by resize (/srv/app/views.py:41): running Python code (python),"
            " 210 ms of the 620 ms without a processor (CPU limit of the container); task handler",
        ),
        (
            {"duration": 2.0, "starved": 1.5, "throttled": 0.5, "leaf": frame("decode"), "victims": 3},
            "loop 'main' blocked 2.00 s by resize (/srv/app/views.py:41): running Python code (python), in decode,"
            " 1.50 s of the 2.00 s without a processor (CPU limit of the container and other processes); 3 waited."
            " Move it off the loop.",
        ),
        (
            {"starved": 0.03, "throttled": 0.03, "remedy": ""},
            "loop 'main' blocked 312 ms by resize (/srv/app/views.py:41): running Python code (python)",
        ),
        (
            {"culprit": None, "cause": Cause.STARVED, "starved": 0.3, "was_in": frame("f"), "remedy": "Do this."},
            "loop 'main' blocked 312 ms: runnable but given no processor (starved), was in f (/srv/app/views.py:41),"
            " 300 ms of the 312 ms without a processor (other processes). Do this.",
        ),
        (
            {"culprit": None, "cause": Cause.SUSPENDED, "was_in": frame("f"), "remedy": ""},
            "loop 'main' blocked 312 ms: stopped, together with the whole process (suspended),"
            " was in f (/srv/app/views.py:41)",
        ),
    ],
)
def test_line(fields: dict[str, Any], line: str) -> None:
    """The line has duration, place, cause, time without a processor, number of waiters and remedy."""
    assert describe(stall(**fields)) == line


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_its_words(cause: Cause) -> None:
    """Each cause is written out, with its name for grep."""
    assert f" ({cause.value})" in describe(stall(cause=cause))


def flagged(**fields: Any) -> FlaggedFunction:
    defaults: dict[str, Any] = {
        "name": "app.views:resize",
        "culprit": frame("resize"),
        "stalls": 5,
        "window": 60.0,
        "blocked": 1.9,
        "blocked_per_minute": 1.9,
        "victims": 3,
        "cause": Cause.PYTHON,
        "causes": ((Cause.PYTHON, 5),),
        "loops": ("main",),
        "first_at": 0.0,
        "last_at": 50.0,
        "remedy": "Move it off the loop.",
    }
    return FlaggedFunction(**(defaults | fields))


def test_flagged_line(logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the function, its count, duration, cause and remedy; the record carries the function only."""
    logged.sink.flagged(flagged())
    assert logged.lines == [
        "loopwatch: app.views:resize blocked the loop 5 times in the last 60 s, 1.90 s in all (python): "
        "Move it off the loop; it can be moved to a worker with @loopwatch.offload"
    ]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("loopwatch", logging.WARNING)
    assert FlaggedFunction.from_dict(json.loads(json.dumps(vars(record)["loopwatch_flagged"]))) == flagged()
    assert "loopwatch" not in vars(record)


def test_flagged_line_of_one_stall_without_advice() -> None:
    """With flag_after=1 it reads "once", and missing parts are left out."""
    text = describe_flagged(flagged(stalls=1, window=0.5, blocked=0.2, remedy=""))
    assert text.startswith(
        "loopwatch: app.views:resize blocked the loop once in the last 0.5 s, 200 ms in all (python): it"
    )


@pytest.mark.parametrize("fields", [{"name": "app:f.<locals>.<lambda>"}, {"offloadable": False}])
def test_flagged_line_without_decorator_advice(fields: dict[str, Any]) -> None:
    """For a lambda, or a cause that offloading does not cure, only the remedy is logged, if there is one."""
    assert describe_flagged(flagged(**fields)).endswith(" (python): Move it off the loop")
    assert describe_flagged(flagged(**fields, remedy="")).endswith(" in all (python)")


@pytest.mark.parametrize(
    ("blocks", "line"),
    [
        (
            ExpectedBlocks("start-up of uvicorn", "main", 3, 1.15, 0.9, frame("load"), Cause.PYTHON),
            "loopwatch: start-up of uvicorn held the loop 'main' for 1.15 s in 3 blocks; longest 900 ms by load "
            "(/srv/app/views.py:41): running Python code (python)",
        ),
        (
            ExpectedBlocks("start-up of uvicorn", "main", 1, 0.25, 0.25, frame("load"), Cause.SLEEP),
            "loopwatch: start-up of uvicorn held the loop 'main' for 250 ms by load (/srv/app/views.py:41): "
            "sleeping (sleep)",
        ),
        (
            ExpectedBlocks("start-up of uvicorn", "main", 1, 0.25, 0.25),
            "loopwatch: start-up of uvicorn held the loop 'main' for 250 ms: for an unknown reason (unknown)",
        ),
    ],
)
def test_expected_line(blocks: ExpectedBlocks, line: str, logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    """Expected blocks are one line with their totals, and the culprit's rate limit is not affected."""
    logged.sink.expected(blocks)
    logged.sink.expected(blocks, "it has not come to listen")
    logged.sink(stall("load"))
    assert logged.lines[:2] == [line, f"{line}; it has not come to listen"]
    assert len(logged.lines) == 3
    assert vars(caplog.records[0])["loopwatch_expected"] == blocks.to_dict()
    assert caplog.records[0].levelno == logging.WARNING


def test_culprit_key() -> None:
    """A culprit is counted by module and function, not by line; without a culprit the cause counts."""
    assert culprit_key(stall("A.f")) == "app.views:A.f"
    assert culprit_key(stall(None, cause=Cause.STARVED)) == "[starved]"


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        (logging.WARNING, [logging.WARNING, logging.ERROR]),
        (logging.INFO, [logging.INFO, logging.INFO]),
        (logging.CRITICAL, [logging.CRITICAL, logging.CRITICAL]),
    ],
)
def test_level_follows_the_severity_at_the_default(
    level: int, levels: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A stall of ten thresholds is logged as ERROR at the default level; any other level is that of every line."""
    caplog.set_level(logging.DEBUG, "loopwatch")
    sink = LogSink(level, 0.0, 3)
    evidence = Evidence(1.0, threshold=0.1)
    sink(stall(duration=0.9, evidence=evidence))
    sink(stall(duration=1.0, evidence=evidence))
    assert [record.levelno for record in caplog.records] == levels


def test_first_error_of_a_culprit_is_always_logged(logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    """An error soon after a warning of the same culprit is logged, once an interval; the next warning is not."""
    evidence = Evidence(1.0, threshold=0.1)
    for duration in (0.3, 0.4, 2.0, 3.0, 0.3):
        logged.sink(stall(duration=duration, evidence=evidence))
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert "2.00 s" in logged.lines[1]
    assert "[1 more from here since the last line]" in logged.lines[1]

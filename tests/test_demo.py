"""The demo's results are right, and it leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from loopwatch import demo
from loopwatch.demo import app
from loopwatch.events import AgentStats, Cause, Evidence, Frame, Stall
from loopwatch.report.reader import read_journals

pytestmark = [pytest.mark.measures, pytest.mark.timeout(240)]

CODE = "import sys; from loopwatch.demo import main; sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))"


@contextmanager
def started(journal: Path, loop: str = "asyncio", seconds: float = 1.0) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, as from a shell; killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", CODE, loop, str(seconds), str(journal)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read the demo's output up to the line that contains ``text``."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the demo ended before it said {text!r}")


def service_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The one child of the demo."""
    (child,) = psutil.Process(process.pid).children(recursive=True)
    return child


def gone(process: psutil.Process) -> bool:
    """Whether a process ends within half a minute, a zombie that init has not collected yet counts as ended."""
    try:
        process.wait(30)
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass
    return True


# ------------------------------------------------------------------------------------------- its results


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def test_every_habit_is_found_with_its_function_and_its_cause(loop: str, tmp_path: Path) -> None:
    """Each slow route is found, and the summary, the journal and the truth agree, on a page of 100 columns."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with started(tmp_path, loop) as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    assert errors == ""

    habits = [habit for habit in demo.HABITS if any(line.startswith(f"{habit.route} ") for line in output.splitlines())]
    assert set(demo.HABITS) - set(habits) <= {habit for habit in demo.HABITS if habit.template == demo.EXPORT}
    found = {(stall.culprit.function, stall.cause) for stall in read_journals(str(tmp_path)).stalls if stall.culprit}
    assert {(habit.culprit, habit.cause) for habit in habits} <= found, output
    assert f"All {len(habits)} habits were found" in output, output

    assert "\x1b" not in output and output.isascii()  # it is not on a terminal
    lines = output.splitlines()
    assert [line for line in lines if len(line) > 100 and str(tmp_path) not in line] == []
    assert lines[-2].startswith("  loopwatch report ")
    assert lines[-1].startswith("      --html ")


def stall_of(habit: demo.Habit, at: float, **changes: Any) -> Stall:
    """A stall as the agent would report it for ``habit``."""
    frame = Frame(habit.culprit, "loopwatch.demo.app", "/app/demo/app.py", 7)
    known: dict[str, Any] = {
        "id": f"{habit.template}{at}", "loop": "main", "started_at": at, "duration": 0.3, "cause": habit.cause,
        "evidence": Evidence(wall=0.3), "culprit": frame, "stack": (frame,), "leaf": frame, "victims": 4,
        "context": {"http.request.method": habit.method, "http.route": habit.template}, "remedy": "Do it elsewhere.",
    }  # fmt: skip
    return Stall(**{**known, **changes})


def summary(seen: demo.Seen, habits: list[demo.Habit], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the demo's summary."""
    demo.summarise(demo.Screen(), seen, habits)
    return capsys.readouterr().out


def seen_with(*stalls: Stall) -> demo.Seen:
    """Two habits asked for once each, from second 10 and from second 20 on."""
    slow = {demo.HABITS[0]: [(10.0, 10.4)], demo.HABITS[1]: [(20.0, 20.4)]}
    return demo.Seen(slow=slow, stalls=list(stalls), agent=AgentStats("watching", cpu=0.1), began=8.5, ended=21.0)


def test_the_summary_says_when_all_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    """The summary counts a stall of the right function and cause within the time of the request as found."""
    habits = list(demo.HABITS[:2])
    text = summary(seen_with(stall_of(habits[0], 10.05), stall_of(habits[1], 20.05)), habits, capsys)
    assert "All 2 habits were found, each of the 2 times" in text
    assert "wrong" not in text
    assert "not found" not in text


def test_summary_lists_missed_habits(capsys: pytest.CaptureFixture[str]) -> None:
    """A request without a stall of its own is a miss, whatever was seen at other times."""
    habits = list(demo.HABITS[:2])
    text = summary(seen_with(stall_of(habits[0], 10.05), stall_of(habits[1], 15.0)), habits, capsys)
    assert "not found once" in text
    assert "1 of 2 slow requests were found" in text
    assert "(none of these)" in text


@pytest.mark.parametrize("changes", [{"culprit": None}, {"cause": Cause.UNKNOWN}])
def test_summary_lists_misjudged_habits(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The right moment with another cause or function does not count as found."""
    habits = list(demo.HABITS[:2])
    stall = stall_of(habits[1], 20.05, **changes)
    text = summary(seen_with(stall_of(habits[0], 10.05), stall), habits, capsys)
    assert f"wrong once: {'no one function' if 'culprit' in changes else habits[1].culprit}, {stall.cause}" in text
    assert "1 of 2 slow requests were found" in text
    assert "lacked a processor" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"cause": Cause.STARVED, "culprit": None},
        {"cause": Cause.UNKNOWN, "evidence": Evidence(wall=0.3, run_queue=0.1)},
        {"cause": Cause.UNKNOWN, "evidence": Evidence(wall=0.3, throttled=0.1)},
    ],
)
def test_the_summary_says_when_the_machine_was_in_the_way(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop that waited for a processor for a fifth of the time is neither found nor misjudged."""
    habits = list(demo.HABITS[:2])
    text = summary(seen_with(stall_of(habits[0], 10.05), stall_of(habits[1], 20.05, **changes)), habits, capsys)
    assert "machine busy once: " in text
    assert "  wrong " not in text
    assert "1 of 2 slow requests were found" in text
    assert "lacked a processor once" in text


def test_quantiles_are_those_of_requests_that_met_a_slow_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A request to /health counts as blocked time if it was under way together with a slow request."""
    seen = seen_with()
    seen.health = [(9.0, 0.001), (9.9995, 0.001), (10.1, 0.3), (11.0, 0.002)]
    rows = [line.split() for line in summary(seen, [], capsys).splitlines()]
    quiet = next(row for row in rows if row[:2] == ["while", "nothing"])
    slow = next(row for row in rows if row[:3] == ["while", "a", "slow"])
    assert quiet[-7:] == ["2", "1.0", "ms", "2.0", "ms", "2.0", "ms"]
    assert slow[-7:] == ["2", "1.0", "ms", "300", "ms", "300", "ms"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colour_only_on_a_capable_terminal(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour is used on a terminal, unless NO_COLOR is set or the terminal is dumb; no letter makes it fail."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    demo.Screen().heading("na\u00efve")
    assert terminal.getvalue() == ("\x1b[1mna?ve\x1b[0m\n" if coloured else "na?ve\n")


# ------------------------------------------------------------------------------------------- how it ends


@pytest.mark.long
@pytest.mark.parametrize("moment", ["Starting the service", "/health 50 times", "held the loop for"])
def test_ctrl_c_ends_demo_and_service(moment: str, tmp_path: Path) -> None:
    """At any moment Ctrl-C gives exit status 130, no traceback, and leaves no process."""
    with started(tmp_path, seconds=60) as process:
        read_until(process, moment)
        service = service_of(process) if moment != "Starting the service" else None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == demo.INTERRUPTED
    assert output.endswith("Interrupted. The service is stopped.\n")
    assert errors == ""
    assert service is None or gone(service)


@pytest.mark.long
def test_the_service_does_not_outlive_a_killed_demo(tmp_path: Path) -> None:
    """SIGKILL leaves the demo no time to tidy up; the service ends by itself."""
    with started(tmp_path, seconds=60) as process:
        read_until(process, "held the loop for")
        service = service_of(process)
        process.kill()
        process.wait(30)
        assert gone(service)


@pytest.mark.long
def test_the_service_does_not_outlive_a_demo_that_is_killed_at_its_start(tmp_path: Path) -> None:
    """The same holds before the service has started."""
    with started(tmp_path, seconds=60) as process:
        read_until(process, "Starting the service")
        while not (children := psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
        process.kill()
        process.wait(30)
        assert gone(children[0])


@pytest.mark.long
def test_a_reader_that_goes_away_ends_the_demo(tmp_path: Path) -> None:
    """``loopwatch demo | head`` gives no traceback and leaves no process."""
    with started(tmp_path, seconds=60) as process:
        read_until(process, "/health 50 times")
        service = service_of(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
    assert gone(service)


def test_service_that_dies_is_reported(tmp_path: Path) -> None:
    """A service that dies gives exit status 1 and one line, and no empty table."""
    with started(tmp_path, seconds=60) as process:
        read_until(process, "held the loop for")
        service_of(process).kill()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "loopwatch demo: the service ended by itself (exit status -9); its own message is above\n"
    assert "What the agent found" not in output


# ------------------------------------------------------------------------------------------- its arguments


def test_without_uvloop_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without uvloop there is one line with the pip command, and exit status 2."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert demo.main("uvloop") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "loopwatch demo: uvloop is not installed: pip install 'loopwatch[uvloop]'\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"loop": "trio"}, "loop='trio'"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"journal": "/nowhere/at/all/x.jsonl"}, "/nowhere/at/all"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    arguments: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invalid arguments give exit status 2, and a line with the value."""
    assert demo.main(**arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert err.count("\n") == 1


def test_a_journal_of_its_own_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has a new directory, for its user only, which is removed again if it stays empty."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = demo._settings("asyncio", 1.0, None)
    folder = Path(settings.journal)
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    settings.tidy_up()
    assert not folder.exists()


# ------------------------------------------------------------------------------------------- the service


def small_shop() -> app.Shop:
    """A shop whose routes are quick, except for the sleeping ones."""
    return app.Shop(
        archive='{"orders": []}', image=bytes(16), width=4, query="a",
        iterations=1, account=app.hash_password("open sesame", 1),
        message=b"m", prices=app.PriceList(), supplier=0, export_to="",
    )  # fmt: skip


def talk(*requests: bytes) -> bytes:
    """Return the service's answer to ``requests`` on one connection."""

    async def exchange() -> bytes:
        server = await asyncio.start_server(small_shop().serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"".join(requests))
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            await writer.wait_closed()
        return answer

    return asyncio.run(exchange())


def test_each_slow_route_has_a_habit() -> None:
    """The demo has a habit for every route of the service but the fast one, and for no other."""
    assert {(habit.method, habit.template) for habit in demo.HABITS} == set(small_shop().routes()) - {
        ("GET", "/health")
    }


def test_the_service_keeps_connections_and_reads_bodies() -> None:
    """The service handles several requests on one connection, one of them with a body."""
    answer = talk(
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /login HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        b"GET /report/7?full=1 HTTP/1.1\r\n\r\n",
        b"GET /thumbnail HTTP/1.1\r\n\r\n",
        b"GET /search HTTP/1.1\r\n\r\n",
        b"GET /lock HTTP/1.1\r\n\r\n",
        b"POST /fanout HTTP/1.1\r\n\r\n",
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 7
    assert b'{"granted": true}' in answer
    assert b'{"notified": 400}' in answer


@pytest.mark.parametrize("path", ["/nothing", "/report/", "/report/1/2", "/health/"])
def test_unknown_paths_are_answered(path: str) -> None:
    """An unknown path gets 404, and the connection goes on."""
    answer = talk(f"GET {path} HTTP/1.1\r\n\r\n".encode(), b"GET /health HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 Not Found")
    assert b"200 OK" in answer


@pytest.mark.parametrize(
    "request_",
    [b"rubbish\r\n\r\n", b"GET /health", b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"x" * 100_000],
)
def test_invalid_request_ends_the_connection(request_: bytes) -> None:
    """An invalid request ends the connection without an answer and without an error in the service."""
    assert talk(request_) == b""


def test_labels_name_the_route_template() -> None:
    """The labels have OpenTelemetry's names, and are set during the request only."""
    assert app.labels() is None
    token = app._request.set(("GET", "/report/{id}"))
    assert app.labels() == {"http.request.method": "GET", "http.route": "/report/{id}"}
    app._request.reset(token)


def test_a_size_is_found_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration follows the cost of the work: twice the time wanted gives twice the size."""
    clock = [0.0]

    def work(size: int) -> None:
        clock[0] += size * 1e-4

    monkeypatch.setattr("loopwatch.demo.app.time", SimpleNamespace(thread_time=lambda: clock[0]))
    assert app.sized(work, 1, 0.3) == pytest.approx(3000, rel=0.01)
    assert app.sized(work, 1, 0.6) == pytest.approx(6000, rel=0.01)

"""The examples are programs that run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from loopwatch.report.reader import read_journals

EXAMPLES = Path(__file__).parent.parent / "examples"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, path: str, deadline: float = 30.0) -> bytes:
    """Send requests until the server answers."""
    ends = time.monotonic() + deadline
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_fastapi_service_under_loopwatch_run(loop: str, tmp_path: Path) -> None:
    """`loopwatch run uvicorn` finds the blocking handler of the example, with its route, on both loops."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "loopwatch",
        "run",
        "--journal",
        str(tmp_path / "stalls.jsonl"),
        "--threshold",
        "0.05",
    ]
    command += ["-m", "uvicorn", "fastapi_service:app", "--port", str(port), "--loop", loop, "--log-level", "warning"]
    server = subprocess.Popen(
        command, cwd=EXAMPLES, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        ask(port, "/health")
        assert b'"report":7' in ask(port, "/report/7?secret=yes")
        ask(port, "/health")
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=20)
    assert "report (" in errors
    found = [
        stall for stall in read_journals(str(tmp_path)).stalls if stall.context.get("http.route") == "/report/{number}"
    ]
    assert len(found) == 1
    assert found[0].culprit is not None
    assert found[0].culprit.function == "report"
    assert "json.dumps" in found[0].remedy
    assert "secret" not in (tmp_path / f"stalls.{found[0].pid}.jsonl").read_text()


def test_examples_of_tests_pass() -> None:
    """The example of a user's own tests passes under pytest."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            str(EXAMPLES / "assert_in_tests.py"),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


Table = list[dict[str, str]]


def run_example(name: str, *arguments: object) -> tuple[Table, str]:
    """Run an example; return its table, a mapping of heading to cell for each row, and its output.

    It ends well, and leaves no process behind.
    """
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as program:
        try:
            printed, _ = program.communicate(timeout=55)
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    assert program.returncode == 0
    session = [each for each in psutil.process_iter() if of_session(each, program.pid)]
    assert psutil.wait_procs(session, timeout=10)[1] == []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    headings, _, *rows = cells
    return [dict(zip(headings, row, strict=True)) for row in rows], printed


def of_session(process: psutil.Process, session: int) -> bool:
    """Whether a process was started by an example."""
    try:
        return os.getsid(process.pid) == session
    except ProcessLookupError:
        return False


def test_fibonacci() -> None:
    """Each way computes the same, and an offloaded call holds the loop for less time than an inline one."""
    rows, _ = run_example("fibonacci.py", 29, 12)
    assert [row["way"] for row in rows] == ["inline", "@offload", "pool.map"]
    assert {row["sum of results"] for row in rows} == {str(12 * 514229)}
    blocks = [float(row["longest block, ms"]) for row in rows]
    assert blocks[0] >= 0.95e3 * float(rows[0]["total, s"])
    assert max(blocks[1:]) < blocks[0]


@pytest.mark.long
def test_resize_images() -> None:
    """Each way makes the same images while the API answers; "auto" reports its destination, and why."""
    pytest.importorskip("PIL", reason="needs the test extra: pip install pillow")
    rows, printed = run_example("resize_images.py", 12, 1500, 1000)
    assert [row["way"] for row in rows] == ["inline", "@offload", '@offload(to="auto")']
    assert len({row["results"] for row in rows}) == 1
    assert all(float(row["API p99, ms"]) >= float(row["API p50, ms"]) > 0 for row in rows)
    blocks = [float(row["longest block, ms"]) for row in rows]
    assert blocks[0] >= 0.95e3 * float(rows[0]["total, s"])
    assert blocks[1] < blocks[0]
    assert "resize_anywhere runs " in printed.splitlines()[-1]


@pytest.mark.long
def test_model_per_worker() -> None:
    """The initializer loads the model once per worker, whatever the number of calls; the calls load it once each."""
    rows, printed = run_example("model_per_worker.py", 500, 2)
    once, each = rows
    assert once["calls"] == "500"
    assert once["loads by worker"] in ("1 + 1", "1")  # a worker may be ready only when all is done
    assert each["calls"] == "4"
    assert sum(map(int, each["loads by worker"].split(" + "))) == 4
    assert float(once["each call, ms"]) < float(each["each call, ms"])
    assert "999999 = 3 * 3 * 3 * 7 * 11 * 13 * 37" in printed


def test_shared_buffer() -> None:
    """Workers write in place the same bytes that they send back, and that the plain function makes."""
    pytest.importorskip("numpy", reason="needs the test extra: pip install numpy")
    rows, printed = run_example("shared_buffer.py", 400, 600, 4)
    assert [row["way"] for row in rows] == ["SharedBuffer", "passed there and back"]
    sums = {row["sum of pixels"] for row in rows}
    assert len(sums) == 1
    assert f"inline the sum is {sums.pop()}\n" in printed


@pytest.mark.long
@pytest.mark.measures
def test_compare_service() -> None:
    """One variable has the pages drawn by workers; the function that blocked the loop does so no more."""
    pytest.importorskip("greenlet", reason="needs the extra: pip install loopwatch[transparent]")
    rows, printed = run_example("compare_service.py", 2)
    before, after = rows
    assert (before["drawn by"], after["drawn by"]) == ("itself", "workers")
    assert int(before["stalls by render"]) > 0
    assert int(after["stalls by render"]) == 0
    last_line = printed.splitlines()[-1]
    assert last_line.startswith("slow_service:render: ")
    assert int(last_line.split("; ")[-1].split()[0]) >= 4  # the calls before the load that showed it was offloaded
    assert all(float(row["/ping p50, ms"]) > 0 and float(row["/page p50, ms"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("resize_images.py", "PIL", "pip install pillow aiohttp"),
        ("shared_buffer.py", "numpy", "pip install numpy"),
        ("load.py", "aiohttp", "pip install aiohttp"),
        ("compare_service.py", "greenlet", "pip install 'loopwatch[transparent]' fastapi uvicorn aiohttp"),
    ],
)
def test_missing_package(name: str, package: str, remedy: str) -> None:
    """An example that needs a package says in one line how to get it."""
    without = f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_path({name!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", without], cwd=EXAMPLES, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_backend_of_your_own() -> None:
    """The example of a backend runs a decorated function and counts it."""
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / "own_backend.py")], capture_output=True, text=True, timeout=60, check=True
    )
    assert (ended.stdout, ended.stderr) == ("294 1\n", "")

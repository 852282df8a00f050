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

import pytest

from loopwatch.telemetry.reading import read_journals

EXAMPLES = Path(__file__).parent.parent / "examples"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, path: str, deadline: float = 30.0) -> bytes:
    """Ask until the server answers."""
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

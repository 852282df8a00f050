"""Supervisors of real servers report a worker that dies as a crash and a restart."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests_of_pools import until

pytestmark = pytest.mark.measures

pytest.importorskip("prometheus_client", reason="needs the extra loopwatch[prometheus]")

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
SERVERS = {
    "uvicorn": ("-m", "uvicorn", "app:app", "--workers", "2", "--port", "{port}"),
    "gunicorn": (
        "-m", "gunicorn", "app:app", "-k", "uvicorn.workers.UvicornWorker", "-w", "2", "-b", "127.0.0.1:{port}",
    ),
}  # fmt: skip
STARTED = re.compile(r"Started server process \[(\d+)\]")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A server under ``loopwatch run`` and its output."""

    def __init__(self, kind: str, folder: Path) -> None:
        (folder / "app.py").write_text(APP)
        self.output = folder / "output.txt"
        self.scrape = free_port()
        command = [part.format(port=free_port()) for part in SERVERS[kind]]
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loopwatch", "run", *command], cwd=folder, stdout=file, stderr=file,
                env={**os.environ, "LOOPWATCH_PROMETHEUS_PORT": str(self.scrape), "LOOPWATCH_THRESHOLD": "60"},
            )  # fmt: skip

    def workers(self) -> list[int]:
        return [int(pid) for pid in STARTED.findall(self.output.read_text())]

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric of the supervisor's children."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.scrape}/metrics", timeout=20) as response:
                text = response.read().decode()
        except OSError:
            return -1.0
        wanted = [f'{key}="{value}"' for key, value in {"loopwatch_pool_name": "children", **labels}.items()]
        lines = [line for line in text.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(part in line for part in wanted))


@pytest.fixture(params=sorted(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Each server, with two workers that have started."""
    pytest.importorskip(request.param)
    server = Server(request.param, tmp_path)
    try:
        until(lambda: len(server.workers()) == 2, 50)
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def test_a_worker_that_is_killed(server: Server) -> None:
    """The supervisor counts two workers, then one crash and a third worker; workers that it ends are no crashes."""
    until(lambda: server.metric("loopwatch_pool_started_total") == 2)
    assert server.metric("loopwatch_pool_workers", loopwatch_worker_state="unknown") == 2
    assert server.metric("loopwatch_pool_memory_bytes") > 10_000_000
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(server.workers()) == 3, 50)
    until(lambda: server.metric("loopwatch_pool_crashes_total", loopwatch_crash_reason="SIGKILL") == 1)
    assert server.metric("loopwatch_pool_crashes_total") == 1
    until(lambda: server.metric("loopwatch_pool_started_total") == 3)
    assert server.metric("loopwatch_pool_workers", loopwatch_worker_state="unknown") == 2
    died = re.compile(rf"loopwatch: child process {victim} \(.*\), made at .* died: SIGKILL")
    until(lambda: died.search(server.output.read_text()))
    server.process.terminate()
    assert server.process.wait(50) in (0, -signal.SIGTERM)
    assert len(re.findall("died: SIG", server.output.read_text())) == 1
    assert "Traceback" not in server.output.read_text()

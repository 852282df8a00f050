"""Real servers under ``loopwatch run``: one log line for their start-up, and stalls for blocks once they listen."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import environ
from real_servers import await_that, free_port, get, missing, program

from loopwatch.report import tables
from loopwatch.report.reader import read_journals
from loopwatch.report.tables import Report
from loopwatch.report.text import to_text

pytestmark = [pytest.mark.long, pytest.mark.measures]

APP = """\
import time

def load():
    time.sleep(0.4)

load()

def warm():
    time.sleep(0.25)

def handle():
    time.sleep(0.3)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        warm()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    handle()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})
"""

COMMANDS = {
    "uvicorn": "uvicorn app:app --port {port} --loop asyncio",
    "uvicorn on uvloop": "uvicorn app:app --port {port} --loop uvloop",
    "uvicorn --reload": "uvicorn app:app --port {port} --reload",
    "uvicorn --workers": "uvicorn app:app --port {port} --workers 2",
    "gunicorn": "gunicorn app:app -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}",
    "gunicorn --preload": "gunicorn app:app -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port} -w 2 --preload",
    "hypercorn": "hypercorn app:app -b 127.0.0.1:{port}",
    "hypercorn on uvloop": "hypercorn app:app -b 127.0.0.1:{port} -k uvloop -w 2",
    "granian": "granian app:app --interface asgi --host 127.0.0.1 --port {port}",
}
NEEDS = {"gunicorn": ("gunicorn", "uvicorn_worker"), "hypercorn": ("hypercorn",), "granian": ("granian",)}
PATIENCE = 20.0
WORKERS = {"uvicorn --workers": 2, "gunicorn --preload": 2, "hypercorn on uvloop": 2}
IMPORTS_ON_THE_LOOP = {"uvicorn --reload", "uvicorn --workers"}


@pytest.mark.skipif(missing() != "", reason=missing())
@pytest.mark.parametrize("name", COMMANDS)
def test_real_server_starts_with_one_line(name: str, tmp_path: Path) -> None:
    """Each worker logs its start-up once, and no stall before it serves; journal and report keep the two apart."""
    for module in NEEDS.get(name.split(maxsplit=1)[0], ("uvicorn", "uvloop")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    server, *arguments = COMMANDS[name].format(port=port).split()
    command = [sys.executable, "-m", "loopwatch", "run", "--journal", "j.jsonl", "-m", server, *arguments]
    env = {**environ(PYTHONPATH=str(tmp_path)), "LOOPWATCH_CPU_BUDGET": "1"}
    workers = WORKERS.get(name, 1)
    with program(command, tmp_path, "server", env) as (process, said):
        await_that(lambda: lines(said, "held the loop") >= workers, f"{workers} line(s) of {name}: {said()}")
        assert lines(said, "blocked", "by warm") + lines(said, "blocked", "by load") == 0, said()
        assert get(f"http://127.0.0.1:{port}/") == "served"
        await_that(lambda: lines(said, "blocked", "by handle"), "the line of a stall")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
    assert lines(said_by(tmp_path), "held the loop") == workers
    contents = read_journals(str(tmp_path / "j.jsonl"))
    # A busy machine may hold up more than the block itself.
    stalls = {block.culprit.function for block in contents.stalls if block.culprit}
    assert ("handle" in stalls, stalls & {"load", "warm"}) == (True, set())
    culprits = {block.culprit.function for block in contents.expected if block.culprit}
    assert culprits >= ({"load", "warm"} if name in IMPORTS_ON_THE_LOOP else {"warm"})
    assert "handle" not in culprits
    (row,) = tables.expected(contents)
    assert row.reason == f"start-up of {'uvicorn' if server == 'gunicorn' else server}"
    assert row.processes == workers
    assert row.total >= workers * (0.65 if name in IMPORTS_ON_THE_LOOP else 0.25) * 0.9
    assert row.total < workers * PATIENCE
    assert f"EXPECTED, NOT COUNTED ABOVE\n  {row.reason}: " in to_text(Report.of(contents))


def said_by(folder: Path) -> Callable[[], str]:
    return lambda: (folder / "server.log").read_text(errors="replace")


def lines(said: Callable[[], str], *parts: str) -> int:
    return sum(all(part in line for part in parts) for line in said().splitlines())

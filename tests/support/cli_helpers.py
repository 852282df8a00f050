"""Runs the command line as a user would, in processes of their own, and checks their results."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from loopwatch.cli.run import BOOTSTRAP
from loopwatch.errors import LoopwatchError
from loopwatch.events import Stall
from loopwatch.report.reader import read_journals

T = TypeVar("T")

COMMAND = [sys.executable, "-m", "loopwatch"]

BLOCKS = """\
import asyncio, sys, time

def culprit():
    time.sleep(0.3)

async def main():
    await asyncio.sleep(0.05)
    culprit()
    await asyncio.sleep(0.05)

if __name__ == "__main__":
    asyncio.run(main())
    print("arguments", *sys.argv[1:])
"""
"""A program that blocks its loop once."""

FACTS = """\
import sys
before = set(sys.modules)
import json, os, threading
print(json.dumps({
    "modules": sorted(before),
    "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count(),
    "finders": [type(finder).__name__ for finder in sys.meta_path if not isinstance(finder, type)],
    "path": sys.path,
}))
"""
"""A program that says what its interpreter has loaded."""


def environ(**variables: str) -> dict[str, str]:
    """Return the environment without any setting of loopwatch, plus ``variables``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LOOPWATCH_", "OTEL_", "PYTHON", "COLUMNS"))
    }
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **variables}


def cli(
    *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``loopwatch ARGS`` to its end."""
    return execute([*COMMAND, *map(str, args)], cwd, env, stdin)


def execute(
    args: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    env = environ() if env is None else env
    return subprocess.run(args, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, timeout=25, check=False)


def facts(args: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Run a program that prints one JSON object and return it; nothing may be on stderr."""
    done = execute(args, cwd, env)
    assert done.stderr == ""
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bootstrapped(**variables: str) -> dict[str, str]:
    """Return the environment that ``loopwatch run`` gives its program."""
    path = os.pathsep.join([BOOTSTRAP, *filter(None, [variables.pop("PYTHONPATH", "")])])
    return environ(PYTHONPATH=path, **variables)


def until(found: Callable[[], T], seconds: float = 15.0) -> T:
    """Return the result of ``found`` as soon as it is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def stalls(journal: Path) -> tuple[Stall, ...]:
    """Return the stalls in ``journal`` so far."""
    try:
        return read_journals(str(journal)).stalls
    except LoopwatchError:
        return ()


def pids_with(culprit: str, journal: Path) -> set[int]:
    """Return the processes in which ``culprit`` has blocked a loop."""
    return {stall.pid for stall in stalls(journal) if stall.culprit and stall.culprit.function == culprit}


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> dict[str, Any] | None:
    """Return the JSON of a server on this machine, None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except OSError:
        return None


@contextlib.contextmanager
def serving(args: Sequence[str | Path], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the duration of the block; none of its processes is left at the end."""
    with (cwd / "server.log").open("wb") as log:
        server = subprocess.Popen(args, cwd=cwd, env=environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    family: list[psutil.Process] = []
    try:
        yield server
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        for process in psutil.wait_procs(family, timeout=3)[1]:
            process.kill()

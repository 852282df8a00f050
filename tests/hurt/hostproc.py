"""Run a small program in its own interpreter, to test whole processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 50.0
"""Seconds after which a program that still runs is taken to hang."""

PRELUDE = """
import asyncio, json, os, re, signal, sys, threading, time

def say(**found):
    print(json.dumps(found), flush=True)

def quiet():
    import logging
    logging.getLogger("loopwatch").addHandler(logging.NullHandler())
    logging.getLogger("loopwatch").propagate = False

def runner(kind):
    if kind == "uvloop":
        import uvloop
        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    def run(coroutine):
        with asyncio.Runner(loop_factory=factory) as made:
            return made.run(coroutine)
    return run

def until(happened, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.005)
    return happened()

def nap(seconds=0.15):
    time.sleep(seconds)

async def blocked(seconds=0.15):
    async def culprit():
        nap(seconds)
    await asyncio.sleep(0.12)
    await asyncio.create_task(culprit(), name="the-task")
    await asyncio.sleep(0.12)
"""


@dataclass(frozen=True)
class Ended:
    """The result of a program that has ended.

    Attributes:
        code: exit code, negative for a signal.
        out: its JSON output, one mapping a line.
        err: its standard error.
    """

    code: int
    out: list[dict[str, Any]]
    err: str

    @property
    def last(self) -> dict[str, Any]:
        """The last mapping that it printed."""
        assert self.out, self.err
        return self.out[-1]


def start(source: str, *args: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start ``source``, which can use the helpers in :data:`PRELUDE`."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPWATCH_", "COV_", "PYTEST"))}
    code = PRELUDE + textwrap.dedent(source)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=base | dict(env or {}),
        start_new_session=True,  # so that all of it can be killed if it hangs
    )


def finish(process: subprocess.Popen[str], deadline: float = DEADLINE) -> Ended:
    """Wait for a program to end; one that hangs is killed with its children and fails the test."""
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"it hangs; its output:\n{out}\n{err}") from None
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return Ended(process.returncode, lines, err)


def program(source: str, *args: object, env: Mapping[str, str] | None = None, deadline: float = DEADLINE) -> Ended:
    """Run ``source`` to its end."""
    return finish(start(source, *args, env=env), deadline)


def succeeded(source: str, *args: object, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``source``, require exit code 0 and an empty stderr, and return the last mapping that it printed."""
    ended = program(source, *args, env=env)
    assert (ended.code, ended.err) == (0, ""), (ended.code, ended.err)
    return ended.last


def journals(folder: Path, suffix: str = ".jsonl") -> dict[int, Path]:
    """Return the journals in ``folder`` by process id."""
    return {int(path.name.split(".")[-2]): path for path in folder.iterdir() if path.name.endswith(suffix)}

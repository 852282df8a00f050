"""A program that does not end, as it waits for jobs or threads."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from contextvars import copy_context
from pathlib import Path

import pytest

from loopwatch.health.naming import task_name

PROGRAM = """
import asyncio, concurrent.futures, sys, time, loopwatch
loopwatch.install(hang_after=0.3, threshold=60)
kept = []
def report(): time.sleep({seconds})
async def run():
    asyncio.create_task(asyncio.to_thread(report))
    await asyncio.sleep(0.1)
async def interpreter():
    kept.append(concurrent.futures.ThreadPoolExecutor(1))
    kept[0].submit(report)
asyncio.run({kind}())
"""


@pytest.mark.measures
@pytest.mark.parametrize(("kind", "words"), [("run", "asyncio.run() does not end"), ("interpreter", "does not exit")])
@pytest.mark.parametrize(("seconds", "times"), [(1.5, 1), (0.15, 0)])
def test_a_job_at_the_end(kind: str, words: str, seconds: float, times: int, tmp_path: Path) -> None:
    """A job that outlasts ``hang_after`` is said once, with its function and line; a shorter one never."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(kind=kind, seconds=seconds))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr.count("[unfinished-exit]") == times
    assert done.stderr.count(words) == times
    assert done.stderr.count(f"__main__:report ({program}:5) in time.sleep") == times


def test_names_of_wrapped_functions() -> None:
    """What ``asyncio.to_thread`` and ``run_in_executor(None, context.run, f)`` call is named, not the context."""
    run = copy_context().run
    assert task_name(functools.partial(run, os.path.join, "a")) == "posixpath:join"
    assert task_name(run, (functools.partial(os.path.join, "a"),)) == "posixpath:join"

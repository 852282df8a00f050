"""Without logging set up, lines go to the standard error that the program started with, or nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hostproc import DEADLINE, PRELUDE, program, succeeded

pytestmark = pytest.mark.measures

STALL = """
import loopwatch
from loopwatch.core import log
agent = loopwatch.install(threshold=0.05)

def stall():
    asyncio.run(blocked(0.1))
    agent.flush()
"""


def run(source: str, *args: object, **popen: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program that can call ``stall()``."""
    code = PRELUDE + STALL + textwrap.dedent(source)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        check=True,
        timeout=DEADLINE,
        **popen,  # type: ignore[call-overload]
    )


def test_nothing_is_written_to_a_file_in_place_of_stderr(tmp_path: Path) -> None:
    """Nothing is written to descriptor 2 while it is a file of the program; the line follows once stderr is back."""
    ended = run(
        """
        own = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
        saved = os.dup(2)
        os.dup2(own, 2)
        os.write(2, b"begin ")
        stall()
        os.write(2, b"end")
        os.dup2(saved, 2)
        """,
        tmp_path / "own", stderr=subprocess.PIPE,
    )  # fmt: skip
    assert (tmp_path / "own").read_bytes() == b"begin end"
    assert ended.stderr.startswith(b"loop 'main' blocked ")


def test_nothing_is_written_to_captured_output() -> None:
    """Lines go to descriptor 2, not to a stream that the program put in place of sys.stderr."""
    ended = run(
        """
        import contextlib, io
        with contextlib.redirect_stderr(io.StringIO()) as captured:
            log.write(30, "loopwatch: a line")
        assert captured.getvalue() == "", captured.getvalue()
        """,
        stderr=subprocess.PIPE,
    )
    assert ended.stderr == b"loopwatch: a line\n"


def test_stderr_that_is_a_file(tmp_path: Path) -> None:
    """Lines are written to stderr if it is a file."""
    with (tmp_path / "err").open("wb") as file:
        run("stall()", stderr=file)
    assert (tmp_path / "err").read_bytes().startswith(b"loop 'main' blocked ")


def test_stderr_that_was_closed_at_the_start(tmp_path: Path) -> None:
    """With 2>&- no line is written to the program's first file, which becomes descriptor 2."""
    ended = run(
        """
        own = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
        assert own == 2
        stall()
        os.write(own, b"data")
        """,
        tmp_path / "own", preexec_fn=lambda: os.close(2),
    )  # fmt: skip
    assert ended.returncode == 0
    assert (tmp_path / "own").read_bytes() == b"data"


def test_a_full_pipe_blocks_no_thread() -> None:
    """Stalls are handled and the program ends even if stderr is a full pipe that is not read."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(write, b"x" * 4096)
        os.set_blocking(write, True)
        ended = run("stall(); print(len(agent.stalls()))", stderr=write, stdout=subprocess.PIPE)
    finally:
        os.close(read)
        os.close(write)
    assert int(ended.stdout) >= 1


def test_nothing_keeps_the_pipe_of_a_daemon_open() -> None:
    """A reader of stderr sees its end once the program gives it up, while the agent keeps running."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + STALL + textwrap.dedent("""
            log.write(30, "loopwatch: before")
            os.dup2(os.open(os.devnull, os.O_RDWR), 2)
            log.write(30, "loopwatch: after")
            stall()
            sys.stdin.read()
        """)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    output = process.stderr.read()  # until all writers have closed it
    still_runs = process.poll() is None
    process.stdin.close()
    process.stderr.close()
    assert process.wait(DEADLINE) == 0
    assert still_runs
    assert output == b"loopwatch: before\n"


def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    """Writing to stderr keeps no descriptor open, neither while the agent is installed nor afterwards."""
    source = """
        before = len(os.listdir("/proc/self/fd"))
        import loopwatch
        from loopwatch.core import log
        loopwatch.install()
        for _ in range(100):
            log.write(40, "loopwatch: a line")
        during = len(os.listdir("/proc/self/fd"))
        loopwatch.uninstall()
        say(before=before, during=during, after=len(os.listdir("/proc/self/fd")))
    """
    ended = program(source)
    assert ended.err == "loopwatch: a line\n" * 100
    assert len(set(ended.last.values())) == 1, ended.last


def test_a_forked_child_repeats_nothing() -> None:
    """Lines held back until stderr returns are the parent's, and a child with stderr does not write them."""
    ended = run(
        """
        saved = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        log.write(30, "loopwatch: it waits")
        if (pid := os.fork()) == 0:
            os.dup2(saved, 2)
            loopwatch.uninstall()
            os._exit(0)
        os.waitpid(pid, 0)
        os.dup2(saved, 2)
        """,
        stderr=subprocess.PIPE,
    )
    assert ended.stderr == b"loopwatch: it waits\n"


def test_lines_go_only_to_a_handler_of_the_program() -> None:
    """Once logging is set up lines go only there, and below WARNING nothing goes to stderr."""
    source = """
        import io, logging, loopwatch
        from loopwatch.core import log
        loopwatch.install()
        log.write(logging.INFO, "loopwatch: not shown")
        logged = io.StringIO()
        logging.basicConfig(stream=logged)
        log.write(logging.WARNING, "loopwatch: %s", "a\\nb\\x1b[31m")
        say(logged=logged.getvalue())
    """
    assert succeeded(source) == {"logged": "WARNING:loopwatch:loopwatch: a\\nb\\x1b[31m\n"}

"""Lines of a program that has not set up logging: on the standard error it began with, or nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hostproc import DEADLINE, PRELUDE, program, succeeded

STALL = """
import loopwatch
from loopwatch.core import log
agent = loopwatch.install(threshold=0.05)

def stall():
    asyncio.run(blocked(0.1))
    agent.flush()
"""


def run(source: str, *args: object, **popen: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program that can have a ``stall()``."""
    code = PRELUDE + STALL + textwrap.dedent(source)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        check=True,
        timeout=DEADLINE,
        **popen,  # type: ignore[call-overload]
    )


def test_a_file_in_the_place_of_stderr_stays_the_programs(tmp_path: Path) -> None:
    """While a file of the program is descriptor 2 nothing is written to it; the line comes when stderr is back."""
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


def test_captured_output_stays_the_programs() -> None:
    """What the program captures in the place of sys.stderr holds no line of ours, which goes to descriptor 2."""
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
    """Where stderr is a file, lines are written to it."""
    with (tmp_path / "err").open("wb") as file:
        run("stall()", stderr=file)
    assert (tmp_path / "err").read_bytes().startswith(b"loop 'main' blocked ")


def test_stderr_that_was_closed_at_the_start(tmp_path: Path) -> None:
    """With 2>&- the first file that the program opens is descriptor 2: no line lands in it."""
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


def test_a_full_pipe_holds_nobody() -> None:
    """Nobody reads stderr and its pipe is full: stalls are handled and the program ends, without these lines."""
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
    """A program that gives up its stderr ends the wait of whoever reads it, while the agent goes on."""
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
    heard = process.stderr.read()  # until all have closed it
    still_runs = process.poll() is None
    process.stdin.close()
    process.stderr.close()
    assert process.wait(DEADLINE) == 0
    assert still_runs
    assert heard == b"loopwatch: before\n"


def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    """Lines on stderr cost no descriptor, neither while the agent is there nor afterwards."""
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
    """Lines that wait for stderr to come back are the parent's: a child that has it writes none of them."""
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


def test_a_handler_of_the_program_has_the_line_alone() -> None:
    """Once logging is set up, lines go there and nowhere else; below WARNING nothing goes to stderr."""
    source = """
        import io, logging, loopwatch
        from loopwatch.core import log
        loopwatch.install()
        log.write(logging.INFO, "loopwatch: no news")
        told = io.StringIO()
        logging.basicConfig(stream=told)
        log.write(logging.WARNING, "loopwatch: %s", "a\\nb\\x1b[31m")
        say(told=told.getvalue())
    """
    assert succeeded(source) == {"told": "WARNING:loopwatch:loopwatch: a\\nb\\x1b[31m\n"}

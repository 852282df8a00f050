"""What the tests of the pool share: calls that wait until they are told, and programs of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from loopwatch.events import PoolStats

METHODS = ["forkserver", "spawn"]
WAYS = [("asyncio", "forkserver"), ("uvloop", "spawn")]
"""Each kind of loop with one start method, for tests that take a while: nothing depends on both."""
if sys.version_info >= (3, 12):
    WAYS.append(("eager", "forkserver"))
ROOT = Path(__file__).parent.parent.parent


class Gate:
    """Holds calls in workers until it is opened; tells that they have begun. Both by bytes in pipes by name."""

    def __init__(self, folder: Path) -> None:
        self.began, self.opened = str(folder / "began"), str(folder / "opened")
        os.mkfifo(self.began)
        os.mkfifo(self.opened)
        self._fds = [os.open(path, os.O_RDWR) for path in (self.began, self.opened)]
        self.wait_args = (self.began, self.opened)

    def open(self, calls: int = 1) -> None:
        """Let so many calls go on."""
        os.write(self._fds[1], b"." * calls)

    async def entered(self, calls: int = 1) -> None:
        """Wait until so many calls have begun."""
        loop = asyncio.get_running_loop()
        for _ in range(calls):
            there = asyncio.Event()
            loop.add_reader(self._fds[0], there.set)
            await there.wait()
            loop.remove_reader(self._fds[0])
            os.read(self._fds[0], 1)

    def close(self) -> None:
        """Close the pipes."""
        for fd in self._fds:
            os.close(fd)


def hold(began: str, opened: str, value: Any = None) -> Any:
    """Tell that the call has begun, and wait to be let go on."""
    with Path(began).open("wb", buffering=0) as telling:
        telling.write(b".")
    with Path(opened).open("rb", buffering=0) as waiting:
        waiting.read(1)
    return value


def figures_add_up(stats: PoolStats) -> None:
    """Every call that was taken is accounted for once."""
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled + stats.queued + stats.running, stats


def script(folder: Path, text: str, *flags: str, name: str = "program.py") -> subprocess.CompletedProcess[str]:
    """Run a program as a file, with every warning an error."""
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return program([str(path)], *flags)


def program(arguments: list[str], *flags: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with every warning an error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", *flags, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, input=stdin)


class Proxy:
    """As those of web frameworks: outside a request they raise whatever they are asked."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("outside")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("outside")

"""Helpers shared by the pool's tests: calls that wait for a signal, and programs run in a new interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from loopwatch.offloading.conformance import Gate, hold, stats_add_up

__all__ = ["Gate", "hold", "stats_add_up"]

METHODS = ["forkserver", "spawn"]
WAYS = [("asyncio", "forkserver"), ("uvloop", "spawn")]
"""Each kind of loop with one start method, for tests that take a while: nothing depends on both."""
if sys.version_info >= (3, 12):
    WAYS.append(("eager", "forkserver"))
ROOT = Path(__file__).parent.parent.parent


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
    """A proxy like those of web frameworks: outside a request it raises on every access."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("outside")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("outside")

"""How workers are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.helpers import METHODS, ROOT

PROGRAM = """
import asyncio, sys
from loopwatch import WorkerPool

def where():
    import loopwatch
    return loopwatch.__file__

async def main():
    async with WorkerPool(workers=1, start_method=sys.argv[1]) as pool:
        return await pool.run(where)

if __name__ == "__main__":
    print(asyncio.run(main()))
"""


@pytest.mark.parametrize("method", METHODS)
def test_workers_run_the_same_loopwatch(tmp_path: Path, method: str) -> None:
    """Workers import the parent's ``loopwatch``, not another one in the current folder."""
    (tmp_path / "program").mkdir()
    program = tmp_path / "program" / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "here" / "loopwatch").mkdir(parents=True)
    (tmp_path / "here" / "loopwatch" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [sys.executable, str(program), method],
        cwd=tmp_path / "here", env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == (str(ROOT / "loopwatch" / "__init__.py"), "")

"""Makes the machine of a benchmark as busy as production: processes that compute beside it, and a processor quota."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PERIOD = 100_000
"""Microseconds of one quota period, the default of the kernel and of Kubernetes."""
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Run ``count`` processes that compute all the time, outside any quota of :func:`quota`."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def quota(processors: float | None) -> Iterator[tuple[list[str], str]]:
    """Make a control group with a quota of ``processors``; yield the command prefix that runs in it, and why not.

    Versions 1 and 2 of control groups are supported. ``None``: no quota, and no prefix.
    """
    if processors is None:
        yield [], ""
        return
    is_old = (_V1 / "cpu.cfs_quota_us").exists()
    group = (_V1 if is_old else _V2) / f"loopwatch-benchmark-{os.getpid()}"
    limit = int(processors * PERIOD)
    try:
        group.mkdir()
        if is_old:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(limit))
        else:
            (group / "cpu.max").write_text(f"{limit} {PERIOD}")
    except OSError as exc:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield [], f"no control group with a quota: {exc}"
        return
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"], ""
    finally:
        for pid in (group / "cgroup.procs").read_text().split():  # helpers that outlived the command
            with contextlib.suppress(OSError):
                ((_V1 if is_old else _V2) / "cgroup.procs").write_text(pid)
        group.rmdir()

"""Detects resource growth: stalls and killed workers for a given time, with the agent and without.

One child process for each kind of loop, once watched and once not. It prints memory, descriptors and objects that the
collector knows, ten times over the run; they must not grow once the ring of stalls is full (512), and no descriptor of
the agent may be left after ``uninstall()``. uvloop leaves two pipes of its own behind.

    python benchmarks/soak.py [--minutes 20] [--fast]

``--fast`` has no pause between two stalls, and restarts workers at once: an hour's worth in some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import loopwatch
from loopwatch.workers import supervisor

PAUSE, BLOCK, THRESHOLD = 0.75, 0.15, 0.1
FAST_PAUSE, FAST_BLOCK, FAST_THRESHOLD = 0.03, 0.025, 0.02
LINES = 10


def descriptors() -> list[str]:
    """Return the targets of this process's descriptors."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found.append(str(path.readlink()).partition(":")[0])
    return found


def megabytes() -> float:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def kill_workers(pool: loopwatch.WorkerPool) -> int:
    """Kill the workers of ``pool``; return how many."""
    pids = [worker.pid for worker in pool.stats().workers if worker.pid]
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


async def soak(label: str, minutes: float, *, fast: bool) -> None:
    """Block the loop and kill a worker in the midst of a call, again and again."""
    pause, block = (FAST_PAUSE, FAST_BLOCK) if fast else (PAUSE, BLOCK)
    began = time.monotonic()
    due, stalls, kills = 0.0, 0, 0
    async with loopwatch.WorkerPool(workers=1) as pool:
        while (passed := time.monotonic() - began) < minutes * 60:
            call = asyncio.ensure_future(pool.run(time.sleep, 60))
            await asyncio.sleep(pause)
            time.sleep(block)
            stalls += 1
            while not call.done():
                kills += kill_workers(pool)
                await asyncio.sleep(0.02)
            with contextlib.suppress(loopwatch.OffloadError):
                await call
            if passed >= due:
                due = passed + minutes * 60 / LINES
                gc.collect()
                report(label, f"{passed / 60:7.1f} {stalls:7} {kills:7}")


def report(label: str, counts: str) -> None:
    """Print one line of the table."""
    print(f"{label:18} {counts} {megabytes():8.1f} {len(descriptors()):6} {len(gc.get_objects()):9,}", flush=True)


def run(kind: str, minutes: float, *, watched: bool, fast: bool) -> None:
    """Soak this process."""
    logging.getLogger("loopwatch").addHandler(logging.NullHandler())
    logging.getLogger("loopwatch").propagate = False
    if fast:
        supervisor.FIRST_BACKOFF = supervisor.LONGEST_BACKOFF = 0.01
    before, label = collections.Counter(descriptors()), f"{kind}, {'watched' if watched else 'plain'}"
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=_factory(kind)) as runner:
        if watched:
            threshold = FAST_THRESHOLD if fast else THRESHOLD
            loopwatch.install(threshold=threshold, journal=f"{folder}/journal.jsonl", cpu_budget=1.0)
        runner.run(soak(label, minutes, fast=fast))
        loopwatch.uninstall()
    gc.collect()
    left = collections.Counter(descriptors()) - before
    report(label, f"left: {dict(left)}".ljust(23))


def _factory(kind: str) -> type[asyncio.AbstractEventLoop]:
    if kind == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop

    return uvloop.Loop


def main() -> None:
    """Run the soak of each kind in a process of its own, all at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, how = options.one.split(",")
        run(kind, options.minutes, watched=how == "watched", fast=options.fast)
        return
    print(f"{'':18} {'minutes':>7} {'stalls':>7} {'kills':>7} {'MB':>8} {'descr.':>6} {'objects':>9}", flush=True)
    command = [sys.executable, __file__, "--minutes", str(options.minutes), *(["--fast"] if options.fast else [])]
    children = [
        subprocess.Popen([*command, "--one", f"{kind},{how}"])
        for kind in ("asyncio", "uvloop")
        for how in ("watched", "plain")
    ]
    sys.exit(max(child.wait() for child in children))


if __name__ == "__main__":
    main()

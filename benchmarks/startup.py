"""Prints the start-up cost of loopwatch to a process, beside the same process without it.

Each case is run without the agent (off), without it once more (A/A: the noise), and with it: under the environment
that ``loopwatch run`` gives to every Python process. The order is reversed every other round. Values are medians
of the difference to the process without the agent, in ms of processor time, which neighbours disturb less, and of wall
clock; memory is the peak resident set (``getrusage``).

    python benchmarks/startup.py                    # everything that can be measured here
    python benchmarks/startup.py processes --rounds 41
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from loopwatch.cli.run import environment

VARIANTS = ("off", "again", "on")

SPAWN = """
import multiprocessing
def work(): pass
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for _ in range(10):
        process = context.Process(target=work)
        process.start()
        process.join()
"""

PROCESSES = {
    "an interpreter": "pass",
    "import asyncio, no loop": "import asyncio",
    "asyncio.run()": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "uvloop.run()": "import asyncio, uvloop; uvloop.run(asyncio.sleep(0))",
    "ten spawned children (each)": SPAWN,
    "the same, asyncio imported": "import asyncio" + SPAWN,
}
"""The programs of the processes. ``allowed`` ms more: 15 without a loop, 40 with one."""
WITH_LOOP = ("asyncio.run()", "uvloop.run()")
EACH = {name: 10 for name in PROCESSES if "spawned" in name or "same" in name}

HELD = """
import asyncio, json, sys, time

async def main():
    loop, late, last = asyncio.get_running_loop(), [], None
    def tick():
        nonlocal last
        now = time.perf_counter()
        if last is not None:
            late.append(now - last - 0.001)
        last = now
        loop.call_later(0.001, tick)
    tick()
    await asyncio.sleep(0.2)
    late.clear()
    began = time.perf_counter()
    if sys.argv[1] == "on":
        import loopwatch
        loopwatch.install(log_level="CRITICAL")
    held = time.perf_counter() - began
    await asyncio.sleep(0.02)
    first = max(late)
    late.clear()
    await asyncio.sleep(0.5)
    print(json.dumps([held, first, max(late)]))

asyncio.run(main())
"""


class Run:
    """One process: its times, its memory, and its output."""

    def __init__(self, code: str, environ: Mapping[str, str], *arguments: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "program.py")
            program.write_text(code)
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, program, *arguments], env=environ, stdout=subprocess.PIPE)
            assert process.stdout is not None
            self.output = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            self.wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            raise SystemExit(f"a program of this benchmark failed: exit code {process.returncode}\n{code}")
        self.cpu = used.ru_utime + used.ru_stime
        self.memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def environ_of(variant: str) -> dict[str, str]:
    """Return the environment of a variant, with bytecode written, as it is for installed packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPWATCH_", "PYTHONDONT"))}
    return environment(kept, {}) if variant == "on" else kept


def alternate(rounds: int, one: Callable[[str], Run]) -> dict[str, list[Run]]:
    """Run the variants in turn, the order reversed every other round; a first round is not counted."""
    found: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    for number in range(-1, rounds):
        for variant in VARIANTS if number % 2 == 0 else tuple(reversed(VARIANTS)):
            run = one(variant)
            if number >= 0:
                found[variant].append(run)
    return found


def more(found: dict[str, list[Run]], variant: str, what: str) -> float:
    """Return the median over the rounds of the difference to the variant ``off``, each within one round."""
    pairs = zip(found[variant], found["off"], strict=True)
    return statistics.median(getattr(a, what) - getattr(b, what) for a, b in pairs)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(title: str, *columns: str) -> None:
    print(f"\n### {title}\n")
    row(*columns)
    row(*("---" for _ in columns))


def processes(options: argparse.Namespace) -> None:
    table(
        "A process under `loopwatch run`: more than without, ms of processor time (wall clock); MB of memory",
        "what it does", "takes without", "A/A", "with", "allowed", "memory",
    )  # fmt: skip
    for name, code in PROCESSES.items():
        if "uvloop" in name and importlib.util.find_spec("uvloop") is None:
            row(name, "uvloop is not installed", "", "", "", "")
            continue
        share = 1000 / EACH.get(name, 1)
        found = alternate(options.rounds, lambda variant, code=code: Run(code, environ_of(variant)))
        cells = [
            f"{more(found, variant, 'cpu') * share:+.1f} ({more(found, variant, 'wall') * share:+.1f})"
            for variant in VARIANTS[1:]
        ]
        alone = statistics.median(run.cpu for run in found["off"]) * share
        memory = f"{more(found, 'on', 'memory') / 1e6:+.1f}"
        row(name, f"{alone:.0f}", *cells, 40 if name in WITH_LOOP else 15, memory)


def held(options: argparse.Namespace) -> None:
    table(
        "`install()` within a running loop: how long it holds the loop, ms (allowed 20)",
        "variant", "the call", "longest delay of a 1 ms ticker meanwhile", "the same in 0.5 seconds after it",
    )  # fmt: skip
    found = alternate(options.rounds, lambda variant: Run(HELD, environ_of("off"), variant))
    for variant in VARIANTS:
        columns = zip(*(json.loads(run.output) for run in found[variant]), strict=True)
        row(variant, *(f"{statistics.median(column) * 1000:.1f}" for column in columns))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"processes": processes, "held": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to measure, default all")
    parser.add_argument("--rounds", type=int, default=21, help="alternating rounds (default 21)")
    options = parser.parse_args()
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} processors, {options.rounds} rounds", flush=True)
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()

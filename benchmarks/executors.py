"""The cost of watching to a caller of an executor: submit and result of a no-op call, with and without the agent.

The agent is switched on and off in one process, in blocks that alternate, each with an executor of its own: the median
of the ratios of all pairs. The control (A/A) is the same without an agent.

    python benchmarks/executors.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import loopwatch


def nothing() -> None:
    """Do nothing."""


def seconds_each(kind: type[Executor], calls: int) -> float:
    """Return the seconds of one call, once the executor has warmed up."""
    with kind(1) as executor:  # type: ignore[call-arg]
        for _ in range(calls // 5):
            executor.submit(nothing).result()
        began = time.perf_counter()
        for _ in range(calls):
            executor.submit(nothing).result()
        return (time.perf_counter() - began) / calls


def measure(kind: type[Executor], calls: int, rounds: int, *, watched: bool) -> tuple[float, float]:
    """Return (median ratio, median seconds of a call without the agent)."""
    ratios, plain = [], []
    for _ in range(rounds):
        off = seconds_each(kind, calls)
        if watched:
            loopwatch.install(log_level="CRITICAL")
        on = seconds_each(kind, calls)
        loopwatch.uninstall()
        ratios.append(on / off)
        plain.append(off)
    return statistics.median(ratios), statistics.median(plain)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("| executor | without, us | A/A | watched |")
    print("| --- | --- | --- | --- |")
    for kind, calls in ((ThreadPoolExecutor, 3000), (ProcessPoolExecutor, 600)):
        control, plain = measure(kind, calls, options.rounds, watched=False)
        watched, _ = measure(kind, calls, options.rounds, watched=True)
        print(f"| {kind.__name__} | {plain * 1e6:.0f} | {control:.2f} | {watched:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""Repeats a measurement that a busy machine spoiled, and says why.

A test that asserts a duration, or that a sample was taken in time, measures the machine as well. Such a test carries
``@pytest.mark.measures``. When it fails, and only if threads of this machine had to wait for a processor while it ran,
it is done again from its fixtures on, at most twice; the terminal's summary names each repetition with its reason. A
failure on a machine that had processors to spare is a failure at once, and so is the third.

Sources: Linux ``Documentation/accounting/psi.rst`` (``/proc/pressure/cpu``) and ``scheduler/sched-stats.rst``
(``/proc/<pid>/task/<tid>/schedstat``), ``proc(5)`` (``steal`` in ``/proc/stat``).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from loopwatch.system.threads import scheduled

ATTEMPTS = 3
SHARE = 0.05
"""A run is spoiled if threads waited for a processor for this share of its time, ..."""
LEAST = 0.01
"""... and at least for this long, in seconds."""
REPEATED = "repeated"
"""The property of a report that holds the reason of each repetition."""


@dataclass(frozen=True)
class Waits:
    """Times spent waiting for a processor so far, in seconds, each None where this system does not say."""

    at: float
    machine: float | None
    """While any thread of the machine waited."""
    own: float | None
    """Of the threads of this process, added up."""
    stolen: float | None
    """While the hypervisor ran something else, over all processors."""

    @classmethod
    def now(cls) -> Waits:
        """Read them."""
        return cls(time.monotonic(), _pressure(), _run_queue(), _stolen())

    def since(self, before: Waits) -> str:
        """Say how long threads waited since ``before``; empty if not for long enough to spoil a measurement."""
        took = self.at - before.at
        least = max(SHARE * took, LEAST)
        waited = {
            "a thread of this machine waited": _difference(self.machine, before.machine),
            "the threads of the test waited": _difference(self.own, before.own),
            "the hypervisor ran something else": _difference(self.stolen, before.stolen),
        }
        parts = [f"{what} for {seconds:.3f} s" for what, seconds in waited.items() if seconds >= least]
        return f"in {took:.3f} s {', '.join(parts)}" if parts else ""


def _difference(after: float | None, before: float | None) -> float:
    return 0.0 if after is None or before is None else after - before


def _pressure() -> float | None:
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


def _run_queue() -> float | None:
    if sys.platform != "linux":
        return None
    threads = [scheduled(int(task.name)) for task in Path("/proc/self/task").iterdir()]
    known = [each.run_queue for each in threads if each is not None]  # else it has ended, or the kernel does not count
    return sum(known) if known else None


def _stolen() -> float | None:
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test until it passes, fails for no reason of the machine, or has had its attempts."""
    if item.get_closest_marker("measures") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for attempt in range(1, ATTEMPTS + 1):
        before = Waits.now()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        failed = [report for report in reports if report.failed]
        reason = Waits.now().since(before) if failed else ""
        if not reason or attempt == ATTEMPTS:
            break
        item.user_properties.append((REPEATED, f"{_cause(failed[0])}; {reason}"))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _cause(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return f"{report.when} failed" if crash is None else str(crash.message).splitlines()[0][:160]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each repetition with its reason."""
    reports = [each for kind in ("passed", "failed", "error") for each in terminalreporter.stats.get(kind, [])]
    lines = [
        f"{report.nodeid}: {reason}"
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, reason in report.user_properties
        if name == REPEATED
    ]
    if lines:
        terminalreporter.section("measurements repeated, as the machine was short of processors")
        for line in lines:
            terminalreporter.write_line(line)

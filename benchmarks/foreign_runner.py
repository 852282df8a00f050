"""Runs one foreign test suite in this process and appends a JSON line for each test to a file: for ``foreign.py``.

Imports little and nothing of loopwatch, as its imports precede the tests: ``loopwatch run`` brings the agent into this
process. The module is imported again by the children of ``multiprocessing``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import traceback
import unittest
from collections.abc import Iterable, Iterator
from typing import Any

# Tests replace these.
_open, _write, _close, _clock = os.open, os.write, os.close, time.perf_counter

RESOURCES = ("cpu", "subprocess", "walltime")
"""Resources that tests may use (``test.support``, "regrtest -u"): neither the network nor gigabytes."""

TEXT = 4000
"""Characters at the end of a traceback that are kept."""

_RANK = ("ok", "skipped", "expected failure", "unexpected success", "failed", "error")


class Journal:
    """Appends lines to a file.

    The file is open only meanwhile: tests count descriptors, close them and hand them to children.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._pid = os.getpid()
        self._began = _clock()

    def begin(self, name: str) -> None:
        """A test begins."""
        self._began = _clock()
        self._append({"begin": name})

    def end(self, name: str, outcome: str, text: str = "") -> None:
        """A test is over, or something around tests has failed."""
        seconds = round(_clock() - self._began, 3)
        self._append({"end": name, "outcome": outcome, "seconds": seconds, "text": text[-TEXT:]})

    def watched(self, watched: bool) -> None:
        """Whether the agent is in this process."""
        self._append({"watched": watched})

    def over(self) -> None:
        """All tests are."""
        self._append({"over": True})

    def _append(self, record: dict[str, Any]) -> None:
        if os.getpid() != self._pid:  # a child of a test that was forked and came back up to here
            return
        descriptor = _open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, json.dumps(record).encode() + b"\n")
        finally:
            _close(descriptor)


class _Verdict:
    """The worst of the outcomes of one test: its parts, subtests, set-up and tear-down."""

    def __init__(self) -> None:
        self.outcome, self.text = "ok", ""

    def add(self, outcome: str, text: str) -> None:
        if _RANK.index(outcome) > _RANK.index(self.outcome):
            self.outcome, self.text = outcome, text


class _Result(unittest.TestResult):
    """Writes the outcome of each test of unittest."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._verdict: _Verdict | None = None

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._verdict = _Verdict()
        self._journal.begin(test.id())

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        if self._verdict is not None:  # CPython 3.12.1 stops a skipped test that it has not started (gh-106584)
            self._journal.end(test.id(), self._verdict.outcome, self._verdict.text)
        self._verdict = None

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add(test, "error", err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add(test, "failed", err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802
        if err is not None:
            self._add(test, "failed" if issubclass(err[0], test.failureException) else "error", err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self._add(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add(test, "expected failure", err)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._add(test, "unexpected success", "")

    def _add(self, test: unittest.TestCase, outcome: str, err: Any) -> None:
        text = err if isinstance(err, str) else "".join(traceback.format_exception(*err))
        if self._verdict is None:  # a class's or module's set-up: no test has begun
            self._journal.end(test.id(), outcome, text)
        else:
            self._verdict.add(outcome, text)


def _tests(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _tests(item)
        else:
            yield item


def run_unittest(suite: Iterable[Any], done: set[str], only: set[str], journal: Journal) -> None:
    """Run the tests of a suite that are not done yet, or only the named ones if any are named."""
    wanted = (test for test in _tests(suite) if test.id() not in done and (not only or test.id() in only))
    unittest.TestSuite(wanted).run(_Result(journal))


def cpython(name: str) -> unittest.TestSuite:
    """Return a suite of CPython's, as ``python -m unittest`` would load it."""
    from test import support  # type: ignore[import-not-found]

    support.use_resources = dict.fromkeys(RESOURCES)
    return unittest.defaultTestLoader.loadTestsFromName(f"test.{name}")


def uvloop(source: str) -> unittest.TestSuite:
    """Return uvloop's tests; those of its source text are not about a loop."""
    sys.path.insert(0, source)
    found = unittest.defaultTestLoader.discover(os.path.join(source, "tests"), top_level_dir=source)  # noqa: PTH118
    return unittest.TestSuite(test for test in _tests(found) if "test_sourcecode" not in test.id())


class _Plugin:
    """Writes the outcome of each test of pytest."""

    def __init__(self, done: set[str], only: set[str], journal: Journal) -> None:
        self._done, self._only, self._journal = done, only, journal
        self._verdict = _Verdict()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [i for i in items if i.nodeid not in self._done and (not self._only or i.nodeid in self._only)]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._journal.end(report.nodeid, "error", report.longreprtext)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._verdict = _Verdict()
        self._journal.begin(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        outcome = {"passed": "ok", "skipped": "skipped"}.get(report.outcome, "failed")
        if hasattr(report, "wasxfail"):
            outcome = "unexpected success" if report.passed else "expected failure"
        elif report.failed and report.when != "call":
            outcome = "error"
        self._verdict.add(outcome, report.longreprtext)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._journal.end(nodeid, self._verdict.outcome, self._verdict.text)


def _has_ipv6() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", 0, socket.AF_INET6))
    except OSError:
        return False


def run_pytest(source: str, done: set[str], only: set[str], journal: Journal) -> None:
    """Run the tests of a project that are written for pytest, with its own configuration."""
    import pytest

    os.chdir(source)
    files = sorted({name.partition("::")[0] for name in only}) or ["tests"]
    if not _has_ipv6():  # else these fail, and leave sockets whose warning fails whichever test is next
        files += ["-k", "not ipv6"]
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", source, "--continue-on-collection-errors", *files]
    status = pytest.main(arguments, plugins=[_Plugin(done, only, journal)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"pytest: {status!r}")


def main() -> None:
    """Run the task in the file named by the only argument: a JSON object of suite, source, records, done and only."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        task = json.load(file)
    sys.argv[1:] = []
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [entry for entry in sys.path if entry != here]  # the tests must not import the other benchmarks
    journal = Journal(task["records"])
    # The agent is loaded with asyncio and starts with the first loop; the other side does the same, to be comparable.
    import asyncio

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(asyncio.sleep(0))
    journal.watched("loopwatch.agent" in sys.modules)
    done, only = set(task["done"]), set(task["only"])
    if task["suite"] == "anyio":
        run_pytest(task["source"], done, only, journal)
    else:
        suite = uvloop(task["source"]) if task["suite"] == "uvloop" else cpython(task["suite"])
        run_unittest(suite, done, only, journal)
    journal.over()


if __name__ == "__main__":
    main()

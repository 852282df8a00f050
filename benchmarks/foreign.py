"""Prints the tests of foreign suites that end differently in a watched process: none should.

Each suite runs in a process of its own, alone and under ``loopwatch run`` (which also brings the agent into its Python
children), after a loop has run in it. Outcomes are compared test by test. A test that differs is repeated three times
on each side, in alternation: it counts as a difference unless the repetitions agree or it is also flaky without the
agent; such tests are listed as flaky. A process that ends in the middle of a test, or hangs for a while, loses that
test; the rest goes on in a new one.

    python benchmarks/foreign.py                                  # CPython's own suites: half an hour and more
    python benchmarks/foreign.py --suites test_asyncio.test_tasks test_subprocess
    python benchmarks/foreign.py --uvloop ~/src/uvloop-0.22.1 --anyio ~/src/anyio-4.12.0
    python benchmarks/foreign.py --python ~/envs/3.13/bin/python --tests ~/src/cpython-3.13/Lib --jobs 2

The interpreter needs loopwatch, and for the suites of uvloop and anyio what their tests import. Exits with 0 if nothing
differs, 1 if something does, 2 if a suite could not be run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).resolve().with_name("foreign_runner.py")

CPYTHON = (
    "test_asyncio",
    "test_subprocess",
    "test_threading",
    "test_concurrent_futures",
    "test_multiprocessing_fork",
    "test_multiprocessing_spawn",
    "test_multiprocessing_forkserver",
    "test_signal",
    "test_os",
    "test_logging",
)
PROJECTS = ("uvloop", "anyio")
"""Suites whose sources must be given, by an option or a variable: UVLOOP_SOURCE, ANYIO_SOURCE."""

_BLOCKS = "its program blocks its loop for 0.1 seconds and expects an empty stderr; the agent logs that block there"
_RACE = (
    "a race of CPython's, which hangs 1 time in 100 without the agent too: the thread that feeds the queue takes a "
    "failed item off before it takes the lock under which it is joined once no item is left"
)
_DEADLOCK = "test.test_concurrent_futures.test_deadlock.ProcessPool{}ExecutorDeadlockTest.test_shutdown_deadlock_pickle"
_SIGINT = "tests.test_signals.Test_{}_Signals.test_signals_sigint_pycode_continue"
EXPECTED = {
    **{_SIGINT.format(kind): _BLOCKS for kind in ("AIO", "UV")},
    **{_DEADLOCK.format(kind): _RACE for kind in ("Fork", "Forkserver", "Spawn")},
}
"""Tests that fail because the agent works as intended, or hang by themselves, and why; listed but not counted."""

ALONE, WATCHED = "alone", "watched"
SIDES = (ALONE, WATCHED)

RESTARTS = 50
"""New processes of one suite before it is given up: the limit of tests that crash or hang."""

EXIT, BROKEN = "(exit)", "(broken)"
"""Names of pseudo-tests: the end of the process after all tests, and its end between two tests."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended.

    Attributes:
        word: ``ok``, ``skipped``, ``failed``, ``error``, ``hung``, ``signal 11`` ...
        text: the end of its traceback, or the reason of its skip.
        seconds: how long it took.
    """

    word: str
    text: str = ""
    seconds: float = 0.0


MISSING = Outcome("not run")

LOG_MARK = "loopwatch: "
"""Prefix of the agent's log lines."""


def is_grave(word: str) -> bool:
    """Whether an outcome is one of the process rather than of the test."""
    return word == "hung" or word.startswith(("signal", "exit code"))


@dataclass(frozen=True, slots=True)
class Run:
    """One side of a suite: the outcomes of its tests, and its total seconds."""

    outcomes: dict[str, Outcome]
    seconds: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that ended differently.

    Attributes:
        test: its id.
        first: outcome without and with the agent.
        repeats: outcomes of the repetitions, likewise.
    """

    test: str
    first: tuple[Outcome, Outcome]
    repeats: tuple[tuple[Outcome, ...], tuple[Outcome, ...]] = ((), ())

    @property
    def is_flaky(self) -> bool:
        """Whether the repetitions clear the agent: both sides agree, or the test is flaky without it as well.

        They never do where the agent's log was seen, or where only the watched side hung or crashed, if only once.
        """
        if not self.repeats[0]:
            return False
        alone, watched = ({outcome.word for outcome in side} for side in self.repeats)
        first, seen = self.first[0].word, (self.first[1], *self.repeats[1])
        if any(LOG_MARK in outcome.text for outcome in seen):
            return False
        if not any(is_grave(word) for word in (first, *alone)) and any(is_grave(outcome.word) for outcome in seen):
            return False
        return alone == watched or len(alone) > 1

    def __str__(self) -> str:
        words = [
            "/".join(dict.fromkeys(outcome.word for outcome in (first, *again)))
            for first, again in zip(self.first, self.repeats, strict=True)
        ]
        counts = [f"{sum(o.word != 'ok' for o in again)} of {len(again)}" for again in self.repeats]
        again = f" (repeated: {counts[0]} against {counts[1]} not ok)" if self.repeats[0] else ""
        last = next((o.text.strip().splitlines()[-1] for o in (*self.repeats[1], self.first[1]) if o.text.strip()), "")
        return f"{self.test}: {words[0]} -> {words[1]}{again}: {last[:300]}"


@dataclass(frozen=True, slots=True)
class Compared:
    """A suite, run on both sides."""

    suite: str
    runs: tuple[Run, Run]
    different: list[Difference] = field(default_factory=list)
    flaky: list[Difference] = field(default_factory=list)
    expected: list[Difference] = field(default_factory=list)


class Bench:
    """Runs suites with one interpreter.

    Args:
        python: the interpreter.
        sources: directory of the sources of each suite in :data:`PROJECTS` that can be run.
        tests: directory with another ``test`` package than the interpreter's, or None.
        patience: seconds without the beginning or end of a test after which the suite's process is killed.
        output: directory for the output of the suites, or None.
    """

    def __init__(
        self, python: str, sources: Mapping[str, str], tests: str | None, patience: float, output: Path | None
    ) -> None:
        self._python, self._sources, self._patience, self._output = python, dict(sources), patience, output
        dropped = ("LOOPWATCH_", "PYTEST_", "COV_", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        if tests is not None:
            self._environ["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))

    def ask(self, code: str) -> str:
        """Return the output of ``code`` in the interpreter."""
        command = [self._python, "-c", code]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def has(self, suite: str) -> bool:
        """Whether the suite can be run: its tests are there."""
        if suite in PROJECTS:
            return suite in self._sources
        code = f"import importlib.util as u; print(u.find_spec('test.{suite.partition('.')[0]}') is not None)"
        return self.ask(code) == "True"

    def run(self, suite: str, side: str, only: Iterable[str] = ()) -> Run:
        """Run a suite, or some of its tests, to the end on one side."""
        outcomes: dict[str, Outcome] = {}
        only = sorted(only)
        began = time.monotonic()
        for _ in range(RESTARTS):
            with tempfile.TemporaryDirectory(prefix="foreign", ignore_cleanup_errors=True) as folder:
                ended = self._process(suite, side, Path(folder), sorted(outcomes), only)
                open_test, over = _read(Path(folder, "records"), outcomes, side)
            if over or open_test is None:
                outcomes[EXIT if over else BROKEN] = ended
                break
            outcomes[open_test] = ended
        if only:
            outcomes = {test: outcomes.get(test, MISSING) for test in only}
        return Run(outcomes, time.monotonic() - began)

    def _process(self, suite: str, side: str, folder: Path, done: list[str], only: list[str]) -> Outcome:
        source, records = self._sources.get(suite, ""), folder / "records"
        if source:
            source = str(shutil.copytree(source, folder / "source", symlinks=True))
            shutil.rmtree(Path(source, suite), ignore_errors=True)  # uvloop/: not built, it would hide the package
        (folder / "work").mkdir()
        task = {"suite": suite, "source": source, "records": str(records), "done": done, "only": only}
        agent = ["-m", "loopwatch", "run"] if side == WATCHED else []
        task_file = folder / "task"
        task_file.write_text(json.dumps(task))
        command = [self._python, *agent, str(RUNNER), str(task_file)]
        environ = self._environ | {"TMPDIR": str(folder / "work")}
        said = (self._output or folder) / f"{suite}.{side}.out"
        with said.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=folder / "work",
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            hung = self._await(process, records)
        if hung:
            return Outcome("hung", f"no progress for {self._patience:g} seconds")
        if process.returncode == 0:
            return Outcome("ok")
        end = said.read_text(errors="replace")[-4000:]
        code = process.returncode
        return Outcome(f"signal {-code}" if code < 0 else f"exit code {code}", end)

    def _await(self, process: subprocess.Popen[bytes], records: Path) -> bool:
        """Wait for the end of a process, and for that of its session; whether it had to be killed."""
        size, since = -1, time.monotonic()
        hung = False
        while process.poll() is None and not hung:
            time.sleep(0.1)
            now = records.stat().st_size if records.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            hung = time.monotonic() - since > self._patience
        try:
            os.killpg(process.pid, signal.SIGKILL)  # also processes that tests have left behind
        except ProcessLookupError:
            pass
        process.wait()
        return hung


def _read(records: Path, outcomes: dict[str, Outcome], side: str) -> tuple[str | None, bool]:
    """Add the outcomes in a file; return the test that began and never ended, and whether all were run.

    Raises:
        RuntimeError: the agent was on the wrong side, so that nothing would have been compared.
    """
    began, over = None, False
    for line in records.read_text().splitlines() if records.exists() else []:
        record: dict[str, Any] = json.loads(line)
        if "begin" in record:
            began = record["begin"]
        elif "end" in record:
            began = None
            outcome = Outcome(record["outcome"], record["text"], record["seconds"])
            before = outcomes.get(record["end"])  # tests that share an id
            word = outcome.word if before is None else "+".join(sorted({*before.word.split("+"), outcome.word}))
            text = outcome.text or (before.text if before else "")
            outcomes[record["end"]] = Outcome(word, text, outcome.seconds + (before.seconds if before else 0.0))
        elif "watched" in record:
            if record["watched"] is not (side == WATCHED):
                raise RuntimeError(f"the agent was {'' if record['watched'] else 'not '}in the process that is {side}")
        else:
            over = True
    return began, over


def differences(alone: Mapping[str, Outcome], watched: Mapping[str, Outcome]) -> list[Difference]:
    """Return the tests whose outcomes are not the same word."""
    both = ((test, alone.get(test, MISSING), watched.get(test, MISSING)) for test in {**alone, **watched})
    return [Difference(test, (a, b)) for test, a, b in both if a.word != b.word]


def compare(bench: Bench, suite: str, repeat: int, progress: Callable[[str], None]) -> Compared:
    """Run a suite on both sides, and the tests that differ ``repeat`` times more."""
    alone, watched = (bench.run(suite, side) for side in SIDES)
    found = differences(alone.outcomes, watched.outcomes)
    progress(f"{suite}: {len(alone.outcomes)} tests, {len(found)} to be repeated")
    if found and repeat:
        found = _repeated(bench, suite, found, repeat)
    counted = [difference for difference in found if difference.test not in EXPECTED]
    return Compared(
        suite,
        (alone, watched),
        [difference for difference in counted if not difference.is_flaky],
        [difference for difference in counted if difference.is_flaky],
        [difference for difference in found if difference.test in EXPECTED],
    )


def _repeated(bench: Bench, suite: str, found: Sequence[Difference], repeat: int) -> list[Difference]:
    tests = [difference.test for difference in found]
    # The end of the process, and set-ups of classes and modules, have no test of their own to be repeated.
    whole = any(test.startswith(("(", "setUp", "tearDown")) for test in tests)
    rounds: dict[str, list[dict[str, Outcome]]] = {side: [] for side in SIDES}
    for _, side in itertools.product(range(repeat), SIDES):
        rounds[side].append(bench.run(suite, side, () if whole else tests).outcomes)
    return [
        Difference(
            difference.test,
            difference.first,
            (
                tuple(outcomes.get(difference.test, MISSING) for outcomes in rounds[ALONE]),
                tuple(outcomes.get(difference.test, MISSING) for outcomes in rounds[WATCHED]),
            ),
        )
        for difference in found
    ]


def _document(found: Compared) -> dict[str, Any]:
    def row(difference: Difference) -> dict[str, Any]:
        sides = zip(SIDES, difference.first, difference.repeats, strict=True)
        return {"test": difference.test} | {
            side: [{"outcome": o.word, "text": o.text} for o in (first, *again)] for side, first, again in sides
        }

    return {
        "suite": found.suite,
        "seconds": [run.seconds for run in found.runs],
        "tests": [len(run.outcomes) for run in found.runs],
        "different": [row(difference) for difference in found.different],
        "flaky": [row(difference) for difference in found.flaky],
        "slower": _slower(*(run.outcomes for run in found.runs)),
    }


def _slower(alone: Mapping[str, Outcome], watched: Mapping[str, Outcome]) -> dict[str, tuple[float, float]]:
    """Return the seconds without and with the agent of the tests that slowed down most."""
    both = {test: (alone[test].seconds, watched[test].seconds) for test in alone if test in watched}
    return dict(sorted(both.items(), key=lambda item: item[1][0] - item[1][1])[:20])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", help="names under CPython's test package; uvloop; anyio; default: all")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of differing tests on each side; default: 3")
    parser.add_argument("--jobs", type=int, default=1, help="suites at a time; default: 1")
    parser.add_argument("--python", default=sys.executable, help="interpreter to run them with; default: this one")
    parser.add_argument("--tests", help="directory of another test package than the interpreter's: a source's Lib")
    parser.add_argument("--uvloop", default=os.environ.get("UVLOOP_SOURCE"), help="directory of uvloop's sources")
    parser.add_argument("--anyio", default=os.environ.get("ANYIO_SOURCE"), help="directory of anyio's sources")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds without progress that count as a hang")
    parser.add_argument("--output", type=Path, help="directory for the output of the suites, and tracebacks as JSON")
    return parser.parse_args()


def main() -> int:
    """Print the table and the names; return the exit code."""
    options = _options()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # a shell's background job ignores them: tests do not
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sources = {name: getattr(options, name) for name in PROJECTS if getattr(options, name)}
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.python, sources, options.tests, options.patience, options.output)
    agent = bench.ask("import loopwatch, sys; print(sys.version.split()[0], loopwatch.__file__)")
    if not agent:
        print(f"{options.python} cannot import loopwatch; install it there", file=sys.stderr)
        return 2
    version, place = agent.split(maxsplit=1)
    print(f"CPython {version}, {place}\n", flush=True)
    wanted = options.suites or [*CPYTHON, *PROJECTS]
    suites = [suite for suite in wanted if bench.has(suite)]

    def compared(suite: str) -> Compared:
        found = compare(bench, suite, options.repeat, lambda line: print(line, file=sys.stderr, flush=True))
        if options.output is not None:
            Path(options.output, f"{suite}.json").write_text(json.dumps(_document(found), indent=1))
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(compared, suites))
    _print(found, [suite for suite in wanted if suite not in suites])
    broken = [one.suite for one in found if BROKEN in one.runs[0].outcomes]
    if broken or (options.suites and len(suites) < len(wanted)):
        print(f"could not be run: {', '.join(broken) or 'suites that are not installed'}", file=sys.stderr)
        return 2
    return 1 if any(one.different for one in found) else 0


def _print(found: Sequence[Compared], absent: Sequence[str]) -> None:
    print("| suite | tests | ok alone | alone s | watched s | different | flaky |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in found:
        alone, watched = one.runs
        tests = [outcome.word for test, outcome in alone.outcomes.items() if test not in (EXIT, BROKEN)]
        print(
            f"| {one.suite} | {len(tests)} | {tests.count('ok')} | {alone.seconds:.1f} | {watched.seconds:.1f} "
            f"| {len(one.different)} | {len(one.flaky)} |"
        )
    if absent:
        print(f"\nNot installed: {', '.join(absent)}.")
    for title, rows in (
        ("Different", [d for one in found for d in one.different]),
        ("Flaky", [d for one in found for d in one.flaky]),
    ):
        if rows:
            print(f"\n{title}:\n")
            for row in rows:
                print(f"- {row}")
    expected = [difference.test for one in found for difference in one.expected]
    if expected:
        print("\nExpected:\n")
        for test in expected:
            print(f"- {test}: {EXPECTED[test]}")


if __name__ == "__main__":
    sys.exit(main())

"""Prints how often detection, culprit, cause and remedy are right in programs of the kinds that people report.

    python benchmarks/field.py                         # all programs of benchmarks/field on asyncio and uvloop
    python benchmarks/field.py --only redis_get --loop asyncio
    python benchmarks/field.py --list

Each program runs under ``loopwatch run`` in a process of its own and measures its blocks itself. Its docstring holds
the right answer. Programs whose packages are missing are listed as not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from accuracy import THRESHOLD, say
from field_judge import COLUMNS, Program, Record, Verdict, judge, program

FOLDER = Path(__file__).with_name("field")
LONGEST = 60.0
"""Seconds after which a program is killed."""
PREFIX = "FIELD "
LOOPS = ("asyncio", "uvloop")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One program on one loop: the verdict, or why there is none."""

    program: str
    loop: str
    verdict: Verdict | None
    reason: str = ""


def programs() -> list[Program]:
    """Return all programs, by name."""
    return [program(file) for file in sorted(FOLDER.glob("*.py")) if not file.name.startswith("_")]


def missing(program: Program, loop: str) -> list[str]:
    """Return the modules that the program needs on a loop and that are not installed."""
    needed = (*program.right.needs, *(("uvloop",) if loop == "uvloop" else ()))
    return [name for name in needed if importlib.util.find_spec(name) is None]


def run(program: Program, loop: str) -> Outcome:
    """Run a program on one kind of loop under the agent, and judge what was said."""
    if absent := missing(program, loop):
        return Outcome(program.name, loop, None, f"not run: no {', '.join(absent)}")
    root = str(Path(__file__).resolve().parents[1])
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWATCH_")}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "loopwatch", "run", "--threshold", str(THRESHOLD), "--journal", folder,
            str(program.file), loop,
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=environ, cwd=folder,
        )  # fmt: skip
        try:
            _, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return Outcome(program.name, loop, None, f"not judged: killed after {LONGEST:g} s")
        finally:
            _end(process)
        stalls = [record for record in _journal(Path(folder)) if record.get("type") == "stall"]
    if process.returncode:
        return Outcome(program.name, loop, None, f"not judged: exit code {process.returncode}: {errors[-600:]}")
    said = [json.loads(line[len(PREFIX) :]) for line in errors.splitlines() if line.startswith(PREFIX)]
    truths = [record for record in said if record["kind"] == "truth"]
    return Outcome(
        program.name, loop, judge(program, truths, stalls, [each for each in said if each["kind"] == "finding"])
    )


def _end(process: subprocess.Popen[str]) -> None:
    """End what the program left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _journal(folder: Path) -> list[Record]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the rows of the table, in Markdown: the programs, then the totals of each loop."""
    lines = [f"| program | loop | {' | '.join(COLUMNS)} |", f"| --- | --- |{' --- |' * len(COLUMNS)}"]
    words = {True: "yes", False: "**no**", None: "-"}
    judged = [(each, each.verdict.marks) for each in outcomes if each.verdict is not None]
    lines += [
        f"| {each.program} | {each.loop} | {' | '.join(words[marks[name]] for name in COLUMNS)} |"
        for each, marks in judged
    ]
    for loop in dict.fromkeys(each.loop for each, _ in judged):
        columns = [[marks[name] for each, marks in judged if each.loop == loop] for name in COLUMNS]
        totals = (f"{column.count(True)} of {len(column) - column.count(None)}" for column in columns)
        lines.append(f"| all | {loop} | {' | '.join(totals)} |")
    return lines


def misses(outcomes: Sequence[Outcome], right: dict[str, Program]) -> list[str]:
    """Return what was said where it was wrong, beside what is right; then what was not run or judged."""
    lines = []
    for each in outcomes:
        if each.verdict is None:
            lines.append(f"- {each.program} on {each.loop}: {each.reason}")
        elif not each.verdict.is_right or each.verdict.marks["detected"] is None:
            answer = right[each.program].right
            wanted = f'{"/".join(answer.causes) or "finding"}, {"/".join(answer.culprit)}, "{"|".join(answer.remedy)}"'
            lines += [
                f"- {each.program} on {each.loop}; right: {wanted}",
                *(f"  - {text}" for text in each.verdict.said),
            ]
    return lines


def main() -> int:
    """Run what the command line asks for; return 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=lambda text: text.split(","), help="programs, separated by commas")
    parser.add_argument("--loop", type=lambda text: text.split(","), default=list(LOOPS), help="kinds of loop")
    parser.add_argument("--list", action="store_true", help="print the programs and end")
    parser.add_argument("--json", help="file for all results")
    options = parser.parse_args()
    known = {each.name: each for each in programs()}
    if unknown := set(options.only or ()) - known.keys():
        parser.error(f"no program {', '.join(sorted(unknown))}: see --list")
    if unknown := set(options.loop) - set(LOOPS):
        parser.error(f"no loop {', '.join(sorted(unknown))}: known are {', '.join(LOOPS)}")
    chosen = [known[name] for name in options.only or known]
    if options.list:
        for each in chosen:
            print(f"{each.name:28} {each.right.kind}")
        return 0
    outcomes = []
    for each in chosen:
        for loop in (loop for loop in options.loop if loop in each.right.loops):
            outcomes.append(run(each, loop))
            verdict = outcomes[-1].verdict
            say(f"{each.name} on {loop}: {'right' if verdict and verdict.is_right else 'wrong or not judged'}")
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(each) for each in outcomes]))
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, threshold {1000 * THRESHOLD:g} ms\n")
    print("\n".join(table(outcomes)))
    print("\n## What was wrong, or not run\n")
    wrong = misses(outcomes, known)
    print("\n".join(wrong) or "Nothing.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

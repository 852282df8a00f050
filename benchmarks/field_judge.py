"""Records and judgement of the programs in field/: pure, used by field.py.

A program's docstring ends with a record in TOML after a line ``---``: what a perfect tool would say.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accuracy import CLOSE, SHARE, THRESHOLD

COLUMNS = ("detected", "culprit", "cause", "remedy", "duration")
MARK = "# <- the line"
"""Ends the lines that a culprit may name, in programs where only some lines of the function are right."""
SLACK = 0.05
"""Seconds by which a stall may lie beside its block and still be that of it.

A ticker is late by all passes until its own turn, so that the stalls of a block together may make up its length."""

Record = Mapping[str, Any]


class RecordError(ValueError):
    """The record of a program is malformed; the message says where."""


@dataclass(frozen=True, slots=True)
class Right:
    """The right answer about a program.

    Attributes:
        kind: of the block, a few words.
        after: the public report or the common habit that it is modelled after.
        culprit: functions to blame (last names, qualified names, or names of template files); "" accepts none named.
        causes: acceptable causes.
        remedy: words of which one must be in the remedy.
        never: words that must not be in it.
        finding: words that must all be in a finding; where there are any, findings are judged, not stalls.
        blocks: number of blocks that the program must have measured at least; 0 where findings are judged.
        loops: kinds of loop that it applies to.
        needs: modules that must be installed.
    """

    kind: str
    after: str
    culprit: tuple[str, ...]
    causes: tuple[str, ...] = ()
    remedy: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    finding: tuple[str, ...] = ()
    blocks: int = 1
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A program: its name, file, right answer, and the numbers of the lines that a culprit may name (none: any)."""

    name: str
    file: Path
    right: Right
    lines: frozenset[int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one program on one loop.

    Attributes:
        marks: right or wrong for each of :data:`COLUMNS`, None where it does not apply.
        said: what was said about the blocks that are wrong, a line each.
    """

    marks: Mapping[str, bool | None]
    said: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return False not in self.marks.values()


def program(file: Path) -> Program:
    """Read the record of a program without running it.

    Raises:
        RecordError: it has none, or a malformed one.
    """
    source = file.read_text()
    _, separator, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n---\n")
    if not separator:
        raise RecordError(f"{file.name}: the docstring has no record after a line ---")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RecordError(f"{file.name}: {exc}") from exc
    known = {field.name for field in fields(Right)}
    if unknown := values.keys() - known:
        raise RecordError(f"{file.name}: unknown keys {sorted(unknown)}, known are {sorted(known)}")
    if missing := {"kind", "after", "culprit", "remedy"} - values.keys():
        raise RecordError(f"{file.name}: no {', '.join(sorted(missing))}")
    right = Right(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    if bool(right.causes) == bool(right.finding):
        raise RecordError(f"{file.name}: it needs either causes or finding")
    lines = frozenset(number for number, line in enumerate(source.splitlines(), 1) if line.endswith(MARK))
    return Program(file.stem, file, right, lines)


def judge(program: Program, truths: Sequence[Record], stalls: Iterable[Record], findings: Iterable[Record]) -> Verdict:
    """Compare what was said with the right answer.

    Args:
        program: with the right answer.
        truths: measured blocks: ``begin`` in seconds since the epoch, ``seconds``.
        stalls: stalls of the journal.
        findings: ``text`` and ``remedy`` of each finding.
    """
    if program.right.finding:
        return _judge_findings(program.right, list(findings))
    ended = [stall for stall in stalls if not stall["ongoing"]]
    long = [truth for truth in truths if truth["seconds"] >= 1.1 * THRESHOLD]
    said: list[str] = []
    if len(long) < program.right.blocks:
        said.append(f"the program measured {len(long)} blocks, not {program.right.blocks}")
        return Verdict(dict.fromkeys(COLUMNS), tuple(said))
    verdicts = [_judge_block(program, truth, ended, said) for truth in long]
    marks = {name: all(each[name] for each in verdicts) for name in COLUMNS}
    return Verdict(marks, tuple(said))


def _overlap(truth: Record, stall: Record) -> float:
    begin = max(truth["begin"] - SLACK, stall["started_at"])
    return min(truth["begin"] + truth["seconds"] + SLACK, stall["started_at"] + stall["duration"]) - begin


def _judge_block(program: Program, truth: Record, stalls: Sequence[Record], said: list[str]) -> dict[str, bool]:
    right = program.right
    stall = max(stalls, key=lambda each: _overlap(truth, each), default=None)
    if stall is None or _overlap(truth, stall) <= 0:
        said.append(f"{truth['seconds']:.3f} s: nothing")
        return dict.fromkeys(COLUMNS, False)
    own = stall["duration"] - stall.get("starved", 0.0)
    starved = stall["cause"] == "starved" and own < THRESHOLD
    together = sum(each["duration"] for each in stalls if _overlap(truth, each) > SLACK)
    off = min(abs(seconds - truth["seconds"]) for seconds in (stall["duration"], together))
    marks = {
        "detected": True,
        "culprit": starved or is_culprit(program, stall["culprit"]),
        "cause": starved or stall["cause"] in right.causes,
        "remedy": starved or is_remedy(right, stall["remedy"]),
        "duration": off <= max(CLOSE, SHARE * truth["seconds"], stall["uncertainty"]),
    }
    wrong = [name for name, mark in marks.items() if not mark]
    if wrong:
        said.append(f"{', '.join(wrong)}: {truth['seconds']:.3f} s: {described(stall)}")
    return marks


def is_culprit(program: Program, frame: Record | None) -> bool:
    """Whether a frame is one that the right answer accepts; the line counts in the program's own file alone."""
    if frame is None:
        return "" in program.right.culprit
    function, file = frame["function"], Path(frame["file"])
    names = {function, function.rpartition(".")[2], f"{frame['module']}.{function}", file.name}
    if names.isdisjoint(program.right.culprit):
        return False
    return not program.lines or file.name != program.file.name or frame["line"] in program.lines


def is_remedy(right: Right, text: str) -> bool:
    """Whether a remedy has one of the wanted words, and none of the unwanted."""
    low = text.lower()
    return any(word.lower() in low for word in right.remedy) and not any(word.lower() in low for word in right.never)


def _judge_findings(right: Right, findings: list[Record]) -> Verdict:
    found = [each for each in findings if all(word.lower() in each["text"].lower() for word in right.finding)]
    named = [each for each in found if any(name in each["text"] for name in right.culprit)]
    remedied = [each for each in named or found if is_remedy(right, each["remedy"])]
    marks = {"detected": bool(found), "culprit": bool(named), "remedy": bool(remedied)}
    said = tuple(f"{each['text']} | {each['remedy']}" for each in findings) or ("no finding",)
    return Verdict({name: marks.get(name) for name in COLUMNS}, () if all(marks.values()) else said)


def described(stall: Record) -> str:
    """Return a stall in one line, with the evidence that decides most."""
    frame, leaf = stall["culprit"], stall["leaf"]
    culprit = f"{frame['function']} ({Path(frame['file']).name}:{frame['line']})" if frame else "nobody"
    at = f"{leaf['function']} ({Path(leaf['file']).name}:{leaf['line']})" if leaf else "nowhere"
    evidence = stall["evidence"]
    facts = f"cpu {evidence['cpu']:.3f}, samples {stall['samples']}, call {evidence.get('call')}, leaf {at}"
    length = f"{stall['duration']:.3f} +- {stall['uncertainty']:.3f}"
    return f'{stall["cause"]} {length}, {culprit}; {facts}; "{stall["remedy"]}"'

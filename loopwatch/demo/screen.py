"""Output of the demo: findings as they come, and the comparison with the truth at the end."""

from __future__ import annotations

import math
import os
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from loopwatch.core.text import shown
from loopwatch.demo.truth import EXPORT, HEALTH_EVERY, THRESHOLD, Habit, Seen
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.events import Cause, Frame, Stall
from loopwatch.report.text import seconds as in_words
from loopwatch.report.text import times

WIDTH = 96
BUSY = 0.2
"""Share of a block spent waiting for a processor from which the machine counts as too busy for the demo."""


class Screen:
    """Writes lines to standard output, in colour only on a terminal that supports it."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = terminal and not os.environ.get("NO_COLOR")
        self._encoding = sys.stdout.encoding or "ascii"

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line; characters outside the encoding become question marks."""
        text = text.encode(self._encoding, "replace").decode(self._encoding)
        sys.stdout.write((f"\x1b[{style}m{text}\x1b[0m" if style and text and self._colour else text) + "\n")
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """Write a line in bold."""
        self.line(text, "1")

    def item(self, name: str, text: str) -> None:
        """Write one fact, wrapped."""
        for number, line in enumerate(textwrap.wrap(shown(text), WIDTH - 16, break_on_hyphens=False)):
            self.line(f"         {name if not number else '':<6} {line}")


def introduce(screen: Screen, habits: Sequence[Habit]) -> None:
    """Print what the demo is about to do."""
    screen.line(f"A client asks it for /health {round(1 / HEALTH_EVERY)} times a second, and now and then for one of")
    for line in textwrap.wrap(", ".join(habit.route.replace(" ", "\xa0") for habit in habits), WIDTH - 2):
        screen.line("  " + line.replace("\xa0", " "))
    screen.line(f"The agent inside the service reports when the loop was held for more than {THRESHOLD * 1000:.0f} ms:")
    if not any(habit.template == EXPORT for habit in habits):
        screen.line("(POST /export is left out: this machine's temporary files wait for no disk.)")
    screen.line()


def report(screen: Screen, stall: Stall, seen: Seen) -> None:
    """Print one finding: in full the first time, in one line when it recurs."""
    at = f"{max(stall.started_at - seen.began, 0):5.1f} s"
    held = f"{'holds' if stall.ongoing else 'held'} the loop for {in_words(stall.duration)}"
    title = f"{at}  {_route(stall)} {held}"
    if any(_same(stall, other) for other in seen.stalls):
        screen.line(f"{title}: {_culprit(stall)} again ({stall.cause.value})")
        return
    screen.line(title, "1;33")
    screen.item("where", _where(stall))
    screen.item("why", f"{stall.cause.value}: {CAUSES[stall.cause].why}")
    if stall.victims is not None:
        screen.item("hurt", f"{stall.victims} callbacks and events waited" if stall.victims != 1 else "1 waited")
    screen.item("do", stall.remedy)


def _same(one: Stall, other: Stall) -> bool:
    return (_route(one), one.cause, _culprit(one)) == (_route(other), other.cause, _culprit(other))


def _route(stall: Stall) -> str:
    method, route = stall.context.get("http.request.method", ""), stall.context.get("http.route")
    return f"{method} {route}".strip() if route else "(request unknown)"


def _culprit(stall: Stall) -> str:
    return stall.culprit.function if stall.culprit is not None else "no one function"


def _where(stall: Stall) -> str:
    if stall.culprit is None:
        return "no function is to blame" if stall.leaf is None else f"nobody's fault; it was in {_place(stall.leaf)}"
    call = _call(stall)
    return _place(stall.culprit) + (f", in {call}()" if call else "")


def _call(stall: Stall) -> str | None:
    """Return the call made by the culprit, if the call took the time; else None."""
    if stall.culprit in stall.stack:
        inner = stall.stack[stall.stack.index(stall.culprit) + 1 :]
        if inner:
            return f"{inner[0].module}.{inner[0].function}"
    in_culprit = stall.cause in (Cause.PYTHON, Cause.OVERLOAD) or not stall.evidence.call
    return None if in_culprit else str(stall.evidence.call).removeprefix(".")


def _place(frame: Frame) -> str:
    return f"{frame.function}, line {frame.line} of {Path(frame.file).name}"


def summarise(screen: Screen, seen: Seen, habits: Sequence[Habit]) -> None:
    """Print the comparison of the agent's findings with the truth, and the cost of the agent."""
    screen.line()
    screen.heading("What the agent found")
    screen.line()
    _row(screen, "route", "culprit", "cause", "found", "blocked", "waited", style="2")
    claimed: set[str] = set()
    right = 0
    for habit in habits:
        found = [stall for stall in seen.stalls if not stall.ongoing and _during(stall, seen.slow.get(habit, []))]
        claimed.update(stall.id for stall in found)
        right += _report(screen, habit, found, len(seen.slow.get(habit, [])))
    others = [stall for stall in seen.stalls if not stall.ongoing and stall.id not in claimed]
    for cause in sorted({stall.cause for stall in others}):
        group = [stall for stall in others if stall.cause is cause]
        _row(screen, "(none of these)", "", cause.value, str(len(group)), _blocked(group), "")
    screen.line()
    asked = sum(len(times) for times in seen.slow.values())
    disturbed = sum(_disturbed(stall) for stall in seen.stalls if stall.id in claimed)
    screen.line(_judgement(len(habits), right, asked))
    if disturbed and right < asked:
        screen.line(f"Here the service lacked a processor {times(disturbed)}; the demo shows more on a quiet machine.")
    for route, reason in seen.failed.items():
        screen.line(f"{route} did not always answer: {reason}")
    screen.line()
    _latencies(screen, seen)
    _cost(screen, seen)


def _report(screen: Screen, habit: Habit, found: Sequence[Stall], asked: int) -> int:
    """Print the findings for ``habit``; return how many have the right function and cause."""
    true = [stall for stall in found if _culprit(stall) == habit.culprit and stall.cause is habit.cause]
    waited = sum(stall.victims or 0 for stall in found)
    _row(screen, habit.route, habit.culprit, habit.cause.value, f"{len(true)} of {asked}", _blocked(found), str(waited))
    if true:
        screen.line("  " + textwrap.shorten(true[-1].remedy, WIDTH - 2, placeholder=" ..."), "32")
    for text, count in Counter(_verdict(stall) for stall in found if stall not in true).items():
        screen.line("  " + text.format(times=times(count)), "31")
    if asked > len(found):
        screen.line(f"  not found {times(asked - len(found))}", "31")
    return min(len(true), asked)


def _verdict(stall: Stall) -> str:
    """Return the text of a wrong finding, with a placeholder for how often it occurred."""
    found = f"{_culprit(stall)}, {stall.cause.value}".replace("{", "{{").replace("}", "}}")
    return ("machine busy {times}: " if _disturbed(stall) else "wrong {times}: ") + found


def _disturbed(stall: Stall) -> bool:
    """Whether the machine held up the service as well: the finding may be true, but is not the planned one."""
    waited = max(stall.evidence.run_queue or 0.0, stall.evidence.throttled or 0.0)
    return waited >= BUSY * stall.duration or stall.cause in (Cause.STARVED, Cause.SUSPENDED)


def _row(screen: Screen, *cells: str, style: str = "") -> None:
    widths = (18, 22, 12, 10, 11, 9)
    aligned = [
        f"{cell:<{width}}" if n < 3 else f"{cell:>{width}}"
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    screen.line("  ".join(aligned).rstrip(), style)


def _during(stall: Stall, windows: Sequence[tuple[float, float]]) -> bool:
    """Whether more than half of ``stall`` lies in one of ``windows``."""
    ends = stall.started_at + stall.duration
    return any(min(ends, last) - max(stall.started_at, first) > stall.duration / 2 for first, last in windows)


def _blocked(stalls: Sequence[Stall]) -> str:
    return f"{sum(stall.duration for stall in stalls):.2f} s"


def _judgement(habits: int, right: int, asked: int) -> str:
    if right == asked:
        return (
            f"All {habits} habits were found, each of the {asked} times, with the right function and the right cause."
        )
    return (
        f"{right} of {asked} slow requests were found with the right function and the right cause; see the lines above."
    )


def _latencies(screen: Screen, seen: Seen) -> None:
    windows = [window for times in seen.slow.values() for window in times]
    slow: list[float] = []
    rest: list[float] = []
    for asked, took in seen.health:
        met = any(asked < last and asked + took > first for first, last in windows)
        (slow if met else rest).append(took)
    screen.heading("What a client of /health saw")
    screen.line()
    names = ("", "requests", "p50", "p99", "max")
    for style, cells in (
        ("2", names),
        ("", ("while nothing slow was asked for", *_quantiles(rest))),
        ("", ("while a slow request was served", *_quantiles(slow))),
    ):
        screen.line(f"{cells[0]:<34}" + "".join(f"{cell:>12}" for cell in cells[1:]), style)
    screen.line()


def _quantiles(times: Sequence[float]) -> Iterator[str]:
    ordered = sorted(times)
    yield str(len(ordered))
    for share in (0.5, 0.99, 1.0):
        yield _short(ordered[max(math.ceil(share * len(ordered)) - 1, 0)]) if ordered else "-"


def _short(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 0.0995 else in_words(value)


def _cost(screen: Screen, seen: Seen) -> None:
    agent, wall = seen.agent, seen.ended - seen.began
    if agent is None:
        return
    blocked = sum(stall.duration for stall in seen.stalls if not stall.ongoing)
    share = agent.cpu / wall
    screen.line(
        f"The agent's threads used {_short(agent.cpu)} of processor time in {wall:.1f} s, {share:.1%} of one core;"
    )
    screen.line(f"the loop was blocked for {blocked:.1f} s of them.")
    if agent.faults or agent.dropped:
        screen.line(f"It had faults of its own: {dict(agent.faults)}, and dropped {agent.dropped} findings.", "31")


def what_next(screen: Screen, journal: Path, *, temporary: bool) -> None:
    """Print how to read the journal."""
    kept = " is kept in a new directory that only you can read" if temporary else " is kept"
    page = journal.parent / "report.html"
    screen.line(f"The journal of this run{kept}. Look at it again:")
    screen.line()
    screen.line(f"  loopwatch report {shlex.quote(str(journal))} \\")
    screen.line(f"      --html {shlex.quote(str(page))}")

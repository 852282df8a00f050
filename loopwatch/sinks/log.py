"""The log sink: one line per stall in the standard library's logging, rate-limited per culprit; one per flagging."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from loopwatch.core import log
from loopwatch.core.originals import time
from loopwatch.core.text import timing
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.diagnosis.own_part import parts_of
from loopwatch.diagnosis.starvation import described
from loopwatch.events import ExpectedBlocks, FlaggedFunction, Severity, Stall, culprit_key

OTHER = "other"


class LogSink:
    """Writes stalls to the logger ``loopwatch``; the record carries the stall as ``record.loopwatch`` (a dict).

    The record of a flagged function carries it as ``record.loopwatch_flagged`` instead.

    Args:
        level: logging level. At the default, WARNING, a stall of severity ``error`` is logged as ERROR.
        interval: seconds between two lines of one culprit; suppressed lines are counted in the next one.
        max_culprits: culprits with a limit of their own; all further ones share one.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self, level: int, interval: float, max_culprits: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.level, self.interval, self.max_culprits = level, interval, max_culprits
        self._clock = clock
        self._last: dict[str, tuple[float, Severity]] = {}
        self._held: dict[str, int] = {}

    def __call__(self, stall: Stall) -> None:
        """Log ``stall``, unless its culprit was logged too recently; a hang, and the first error, are always logged."""
        key = self._key(stall)
        now = self._clock()
        last = self._last.get(key)
        is_worse = last is not None and (last[1], stall.severity) == (Severity.WARNING, Severity.ERROR)
        if last is not None and now - last[0] < self.interval and not (stall.ongoing or is_worse):
            self._held[key] = self._held.get(key, 0) + 1
            return
        self._last[key] = (now, stall.severity)
        held = self._held.pop(key, 0)
        text = describe(stall) + (f" [{held} more from here since the last line]" if held else "")
        log.write(self._level_of(stall), text, extra={"loopwatch": stall.to_dict()})

    def emit(self, stall: Stall, flagged: FlaggedFunction | None, _span: Any = None) -> None:
        """Log ``stall``, and the function that it flagged."""
        self(stall)
        if flagged is not None:
            self.flagged(flagged)

    def flagged(self, function: FlaggedFunction) -> None:
        """Log ``function``, which has just been flagged."""
        log.write(self.level, describe_flagged(function), extra={"loopwatch_flagged": function.to_dict()})

    def expected(self, blocks: ExpectedBlocks, note: str = "") -> None:
        """Log ``blocks``, which are over; the record carries them as ``record.loopwatch_expected``."""
        extra = {"loopwatch_expected": blocks.to_dict()}
        log.write(self.level, describe_expected(blocks) + (f"; {note}" if note else ""), extra=extra)

    def _level_of(self, stall: Stall) -> int:
        follows = self.level == logging.WARNING and stall.severity is Severity.ERROR
        return logging.ERROR if follows else self.level

    def _key(self, stall: Stall) -> str:
        key = culprit_key(stall)
        return key if key in self._last or len(self._last) < self.max_culprits else OTHER


def describe(stall: Stall) -> str:
    """Return one line: how long, where, why, how many waiters, and what to do.

    Example: ``loop 'main' blocked 312 ms by resize (/srv/app/images.py:41): running Python code; GET /thumb;
    17 waited. Move it to ...``
    """
    verb = "has been blocked for" if stall.ongoing else "blocked"
    parts = [f"loop {stall.loop!r} {verb} {timing(stall.duration)}"]
    if stall.culprit is not None:
        parts.append(f" by {stall.culprit}")
    parts.append(f": {CAUSES[stall.cause].doing} ({stall.cause.value})")
    if stall.leaf is not None and stall.culprit is not None and stall.leaf != stall.culprit:
        parts.append(f", in {stall.leaf.function}")
    if stall.was_in is not None:
        parts.append(f", was in {stall.was_in}")
    if without := described(parts_of(stall)):
        parts.append(f", {without}")
    if route := stall.context.get("http.route"):
        parts.append(f"; {stall.context.get('http.request.method', '')} {route}".replace("  ", " "))
    elif stall.coroutine:
        parts.append(f"; task {stall.coroutine}")
    if stall.victims:
        parts.append(f"; {stall.victims} waited")
    return "".join(parts) + (f". {stall.remedy}" if stall.remedy else "")


def describe_flagged(function: FlaggedFunction) -> str:
    """Return one line: which function, how often and how long it blocked, what to do.

    Example: ``loopwatch: app.images:thumbnail blocked the loop 5 times in the last 60 s, 1.90 s in all (python): Move
    ...; it can be moved to a worker with @loopwatch.offload``
    """
    times = "once" if function.stalls == 1 else f"{function.stalls} times"
    advice = [function.remedy.removesuffix(".")] if function.remedy else []
    if function.offloadable and not function.name.endswith(">"):  # a lambda or comprehension cannot be decorated
        advice.append("it can be moved to a worker with @loopwatch.offload")
    return (
        f"loopwatch: {function.name} blocked the loop {times} in the last {function.window:g} s, "
        f"{timing(function.blocked)} in all ({function.cause.value})" + (f": {'; '.join(advice)}" if advice else "")
    )


def describe_expected(blocks: ExpectedBlocks) -> str:
    """Return one line: why blocks were expected, how long they held the loop, and the longest of them.

    Example: ``loopwatch: start-up of uvicorn held the loop 'main' for 1.15 s in 3 blocks; longest 900 ms by load
    (/srv/app/models.py:7): running Python code (python)``
    """
    held = f"loopwatch: {blocks.reason} held the loop {blocks.loop!r} for {timing(blocks.blocked)}"
    longest = f" in {blocks.blocks} blocks; longest {timing(blocks.longest)}" if blocks.blocks > 1 else ""
    by = "" if blocks.culprit is None else f" by {blocks.culprit}"
    return f"{held}{longest}{by}: {CAUSES[blocks.cause].doing} ({blocks.cause.value})"

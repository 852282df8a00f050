"""Converts a stall, or a flagged function, to attributes of OpenTelemetry: names, places, seconds. Pure.

Names are those of the semantic conventions where they have one (``code.*``, ``http.*``, ``thread.name``). Nothing of
the program's data is among them: no locals, arguments, paths of requests or query strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loopwatch.events import FlaggedFunction, Frame, Stall, culprit_key
from loopwatch.telemetry.metrics.catalog import CAUSE, CULPRIT, FUNCTION, LOOP, REMEDY

Value = str | int | float | bool
Attributes = dict[str, Value]

EVENT = "asyncio.eventloop.stall"
"""Name of the span of a stall, of the event of its log record, and of the event in the spans of its victims."""
FLAGGED_EVENT = "asyncio.eventloop.flagged"
"""Name of the event of the log record of a function that is flagged."""

ID = "loopwatch.stall.id"
DURATION = "loopwatch.stall.duration"
UNCERTAINTY = "loopwatch.stall.uncertainty"
VICTIMS = "loopwatch.stall.victims"
ONGOING = "loopwatch.stall.ongoing"
SAMPLES = "loopwatch.stall.samples"
TASK = "loopwatch.task"
COROUTINE = "loopwatch.coroutine"
HELD_BACK = "loopwatch.stall.held_back"
"""How many were not told before this one, because of a storm."""

MAX_STACK = 4096
"""Characters of a stack; of a longer one the outermost frames are left out."""
MAX_TEXT = 256
"""Characters of any other text."""

_TRACE = frozenset({"trace_id", "span_id"})
"""Labels that a span or record carries by its nature."""
_STANDARD = ("http.", "url.template", "rpc.", "messaging.", "faas.")
"""How labels begin that keep their names; the program's own get a name space."""


def of_stall(stall: Stall) -> Attributes:
    """Return what a span or log record tells of ``stall``."""
    found = blame(stall) | _task(stall)
    found[ID] = stall.id
    found[LOOP] = stall.loop
    found[DURATION] = stall.duration
    found[UNCERTAINTY] = stall.uncertainty
    found[SAMPLES] = stall.samples[1]
    if stall.victims is not None:
        found[VICTIMS] = stall.victims
    if stall.ongoing:
        found[ONGOING] = True
    if stall.remedy:
        found[REMEDY] = stall.remedy
    if stall.culprit is not None:
        found |= _code(stall.culprit)
    if stall.stack:
        found["code.stacktrace"] = stack_text(stall.stack)
    if stall.thread:
        found["thread.name"] = stall.thread
    if stall.pid:  # the resource of a provider that was made before a fork names the wrong process, or none
        found["process.pid"] = stall.pid
    return clean({**found, **_labels(stall.context)})


def blame(stall: Stall) -> Attributes:
    """Return who blocked and why."""
    return {CAUSE: stall.cause.value, CULPRIT: culprit_key(stall)[:MAX_TEXT]}


def utf8(text: str) -> str:
    """Return ``text`` as UTF-8 can have it: names that the system gave may hold bytes that are none.

    Example:
        >>> utf8("caf\\udce9")
        'caf?'
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def clean(found: Attributes) -> Attributes:
    """Return attributes as an exporter can encode them, which would log an error for each that it cannot."""
    return {utf8(key): utf8(value) if isinstance(value, str) else value for key, value in found.items()}


def _task(stall: Stall) -> Attributes:
    found: Attributes = {}
    if stall.task:
        found[TASK] = stall.task[:MAX_TEXT]
    if stall.coroutine:
        found[COROUTINE] = stall.coroutine[:MAX_TEXT]
    return found


def of_flagged(function: FlaggedFunction) -> Attributes:
    """Return what a log record tells of a function that keeps blocking."""
    found: Attributes = {
        FUNCTION: function.name,
        CAUSE: function.cause.value,
        "loopwatch.flagged.stalls": function.stalls,
        "loopwatch.flagged.window": function.window,
        "loopwatch.flagged.blocked": function.blocked,
        "loopwatch.flagged.victims": function.victims,
        "loopwatch.flagged.offloadable": function.offloadable,
        **_code(function.culprit),
    }
    return clean(found | {REMEDY: function.remedy} if function.remedy else found)


def stack_text(stack: Sequence[Frame]) -> str:
    """Return ``stack`` as Python writes it, outermost frame first, at most :data:`MAX_STACK` characters."""
    lines: list[str] = []
    room = MAX_STACK - len("...\n")
    for frame in reversed(stack):
        line = f'  File "{frame.file}", line {frame.line}, in {frame.function}\n'
        room -= len(line)
        if room < 0:
            lines.append("...\n")
            break
        lines.append(line)
    return "".join(reversed(lines))


def _code(frame: Frame) -> Attributes:
    name = f"{frame.module}.{frame.function}" if frame.module else frame.function
    return {"code.function.name": name, "code.file.path": frame.file, "code.line.number": frame.line}


def _labels(context: Mapping[str, str]) -> Attributes:
    return {
        key if key.startswith(_STANDARD) else f"loopwatch.context.{key}": value
        for key, value in context.items()
        if key not in _TRACE
    }

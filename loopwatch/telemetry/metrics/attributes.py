"""Converts a stall, or a flagged function, to OpenTelemetry attributes: names, code locations, seconds. Pure.

Names are those of the semantic conventions where they have one (``code.*``, ``http.*``, ``thread.name``). None of the
program's data is included: no locals, arguments, paths of requests or query strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loopwatch.core.text import printable
from loopwatch.events import FlaggedFunction, Frame, Stall, culprit_key
from loopwatch.telemetry.metrics.catalog import CAUSE, CULPRIT, FUNCTION, LOOP, REMEDY

Value = str | int | float | bool
Attributes = dict[str, Value]

EVENT = "asyncio.eventloop.stall"
"""Name of the span of a stall, of the event of its log record, and of the event in the spans of its waiters."""
FLAGGED_EVENT = "asyncio.eventloop.flagged"
"""Name of the event of the log record of a flagged function."""

ID = "loopwatch.stall.id"
DURATION = "loopwatch.stall.duration"
UNCERTAINTY = "loopwatch.stall.uncertainty"
VICTIMS = "loopwatch.stall.victims"
ONGOING = "loopwatch.stall.ongoing"
STARVED = "loopwatch.stall.starved"
THROTTLED = "loopwatch.stall.throttled"
WAS_IN = "loopwatch.stall.was_in"
SAMPLES = "loopwatch.stall.samples"
TASK = "loopwatch.task"
COROUTINE = "loopwatch.coroutine"
HELD_BACK = "loopwatch.stall.held_back"
"""How many items the rate limit suppressed before this one."""

MAX_STACK = 4096
"""Characters of a stack; of a longer one the outermost frames are left out."""
MAX_TEXT = 256
"""Characters of any other text."""

_TRACE = frozenset({"trace_id", "span_id"})
"""Labels that a span or record already carries as its trace context."""
_STANDARD = ("http.", "url.template", "rpc.", "messaging.", "faas.")
"""Prefixes of labels that keep their names; the program's own labels get a name space."""


def of_stall(stall: Stall) -> Attributes:
    """Return the attributes of the span or log record of ``stall``."""
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
    if stall.starved > 0:
        found[STARVED] = stall.starved
    if stall.throttled > 0:
        found[THROTTLED] = stall.throttled
    if stall.was_in is not None:
        found[WAS_IN] = printable(str(stall.was_in), MAX_TEXT)
    if stall.remedy:
        found[REMEDY] = stall.remedy
    if stall.culprit is not None:
        found |= _code(stall.culprit)
    if stall.stack:
        found["code.stacktrace"] = stack_text(stall.stack)
    if stall.thread:
        found["thread.name"] = stall.thread
    if stall.pid:  # the resource of a provider made before a fork names the wrong process, or none
        found["process.pid"] = stall.pid
    return clean({**found, **_labels(stall.context)})


def blame(stall: Stall) -> Attributes:
    """Return the cause and the culprit of ``stall``."""
    return {CAUSE: stall.cause.value, CULPRIT: culprit_key(stall)[:MAX_TEXT]}


def utf8(text: str) -> str:
    """Return ``text`` as valid UTF-8: names from the system may hold bytes that are not.

    Example:
        >>> utf8("caf\\udce9")
        'caf?'
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def clean(found: Attributes) -> Attributes:
    """Return attributes that an exporter can encode; for each other one it would log an error."""
    return {utf8(key): utf8(value) if isinstance(value, str) else value for key, value in found.items()}


def _task(stall: Stall) -> Attributes:
    found: Attributes = {}
    if stall.task:
        found[TASK] = stall.task[:MAX_TEXT]
    if stall.coroutine:
        found[COROUTINE] = stall.coroutine[:MAX_TEXT]
    return found


def of_flagged(function: FlaggedFunction) -> Attributes:
    """Return the attributes of the log record of a flagged function."""
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
    """Return ``stack`` in Python's format, outermost frame first, at most :data:`MAX_STACK` characters."""
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

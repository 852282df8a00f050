"""The remedy of a stall: one sentence, from its cause and the call that the blocking line was making.

Looks up the table of :mod:`loopwatch.diagnosis.remedy_table`; culprit and cause are decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.diagnosis.own_part import Parts
from loopwatch.diagnosis.remedy_table import _HOLDS_GIL, TABLE, Advice
from loopwatch.diagnosis.starvation import advice, cure
from loopwatch.events import Cause, Frame

_PROCESS = "loop.run_in_executor with a ProcessPoolExecutor"
_THREAD = "asyncio.to_thread"


_GENERIC_MODULES = frozenset({"builtins", "io", "_io"})


def is_generic(pattern: str) -> bool:
    """Return whether ``pattern`` says little about the purpose of the user's line: a bare method, a builtin."""
    return pattern.partition(".")[0] in _GENERIC_MODULES | {""}


_Index = Mapping[tuple[str, Cause], Advice]


@cache  # built with the first stall
def _index(*, generic: bool) -> _Index:
    return {
        (pattern, cause): advice
        for advice in TABLE
        for pattern in advice.patterns
        for cause in advice.causes
        if is_generic(pattern) is generic
    }


ON_TIME = Parts(own=1.0, starved=0.0, throttled=0.0)
"""A block whose thread always had a processor."""


def remedy(cause: Cause, calls: Sequence[str], culprit: Frame | None, parts: Parts = ON_TIME) -> str:
    """Return what to do about a stall, on one line: one sentence, and a second one if processors were short as well.

    Args:
        cause: why the loop was blocked.
        calls: dotted names of the calls of the blocking line, from the user's line inward: library frames as
            ``module.qualname``, the C function at the end as ``time.sleep`` or, on an object of unknown type, as
            ``.recv``. The outermost name in the table decides; bare methods and builtins only if no other name
            does.
        culprit: the user's code, named if there is no call: for ``gil`` the code of the thread that held it.
        parts: how much of the block was without a processor.

    Example:
        >>> remedy(Cause.NATIVE, ["bcrypt.hashpw"], None)
        'Run bcrypt.hashpw() through asyncio.to_thread: password hashing is slow on purpose.'
    """
    if cause is Cause.STARVED:
        return CAUSES[cause].remedy.format(cure=cure(parts))
    return _of_own_part(cause, calls, culprit) + advice(parts)


def _of_own_part(cause: Cause, calls: Sequence[str], culprit: Frame | None) -> str:
    facts = CAUSES[cause]
    if not facts.is_of_call:
        return facts.remedy.format(call=_name(culprit, "the work of that thread"))
    found = _find(_index(generic=False), cause, calls) or _find(_index(generic=True), cause, calls)
    if found is not None:
        advice, call = found
        return advice.text.format(call=_called(call), offload=_executor(cause))
    called = next((_called(call) for call in calls if call.strip()), _name(culprit, "the blocking code"))
    return facts.remedy.format(call=called, offload=_executor(cause))


def _find(index: _Index, cause: Cause, calls: Sequence[str]) -> tuple[Advice, str] | None:
    for call in calls:
        for prefix in _prefixes(call):
            advice = index.get((prefix, cause))
            if advice is not None:
                return advice, call
    return None


def _prefixes(call: str) -> Iterator[str]:
    while call:
        yield call
        call = call.rpartition(".")[0]


def _executor(cause: Cause) -> str:
    # UNKNOWN gets the process: it helps whether or not the GIL is held, a thread only if it is free.
    return _PROCESS if cause in _HOLDS_GIL | {Cause.UNKNOWN} else _THREAD


def _name(culprit: Frame | None, otherwise: str) -> str:
    return otherwise if culprit is None or not culprit.function.strip() else _called(culprit.function)


def _called(name: str) -> str:
    # Generated code may carry any text for a name, line ends included; the remedy is one line of a log.
    line = " ".join(name.split()).removeprefix("builtins.")
    return line if line.endswith(">") else f"{line}()"

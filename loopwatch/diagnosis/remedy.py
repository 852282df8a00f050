"""The remedy of a stall: one sentence, from its cause, the call that the blocking line was making, and where it stands.

Looks up the table of :mod:`loopwatch.diagnosis.remedy_table`; culprit and cause are decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from loopwatch.diagnosis.call_context import NOWHERE, CallContext, Kind
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.diagnosis.own_part import Parts
from loopwatch.diagnosis.public_names import public
from loopwatch.diagnosis.remedy_table import HOLDS_GIL, TABLE, Advice
from loopwatch.diagnosis.starvation import advice, cure
from loopwatch.events import Cause, Frame

_PROCESS = "loop.run_in_executor with a ProcessPoolExecutor"
_THREAD = "asyncio.to_thread"
_THREAD_OF_CALLBACK = "loop.run_in_executor with a thread pool"

_GENERIC_MODULES = frozenset({"builtins", "io", "_io"})

_ELSEWHERE: Mapping[Kind, str] = {
    Kind.CALLBACK: "Start a task with loop.create_task() that uses {form} instead of {call}: {function} is a plain "
    "callback, which cannot wait.",
    Kind.CALLED_BACK: "Give {library} a coroutine function that uses {form} instead of {function}, or keep {call} out "
    "of it: a plain function cannot wait.",
    Kind.FINALIZER: "Keep {call} out of {function}: release the object earlier, in __aexit__() of an async with block, "
    "or leave what remains to a thread.",
    Kind.CONTEXT_MANAGER: "Give the class __aenter__() and __aexit__() and use async with: {call} cannot wait in "
    "{function}.",
    Kind.SPECIAL: "Move {call} out of {function}, which cannot wait: into a coroutine function that is run before it.",
    Kind.SIGNAL_HANDLER: "Register {function} with loop.add_signal_handler() and start a task there: a handler of "
    "signal.signal() stops the loop until {call} returns.",
}
"""What to do where there is no coroutine, and the advice needs one."""

_THROUGH_CALLER = (
    "Have {caller} run the call that leads to {function} through {offload}: {call} cannot wait in a function that a "
    "library calls."
)
_IN_CALLBACK = "{function} is a plain callback: have it start a task, or run the work through {offload}."
_ONE_BY_ONE = (
    "Let {call} give way with await asyncio.sleep(0) every N items, or move its computing part, as a plain function, "
    "to {offload}."
)
_SHORT = (
    "Let {caller} give way with await asyncio.sleep(0) every N items: each call of {function} is short, all are not."
)
_IN_PIECES = (
    "Move the computing part of {call} to {offload}, or do it in pieces that are scheduled with loop.call_soon()."
)


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


def remedy(
    cause: Cause,
    calls: Sequence[str],
    culprit: Frame | None,
    parts: Parts = ON_TIME,
    context: CallContext = NOWHERE,
) -> str:
    """Return what to do about a stall, on one line: one sentence, and more if processors were short as well.

    Args:
        cause: why the loop was blocked.
        calls: dotted names of the calls of the blocking line, from the user's line inward: library frames as
            ``module.qualname``, the C function at the end as ``time.sleep`` or, on an object of unknown type, as
            ``.recv``. The outermost name in the table decides; bare methods and builtins only if no other name
            does.
        culprit: the user's code, named if there is no call: for ``gil`` the code of the thread that held it.
        parts: how much of the block was without a processor.
        context: where the line stands; without a coroutine, nothing is advised that has to be awaited.

    Example:
        >>> remedy(Cause.NATIVE, ["bcrypt.hashpw"], None)
        'Run bcrypt.hashpw() through asyncio.to_thread: password hashing is slow on purpose.'
    """
    if cause is Cause.STARVED:
        return CAUSES[cause].remedy.format(cure=cure(parts))
    return _of_own_part(cause, calls, culprit, context) + advice(parts)


def _of_own_part(cause: Cause, calls: Sequence[str], culprit: Frame | None, context: CallContext) -> str:
    facts = CAUSES[cause]
    found = _found(cause, calls)
    if found is not None:
        return _placed(*found, cause, context)
    if not facts.is_of_call:
        return facts.remedy.format(call=_name(culprit, "the work of that thread"))
    called = next((_called(call) for call in calls if call.strip()), _name(culprit, "the blocking code"))
    text = facts.remedy
    if cause is Cause.PYTHON and context.is_short and context.caller:
        return _SHORT.format(caller=_called(context.caller), function=_called(context.function))
    if cause is Cause.PYTHON and context.kind is Kind.COROUTINE:
        text, called = _ONE_BY_ONE, _name(culprit, called)
    elif cause is Cause.PYTHON and context.kind in _ELSEWHERE:
        text = _IN_PIECES
    row = Advice("", (), text, "", "", form=_FORMS.get(cause, ""))
    return _placed(row, called, cause, context, is_named=True)


_FORMS = {
    Cause.SLEEP: "asyncio.sleep()",
    Cause.IO: "its asyncio counterpart",
    Cause.LOCK: "its asyncio counterpart",
}
"""What a task uses instead of a call of which no more is known than the cause."""


def moves(cause: Cause, calls: Sequence[str]) -> bool:
    """Return whether the remedy is to run the function elsewhere, and a worker could do what it does.

    Example:
        >>> moves(Cause.NATIVE, ["bcrypt.hashpw"]), moves(Cause.PYTHON, ["logging.Logger.debug"])
        (True, False)
    """
    found = _found(cause, calls)
    return found is None or (found[0].moves and not found[0].is_bound)


def _found(cause: Cause, calls: Sequence[str]) -> tuple[Advice, str] | None:
    found = _find(_index(generic=False), cause, calls)
    if found is None:
        return _find(_index(generic=True), cause, calls)
    advice, call = _refined(cause, calls, *found)
    return advice, _named_of_package(call, calls)


def _find(index: _Index, cause: Cause, calls: Sequence[str]) -> tuple[Advice, str] | None:
    for call in calls:
        for prefix in _prefixes(call):
            advice = index.get((prefix, cause))
            if advice is not None:
                return advice, call
    return None


def _refined(cause: Cause, calls: Sequence[str], advice: Advice, call: str) -> tuple[Advice, str]:
    """Return the entry of an inner call of the same package that says more of the operation; else the one found."""
    package = call.partition(".")[0]
    for inner in calls[calls.index(call) :]:
        if inner.partition(".")[0] == package:
            closer = _find(_index(generic=False), cause, [inner])
            if closer is not None and closer[0].refines:
                return closer[0], call
    return advice, call


def _named_of_package(call: str, calls: Sequence[str]) -> str:
    """Return ``call``; for a generated or local function of a library, its next inner call with a name."""
    package = call.partition(".")[0]
    inner = calls[calls.index(call) :]
    return next((each for each in inner if "<" not in each and each.partition(".")[0] == package), call)


def _placed(row: Advice, call: str, cause: Cause, context: CallContext, *, is_named: bool = False) -> str:
    """Return the sentence of a row, as it can be followed where the blocking line stands."""
    kind, in_callback = context.kind, context.kind in _ELSEWHERE
    words = {
        "call": call if is_named else _called(call),
        "form": row.form,
        "function": _called(context.function),
        "caller": _called(context.caller),
        "library": public(context.library),
        "offload": _executor(cause, in_callback=in_callback),
        "thread": _THREAD_OF_CALLBACK if in_callback else _THREAD,
    }
    to_be_awaited = bool(row.form) or "await" in row.text
    if not (to_be_awaited or row.moves) or kind in (Kind.UNKNOWN, Kind.COROUTINE):
        return row.text.format(**words)
    if kind is Kind.CALLED:
        return row.text.format(**words) + _in_called(row, context)
    if kind is Kind.CALLED_BACK and context.caller:
        return _THROUGH_CALLER.format(**words | {"offload": _executor(cause, in_callback=False)})
    if kind is Kind.CALLBACK and not to_be_awaited:
        return f"{row.text.format(**words)} {_IN_CALLBACK.format(**words)}"
    return _ELSEWHERE[kind].format(**words | {"form": row.form or "an executor"})


def _in_called(row: Advice, context: CallContext) -> str:
    if not context.caller or not row.form:
        return ""
    function, caller = _called(context.function), _called(context.caller)
    return f" {function} is a plain function: make it a coroutine function that {caller} awaits."


def _prefixes(call: str) -> Iterator[str]:
    while call:
        yield call
        call = call.rpartition(".")[0]


def _executor(cause: Cause, *, in_callback: bool) -> str:
    # UNKNOWN gets the process: it helps whether or not the GIL is held, a thread only if it is free.
    if cause in HOLDS_GIL | {Cause.UNKNOWN}:
        return _PROCESS
    return _THREAD_OF_CALLBACK if in_callback else _THREAD


def _name(culprit: Frame | None, otherwise: str) -> str:
    return otherwise if culprit is None or not culprit.function.strip() else _called(culprit.function)


def _called(name: str) -> str:
    # Generated code may carry any text for a name, line ends included; the remedy is one line of a log.
    line = public(" ".join(name.split()))
    return line if line.endswith(">") else f"{line}()"

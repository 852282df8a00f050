"""Checks a function for side effects on its arguments and on globals, which would be lost in another process.

Before its first trip a function runs inline a few more times; everything it could change is pickled before and after.
"""

from __future__ import annotations

import contextvars
import importlib
import inspect
import io
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, NamedTuple

from loopwatch.core.originals import time
from loopwatch.offloading.loop_bound import CODE, FIXED, Call, calls_itself, is_of_a_loop, names_of, of_no_use_elsewhere

RUNS = 3
"""Calls compared before a function may run in a process."""
MOST_BYTES = 8 << 20
"""Bytes of arguments, result and globals compared at most; a function with larger ones does not run in a process."""
MOST_SECONDS = 0.02
"""Processor seconds allowed to compare one call, before and again after it: this holds the loop."""

_OF_THE_LOOP = frozenset({
    "all_tasks", "call_at", "call_later", "call_soon", "create_task", "current_task", "ensure_future", "get_event_loop",
    "get_running_loop",
})  # fmt: skip
"""Names in the source that mean use of the running loop: there is none in another thread."""
_OF_THE_EXCEPTION = frozenset({"exc_info", "exception", "format_exc", "print_exc"})
"""Names in the source that mean use of the exception being handled: there is none in another thread."""

CALLS_ITSELF = "it calls itself"


class Probation:
    """Side-effect check of one function, over its first calls.

    Args:
        function: a plain function or a coroutine function.

    Attributes:
        left: calls still to be compared.
        is_same_there: whether the globals that it reads are known to be the same in a worker.
        against: why it must not run in another process; empty if nothing was found.
        asks: name of its use of the running loop, which a plain function finds on the loop's own thread only.
        stays: why it must run on its own thread: it is a coroutine function that calls itself, or it uses a global
            bound to a loop or thread.
        asks_for_error: whether it uses the exception that its caller handles.
        calls_itself: whether it does, as far as its code shows.

    Example:
        >>> probation = Probation(sorted.__call__)
        >>> call = (([3, 1],), {})
        >>> before = probation.before(call)
        >>> call[0][0].sort()
        >>> probation.after(before, call, None)
        >>> probation.against
        'it changes its arguments'
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.left = RUNS
        self.is_same_there = False
        self.against = ""
        self._globals: Mapping[str, Any] = getattr(function, "__globals__", {})
        self._names: tuple[str, ...] = ()
        self.asks = self.stays = ""
        self.asks_for_error = self.calls_itself = False
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            used = names_of(code, self._globals)
            self._names = tuple(sorted(used.read))
            self.asks = min((used.read | used.attributes) & _OF_THE_LOOP, default="")
            self.asks_for_error = bool((used.read | used.attributes) & _OF_THE_EXCEPTION)
            self.calls_itself = calls_itself(code, self._globals)
            self.stays = self._why_it_stays(inspect.iscoroutinefunction(function))
            if used.assigned:
                self.against = f"it assigns the global {min(used.assigned)}"
            elif code.co_freevars and set(code.co_freevars) != {"__class__"}:
                self.against = f"it shares {code.co_freevars[0]} with the function around it"

    def _why_it_stays(self, is_coroutine: bool) -> str:
        if self.calls_itself and is_coroutine:
            return CALLS_ITSELF
        for name in self._names:
            kind = of_no_use_elsewhere(self._globals.get(name))
            if kind:
                return f"it uses the global {name}, an {kind}"
        return ""

    def before(self, call: Call) -> State | None:
        """Return the state that a call could change, for :meth:`after`; None if it cannot run in a process."""
        if self.against:
            return None
        try:
            return self._state(call)
        except _Against as exc:
            self.against = str(exc)
            return None

    def after(self, before: State | None, call: Call, result: Any) -> None:
        """Compare the state after the call with that before."""
        if self.against or before is None:
            return
        self.left = max(self.left - 1, 0)  # several calls may be compared at once
        try:
            _pickled(result, "its result", time.thread_time() + MOST_SECONDS)
            self.against = _change(before, self._state(call)) or self._is_shared(result, call)
        except _Against as exc:
            self.against = str(exc)

    def globals_here(self) -> GlobalsOf | None:
        """Return the check that a worker runs before the first trip: whether the globals it reads are the same there.

        None if they cannot be pickled; :attr:`against` then says so.
        """
        values = {name: self._globals[name] for name in self._names if name in self._globals}
        kept = {name: value for name, value in values.items() if not issubclass(type(value), CODE)}
        try:
            return GlobalsOf(
                self._globals["__name__"],
                {name: _pickled(value, f"the global {name}") for name, value in kept.items()},
            )
        except _Against as exc:
            self.against = str(exc)
            return None

    def _state(self, call: Call) -> State:
        args, kwargs = call
        ends = time.thread_time() + MOST_SECONDS
        return State(
            _pickled((args, dict(kwargs)), "its arguments", ends),
            {name: _pickled(value, f"the global {name}", ends) for name, value in self._mutable()},
            {variable: id(value) for variable, value in contextvars.copy_context().items()},
        )

    def _mutable(self) -> Iterator[tuple[str, Any]]:
        """Yield the globals that the function could change."""
        for name in self._names:
            if name in self._globals and not isinstance(self._globals[name], FIXED):
                yield name, self._globals[name]

    def _is_shared(self, result: Any, call: Call) -> str:
        if isinstance(result, FIXED):
            return ""
        shared = "an argument" if any(result is each for each in (*call[0], *call[1].values())) else ""
        shared = shared or next((f"the global {name}" for name, value in self._mutable() if result is value), "")
        return shared and f"it returns {shared}, of which a process would return a copy"


class State(NamedTuple):
    """State that a call could change: pickled arguments, pickled globals by name, identities of context variables."""

    arguments: bytes
    names: dict[str, bytes]
    variables: dict[contextvars.ContextVar[Any], int]


class GlobalsOf:
    """Called in a worker: returns the name of a global that differs there, "" if none does.

    A worker imports the module afresh: values set since then (a model loaded at start-up) are missing there.
    """

    def __init__(self, module: str, values: dict[str, bytes]) -> None:
        self.module, self.values = module, values
        self.__qualname__ = f"globals of {module}"

    def __call__(self) -> str:
        """Return the name of the first global that differs, "" if none does."""
        names = vars(sys.modules.get(self.module) or importlib.import_module(self.module))
        for name, packed in self.values.items():
            if name not in names:
                return name
            if _pickled(names[name], name) != packed and not names[name] == pickle.loads(packed):  # noqa: SIM201
                return name
        return ""


def _change(before: State, now: State) -> str:
    if before.arguments != now.arguments:
        return "it changes its arguments"
    for name, value in now.names.items():
        if before.names.get(name) != value:
            return f"it changes the global {name}"
    for variable, identity in now.variables.items():
        if before.variables.get(variable) != identity:
            return f"it sets the context variable {variable.name}"
    return ""


class _Against(Exception):  # noqa: N818 - a finding
    """Reason not to run in a process."""


class _Bounded(io.BytesIO):
    def __init__(self, ends: float) -> None:
        super().__init__()
        self._ends = ends

    def write(self, data: Any) -> int:  # called by the pickler about every 64 kB
        if time.thread_time() > self._ends:
            raise TimeoutError
        if self.tell() + len(data) > MOST_BYTES:
            raise OverflowError
        return super().write(data)


class _Pickler(pickle.Pickler):
    def reducer_override(self, item: Any) -> Any:
        if not issubclass(type(item), type) and is_of_a_loop(item):
            raise _Against(f"it is given an {type(item).__module__}.{type(item).__qualname__}, which belongs to a loop")
        return NotImplemented


def _pickled(value: Any, what: str, ends: float = math.inf) -> bytes:
    stream = _Bounded(ends)
    try:
        _Pickler(stream, 5).dump(value)
    except OverflowError:
        raise _Against(f"{what}: more than {MOST_BYTES >> 20} MB are too much to be compared") from None
    except TimeoutError:
        raise _Against(f"{what}: it takes more than {MOST_SECONDS * 1e3:g} ms to compare them") from None
    except _Against:
        raise
    except Exception as exc:
        raise _Against(f"{what} cannot be pickled: {type(exc).__name__}: {exc}") from exc
    return stream.getvalue()

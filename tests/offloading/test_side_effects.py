"""Side effects of a function in its own process, which would be lost in another one."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from loopwatch.offloading.side_effects import RUNS, Probation
from tests.workers.helpers import Proxy

seen: list[int] = []
count = 0
guard = threading.Lock()
table = {"a": 1}
variable: contextvars.ContextVar[int] = contextvars.ContextVar("probation_variable", default=0)
settle = contextvars.ContextVar.set.__get__(variable)


def pure(values: list[int]) -> int:
    """Change nothing, and read a global."""
    return sum(values) + table["a"]


def sorts(values: list[int]) -> None:
    values.sort()


class Shape:
    """A class whose methods may change the object."""

    def __init__(self) -> None:
        self.calls = 0

    def counts(self) -> int:
        self.calls += 1
        return self.calls

    def reads(self) -> int:
        return self.calls


def appends(value: int) -> int:
    seen.append(value)
    return value


def through_another(value: int) -> int:
    return appends(value)


def assigns(value: int) -> None:
    global count
    count = value


def returns_it(values: list[int]) -> list[int]:
    return values


def locks(value: int) -> int:
    with guard:
        return value


def makes(value: int) -> Any:
    return lambda: value


def large(value: bytes) -> int:
    return len(value)


def returns_global(_value: int) -> Any:
    return table


def sets_variable(value: int) -> None:
    variable.set(value)


def sets_through(value: int) -> None:
    settle(value)


def reads_variable(value: int) -> int:
    return variable.get() + value


def asks_for_loop(_value: int) -> None:
    asyncio.get_running_loop()


def closure() -> Any:
    kept: list[int] = []

    def adds(value: int) -> None:
        kept.append(value)

    return adds


AGAINST = {
    "argument": (sorts, ([2, 1],), "it changes its arguments"),
    "object": (Shape.counts, (Shape(),), "it changes its arguments"),
    "global": (appends, (1,), "it changes the global seen"),
    "global of a function that it calls": (through_another, (1,), "it changes the global seen"),
    "assigned global": (assigns, (1,), "it assigns the global count"),
    "same object": (returns_it, ([1],), "it returns an argument, of which a process would return a copy"),
    "same global": (returns_global, (1,), "it returns the global table, of which a process would return a copy"),
    "context variable that it names": (reads_variable, (1,), "the global variable cannot be pickled"),
    "global that cannot travel": (locks, (1,), "the global guard cannot be pickled"),
    "result that cannot travel": (makes, (1,), "its result cannot be pickled"),
    "argument that cannot travel": (large, (threading.Lock(),), "its arguments cannot be pickled"),
    "too large": (large, (bytes(9_000_000),), "its arguments: more than 8 MB are too much"),
    "asyncio": (returns_it, (asyncio.Lock(),), "it is given an asyncio.locks.Lock, which belongs to a loop"),
    "closure": (closure(), (1,), "it shares kept with the function around it"),
}


@pytest.mark.parametrize("name", AGAINST)
def test_side_effects_are_named(name: str) -> None:
    """A side effect that a process would lose, or an argument it could not get, is found in the first run and named."""
    function, args, why = AGAINST[name]
    probation = Probation(function)
    before = probation.before((args, {}))
    if before is not None:
        try:
            result = function(*args)
        except TypeError:
            result = None
        probation.after(before, (args, {}), result)
    assert why in probation.against


@pytest.mark.parametrize(("function", "args"), [(pure, ([1, 2],)), (Shape.reads, (Shape(),)), (returns_it, (5,))])
def test_pure_functions_pass(function: Any, args: Any) -> None:
    """After some runs without side effects a function may go to a process."""
    probation = Probation(function)
    for left in range(RUNS, 0, -1):
        assert probation.left == left
        probation.after(probation.before((args, {})), (args, {}), function(*args))
    assert (probation.left, probation.against) == (0, "")


class Holder:
    """An object that holds another one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def test_context_variable_that_is_set() -> None:
    """A context variable set by a function that does not name it is found too."""

    def run() -> str:
        probation = Probation(sets_through)
        probation._names = ()
        before = probation.before(((1,), {}))
        sets_through(1)
        probation.after(before, ((1,), {}), None)
        return probation.against

    assert contextvars.copy_context().run(run) == "it sets the context variable probation_variable"


def test_functions_that_use_the_running_loop() -> None:
    """A plain function that asks for the running loop, or makes tasks, is recognised by its code."""
    assert Probation(asks_for_loop).asks == "get_running_loop"
    assert Probation(pure).asks == ""


def test_arguments_that_raise_on_access() -> None:
    """Arguments that raise on access raise nothing into the program, and their function does not go to a process."""
    call = ((Proxy(),), {})
    probation = Probation(pure)
    probation.after(probation.before(call), call, None)
    assert "RuntimeError: outside" in probation.against


def test_slow_comparison_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing many small objects, which takes long before they amount to many bytes, is abandoned in time."""
    readings: list[float] = []

    def thread_time() -> float:
        readings.append(0.015 * len(readings))
        return readings[-1]

    call = ([Holder([number]) for number in range(50_000)],), dict[str, Any]()
    monkeypatch.setattr("loopwatch.offloading.side_effects.time.thread_time", thread_time)
    probation = Probation(pure)
    assert probation.before(call) is None
    assert probation.against == "its arguments: it takes more than 20 ms to compare them"
    assert len(readings) == 3  # at the beginning, and after the first two pieces of about a MB

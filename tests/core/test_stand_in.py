"""A stand-in for a function looks like the function under every kind of inspection."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import posix
import types
from typing import Any

import pytest

from loopwatch.core.stand_in import StandIn


def passed_on(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return ["seen", original(*args, **kwargs)]


def plain(a: int, *, b: str = "x") -> tuple[int, str]:
    """Documented."""
    return a, b


async def coroutine() -> int:
    return 1


def test_is_as_the_function() -> None:
    """Name, documentation, signature, type, kind, equality, hash and attributes are the function's."""
    stand_in = StandIn(plain, passed_on)
    assert stand_in(1, b="y") == ["seen", (1, "y")]
    assert stand_in.__call__(2) == ["seen", (2, "x")]
    assert (stand_in.__name__, stand_in.__module__, stand_in.__doc__) == ("plain", __name__, "Documented.")
    assert inspect.signature(stand_in) == inspect.signature(plain)
    assert isinstance(stand_in, types.FunctionType)
    assert inspect.isfunction(stand_in)
    assert inspect.unwrap(stand_in) is plain
    assert (stand_in == plain, stand_in == StandIn(plain, passed_on), hash(stand_in)) == (True, True, hash(plain))
    assert repr(stand_in) == repr(plain)
    stand_in.mark = 1
    assert vars(plain).pop("mark") == 1
    with pytest.raises(AttributeError):
        _ = stand_in.mark


def test_wraps_copies_only_the_functions_attributes() -> None:
    """``functools.wraps`` copies only the attributes of the function."""
    theirs = functools.wraps(StandIn(plain, passed_on))(lambda: None)
    assert set(vars(theirs)) == {"__wrapped__"}


def test_coroutine_functions_are_known_as_such() -> None:
    """asyncio and inspect recognise a stand-in for a coroutine function as one."""
    stand_in = StandIn(coroutine, passed_on)
    assert inspect.iscoroutinefunction(stand_in)
    seen, awaited = stand_in()
    assert (seen, asyncio.run(awaited)) == ("seen", 1)


def test_binds_as_the_function_does() -> None:
    """A stand-in for a Python function binds to the object it is found on, also when called through the class; one for
    a builtin does not.
    """

    class Owner:
        method = StandIn(lambda self, number: (self, number), passed_on)
        fork = StandIn(os.getpid, passed_on)

    owner = Owner()
    assert owner.method(1) == Owner.method(owner, 1) == ["seen", (owner, 1)]
    assert owner.method.__self__ is owner
    assert owner.fork() == Owner.fork() == ["seen", os.getpid()]
    assert Owner.fork == posix.getpid


def test_the_call_knows_the_object() -> None:
    """The callback finds the object at ``original.__self__``, however it was called."""
    found = []

    class Owner:
        method = StandIn(lambda self: self, lambda original, args, kwargs: found.append(original.__self__))

    owner = Owner()
    owner.method(), Owner.method(owner)
    assert found == [owner, owner]

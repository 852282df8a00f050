"""The function that the program wrote is found behind what frameworks call."""

from __future__ import annotations

import functools
import time
from typing import Any

import pytest

from loopwatch.watch.routes.endpoint import endpoint_of


def plain() -> None:
    """Stands for an endpoint."""


LINE = plain.__code__.co_firstlineno


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Views:
    """Stands for a class-based endpoint and for an object with methods."""

    def get(self) -> None: ...

    async def post(self) -> None: ...

    @staticmethod
    def put() -> None: ...

    def __call__(self) -> None: ...


class Inherits(Views):
    """Has the methods of its base."""


class Live:
    """Stands for the class of a websocket."""

    async def on_connect(self) -> None: ...

    async def on_receive(self) -> None: ...


def as_view() -> Any:
    def view() -> None: ...

    view.view_class = Inherits  # type: ignore[attr-defined]
    return view


@pytest.mark.parametrize(
    ("target", "method", "name"),
    [
        (plain, "GET", "plain"),
        (decorated(decorated(plain)), "GET", "plain"),
        (functools.partial(decorated(plain), 1), "GET", "plain"),
        (Views, "GET", "Views.get"),
        (Views, "HEAD", "Views.get"),
        (Inherits, "POST", "Views.post"),
        (Views, "PUT", "Views.put"),
        (Live, "WEBSOCKET", "Live.on_receive"),
        (Views().post, "POST", "Views.post"),
        (Views(), "GET", "Views.__call__"),
        (as_view(), "GET", "Views.get"),
        (decorated(as_view()), "GET", "Views.get"),
    ],
)
def test_function_of_the_program(target: Any, method: str, name: str) -> None:
    """Decorators, partials, methods, classes and callable objects lead to the function that was written."""
    found = endpoint_of(target, method)
    assert found is not None
    assert (found.function, found.module, found.file) == (name, __name__, __file__)
    if name == "plain":
        assert found.line == LINE


@pytest.mark.parametrize("target", [None, time.sleep, 5, Views, object()])
def test_no_function_of_the_program(target: Any) -> None:
    """What is not a function in Python, or has no method for the request, has no endpoint."""
    assert endpoint_of(target, "DELETE") is None


def test_no_code_of_the_program_runs() -> None:
    """Properties, ``__getattr__`` and a pretended class of the target are not called; a cycle of wrappers ends."""

    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise AssertionError(name)

    class WithMeta(metaclass=Meta):
        pass

    assert endpoint_of(Hostile(), "GET") is None
    assert endpoint_of(WithMeta, "GET") is None

    def circle() -> None: ...

    circle.__wrapped__ = circle  # type: ignore[attr-defined]
    assert endpoint_of(circle, "GET") is None

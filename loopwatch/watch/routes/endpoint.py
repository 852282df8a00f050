"""Finds the function that the program wrote behind what a framework calls: decorators, partials, methods, classes."""

from __future__ import annotations

import functools
from types import FunctionType, MethodType
from typing import Any

from loopwatch.core.text import MAX_PATH, printable
from loopwatch.events import Frame

MAX_LAYERS = 20
"""Wrappers around one function, at most."""

_CLASS_OF_VIEW = ("view_class", "cls")
"""Where Django and Quart keep the class behind a function made by ``as_view``, and Django REST framework does."""
_OF_WEBSOCKET = ("on_receive", "on_connect")


def endpoint_of(target: Any, method: str) -> Frame | None:
    """Return the program's function behind ``target``, at its first line; None where there is none in Python.

    Only attributes of the interpreter's own types are read: no code of the program runs.

    Args:
        target: function, method, ``functools.partial``, class-based endpoint, or callable object.
        method: of the request, which chooses the method of a class.
    """
    for _ in range(MAX_LAYERS):
        if issubclass(type(target), functools.partial):
            target = target.func
        elif type(target) is MethodType:
            target = target.__func__
        elif issubclass(type(target), type):
            target = _of_class(target, method)
        elif type(target) is not FunctionType:
            target = _in_class(type(target), ("__call__",))
            if type(target) is not FunctionType:
                return None
        else:
            kept = target.__dict__
            inner = next((kept[name] for name in _CLASS_OF_VIEW if issubclass(type(kept.get(name)), type)), None)
            inner = kept.get("__wrapped__") if inner is None else inner
            if inner is None:
                return _frame(target)
            target = inner
    return None


def _of_class(target: type, method: str) -> Any:
    """Return the function of a class-based endpoint that answers ``method``."""
    name = method.lower()
    return _in_class(target, (name, "get") if name == "head" else (name, *_OF_WEBSOCKET))


def _in_class(target: type, names: tuple[str, ...]) -> Any:
    """Return the first of the attributes ``names`` that a class or one of its bases defines, None if there is none."""
    for name in names:
        for base in type.__dict__["__mro__"].__get__(target):
            found = type.__dict__["__dict__"].__get__(base).get(name)
            if found is not None:
                return found.__func__ if type(found) in (staticmethod, classmethod) else found
    return None


def _frame(function: FunctionType) -> Frame:
    code, module = function.__code__, function.__module__
    return Frame(
        printable(code.co_qualname), printable(module), printable(code.co_filename, MAX_PATH), code.co_firstlineno
    )

"""Validates JSON read from untrusted files against type hints and dataclasses."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from enum import StrEnum


def json_object(raw: bytes | str) -> dict[str, object] | None:
    """Return the JSON object in ``raw``, None if there is none."""
    try:
        # RecursionError: a foreign file may hold "[[[[...".
        record: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@functools.cache
def fits(hint: object) -> Callable[[object], bool]:
    """Return a function that checks a value from JSON against the type ``hint``, down to each field of a record.

    The records themselves do not check types; a report on a string as duration would fail far from the bad file.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        choices = tuple(fits(arg) for arg in args)
        return lambda value: any(choice(value) for choice in choices)
    if origin is tuple:
        return _tuple(args)
    if origin is collections.abc.Mapping:
        return lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda value: isinstance(value, str) and value in hint.__members__.values()
    if hint is float:
        # A huge integer literal does not fit into a float.
        return lambda value: isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
    if hint is int:
        return lambda value: type(value) is int and abs(value) < 2**63
    return lambda value: isinstance(value, typing.cast("type", hint))


def _tuple(args: tuple[object, ...]) -> Callable[[object], bool]:
    if args[-1] is Ellipsis:
        item = fits(args[0])
        return lambda value: isinstance(value, list | tuple) and all(item(entry) for entry in value)
    items = tuple(fits(arg) for arg in args)
    return lambda value: (
        isinstance(value, list | tuple)
        and len(value) == len(items)
        and all(item(entry) for item, entry in zip(items, value, strict=True))
    )


def _record(record: type) -> Callable[[object], bool]:
    hints = typing.get_type_hints(record)
    known = {field.name: fits(hints[field.name]) for field in dataclasses.fields(record)}
    needed = {
        field.name
        for field in dataclasses.fields(record)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def check(value: object) -> bool:
        # Fields of a later version are ignored, as in from_dict().
        return (
            isinstance(value, dict)
            and needed <= value.keys()
            and all(known[name](entry) for name, entry in value.items() if name in known)
        )

    return check

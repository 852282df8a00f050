"""Kinds of settings: validation of their values, and parsing of environment variables.

Each setting in :mod:`loopwatch.config` has a :class:`Kind`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from loopwatch.errors import ConfigError

ContextSource = str | Callable[[], Mapping[str, str] | None]
"""Name of a context variable, or a callable that returns labels; called in the callback's own context."""

Check = Callable[[str, Any], Any]
"""Takes the name and value of a setting; returns the value to store, or raises ConfigError."""
Parse = Callable[[str], Any]
"""Takes the text of an environment variable; raises ValueError with what is allowed."""


class Kind(NamedTuple):
    """A kind of settings: validator of values and parser of texts."""

    check: Check
    parse: Parse


def bad(name: str, value: object, allowed: str) -> ConfigError:
    """Return the ConfigError for a value that is not allowed."""
    return ConfigError(f"{name}={value!r}: must be {allowed}")


# -- checks -----------------------------------------------------------------------------------------------------------


def _number(allowed: str, low: float, high: float, *, open_low: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> float:
        fits = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and low <= value <= high  # also refuses NaN and infinity
            and not (open_low and value == low)
        )
        if not fits:
            raise bad(name, value, allowed)
        return float(value)

    return check


def _count(allowed: str, low: int, *, or_none: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> int | None:
        if or_none and value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise bad(name, value, allowed)
        return value

    return check


def _one_of(*allowed: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise bad(name, value, f"one of {', '.join(allowed)}")
        return value

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise bad(name, value, "True or False")
    return value


def _prefixes(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in _items(name, value)):
        raise bad(name, value, "a sequence of path or module prefixes, such as ('app', '/srv/app')")
    return tuple(value)


_FUNCTION = r"[^\W\d]\w*(\.[^\W\d]\w*)*:([^\W\d]\w*(\.[^\W\d]\w*)*|\*)"


def _functions(name: str, value: Any) -> tuple[str, ...]:
    good = not isinstance(value, str) and all(
        isinstance(item, str) and re.fullmatch(_FUNCTION, item) for item in _items(name, value)
    )
    if not good:
        raise bad(name, value, "a sequence of names such as 'pkg.mod:function', 'pkg.mod:Class.method' or 'pkg.mod:*'")
    return tuple(dict.fromkeys(value))


def _bridged_functions(name: str, value: Any) -> tuple[str, ...]:
    functions = _functions(name, value)
    if functions and importlib.util.find_spec("greenlet") is None:
        raise ConfigError(f"{name}={value!r}: needs greenlet: pip install 'loopwatch[transparent]'")
    return functions


def _items(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise bad(name, value, "a sequence") from None


def _context(name: str, value: Any) -> tuple[ContextSource, ...]:
    good = not isinstance(value, str) and all(
        callable(item) or (isinstance(item, str) and item) for item in _items(name, value)
    )
    if not good:
        raise bad(name, value, "a sequence of context-variable names and callables")
    return tuple(value)


_LIMITS = "a mapping of route and task patterns to seconds above 0, such as {'GET /report/*': 0.5}"


def _thresholds(name: str, value: Any) -> tuple[tuple[str, float], ...]:
    if value and not isinstance(value, str | bytes):
        import fnmatch  # noqa: F401 - loaded here, on a thread of the program, for the watcher's use
    try:
        pairs = tuple((pattern, limit) for pattern, limit in (value.items() if isinstance(value, Mapping) else value))
    except (TypeError, ValueError):
        raise bad(name, value, _LIMITS) from None
    if not all(isinstance(pattern, str) and pattern.strip() for pattern, _ in pairs):
        raise bad(name, value, _LIMITS)
    check = _number(_LIMITS, 0, 3600, open_low=True)
    try:
        return tuple({pattern.strip(): check(name, limit) for pattern, limit in pairs}.items())
    except ConfigError:
        raise bad(name, value, _LIMITS) from None


def _callback(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise bad(name, value, "a callable that takes a Stall, or None")
    return value


def _level(name: str, value: Any) -> int:
    number = logging.getLevelNamesMapping().get(value.upper()) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise bad(name, value, "a logging level: DEBUG, INFO, WARNING, ERROR, CRITICAL or a number")
    return number


def _journal(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise bad(name, value, "a path or None")
    from pathlib import Path  # 4 ms, for a setting that most programs do not use

    path = Path(value).absolute()
    folder = path if path.is_dir() or str(os.fspath(value)).endswith(os.sep) else path.parent
    if not folder.is_dir():
        raise bad(name, str(value), f"in a directory that exists; create it first: mkdir -p {folder}")
    return str(path)


def _endpoint(name: str, value: Any) -> str | None:
    if value is None:
        return None
    from urllib.parse import urlsplit  # 3 ms, for a setting that most programs do not use

    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, unbalanced brackets
        good = False
    if not good:
        raise bad(name, value, "a URL such as 'http://127.0.0.1:4318', or None")
    return str(value)


def _interval(name: str, value: Any) -> float | None:
    check = _number("a number of seconds from 0.1 to 3600, or None", 0.1, 3600)
    return None if value is None else check(name, value)


def _port(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise bad(name, value, "a port from 1 to 65535, 0 for any free one, or None")
    return value


def _host(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise bad(name, value, "an address to listen on, such as '127.0.0.1' or '0.0.0.0'")
    return value


_NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\.?")


def _names(name: str, value: Any) -> tuple[str, ...]:
    good = not isinstance(value, str) and all(
        isinstance(item, str) and _NAME.fullmatch(item) for item in _items(name, value)
    )
    if not good:
        raise bad(name, value, "a sequence of host names without ports, such as ('shop', '*.example.com')")
    return tuple(dict.fromkeys(value))


# -- parsers ----------------------------------------------------------------------------------------------------------


def _parse_flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in words:
        raise ValueError("one of 1, true, yes, on, 0, false, no, off")
    return words[text.strip().lower()]


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number, such as 0.1") from None


def _parse_count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


_LIMIT = re.compile(r"\s*(?P<pattern>[^\s=][^=]*?)\s*=\s*(?P<seconds>[^\s=,]+)\s*(?:,|$)")


def _parse_thresholds(text: str) -> tuple[tuple[str, float], ...]:
    allowed = "of the form PATTERN=SECONDS, several separated by commas, such as 'GET /report/*=0.5,batch-*=2'"
    found, at = [], 0
    while text[at:].strip(" ,"):
        item = _LIMIT.match(text, at)
        if item is None:
            raise ValueError(allowed)
        try:
            found.append((item["pattern"], float(item["seconds"])))
        except ValueError:
            raise ValueError(allowed) from None
        at = item.end()
    return tuple(found)


def _parse_level(text: str) -> int | str:
    return int(text) if text.strip().isdecimal() else text.strip()


def _parse_callable(text: str) -> Any:
    module, _, path = text.strip().partition(":")
    if not (module and path):
        raise ValueError("of the form pkg.mod:name")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as exc:  # noqa: BLE001 - importing a module runs it, which may raise anything
        reason = f"{type(exc).__name__}: {exc}"
        raise ValueError(f"pkg.mod:name of something that can be imported ({reason})") from None
    return found


def _parse_context(text: str) -> tuple[Any, ...]:
    return tuple(_parse_callable(item) if ":" in item else item for item in _parse_list(text))


# -- kinds ------------------------------------------------------------------------------------------------------------


def number(allowed: str, low: float, high: float, *, open_low: bool = False) -> Kind:
    """A number from ``low`` to ``high``, or above ``low`` if ``open_low``; ``allowed`` describes it in errors."""
    return Kind(_number(allowed, low, high, open_low=open_low), _parse_number)


def seconds(high: float) -> Kind:
    """A number of seconds above 0, up to ``high``."""
    return number("a number of seconds above 0, such as 0.1", 0, high, open_low=True)


def count(allowed: str, low: int, *, or_none: bool = False) -> Kind:
    """A whole number from ``low`` on, or None if ``or_none``; ``allowed`` describes it in errors."""
    return Kind(_count(allowed, low, or_none=or_none), _parse_count)


def one_of(*allowed: str) -> Kind:
    """One of the given words."""
    return Kind(_one_of(*allowed), str.strip)


FLAG = Kind(_flag, _parse_flag)
PREFIXES = Kind(_prefixes, _parse_list)
FUNCTIONS = Kind(_functions, _parse_list)
BRIDGED_FUNCTIONS = Kind(_bridged_functions, _parse_list)
CONTEXT = Kind(_context, _parse_context)
THRESHOLDS = Kind(_thresholds, _parse_thresholds)
CALLBACK = Kind(_callback, _parse_callable)
LEVEL = Kind(_level, _parse_level)
JOURNAL = Kind(_journal, str)
ENDPOINT = Kind(_endpoint, str.strip)
INTERVAL = Kind(_interval, _parse_number)
PORT = Kind(_port, _parse_count)
HOST = Kind(_host, str.strip)
HOST_NAMES = Kind(_names, _parse_list)

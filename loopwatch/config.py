"""Every setting in one frozen record, from arguments, from the environment, or both."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

from loopwatch.core import dataclasses
from loopwatch.core.dataclasses import dataclass
from loopwatch.errors import ConfigError
from loopwatch.events import Stall

ContextSource = str | Callable[[], Mapping[str, str] | None]
"""The name of a context variable, or a callable that returns labels; called in the callback's own context."""

ENV_PREFIX = "LOOPWATCH_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How loopwatch watches and tells; every field is also an environment variable ``LOOPWATCH_<FIELD>``.

    Attributes:
        enabled: kill switch; False installs nothing.
        threshold: s; a callback, or a whole pass, that holds the loop longer is a stall.
        hang_after: s; a block that still goes on is announced (``Stall.ongoing``); never before ``threshold``.
        heartbeat: s between two lag probes while the loop is busy; stretches to 1 s while it is idle.
        grace: s after the start of the agent in which stalls are not reported.
        max_stalls: stalls kept in memory.
        max_frames: frames kept of a stack.
        max_culprits: culprits told apart in telemetry, the rest is ``other``.
        user_code: path or module prefixes whose frames are the user's, whatever else they look like.
        library_code: path or module prefixes whose frames are not the user's.
        cpu_budget: share of one core that the agent itself may use, 0 to 1.
        journal: file or directory for the JSON-lines journal, None for none. Each process writes its own
            file, ``NAME.<pid>.jsonl``.
        journal_max_bytes: bytes that one process's journal may take, rotation included.
        log_level: level of the one log line a stall, as in :mod:`logging`; a name such as "ERROR" is turned
            into its number.
        log_interval: s between two log lines of one culprit.
        on_stall: called with each :class:`~loopwatch.Stall`, in a thread of the agent.
        context: context variables and callables that label stalls.
        follow_fork: whether a forked child gets a working agent of its own (True) or none.
        flag_after: stalls within ``flag_window`` that make a function flagged, see :meth:`loopwatch.Agent.flagged`.
        flag_window: s; the time over which they are counted.
        workers: processes of the default worker pool, None for as many as processors may be used; read when it starts.
        offload_to: ``process``, ``thread``, ``auto`` or ``inline``: where ``@offload`` without ``to`` sends calls.
        auto_offload: coroutine functions, ``pkg.mod:function``, ``pkg.mod:Class.method`` or ``pkg.mod:*``, that are
            moved off the loop once they are flagged.
        transparent_offload: plain functions, named in the same way, whose tasks are suspended meanwhile; needs the
            extra ``loopwatch[transparent]``. Read what moving means before: docs/offload.md.
        hung_after: s for which a worker that has a task may use neither processor nor I/O before it counts as hung.
        otlp_endpoint: URL of an OTLP receiver; None for what the ``OTEL_EXPORTER_OTLP_*`` variables say, and for no
            export where they say nothing.
        export_interval: s between two exports of metrics, None for what ``OTEL_METRIC_EXPORT_INTERVAL`` says, or 10.
        prometheus_port: port on which Prometheus can scrape this process, None for none; worker processes of a server
            take the next free ones. Needs the extra ``loopwatch[prometheus]``.
        prometheus_host: address on which that port is opened.
        prometheus_names: names under which that port is asked, beside addresses, ``localhost`` and the machine's host
            name: ``("shop", "*.svc.cluster.local")``; ``("*",)`` allows any. Requests under other names are refused.

    Raises:
        ConfigError: a value that is not allowed.

    Example:
        >>> Config(threshold=0.05).hang_after
        2.0
    """

    enabled: bool = True
    threshold: float = 0.1
    hang_after: float = 2.0
    heartbeat: float = 0.05
    grace: float = 0.0
    max_stalls: int = 512
    max_frames: int = 50
    max_culprits: int = 20
    user_code: tuple[str, ...] = ()
    library_code: tuple[str, ...] = ()
    cpu_budget: float = 0.01
    journal: str | os.PathLike[str] | None = None
    journal_max_bytes: int = 64 * 1024 * 1024
    log_level: int = logging.WARNING
    log_interval: float = 60.0
    on_stall: Callable[[Stall], object] | None = None
    context: tuple[ContextSource, ...] = ()
    follow_fork: bool = True
    flag_after: int = 3
    flag_window: float = 60.0
    workers: int | None = None
    offload_to: str = "process"
    auto_offload: tuple[str, ...] = ()
    transparent_offload: tuple[str, ...] = ()
    hung_after: float = 60.0
    otlp_endpoint: str | None = None
    export_interval: float | None = None
    prometheus_port: int | None = None
    prometheus_host: str = "127.0.0.1"
    prometheus_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            object.__setattr__(self, name, check(name, value))
        twice = set(self.auto_offload) & set(self.transparent_offload)
        if twice:
            raise _bad("auto_offload", min(twice), "of a coroutine function; it is in transparent_offload too")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make a Config of keyword settings; an unknown name is a ConfigError that lists the known ones."""
        _check_names(settings)
        return cls(**settings)

    def replaced(self, **settings: Any) -> Self:
        """Return a copy with ``settings`` changed.

        Raises:
            ConfigError: an unknown name or a value that is not allowed; nothing has changed then.
        """
        _check_names(settings)
        return dataclasses.replace(self, **settings)

    def changes_from(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """Return ``{field: (other's value, own value)}`` for the fields that differ."""
        pairs = {name: (getattr(other, name), getattr(self, name)) for name in field_names()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def field_names() -> tuple[str, ...]:
    """Return the names of all settings."""
    return dataclasses.field_names(Config)


def from_env(environ: Mapping[str, str] | None = None, **explicit: Any) -> Config:
    """Build a Config from ``LOOPWATCH_*`` variables; explicit arguments win.

    Args:
        environ: the variables, default ``os.environ``. Empty values count as absent; variables that are no
            setting are passed over.
        **explicit: settings that were given as arguments.

    Raises:
        ConfigError: names the variable or argument, its value and what is allowed.

    Example:
        >>> from_env({"LOOPWATCH_THRESHOLD": "0.25"}, grace=5).threshold
        0.25
    """
    _check_names(explicit)
    environ = os.environ if environ is None else environ
    settings: dict[str, Any] = {}
    for name in field_names():
        variable = ENV_PREFIX + name.upper()
        text = environ.get(variable, "")
        if text and name not in explicit:
            try:
                settings[name] = _PARSERS[name](text)
                _CHECKS[name](name, settings[name])
            except ConfigError as exc:
                raise _bad(variable, text, str(exc).partition(": must be ")[2]) from None
            except ValueError as exc:
                raise _bad(variable, text, str(exc)) from None
    return Config(**settings, **explicit)


def _bad(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name}={value!r}: must be {allowed}")


def _check_names(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name not in field_names():
            raise ConfigError(f"unknown setting {name!r}: known are {', '.join(field_names())}")


def _number(allowed: str, low: float, high: float, *, open_low: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> float:
        fits = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and low <= value <= high  # also refuses NaN and infinity
            and not (open_low and value == low)
        )
        if not fits:
            raise _bad(name, value, allowed)
        return float(value)

    return check


def _count(allowed: str, low: int, *, or_none: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> int | None:
        if or_none and value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise _bad(name, value, allowed)
        return value

    return check


def _one_of(*allowed: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _bad(name, value, f"one of {', '.join(allowed)}")
        return value

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _bad(name, value, "True or False")
    return value


def _prefixes(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in _items(name, value)):
        raise _bad(name, value, "a sequence of path or module prefixes, such as ('app', '/srv/app')")
    return tuple(value)


_FUNCTION = r"[^\W\d]\w*(\.[^\W\d]\w*)*:([^\W\d]\w*(\.[^\W\d]\w*)*|\*)"


def _functions(name: str, value: Any) -> tuple[str, ...]:
    good = not isinstance(value, str) and all(
        isinstance(item, str) and re.fullmatch(_FUNCTION, item) for item in _items(name, value)
    )
    if not good:
        raise _bad(name, value, "a sequence of names such as 'pkg.mod:function', 'pkg.mod:Class.method' or 'pkg.mod:*'")
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
        raise _bad(name, value, "a sequence") from None


def _context(name: str, value: Any) -> tuple[ContextSource, ...]:
    good = not isinstance(value, str) and all(
        callable(item) or (isinstance(item, str) and item) for item in _items(name, value)
    )
    if not good:
        raise _bad(name, value, "a sequence of context-variable names and callables")
    return tuple(value)


def _callback(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise _bad(name, value, "a callable that takes a Stall, or None")
    return value


def _level(name: str, value: Any) -> int:
    number = logging.getLevelNamesMapping().get(value.upper()) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise _bad(name, value, "a logging level: DEBUG, INFO, WARNING, ERROR, CRITICAL or a number")
    return number


def _journal(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise _bad(name, value, "a path or None")
    from pathlib import Path  # 4 ms, for a setting that most programs do not have

    path = Path(value).absolute()
    folder = path if path.is_dir() or str(os.fspath(value)).endswith(os.sep) else path.parent
    if not folder.is_dir():
        raise _bad(name, str(value), f"in a directory that exists; create it first: mkdir -p {folder}")
    return str(path)


def _endpoint(name: str, value: Any) -> str | None:
    if value is None:
        return None
    from urllib.parse import urlsplit  # 3 ms, for a setting that most programs do not have

    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        good = False
    if not good:
        raise _bad(name, value, "a URL such as 'http://127.0.0.1:4318', or None")
    return str(value)


def _interval(name: str, value: Any) -> float | None:
    check = _number("a number of seconds from 0.1 to 3600, or None", 0.1, 3600)
    return None if value is None else check(name, value)


def _port(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise _bad(name, value, "a port from 1 to 65535, 0 for any free one, or None")
    return value


def _host(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _bad(name, value, "an address to listen on, such as '127.0.0.1' or '0.0.0.0'")
    return value


_NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\.?")


def _names(name: str, value: Any) -> tuple[str, ...]:
    good = not isinstance(value, str) and all(
        isinstance(item, str) and _NAME.fullmatch(item) for item in _items(name, value)
    )
    if not good:
        raise _bad(name, value, "a sequence of host names without ports, such as ('shop', '*.example.com')")
    return tuple(dict.fromkeys(value))


_SECONDS = "a number of seconds above 0, such as 0.1"

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "enabled": _flag,
    "threshold": _number(_SECONDS, 0, 3600, open_low=True),
    "hang_after": _number(_SECONDS, 0, 86400, open_low=True),
    "heartbeat": _number("a number of seconds from 0.001 to 60", 0.001, 60),
    "grace": _number("a number of seconds, 0 or more", 0, 86400),
    "max_stalls": _count("a whole number, 1 or more", 1),
    "max_frames": _count("a whole number, 1 or more", 1),
    "max_culprits": _count("a whole number, 0 or more", 0),
    "user_code": _prefixes,
    "library_code": _prefixes,
    "cpu_budget": _number("a share of one core above 0 and up to 1, such as 0.01", 0, 1, open_low=True),
    "journal": _journal,
    "journal_max_bytes": _count("a whole number of bytes, 4096 or more", 4096),
    "log_level": _level,
    "log_interval": _number("a number of seconds, 0 or more", 0, 86400 * 365),
    "on_stall": _callback,
    "context": _context,
    "follow_fork": _flag,
    "flag_after": _count("a whole number, 1 or more", 1),
    "flag_window": _number(_SECONDS, 0, 86400, open_low=True),
    "workers": _count("a whole number, 1 or more, or None", 1, or_none=True),
    "offload_to": _one_of("process", "thread", "auto", "inline"),
    "auto_offload": _functions,
    "transparent_offload": _bridged_functions,
    "hung_after": _number(_SECONDS, 0, 86400 * 365, open_low=True),
    "otlp_endpoint": _endpoint,
    "export_interval": _interval,
    "prometheus_port": _port,
    "prometheus_host": _host,
    "prometheus_names": _names,
}


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
    except Exception as exc:  # noqa: BLE001 - importing a module runs it, and anything may go wrong in it
        reason = f"{type(exc).__name__}: {exc}"
        raise ValueError(f"pkg.mod:name of something that can be imported ({reason})") from None
    return found


def _parse_context(text: str) -> tuple[Any, ...]:
    return tuple(_parse_callable(item) if ":" in item else item for item in _parse_list(text))


_PARSERS: dict[str, Callable[[str], Any]] = {
    "enabled": _parse_flag,
    "threshold": _parse_number,
    "hang_after": _parse_number,
    "heartbeat": _parse_number,
    "grace": _parse_number,
    "max_stalls": _parse_count,
    "max_frames": _parse_count,
    "max_culprits": _parse_count,
    "user_code": _parse_list,
    "library_code": _parse_list,
    "cpu_budget": _parse_number,
    "journal": str,
    "journal_max_bytes": _parse_count,
    "log_level": _parse_level,
    "log_interval": _parse_number,
    "on_stall": _parse_callable,
    "context": _parse_context,
    "follow_fork": _parse_flag,
    "flag_after": _parse_count,
    "flag_window": _parse_number,
    "workers": _parse_count,
    "offload_to": str.strip,
    "auto_offload": _parse_list,
    "transparent_offload": _parse_list,
    "hung_after": _parse_number,
    "otlp_endpoint": str.strip,
    "export_interval": _parse_number,
    "prometheus_port": _parse_count,
    "prometheus_host": str.strip,
    "prometheus_names": _parse_list,
}

"""All settings in one frozen record, from arguments, from the environment, or both.

A setting is one line and its line in the docstring: name, type, default and kind; the kinds are in
:mod:`loopwatch.core.setting_kinds`. Most are read each time they are used. What takes effect only by an action is known
by the service that acts: ``configure`` of telemetry, sinks and offloading, ``apply_settings`` of watching.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from loopwatch.core import dataclasses
from loopwatch.core import setting_kinds as kinds
from loopwatch.core.dataclasses import dataclass
from loopwatch.core.setting_kinds import ContextSource, bad
from loopwatch.errors import ConfigError
from loopwatch.events import Stall

ENV_PREFIX = "LOOPWATCH_"


class _Setting(NamedTuple):
    default: Any
    kind: kinds.Kind


def setting(default: Any, kind: kinds.Kind) -> Any:
    """Declare a field of :class:`Config`: its default, and the kind that validates it and parses its variable."""
    return _Setting(default, kind)


def _with_kinds(cls: type[Any]) -> type[Any]:
    """Replace each :func:`setting` by its default, and store the kinds on the class."""
    found = {name: value for name, value in vars(cls).items() if isinstance(value, _Setting)}
    for name, value in found.items():
        setattr(cls, name, value.default)
    cls.__kinds__ = {name: value.kind for name, value in found.items()}
    return cls


@dataclass(frozen=True, slots=True, kw_only=True)
@_with_kinds
class Config:
    """Settings of loopwatch; every field is also an environment variable ``LOOPWATCH_<FIELD>``.

    Attributes:
        enabled: kill switch; False installs nothing.
        threshold: seconds; a callback, or a whole pass, that holds the loop longer is a stall.
        thresholds: the same by route or task: a mapping of patterns, as in :mod:`fnmatch`, to seconds; the first one
            that matches applies instead of ``threshold``. A pattern is compared with ``GET /route/{template}``, with
            the template alone, and with the names of the task and of its coroutine. Stored as pairs.
        hang_after: seconds; a block that still goes on is reported early (``Stall.ongoing``); never before
            ``threshold``.
        heartbeat: seconds between two lag probes while the loop is busy; stretches to 1 second while it is idle.
        grace: seconds after the start of the agent in which stalls are not reported.
        max_stalls: stalls kept in memory.
        max_frames: frames kept of a stack.
        max_culprits: distinct culprits in telemetry, the rest is ``other``.
        user_code: path or module prefixes whose frames count as the user's, whatever else they look like.
        library_code: path or module prefixes whose frames do not.
        cpu_budget: share of one core that the agent itself may use, 0 to 1.
        journal: file or directory for the JSON-lines journal, None for none. Each process writes its own file,
            ``NAME.<pid>.jsonl``.
        journal_max_bytes: bytes that one process's journal may take, rotation included.
        log_level: level of the one log line per stall, as in :mod:`logging`; a name such as "ERROR" is converted to its
            number. At the default, WARNING, a stall of severity ``error`` is logged as ERROR; any other level is that
            of all lines.
        log_interval: seconds between two log lines of one culprit.
        on_stall: called with each :class:`~loopwatch.Stall`, in a thread of the agent.
        context: context variables and callables that label stalls.
        routes: whether stalls carry the route, method and endpoint of the request that blocked, where a known web
            framework serves it.
        follow_fork: whether a forked child gets a working agent of its own (True) or none.
        flag_after: stalls within ``flag_window`` that make a function flagged, see :meth:`loopwatch.Agent.flagged`.
        flag_window: seconds in which they are counted.
        workers: processes of the default worker pool, None for the number of usable processors; read when it starts.
        offload_to: ``process``, ``thread``, ``auto`` or ``inline``: where ``@offload`` without ``to`` runs calls.
        auto_offload: coroutine functions, ``pkg.mod:function``, ``pkg.mod:Class.method`` or ``pkg.mod:*``, that are
            offloaded once they are flagged.
        transparent_offload: plain functions, named in the same way, whose tasks are suspended meanwhile; needs the
            extra ``loopwatch[transparent]``. Read first what offloading changes: docs/offload.md.
        hung_after: seconds without processor time or I/O after which a worker that has a task counts as hung.
        otlp_endpoint: URL of an OTLP receiver; None to use the ``OTEL_EXPORTER_OTLP_*`` variables, and not to export
            where they are not set.
        export_interval: seconds between two exports of metrics, None for ``OTEL_METRIC_EXPORT_INTERVAL``, or 10.
        prometheus_port: port on which Prometheus can scrape this process, None for none; worker processes of a server
            take the next free ones. Needs the extra ``loopwatch[prometheus]``.
        prometheus_host: address on which that port is opened.
        prometheus_names: host names under which that port may be requested, beside addresses, ``localhost`` and the
            machine's host name: ``("shop", "*.svc.cluster.local")``; ``("*",)`` allows any. Requests under other names
            are refused.

    Raises:
        ConfigError: a value that is not allowed.

    Example:
        >>> Config(threshold=0.05).hang_after
        2.0
    """

    if TYPE_CHECKING:
        __kinds__: ClassVar[Mapping[str, kinds.Kind]]

    enabled: bool = setting(True, kinds.FLAG)
    threshold: float = setting(0.1, kinds.seconds(3600))
    thresholds: Mapping[str, float] | tuple[tuple[str, float], ...] = setting((), kinds.THRESHOLDS)
    hang_after: float = setting(2.0, kinds.seconds(86400))
    heartbeat: float = setting(0.05, kinds.number("a number of seconds from 0.001 to 60", 0.001, 60))
    grace: float = setting(0.0, kinds.number("a number of seconds, 0 or more", 0, 86400))
    max_stalls: int = setting(512, kinds.count("a whole number, 1 or more", 1))
    max_frames: int = setting(50, kinds.count("a whole number, 1 or more", 1))
    max_culprits: int = setting(20, kinds.count("a whole number, 0 or more", 0))
    user_code: tuple[str, ...] = setting((), kinds.PREFIXES)
    library_code: tuple[str, ...] = setting((), kinds.PREFIXES)
    cpu_budget: float = setting(
        0.01, kinds.number("a share of one core above 0 and up to 1, such as 0.01", 0, 1, open_low=True)
    )
    journal: str | os.PathLike[str] | None = setting(None, kinds.JOURNAL)
    journal_max_bytes: int = setting(64 * 1024 * 1024, kinds.count("a whole number of bytes, 4096 or more", 4096))
    log_level: int = setting(logging.WARNING, kinds.LEVEL)
    log_interval: float = setting(60.0, kinds.number("a number of seconds, 0 or more", 0, 86400 * 365))
    on_stall: Callable[[Stall], object] | None = setting(None, kinds.CALLBACK)
    context: tuple[ContextSource, ...] = setting((), kinds.CONTEXT)
    routes: bool = setting(True, kinds.FLAG)
    follow_fork: bool = setting(True, kinds.FLAG)
    flag_after: int = setting(3, kinds.count("a whole number, 1 or more", 1))
    flag_window: float = setting(60.0, kinds.seconds(86400))
    workers: int | None = setting(None, kinds.count("a whole number, 1 or more, or None", 1, or_none=True))
    offload_to: str = setting("process", kinds.one_of("process", "thread", "auto", "inline"))
    auto_offload: tuple[str, ...] = setting((), kinds.FUNCTIONS)
    transparent_offload: tuple[str, ...] = setting((), kinds.BRIDGED_FUNCTIONS)
    hung_after: float = setting(60.0, kinds.seconds(86400 * 365))
    otlp_endpoint: str | None = setting(None, kinds.ENDPOINT)
    export_interval: float | None = setting(None, kinds.INTERVAL)
    prometheus_port: int | None = setting(None, kinds.PORT)
    prometheus_host: str = setting("127.0.0.1", kinds.HOST)
    prometheus_names: tuple[str, ...] = setting((), kinds.HOST_NAMES)

    def __post_init__(self) -> None:
        for name, kind in self.__kinds__.items():
            object.__setattr__(self, name, kind.check(name, getattr(self, name)))
        twice = set(self.auto_offload) & set(self.transparent_offload)
        if twice:
            raise bad("auto_offload", min(twice), "of a coroutine function; it is in transparent_offload too")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make a Config of keyword settings; an unknown name raises a ConfigError that lists the known ones."""
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
        environ: the variables, default ``os.environ``. Empty values count as absent; variables that are no setting are
            ignored.
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
                settings[name] = Config.__kinds__[name].parse(text)
                Config.__kinds__[name].check(name, settings[name])
            except ConfigError as exc:
                raise bad(variable, text, str(exc).partition(": must be ")[2]) from None
            except ValueError as exc:
                raise bad(variable, text, str(exc)) from None
    return Config(**settings, **explicit)


def _check_names(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name not in field_names():
            raise ConfigError(f"unknown setting {name!r}: known are {', '.join(field_names())}")

"""OTLP destinations of private providers: the standard ``OTEL_*`` variables, read and checked. Pure.

Imports nothing of OpenTelemetry: a bad variable is an error of :func:`loopwatch.install`, and a program that exports
nothing must not pay for an SDK.
"""
# Loading pathlib takes 4 ms, in every watched process.
# ruff: noqa: PTH113

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from loopwatch.core.dataclasses import dataclass, replace
from loopwatch.errors import ConfigError

DEFAULT_INTERVAL = 10.0
"""Seconds between two exports of metrics."""
SHORTEST_INTERVAL = 0.1
"""Seconds, the least that can be set, as an export takes CPU time."""
DEFAULT_TIMEOUT = 10.0
"""Seconds that one request may take."""


class Signal(StrEnum):
    """Kinds of data exported over OTLP."""

    METRICS = "metrics"
    TRACES = "traces"
    LOGS = "logs"


def checked_providers(
    *, tracer_provider: Any = None, meter_provider: Any = None, logger_provider: Any = None
) -> dict[Signal, Any]:
    """Return the given providers by signal.

    Raises:
        ConfigError: a value is no such provider.
    """
    given = {}
    for name, signal, method, provider in (
        ("tracer_provider", Signal.TRACES, "get_tracer", tracer_provider),
        ("meter_provider", Signal.METRICS, "get_meter", meter_provider),
        ("logger_provider", Signal.LOGS, "get_logger", logger_provider),
    ):
        if provider is None:
            continue
        if not callable(getattr(provider, method, None)):
            raise ConfigError(f"{name}={provider!r}: must be a provider of OpenTelemetry (with {method}()), or None")
        given[signal] = provider
    return given


class Protocol(StrEnum):
    """OTLP transports."""

    HTTP = "http/protobuf"
    GRPC = "grpc"


class Temporality(StrEnum):
    """Aggregation temporality: how counts are exported."""

    CUMULATIVE = "cumulative"
    """As totals since the start."""
    DELTA = "delta"
    """As differences since the last export."""
    LOWMEMORY = "lowmemory"
    """As totals where the SDK has them anyway, else as differences."""


@dataclass(frozen=True, slots=True)
class Target:
    """The receiver of one signal.

    Attributes:
        signal: the data sent to it.
        protocol: the transport.
        url: http: with its path. grpc: scheme and address.
        headers: sent along with each request.
        timeout: seconds that one request may take.
        compression: ``none``, ``gzip`` or ``deflate``.
        certificate: file of the trusted authorities, None for those of the system.
        client_certificate, client_key: files of the client's identity, None for none.
    """

    signal: Signal
    protocol: Protocol
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = DEFAULT_TIMEOUT
    compression: str = "none"
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    @property
    def shown(self) -> str:
        """The URL for logs: without user, password and query.

        Example:
            >>> Target(Signal.METRICS, Protocol.HTTP, "http://me:secret@host:4318/v1/metrics?key=1").shown
            'http://host:4318/v1/metrics'
        """
        from urllib.parse import urlsplit

        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True, slots=True)
class Targets:
    """The receivers of all signals, and the limits of the export.

    Attributes:
        targets: by signal; signals that are not exported are missing.
        interval: seconds between two exports of metrics.
        temporality: how counts are exported.
        queue: spans, and log records, that wait for their export at most.
        batch: number of them in one request at most.
        delay: seconds for which they wait for others.
    """

    targets: Mapping[Signal, Target]
    interval: float = DEFAULT_INTERVAL
    temporality: Temporality = Temporality.CUMULATIVE
    queue: int = 2048
    batch: int = 512
    delay: float = 5.0


def targets_of(environ: Mapping[str, str], endpoint: str | None = None, interval: float | None = None) -> Targets:
    """Return the receivers configured by the variables and by the settings, which take precedence.

    Args:
        environ: the variables; empty ones count as absent.
        endpoint: base URL of a receiver of all signals, as ``Config.otlp_endpoint``.
        interval: seconds between two exports of metrics, as ``Config.export_interval``.

    Raises:
        ConfigError: the value of a variable is not allowed, whether or not anything would be exported.

    Example:
        >>> targets_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}).targets[Signal.LOGS].url
        'http://collector:4318/v1/logs'
        >>> targets_of({}).targets
        {}
    """
    read = _Reader(environ)
    found = {signal: target for signal in Signal if (target := _target(read, signal, endpoint)) is not None}
    spacing = read.number("OTEL_METRIC_EXPORT_INTERVAL", "a number of milliseconds above 0, such as 10000", 1e-3)
    delay = read.number("OTEL_BSP_SCHEDULE_DELAY", "a number of milliseconds above 0, such as 5000", 1e-3)
    queue = read.number("OTEL_BSP_MAX_QUEUE_SIZE", "a whole number of spans, 1 or more")
    batch = read.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "a whole number of spans, 1 or more")
    preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    temporality = Temporality(read.one_of(preference, tuple(Temporality), Temporality.CUMULATIVE))
    disabled = read.text("OTEL_SDK_DISABLED").lower() == "true"
    default = Targets({})
    return Targets(
        targets={} if disabled else found,
        interval=max(interval or spacing or DEFAULT_INTERVAL, SHORTEST_INTERVAL),
        temporality=temporality,
        queue=max(int(queue or default.queue), 1),
        batch=max(int(batch or default.batch), 1),
        delay=delay or default.delay,
    )


def _target(read: _Reader, signal: Signal, endpoint: str | None) -> Target | None:
    """Return the target of ``signal``, None if it is not exported; its variables are checked in any case."""
    wanted = read.exporters(signal)
    target = Target(
        signal,
        read.protocol(signal),
        "",
        read.headers(signal),
        read.signal_number(signal, "TIMEOUT", "a number of seconds above 0, such as 10") or DEFAULT_TIMEOUT,
        read.signal_one_of(signal, "COMPRESSION", ("none", "gzip", "deflate"), "none"),
        read.file(signal, "CERTIFICATE"),
        read.file(signal, "CLIENT_CERTIFICATE"),
        read.file(signal, "CLIENT_KEY"),
    )
    named = [name for name in wanted if name.startswith("otlp")]
    if "otlp_proto_grpc" in named:
        target = replace(target, protocol=Protocol.GRPC)
    elif "otlp_proto_http" in named:
        target = replace(target, protocol=Protocol.HTTP)
    url = read.url(signal, target.protocol, endpoint)
    return replace(target, url=url) if url and named else None


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""The syntax of a header's name (RFC 9110, 5.6.2)."""


class _Reader:
    """Reads single variables; a value that is not allowed is a ConfigError."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def first(self, signal: Signal, what: str) -> tuple[str, str]:
        """Return (name, value) of the signal's own variable, else of the one for all signals."""
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}"
        if self.text(own):
            return own, self.text(own)
        return f"OTEL_EXPORTER_OTLP_{what}", self.text(f"OTEL_EXPORTER_OTLP_{what}")

    def number(self, name: str, allowed: str, factor: float = 1.0) -> float | None:
        return _positive(name, self.text(name), allowed, factor)

    def signal_number(self, signal: Signal, what: str, allowed: str) -> float | None:
        name, value = self.first(signal, what)
        return _positive(name, value, allowed, 1.0)

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        return _one_of(name, self.text(name), allowed, default)

    def signal_one_of(self, signal: Signal, what: str, allowed: tuple[str, ...], default: str) -> str:
        return _one_of(*self.first(signal, what), allowed, default)

    def protocol(self, signal: Signal) -> Protocol:
        name, value = self.first(signal, "PROTOCOL")
        return Protocol(_one_of(name, value, tuple(Protocol), Protocol.HTTP))

    def exporters(self, signal: Signal) -> list[str]:
        text = self.text(f"OTEL_{signal.upper()}_EXPORTER") or "otlp"
        return [item.strip().lower() for item in text.split(",") if item.strip()]

    def headers(self, signal: Signal) -> tuple[tuple[str, str], ...]:
        name, value = self.first(signal, "HEADERS")
        found = []
        for item in value.split(","):
            if not item.strip():
                continue
            from urllib.parse import unquote

            key, equals, content = item.partition("=")
            key, content = unquote(key.strip()), unquote(content.strip())
            if not equals or not re.fullmatch(_TOKEN, key) or not content.isprintable() or not content.isascii():
                # Its value may be a secret: only the name is reported.
                raise _bad(name, f"{key if equals else '...'}", "headers such as 'api-key=secret,tenant=a'")
            found.append((key, content))
        return tuple(found)

    def file(self, signal: Signal, what: str) -> str | None:
        name, value = self.first(signal, what)
        if value and not os.path.isfile(value):
            raise _bad(name, value, "a file that exists")
        return value or None

    def url(self, signal: Signal, protocol: Protocol, endpoint: str | None) -> str:
        """Return the URL for ``signal``, "" if it is not exported."""
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
        if endpoint is None and self.text(own):
            return self._checked(own, self.text(own), signal, protocol)
        base = endpoint or self.text("OTEL_EXPORTER_OTLP_ENDPOINT")
        if not base:
            return ""
        name = "otlp_endpoint" if endpoint else "OTEL_EXPORTER_OTLP_ENDPOINT"
        url = self._checked(name, base, signal, protocol)
        if protocol is Protocol.GRPC:
            return url
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        path = re.sub(r"/v1/(metrics|traces|logs)/?$", "", parts.path).rstrip("/")
        return parts._replace(path=f"{path}/v1/{signal.value}").geturl()

    def _checked(self, name: str, url: str, signal: Signal, protocol: Protocol) -> str:
        if protocol is Protocol.GRPC and "://" not in url:  # gRPC's own address syntax
            insecure = self.first(signal, "INSECURE")[1].lower() == "true"
            url = f"{'http' if insecure else 'https'}://{url}"
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, mismatched brackets
            good = False
        if not good or any(character.isspace() for character in url):
            raise _bad(name, url, "a URL such as 'http://127.0.0.1:4318'")
        return url


def _positive(name: str, value: str, allowed: str, factor: float) -> float | None:
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e12:
        raise _bad(name, value, allowed)
    return number * factor


def _one_of(name: str, value: str, allowed: tuple[str, ...], default: str) -> str:
    if not value:
        return default
    if value.lower() not in allowed:
        raise _bad(name, value, f"one of {', '.join(allowed)}")
    return value.lower()


def _bad(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name}={value!r}: must be {allowed}")

"""Selects the OpenTelemetry providers: the application's where it has some, else private ones of loopwatch.

The application's are used and left alone, whether they were set before or after :func:`loopwatch.install`; none is ever
set or created globally. Private ones are built only where a receiver is configured, and only loopwatch sees them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import loaded
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.errors import ConfigError
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.otel.instruments import Instruments, instruments_of
from loopwatch.telemetry.otel.otlp_config import Signal, Targets, targets_of

if TYPE_CHECKING:
    from opentelemetry._logs import Logger
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    from loopwatch.telemetry.otel.sdk import PrivateProviders

SCOPE = "loopwatch"
"""Name of the instrumentation scope of everything exported."""

PATIENCE = 2.0
"""Seconds that a replaced private provider has to export its data."""

_GLOBALS = {
    Signal.METRICS: ("opentelemetry.metrics._internal", "_METER_PROVIDER"),
    Signal.TRACES: ("opentelemetry.trace", "_TRACER_PROVIDER"),
    Signal.LOGS: ("opentelemetry._logs._internal", "_LOGGER_PROVIDER"),
}
"""Where the API keeps the application's providers; its functions would make a provider where a variable names one."""


def application_provider(signal: Signal) -> Any | None:
    """Return the provider that the application has set for ``signal``, None if it has not; imports nothing."""
    module, name = _GLOBALS[signal]
    return getattr(loaded(module), name, None)


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]


class Providers:
    """Finds the application's providers, creates private ones, and hands out tracer, logger and meters.

    Args:
        account: source of the metrics.
        faults: the agent's fault handling.
        version: of loopwatch.

    Example:
        >>> from loopwatch.telemetry.metrics.account import EMPTY
        >>> providers = Providers(EMPTY, Faults(), "1.0")
        >>> providers.tracer() is None  # nobody has set one, and no receiver is configured
        True
    """

    def __init__(self, account: Account, faults: Faults, version: str) -> None:
        self._account = account
        self._faults = faults
        self._version = version
        self._lock = threading.RLock()
        self._targets = Targets({})
        self._given: Mapping[Signal, Any] = {}
        self._used: dict[Signal, Any] = {}
        self._handles: dict[Signal, Any] = {}
        self._instruments: Instruments | None = None
        self._private: PrivateProviders | None = None
        self._dropped: dict[Signal, int] = {}
        self._cpu = 0.0
        self._running = False

    # -- lifecycle ------------------------------------------------------------------------------------------------

    def prepare(self, config: Config, environ: Mapping[str, str] | None = None) -> Callable[[], None]:
        """Check the configuration and load what it needs; return the function that applies it.

        Raises:
            ConfigError: a setting or a standard variable is not allowed, or grpc is configured and not installed.
        """
        environ = os.environ if environ is None else environ
        own = {signal for signal in Signal if self._found(signal) is None}
        if not own:
            return lambda: self._put_into_force(Targets({}), None)
        targets = targets_of(environ, config.otlp_endpoint, config.export_interval)
        wanted = {signal: target for signal, target in targets.targets.items() if signal in own}
        if not wanted:
            return lambda: self._put_into_force(targets, None)
        try:
            from loopwatch.telemetry.otel.sdk import (
                PrivateProviders,  # imports the SDK: here, at start-up, and never later
            )
        except ImportError as exc:
            raise ConfigError(
                f"OTLP to {next(iter(wanted.values())).shown}: the SDK of OpenTelemetry cannot be imported ({exc}): "
                "pip install -U opentelemetry-sdk opentelemetry-exporter-otlp, which must be of one release"
            ) from None
        try:
            private = PrivateProviders(targets, wanted, self._account, self._faults, self._version)
        except ValueError as exc:
            raise ConfigError(f"an OTEL_* variable is refused by the SDK of OpenTelemetry: {_line(exc)}") from None
        return lambda: self._put_into_force(targets, private)

    def _put_into_force(self, targets: Targets, private: PrivateProviders | None) -> None:
        with self._lock:
            old, self._private = self._private, private
            self._targets = targets
            self._running = True
            for signal in Signal:
                if signal not in self._used:
                    self._handles.pop(signal, None)
        if old is not None:
            self._retire(old, PATIENCE, wait=False)
        self.bind()

    def stop(self, timeout: float, *, leaving: bool = False) -> None:
        """Export once more, and stop; waits at most ``timeout`` seconds. The application's providers stay.

        Args:
            timeout: seconds.
            leaving: the application's providers may still collect: those that export at exit do so later.
        """
        with self._lock:
            private = self._private
            instruments, self._instruments = self._instruments, None
            self._running = False
            self._used.clear()
            self._handles.clear()
        if private is not None:
            self._retire(private, timeout)  # its last export includes its own stats, which are read until then
        if instruments is not None and not leaving:
            instruments.detach()

    def _retire(self, private: PrivateProviders, timeout: float, *, wait: bool = True) -> None:
        private.stop(timeout, wait=wait)
        with self._lock:
            if private is self._private:
                self._private = None
        self._cpu += private.cpu
        for signal, count in private.dropped.items():
            self._dropped[signal] = self._dropped.get(signal, 0) + count

    def after_fork_in_child(self) -> None:
        """Reset in a forked child, with nothing of the parent's but its settings."""
        self._lock = threading.RLock()
        self._dropped, self._cpu = {}, 0.0
        if self._private is not None:
            self._private = self._private.in_child()
            for signal in Signal:
                if signal not in self._used:
                    self._handles.pop(signal, None)
        if self._instruments is not None:
            self._instruments.attach(self._account)

    def begin(self, *, forks: bool = False) -> None:
        """Start exporting, now that there is something to watch.

        Args:
            forks: whether this process is watched for its children alone; then grpc is left alone.
        """
        private = self._private
        if private is not None and not (forks and private.uses_grpc):
            private.start()

    # -- the application's providers ------------------------------------------------------------------------------

    def use(self, given: Mapping[Signal, Any]) -> None:
        """Use the ``given`` providers instead of those that are set globally; signals not given are bound as before."""
        with self._lock:
            self._given = dict(given)
        self.bind()

    def _found(self, signal: Signal) -> Any | None:
        given = self._given.get(signal)
        return application_provider(signal) if given is None else given

    def is_behind(self) -> bool:
        """Whether the application has set a provider since :meth:`bind`; costs about a microsecond."""
        return self._running and any(self._found(s) is not self._used.get(s) for s in Signal)

    def bind(self) -> None:
        """Bind to the providers that the application has set by now; private ones of the same signals end."""
        with self._lock:
            if not self._running:
                return
            for signal in Signal:
                found = self._found(signal)
                if found is self._used.get(signal):
                    continue
                self._handles.pop(signal, None)
                if found is None:
                    self._used.pop(signal, None)
                else:
                    self._used[signal] = found
                if signal is Signal.METRICS:
                    self._bind_instruments(found)
                if found is not None and self._private is not None:
                    self._private.end(signal)

    def _bind_instruments(self, provider: Any | None) -> None:
        if self._instruments is not None:
            self._instruments.detach()
            self._instruments = None
        if provider is not None:
            self._instruments = instruments_of(provider, self._version)
            self._instruments.attach(self._account)

    # -- tracer, logger, meters -----------------------------------------------------------------------------------

    def tracer(self) -> Tracer | None:
        """Return the tracer in use, None where spans would not be exported."""
        handle: Tracer | None = self._handle(Signal.TRACES, "get_tracer")
        return handle

    def logger(self) -> Logger | None:
        """Return the logger in use, None where log records would not be exported."""
        handle: Logger | None = self._handle(Signal.LOGS, "get_logger")
        return handle

    def meters(self) -> Sequence[Meter]:
        """Return the meters of the metrics in use."""
        if self._instruments is not None:
            return [self._instruments.meter]
        return [] if self._private is None or Signal.METRICS in self._used else self._private.meters

    def _handle(self, signal: Signal, get: str) -> Any | None:
        if not self._running:
            return None
        if self._found(signal) is not self._used.get(signal):
            self.bind()
        handle = self._handles.get(signal)
        if handle is None:
            with self._lock:
                private = self._private
                provider = self._used.get(signal) or (None if private is None else private.provider(signal))
                if provider is not None:
                    handle = self._handles[signal] = getattr(provider, get)(SCOPE, self._version)
        return handle

    @property
    def thread(self) -> OwnThread | None:
        """The export thread, None where the application exports."""
        private = self._private
        return None if private is None else private.thread

    @property
    def cpu(self) -> float:
        """CPU time of the export thread, seconds."""
        private = self._private
        return self._cpu + (private.cpu if private is not None else 0.0)

    @property
    def dropped(self) -> dict[Signal, int]:
        """Spans, log records and exports of metrics that will never be exported, by signal."""
        private = self._private
        now = {} if private is None else private.dropped
        return {signal: self._dropped.get(signal, 0) + now.get(signal, 0) for signal in Signal}

"""The telemetry service of the agent: metrics, spans and log records for OpenTelemetry, and the Prometheus endpoint.

Nothing here runs on an event loop's thread but :meth:`TelemetryService.begin`, which may start a thread, and the code
of :mod:`loopwatch.watch.waiters` at the end of a block.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loopwatch._version import __version__
from loopwatch.config import Config
from loopwatch.core.faults import Action, Faults
from loopwatch.core.originals import time
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.events import Snapshot
from loopwatch.health.records import PoolReading
from loopwatch.telemetry.metrics.accumulator import PART, Accumulator
from loopwatch.telemetry.metrics.records import Inputs
from loopwatch.telemetry.otel.otlp_config import Signal
from loopwatch.telemetry.otel.providers import Providers
from loopwatch.telemetry.otel.traces import Traces
from loopwatch.telemetry.otel.waiter_spans import current_span_variable
from loopwatch.telemetry.prometheus.lazy import PrometheusPort
from loopwatch.watch.observation import LoopReading
from loopwatch.watch.waiters import Waiters

PROVIDERS = "providers"
"""Part name under which faults of OpenTelemetry providers are counted, the application's included."""
_EXPORTED = frozenset({"enabled", "otlp_endpoint", "export_interval", "max_culprits"})
"""Settings whose change restarts the export."""
_SCRAPED = frozenset({"prometheus_port", "prometheus_host", "prometheus_names"})
"""Settings whose change reopens the Prometheus endpoint."""

Look = Callable[[], tuple[Snapshot, Sequence[LoopReading], Sequence[PoolReading]]]
"""Returns the current state of the agent, of the watched loops and of the pools."""


class TelemetryService:
    """The telemetry of one agent.

    Args:
        look: returns the current state; called from any thread.
        later: runs an action in an agent thread that may block; returns whether it will run.
        faults: the agent's fault handling.

    Attributes:
        metrics: accumulates the metrics; a stall sink.
        traces: emits spans and log records of stalls; a stall sink.
        waiters: finds trace contexts of callbacks that waited during a block; replaced at each start and fork.
    """

    def __init__(self, look: Look, later: Callable[[Action], bool], faults: Faults) -> None:
        self._look, self._later, self._faults = look, later, faults
        self._started_at = time.time()
        self._is_binding = False
        self.metrics = Accumulator(self._inputs, faults)
        self.providers = Providers(self.metrics.account, faults, __version__)
        self.prometheus = PrometheusPort(self.metrics.account, faults)
        self._put_into_force: Callable[[], object] = lambda: None
        self._prepared: tuple[Config, Callable[[], object]] | None = None  # for the next start
        self._renew()

    def _renew(self) -> None:
        self.traces = Traces(self.providers.tracer, self.providers.logger)
        self.waiters = Waiters(current_span_variable, self.traces.begin, self.traces.annotate_waiters, self._faults)

    # -- lifecycle ------------------------------------------------------------------------------------------------

    def open(self, config: Config) -> None:
        """Check the settings and open the Prometheus endpoint; nothing is exported before :meth:`start`.

        Raises:
            ConfigError: the endpoint cannot be opened, or a standard ``OTEL_*`` variable is not allowed.
        """
        prepared, self._prepared = self._prepared, None
        is_ready = prepared is not None and prepared[0] is config
        self._put_into_force = prepared[1] if prepared is not None and is_ready else self._prepare(config)
        self.prometheus.open(config)

    def start(self) -> None:
        """Apply the settings that :meth:`open` checked; accepts stalls from now on."""
        self._started_at = time.time()
        self._renew()
        self._put_into_force()
        self.prometheus.start()

    def begin(self, *, forks: bool) -> None:
        """Start exporting, now that there is something to watch; from any thread, including a loop's.

        Args:
            forks: see :meth:`Providers.begin`.
        """
        self.prometheus.begin()
        self._faults.run(PART, self.providers.begin, forks=forks)

    def configure(self, old: Config, new: Config, *, is_on: bool) -> Callable[[], None]:
        """Check changed settings; return the function that applies them, which does nothing unless the agent ``is_on``.

        Raises:
            ConfigError: a setting is not allowed, or the endpoint cannot be opened; nothing has changed then.
        """
        changes = new.changes_from(old).keys()
        put_into_force = self._prepare(new) if new.enabled and _EXPORTED & changes else None
        if not is_on:
            self._prepared = None if put_into_force is None else (new, put_into_force)
            return lambda: None
        if _SCRAPED & changes:
            self.prometheus.move(old, new)
        return put_into_force or (lambda: None)

    def _prepare(self, config: Config) -> Callable[[], None]:
        ready = self.providers.prepare(config)

        def put_into_force() -> None:
            self.metrics.configure(config.max_culprits)
            with self._faults.guard(PROVIDERS):
                ready()

        return put_into_force

    def use(self, given: Mapping[Signal, Any]) -> None:
        """Use providers given by the program; see :meth:`Providers.use`."""
        with self._faults.guard(PROVIDERS):
            self.providers.use(given)

    def stop(self, timeout: float) -> None:
        """Stop answering scrapes and finding waiters; waits at most ``timeout`` seconds for each."""
        self.prometheus.close(timeout)
        with self._faults.guard("victims"):
            self.waiters.stop(timeout)

    def end_export(self, timeout: float, *, leaving: bool = False) -> None:
        """Export once more, after the last stall was emitted, and stop; waits at most ``timeout`` seconds.

        Args:
            timeout: seconds.
            leaving: the interpreter is exiting: the program's providers may still collect the metrics.
        """
        with self._faults.guard(PROVIDERS):
            self.providers.stop(timeout, leaving=leaving)

    def after_fork_in_child(self, *, again: bool) -> None:
        """Reset in a forked child; ``again`` if it is watched as its parent was."""
        self._started_at, self._is_binding = time.time(), False
        self._renew()
        self.metrics.after_fork_in_child()
        with self._faults.guard(PROVIDERS):
            self.providers.after_fork_in_child()
        self.prometheus.after_fork_in_child(again=again)

    # -- events ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Bind to providers that the application has set since; in the watcher's thread, costs microseconds."""
        if not self._is_binding and not self._faults.is_off(PROVIDERS) and self.providers.is_behind():
            self._is_binding = self._later(self._bind)

    def _bind(self) -> None:
        try:
            with self._faults.guard(PROVIDERS):
                self.providers.bind()
        finally:
            self._is_binding = False

    def loop_gone(self, loop: LoopReading) -> None:
        """Add the last values of a loop that is no longer watched."""
        self._faults.run(PART, self.metrics.loop_gone, loop)

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def threads(self) -> list[OwnThread]:
        """The threads of this service."""
        exporter = self.providers.thread
        return [self.waiters.thread, *([] if exporter is None else [exporter]), *self.prometheus.threads]

    @property
    def cpu(self) -> float:
        """CPU time of its threads, seconds."""
        return self.waiters.cpu + self.providers.cpu + self.prometheus.cpu

    def _inputs(self) -> Inputs:
        """Return the inputs of the metrics; from any thread."""
        snapshot, loops, pools = self._look()
        dropped = {signal.value: count for signal, count in self.providers.dropped.items()}
        for signal, count in self.traces.held_back().items():
            dropped[signal] = dropped.get(signal, 0) + count
        return Inputs(
            snapshot=snapshot,
            loops=loops,
            pools=pools,
            collections=[(each["collections"], each["collected"], each["uncollectable"]) for each in gc.get_stats()],
            started_at=self._started_at,
            dropped={"stalls": snapshot.agent.dropped, **dropped},
        )

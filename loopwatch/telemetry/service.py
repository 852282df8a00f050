"""The telemetry service of the agent: accumulates metrics, and provides them to OpenTelemetry and Prometheus.

One account for OpenTelemetry and Prometheus, so that both say the same. Nothing here runs on a loop's thread but
:meth:`Telemetry.begin`, which may start a thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from loopwatch.config import Config
from loopwatch.core.dataclasses import replace
from loopwatch.core.faults import Action, Faults
from loopwatch.core.own_thread import OwnThread
from loopwatch.events import FlaggedFunction, Stall
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.collect import Readings
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Inputs, Reading
from loopwatch.telemetry.otel.otlp_config import Signal
from loopwatch.telemetry.otel.providers import Providers
from loopwatch.watch.observation import LoopReading

if TYPE_CHECKING:
    from opentelemetry._logs import Logger
    from opentelemetry.trace import Tracer

PART = "telemetry"
"""What faults of the figures are counted under."""
PROVIDERS = "providers"
"""What faults of providers are counted under, the program's among them."""
PATIENCE = 3
"""Readings that may fail one after another: one may race with the program, which changes what is read."""


class Telemetry:
    """The account of one agent, and its providers of OpenTelemetry.

    Args:
        look: returns what the agent knows now; from any thread.
        do: has an action done by a thread of the agent that may take its time; returns whether it will.
        faults: of the agent.
        version: of loopwatch.
    """

    def __init__(self, look: Callable[[], Inputs], do: Callable[[Action], bool], faults: Faults, version: str) -> None:
        self._look, self._do, self._faults = look, do, faults
        self._lock = threading.RLock()  # a finalizer of the program may come in between
        self._readings = Readings()
        self._catching_up = False
        self._last: Inputs | None = None
        self._failures = 0
        self.exemplars = Exemplars()
        self.account = Account(self.read, self.exemplars)
        self.providers = Providers(self.account, faults, version)

    # -- life -----------------------------------------------------------------------------------------------------

    def prepare(self, config: Config) -> Callable[[], None]:
        """Check what is configured and load what it needs; return what puts it into force.

        Raises:
            ConfigError: a setting or a standard variable that is not allowed; nothing has changed then.
        """
        ready = self.providers.prepare(config)

        def put_into_force() -> None:
            with self._lock:
                self._readings.max_culprits = config.max_culprits
                self._last = None
            with self._faults.guard(PROVIDERS):
                ready()

        return put_into_force

    def use(self, given: Mapping[Signal, Any]) -> None:
        """Use providers that were handed over; see :meth:`Providers.use`."""
        with self._faults.guard(PROVIDERS):
            self.providers.use(given)

    def begin_stop(self) -> None:
        """Count what there is, before the parts that know it stop; what is told from now on is how things were then."""
        with self._faults.guard(PART):
            inputs = self._look()
            with self._lock:
                self._readings.read(inputs)
                # The loops have their last say in loop_gone().
                self._last = replace(inputs, loops=())

    def stop(self, timeout: float, *, leaving: bool = False) -> None:
        """Tell what there is once more, and end; waits at most ``timeout`` s.

        Args:
            timeout: s.
            leaving: leave it to providers of the program to collect it, as the interpreter exits.
        """
        with self._faults.guard(PROVIDERS):
            self.providers.stop(timeout, leaving=leaving)

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child, with an empty account."""
        self._lock = threading.RLock()
        self._catching_up = False
        self._last = None
        most = self._readings.max_culprits
        self._readings = Readings(most)
        self.exemplars.clear()
        with self._faults.guard(PROVIDERS):
            self.providers.after_fork_in_child()

    # -- what happens ---------------------------------------------------------------------------------------------

    def begin(self, *, forks: bool = False) -> None:
        """There is something to watch now: begin to export; from any thread, a loop's among them.

        Args:
            forks: as of :meth:`Providers.begin`.
        """
        self.providers.begin(forks=forks)

    def loop_gone(self, loop: LoopReading) -> None:
        """A loop is not watched any more; these are its last figures."""
        with self._lock:
            self._readings.loop_gone(loop)

    def emit(self, stall: Stall, _flagged: FlaggedFunction | None = None, _span: Any = None) -> None:
        """Count a stall that is over; a hang is counted once it is."""
        if not stall.ongoing:
            with self._lock:
                self._readings.saw(stall)
            self.exemplars.saw(stall)

    def tick(self) -> None:
        """See whether the application has set a provider since; in the watcher's thread, costs microseconds."""
        if not self._catching_up and not self._faults.is_off(PROVIDERS) and self.providers.is_behind():
            self._catching_up = self._do(self._catch_up)

    def _catch_up(self) -> None:
        try:
            with self._faults.guard(PROVIDERS):
                self.providers.bind()
        finally:
            self._catching_up = False

    # -- what is told ---------------------------------------------------------------------------------------------

    def read(self, pause: Callable[[], None] = lambda: None) -> Reading | None:
        """Return all points as they are now, None if they cannot be had; from any thread.

        Args:
            pause: called between parts of the work.
        """
        if self._faults.is_off(PART):
            return None
        try:
            inputs = self._last or self._look()
            pause()
            with self._lock:
                found = self._readings.read(inputs, pause)
            self._failures = 0
        except Exception as exc:  # noqa: BLE001 - told, and counted where it happens again
            self._failures += 1
            if self._failures >= PATIENCE:
                self._faults.add(PART, exc)
            else:
                self._faults.say(logging.INFO, "loopwatch: a reading of its figures failed and is left out: %r", exc)
            return None
        return found

    def tracer(self) -> Tracer | None:
        """Return what makes spans, None where nobody would see them; costs next to nothing."""
        return self.providers.tracer()

    def logger(self) -> Logger | None:
        """Return what emits log records, None where nobody would see them; costs next to nothing."""
        return self.providers.logger()

    @property
    def thread(self) -> OwnThread | None:
        """What exports, None where nothing of ours does."""
        return self.providers.thread

    @property
    def cpu(self) -> float:
        """Processor s of threads of telemetry."""
        return self.providers.cpu

    @property
    def dropped(self) -> dict[str, int]:
        """What was not told, by signal."""
        return {signal.value: count for signal, count in self.providers.dropped.items()}

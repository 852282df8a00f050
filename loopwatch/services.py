"""The parts of one agent but for the watching of loops, wired: diagnosis, sinks, telemetry, health.

Made when the agent starts: whoever only names the class ``Agent`` does not load them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from loopwatch._version import __version__
from loopwatch.config import Config
from loopwatch.core.faults import Action, Faults
from loopwatch.core.originals import time
from loopwatch.core.own_thread import OwnThread
from loopwatch.core.patches import PatchSet, loaded
from loopwatch.core.text import error_text
from loopwatch.events import FlaggedFunction, Frame, Snapshot, Stall
from loopwatch.health.records import PoolReading
from loopwatch.health.service import PoolWatch
from loopwatch.offloading.service import Moving
from loopwatch.sinks.pipeline import StallPipeline, StallSink
from loopwatch.sinks.service import Sinks
from loopwatch.sinks.thread import Teller
from loopwatch.telemetry.metrics.records import Inputs
from loopwatch.telemetry.otel.traces import Traces
from loopwatch.telemetry.otel.waiter_spans import current_span_variable
from loopwatch.telemetry.prometheus.lazy import Scraped
from loopwatch.telemetry.service import Telemetry
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.observation import Case, LoopReading, Observation
from loopwatch.watch.probes.base import Loop
from loopwatch.watch.service import WatchService
from loopwatch.watch.waiters import Victims
from loopwatch.workers import settings as offloading

_TELEMETRY = frozenset({"enabled", "otlp_endpoint", "export_interval", "max_culprits"})
"""Settings after a change of which telemetry begins anew."""
_SCRAPED = frozenset({"prometheus_port", "prometheus_host", "prometheus_names"})
"""Settings after a change of which the port for Prometheus moves."""

Callback = Callable[[Stall], object]


class Callbacks:
    """The program's ``on_stall`` callbacks as a sink: one that raises is removed, logged once, and spares the others.

    Args:
        callbacks: returns those to be called.
        drop: called with one that raised.
        faults: of the agent.
    """

    def __init__(
        self, callbacks: Callable[[], Iterable[Callback]], drop: Callable[[Callback], object], faults: Faults
    ) -> None:
        self._callbacks, self._drop, self._faults = callbacks, drop, faults

    def emit(self, stall: Stall, _flagged: FlaggedFunction | None = None, _span: Any = None) -> None:
        """Call them with ``stall``."""
        for callback in self._callbacks():
            self._call(callback, stall)

    def _call(self, callback: Callback, stall: Stall) -> None:
        try:
            callback(stall)
        except BaseException as exc:  # noqa: BLE001 - not even sys.exit() or a cancelled future may end the teller
            self._faults.count("callback")
            self._faults.say(
                logging.ERROR, "loopwatch: the on_stall callback %r raised %s and is removed",
                callback, error_text(exc), exc=exc,
            )  # fmt: skip
            self._drop(callback)


class Services:
    """The parts of one agent but for the watching of loops.

    Args:
        config: returns the settings in force.
        patches: where replaced attributes are kept.
        faults: of the agent.
        watch: of the agent; it is told who takes what it sees.
        teller: of the agent.
        moving: what moves functions.
        callbacks: called with each stall; one that raises is removed.
        drop: called with a callback that raised.
        snapshot: returns what the agent knows now, given the readings of pools.
        loop_name: returns what an event loop is called, None for one that is not known.
        polled: called after each look at processes, in a thread of its own.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        patches: PatchSet,
        faults: Faults,
        watch: WatchService,
        teller: Teller,
        *,
        moving: Moving,
        callbacks: Callable[[], Iterable[Callback]],
        drop: Callable[[Callback], object],
        snapshot: Callable[[Sequence[PoolReading]], Snapshot],
        loop_name: Callable[[Loop], str | None],
        polled: Callable[[], object],
    ) -> None:
        self._config, self._patches, self._faults = config, patches, faults
        self._watch = watch
        self._moving, self._snapshot = moving, snapshot
        self._callback_sink = Callbacks(callbacks, drop, faults)
        self.pipeline = StallPipeline(
            config, faults, self._stall_sinks,
            expected=self._record_expected, dropped=self._forget, dump_of=self._dump_of,
        )  # fmt: skip
        self._started_at = time.time()
        self.telemetry = Telemetry(self._inputs, self._do, faults, __version__)
        self.scraped = Scraped(self.telemetry.account, faults)
        self.pools = PoolWatch(config, patches, faults, loop_name, polled)
        self._tell_providers: Callable[[], object] = lambda: None
        self.renew(teller)

    def renew(self, teller: Teller) -> None:
        """Take a new teller; the old one has stopped, or was left behind in the parent process."""
        self._teller = teller
        self.traces = Traces(self.telemetry.tracer, self.telemetry.logger)
        self.victims = Victims(current_span_variable, self.traces.begin, self.traces.tell_victims, self._faults)
        self.sinks = Sinks(self._config(), self._patches, self._faults)

    # -- life -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Check what is configured and open the port for Prometheus; nothing is told before :meth:`start`.

        Raises:
            ConfigError: the port cannot be opened, or a standard ``OTEL_*`` variable is not allowed.
        """
        self._tell_providers = self.telemetry.prepare(self._config())
        self.scraped.open(self._config())

    def start(self, *, discover: bool) -> None:
        """Take from now on what the watcher sees.

        Args:
            discover: whether pools are found by themselves.
        """
        self._started_at = time.time()
        self._tell_providers()
        self.scraped.start()
        self.sinks.open()
        self._moving.start(self._config())
        self._watch.use(self.victims, self._foresee)
        if discover:
            self.pools.start()
            offloading.opened = self.pools.own
            own = loaded("loopwatch.workers.pool")
            for pool in () if own is None else own.open_pools():
                self.pools.own(pool)

    def stop(self, timeout: float, *, leaving: bool) -> None:
        """Tell what there is, and end; the watcher is stopped. Waits at most ``timeout`` s for each part."""
        self.scraped.close(timeout)
        with self._faults.guard("victims"):
            self.victims.stop(timeout)
        with self._faults.guard("teller"):
            self._teller.stop(timeout)
        self.telemetry.stop(timeout, leaving=leaving)
        self.sinks.close()

    def configure(self, old: Config, new: Config, *, is_on: bool) -> Callable[[], None]:
        """Take other settings; return what puts them into force, which is called if the agent ``is_on``, too.

        Raises:
            ConfigError: they cannot be had; nothing has changed then.
        """
        changes = new.changes_from(old)
        tell = self.telemetry.prepare(new) if new.enabled and _TELEMETRY & set(changes) else None
        if is_on and _SCRAPED & set(changes):
            self.scraped.move(old, new)

        def put_into_force() -> None:
            if tell is not None and is_on:
                tell()
            self.pipeline.configure()
            self.sinks.configure(new, is_open=is_on)

        return put_into_force

    def after_fork_in_child(self, teller: Teller, *, again: bool) -> None:
        """Begin anew in a forked child, with a new teller; ``again`` if it is watched as its parent was."""
        sinks = self.sinks
        self.pipeline.clear()
        self.renew(teller)
        self._watch.use(self.victims, self._foresee)
        sinks.abandon()
        self._started_at = time.time()
        self.telemetry.after_fork_in_child()
        self.pools.after_fork_in_child()
        self.scraped.after_fork_in_child(again=again)

    def end_in_child(self) -> None:
        """End in a forked child that is not followed."""
        self.pools.stop(0.0)
        self.telemetry.stop(0.0)

    @property
    def threads(self) -> list[OwnThread]:
        """What runs beside the watcher and the teller."""
        parts = (self.victims, self.telemetry, self.pools)
        return [*(thread for part in parts if (thread := part.thread) is not None), *self.scraped.threads]

    @property
    def cpu(self) -> float:
        """Processor s of them."""
        return self.victims.cpu + self.telemetry.cpu + self.pools.cpu + self.scraped.cpu

    def begin_export(self, *, has_loops: bool) -> bool:
        """Export from now on, if there is something to watch, which is returned: a loop, or pools and children."""
        if not has_loops and not self.pools.in_use:
            return False
        self.scraped.begin()
        self._faults.attempt("telemetry", lambda: self.telemetry.begin(forks=not has_loops), None)
        return True

    def tick(self, now: float, threads: dict[int, str], longest_sleep: float) -> None:
        """In the watcher's thread, once a tick; see :meth:`loopwatch.sinks.service.Sinks.tick`."""
        self.pools.tick(now)
        self.sinks.tick(now, threads, longest_sleep)
        self.telemetry.tick()

    # -- stalls, in the teller's thread ---------------------------------------------------------------------------

    # Sinks and traces are others after a stop and in a forked child, hence these three.

    def _record_expected(self, stall: Stall) -> None:
        self.sinks.record_expected(stall)

    def _forget(self, stall_id: str) -> None:
        self.traces.forget(stall_id)

    def _dump_of(self, seen: Observation) -> tuple[Frame, ...]:
        return self.sinks.dump_of(seen)

    def _stall_sinks(self) -> list[tuple[str, StallSink]]:
        return [
            ("telemetry", self.telemetry),
            ("offload", self._moving),
            *self.sinks.in_use(),
            ("traces", self.traces),
            ("callback", self._callback_sink),
        ]

    def log_start(self, expectation: Expectation, *, listens: bool) -> None:
        """Log what held a loop while a server started on it."""
        if expectation.counted.blocks:
            self.sinks.log_expected(expectation.counted, "" if listens else "it has not come to listen")

    def _foresee(self, seen: Observation, case: Case, then: Callable[[], object]) -> None:
        """In the watcher's thread, while a loop is blocked: have it said what that looks like, for its victims."""

        def judge() -> None:
            case.foreseen = self.pipeline.diagnose_early(seen)
            then()

        self._teller.do(judge)

    def _do(self, action: Action) -> bool:
        return self._teller.do(action)  # of a later one, after a stop and in a forked child

    # -- figures --------------------------------------------------------------------------------------------------

    def _inputs(self) -> Inputs:
        """Return what figures are made of; from any thread."""
        pools = self.pools.readings()
        snapshot, now = self._snapshot(pools), time.monotonic()
        held_back = self.traces.held_back()
        return Inputs(
            snapshot=snapshot,
            loops=[loop.reading(now) for loop in self._watch.loops if not loop.gone],
            pools=pools,
            collections=[(each["collections"], each["collected"], each["uncollectable"]) for each in gc.get_stats()],
            started_at=self._started_at,
            dropped={
                "stalls": snapshot.agent.dropped,
                "metrics": self.telemetry.dropped["metrics"],
                "traces": self.telemetry.dropped["traces"] + held_back.get("traces", 0),
                "logs": self.telemetry.dropped["logs"] + held_back.get("logs", 0),
            },
        )

    def loop_gone(self, reading: LoopReading) -> None:
        """A loop is not watched any more; these are its last figures."""
        self._faults.attempt("telemetry", lambda: self.telemetry.loop_gone(reading), None)

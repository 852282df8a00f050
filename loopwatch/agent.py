"""The agent: wires the five services, and is the object that a program uses. It has no global state."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from loopwatch.config import Config
from loopwatch.core import log
from loopwatch.core.child_exit import ChildExit
from loopwatch.core.faults import Action, Faults
from loopwatch.core.off_loop import off_loop, running_loop
from loopwatch.core.originals import time
from loopwatch.core.patches import PatchSet
from loopwatch.core.setting_kinds import ContextSource
from loopwatch.core.threads.fork_pause import ForkPause
from loopwatch.core.unsupported import refusal
from loopwatch.errors import ConfigError
from loopwatch.events import AgentStats, FlaggedFunction, Snapshot, Stall
from loopwatch.health.checks import check_executor
from loopwatch.sinks.callbacks import Callback, Callbacks
from loopwatch.telemetry.otel.otlp_config import Signal, checked_providers
from loopwatch.watch.observation import LoopReading
from loopwatch.watch.probes.base import Loop
from loopwatch.watch.service import WatchHooks, WatchService
from loopwatch.watch.task_info import count_tasks

if TYPE_CHECKING:
    from loopwatch.health.records import PoolReading
    from loopwatch.health.service import HealthService
    from loopwatch.offloading.service import OffloadingService
    from loopwatch.sinks.service import SinkService
    from loopwatch.telemetry.service import TelemetryService


class _Parts:
    """All services except the watching of loops; imported and made on first use.

    Args:
        agent: their owner.
    """

    def __init__(self, agent: Agent) -> None:
        from loopwatch.health.service import HealthService
        from loopwatch.offloading.service import OffloadingService
        from loopwatch.sinks.service import SinkService
        from loopwatch.telemetry.service import TelemetryService

        faults, patches, watch = agent._faults, agent._patches, agent._watch
        self.offloading: OffloadingService = OffloadingService(watch.open_loops, patches, faults)
        self.health: HealthService = HealthService(
            lambda: agent._config, patches, faults, watch.name_of, agent._begin_export
        )
        self.sinks: SinkService = SinkService(
            lambda: agent._config, patches, faults,
            before=lambda: (("telemetry", self.telemetry.metrics), ("offload", self.offloading)),
            after=lambda: (("traces", self.telemetry.traces), ("callback", agent._callbacks)),
            dropped=lambda stall_id: self.telemetry.traces.forget(stall_id),
            readings=lambda: watch.readings(time.monotonic()), submitter=self.health.submitter,
            lapse=watch.lapse, puts_off=watch.was_kept,
        )  # fmt: skip
        self.telemetry: TelemetryService = TelemetryService(agent._look, self.sinks.do, faults)
        if agent._providers:
            self.telemetry.use(agent._providers)

    def watch_for(self, watch: WatchService) -> None:
        """Make ``watch`` find waiting callbacks, and diagnose early for them; call after each start and fork."""
        watch.use(self.telemetry.waiters, self.sinks.diagnose_early)


class Agent:
    """Watches event loops and reports what blocks them. Usually made by :func:`loopwatch.install`.

    Args:
        config: settings, default :class:`loopwatch.Config`.
        patches: holds replaced attributes, so that a later agent finds residues of this one.

    Example:
        >>> import asyncio, time, loopwatch
        >>> agent = loopwatch.install(threshold=0.05, log_level="CRITICAL")
        >>> async def main(): time.sleep(0.1)
        >>> asyncio.run(main())
        >>> agent.flush()
        True
        >>> agent.stalls()[-1].cause
        <Cause.SLEEP: 'sleep'>
        >>> loopwatch.uninstall()
    """

    def __init__(self, config: Config | None = None, *, patches: PatchSet | None = None) -> None:
        self._config, self._patches = config or Config(), patches or PatchSet()
        self._faults = Faults(self._relay, self._part_failed)
        self._lock = threading.RLock()
        self._state, self._reason = "off", "not started"
        self._has_begun = False
        self._forks = ForkPause(self._faults)
        self._child_exit = ChildExit(self._patches, self._faults, self._end_of_child)
        self._parts: _Parts | None = None
        self._callbacks = Callbacks(lambda: self._config.on_stall, self._drop_configured_callback, self._faults)
        self._providers: dict[Signal, Any] = {}
        hooks = WatchHooks(
            observed=lambda seen: self._made().sinks.observe(seen),
            loop_begins=lambda: self._made().sinks.loop_begins(),
            loop_runs=self._loop_runs,
            loop_gone=self._loop_gone,
            start_over=lambda start, listens: self._made().sinks.start_over(start, listens),
            ticked=self._tick,
            cpu=self._cpu,
        )
        self._watch = WatchService(lambda: self._config, self._patches, self._faults, hooks)

    def _made(self) -> _Parts:
        """Return the other services; they are made once, and stay readable after a stop."""
        if self._parts is None:
            with self._lock:
                made = self._parts or _Parts(self)
                self._parts = self._parts or made  # a signal handler may have come in between
        return self._parts

    # -- lifecycle ------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The current settings."""
        return self._config

    def start(self, *, discover: bool = True) -> None:
        """Find and watch loops from now on; a second call does nothing. Starts no thread before a loop runs.

        Args:
            discover: False to watch only loops given to :meth:`watch_loop`, and to replace nothing global.

        Raises:
            ConfigError: ``prometheus_port`` cannot be opened, or a standard ``OTEL_*`` variable is not allowed; nothing
                is started then.
        """
        own = running_loop()
        if off_loop(lambda: self._start(discover=discover, own=own)) and own is not None:
            with self._faults.guard("search"):
                self._watch.take(own)
                self._made().health.adopt(own)

    def _start(self, *, discover: bool, own: Loop | None) -> bool:
        """Start, and watch the loops that run already, except ``own``; return whether loops are discovered now."""
        with self._lock:
            if self._state != "off" or not self._may_start():
                return False
            parts = self._made()
            parts.telemetry.open(self._config)
            log.stderr.begin()
            self._state, self._reason = "on", ""
            parts.telemetry.start()
            parts.sinks.start()
            parts.offloading.start(self._config, parts.health.own if discover else None)
            self._watch.start()
            parts.watch_for(self._watch)
            if discover:
                parts.health.start()
                self._child_exit.start()
                for loop in self._watch.discover(own):
                    parts.health.adopt(loop)
            return discover

    def _may_start(self) -> bool:
        if not self._config.enabled:
            self._reason = "disabled by configuration (enabled=False)"
        elif (reason := refusal()) is not None:
            self._reason = reason.text
            self._faults.say(reason.level, "loopwatch: not started: %s", reason.text)
        else:
            return True
        return False

    def stop(self, timeout: float = 1.0, *, leaving: bool = False) -> None:
        """Undo everything: patches, threads, timers, files; recorded data stays readable.

        Args:
            timeout: maximum seconds to wait for each service.
            leaving: the interpreter exits: providers of the program that shut down later can still collect the
                counters.
        """
        off_loop(lambda: self._stop(timeout, leaving=leaving))

    def _stop(self, timeout: float, *, leaving: bool) -> None:
        with self._lock:
            parts = self._parts
            if self._state == "off" or parts is None:
                return
            parts.telemetry.metrics.freeze()
            self._state, self._reason = "off", "stopped"
            self._watch.end_discovery()
            self._child_exit.stop()
            parts.offloading.stop()
            parts.health.stop(timeout)
            self._watch.stop(timeout)
            self._patches.undo_all()  # only now: a uvloop loop must not be closed unnoticed while it is read
        parts.telemetry.stop(timeout)
        parts.sinks.drain(timeout)
        parts.telemetry.end_export(timeout, leaving=leaving)
        parts.sinks.close()
        log.stderr.flush()

    def hold_for_fork(self) -> Callable[[], None]:
        """Stop the agent's threads before a fork; return the function that restarts them in the parent."""
        parts = self._parts
        if parts is None:
            return self._forks.begin(
                self._watch.thread, (), contextlib.nullcontext(), lambda act: act(), self._watch.look
            )
        others = (parts.sinks.thread, parts.health.thread, *parts.telemetry.threads)
        return self._forks.begin(
            self._watch.thread, others, parts.sinks.held(), parts.health.when_forked, self._watch.look
        )

    def after_fork_in_child(self) -> None:
        """Reset in a forked child, where none of the threads exist and any lock may be held for ever.

        Nothing is imported, opened, logged or started here, as a thread that no longer exists may have been using a
        module or handler: that is left to the first loop.
        """
        self._lock = threading.RLock()
        self._forks.begin_child()
        was_on, goes_on = self._state == "on", self._config.follow_fork
        self._has_begun = False
        parts = self._parts
        if parts is not None:
            parts.sinks.after_fork_in_child()
            parts.telemetry.after_fork_in_child(again=was_on and goes_on)
            parts.health.after_fork_in_child()
            parts.offloading.after_fork_in_child()
        self._watch.after_fork_in_child(goes_on=goes_on or not was_on)
        if parts is not None:
            parts.watch_for(self._watch)
            if was_on and not goes_on:
                self._child_exit.stop()
                parts.health.stop(0.0)
                parts.telemetry.end_export(0.0)
                self._patches.undo_all()
                self._state, self._reason = "off", "a forked child (follow_fork=False)"
        self._forks.end_child()

    def _end_of_child(self) -> None:
        """Export and write pending data, at the end of a child that runs no ``atexit`` functions."""
        if self._has_begun:
            self.stop(leaving=True)

    def pause(self) -> None:
        """Stop watching until :meth:`resume`; costs next to nothing meanwhile."""
        self._watch.pause(True)

    def resume(self) -> None:
        """Watch again after :meth:`pause`."""
        self._watch.pause(False)

    def configure(self, **settings: Any) -> dict[str, tuple[Any, Any]]:
        """Change settings at run time.

        Args:
            **settings: fields of :class:`loopwatch.Config`.

        Returns:
            ``{field: (old, new)}`` for the fields that changed.

        Raises:
            ConfigError: an unknown field or a value that is not allowed; nothing is changed then.

        Example:
            >>> Agent().configure(threshold=0.05)
            {'threshold': (0.1, 0.05)}
        """
        changes = off_loop(lambda: self._configure(settings))
        if changes:
            self._watch.apply_settings()
            shown = ", ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items())
            say = functools.partial(self._faults.say, logging.INFO, "loopwatch: reconfigured: %s", shown)
            off_loop(say) if self._parts is None else say()  # else the sink thread logs it
        return changes

    def _configure(self, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        with self._lock:
            parts, old, is_on = self._parts, self._config, self._state == "on"
            new = old.replaced(**settings)
            changes = new.changes_from(old)
            put_into_force = parts.telemetry.configure(old, new, is_on=is_on) if parts is not None and changes else None
            self._config = new
            if parts is not None and put_into_force is not None:
                put_into_force()
                parts.sinks.configure(new, is_on=is_on)
                self._begin_export()
                if is_on:
                    parts.offloading.configure(new, changes)
            if "enabled" in changes:
                self.start() if new.enabled else self.stop()
        return changes

    # -- interface for the program --------------------------------------------------------------------------------

    def stalls(self) -> tuple[Stall, ...]:
        """Return the latest stalls, oldest first; at most ``Config.max_stalls``."""
        return () if self._parts is None else self._parts.sinks.stalls()

    def flagged(self, now: float | None = None) -> tuple[FlaggedFunction, ...]:
        """Return the functions that keep blocking, most blocked time first.

        A function is flagged while it is the culprit of ``Config.flag_after`` stalls within ``Config.flag_window``
        seconds; only causes that running it off the loop cures are counted (python, native_gil, native, io, sleep).

        Args:
            now: end of the window in seconds since the epoch, default the present.
        """
        return () if self._parts is None else self._parts.sinks.flagged(time.time() if now is None else now)

    def snapshot(self) -> Snapshot:
        """Return the current state: loops, pools, functions that keep blocking or are offloaded, the agent's cost."""
        return self._snapshot(() if self._parts is None else off_loop(self._parts.health.readings))

    def _snapshot(self, pools: Sequence[PoolReading]) -> Snapshot:
        off, parts, watch = self._faults.off(), self._parts, self._watch
        return Snapshot(
            at=time.time(),
            pid=os.getpid(),
            loops=watch.stats(time.monotonic()),
            pools=tuple(pool.stats for pool in pools),
            findings=() if parts is None else parts.health.findings(),
            offload=() if parts is None else parts.offloading.stats(),
            places=() if parts is None else parts.offloading.places(),
            agent=AgentStats(
                state=watch.state,
                reason=self._reason or ("its watcher failed" if "watcher" in off else ""),
                cpu=self._cpu(),
                cpu_share=watch.share,
                stretch=watch.watcher.stretch,
                faults=dict(self._faults.counts),
                switched_off=off,
                dropped=0 if parts is None else parts.sinks.dropped,
                prometheus="" if parts is None else parts.telemetry.prometheus.url,
            ),
            tasks=count_tasks(),
            flagged=self.flagged(),
        )

    def _look(self) -> tuple[Snapshot, Sequence[LoopReading], Sequence[PoolReading]]:
        """Return the input of the metrics; callable from any thread."""
        pools = self._made().health.readings()
        return self._snapshot(pools), self._watch.readings(time.monotonic()), pools

    def on_stall(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with each stall, in a thread of the agent; return a function that removes it.

        A callback that raises is removed and logged once.

        Raises:
            ConfigError: ``callback`` is not callable.
        """
        if not callable(callback):
            raise ConfigError(f"on_stall={callback!r}: must be a callable that takes a Stall")
        return self._callbacks.add(callback)

    def add_context(self, source: ContextSource) -> Callable[[], None]:
        """Label stalls with the result of ``source``; return a function that removes it.

        Args:
            source: a context variable's name, or a callable that returns a mapping. It is read in a copy of the
                blocking callback's own context, in a thread of the agent.
        """
        return self._watch.add_context(source)

    def use_providers(
        self, *, tracer_provider: Any = None, meter_provider: Any = None, logger_provider: Any = None
    ) -> None:
        """Export through these OpenTelemetry providers, whatever has been set globally.

        Without it the providers that the program sets globally are used, otherwise the ``OTEL_*`` variables and
        ``otlp_endpoint``. The program's providers are never shut down and never made global. A later call replaces an
        earlier one.

        Args:
            tracer_provider: makes the spans of stalls; None: as without this call.
            meter_provider: makes the metrics; None: likewise.
            logger_provider: of ``opentelemetry._logs``, makes the log records; None: likewise.

        Raises:
            ConfigError: an argument is not such a provider.

        Example:
            ``loopwatch.install().use_providers(tracer_provider=my_provider)``
        """
        self._providers = checked_providers(
            tracer_provider=tracer_provider, meter_provider=meter_provider, logger_provider=logger_provider
        )
        if self._parts is not None:
            self._parts.telemetry.use(self._providers)

    def expect_typed_code(self, is_expected: bool) -> None:
        """Set whether blocks by code typed at a prompt or in a notebook are expected; initially they are not."""
        self._watch.watcher.expect_typed(is_expected)

    def watch_loop(self, loop: Loop, name: str | None = None) -> None:
        """Watch ``loop``: for loops that are not found automatically, or to name one.

        Args:
            loop: any event loop, running or not.
            name: its name, default after its thread.

        Raises:
            ConfigError: ``loop`` is no event loop, or is closed.
        """
        self._watch.watch(loop, name)

    def watch_executor(self, executor: Any, name: str | None = None) -> None:
        """Watch ``executor``: for executors that are not found automatically, or to name one.

        Found automatically are ``ThreadPoolExecutor``, ``ProcessPoolExecutor`` and their subclasses, default executors
        of loops, ``multiprocessing.Pool`` and loky. For any other executor only submissions and their outcomes are
        known; its run times are those from ``submit`` to the result.

        Args:
            executor: has ``submit(function, *args, **kwargs)``, which returns a future; it is not kept alive by this.
            name: its name, default after its class and the caller's line.

        Raises:
            ConfigError: ``executor`` is no executor, or its ``submit`` cannot be replaced.

        Example:
            >>> from concurrent.futures import ThreadPoolExecutor
            >>> agent = Agent(); agent.start()
            >>> with ThreadPoolExecutor(2) as executor:
            ...     agent.watch_executor(executor, name="thumbnails")
            ...     executor.submit(len, "abc").result()
            ...     agent.snapshot().pools[0].name
            3
            'thumbnails'
            >>> agent.stop()
        """
        check_executor(executor, name)
        if self._state == "on":
            self._made().health.watch(executor, name)

    def adopt_executor(self, executor: Any, place: str) -> None:
        """Watch an executor that was made before the agent; ``place`` is ``file:line in function``."""
        if self._state == "on":
            self._made().health.found(executor, place)

    def bridge(self, coroutine: Awaitable[Any]) -> Awaitable[Any]:
        """Return an awaitable to use instead of ``coroutine``, so that ``transparent_offload`` applies in it.

        For tasks that are not made with ``create_task``, and for frameworks that serve many requests in one task. From
        the first use on, tasks are no longer bridged automatically: only coroutines given to this method bear the cost.

        Example:
            ``response = await agent.bridge(handler(request))``
        """
        return coroutine if self._parts is None else self._parts.offloading.bridge(coroutine)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until all that was seen is emitted, at most ``timeout`` seconds; return whether it is. For tests."""
        sinks = None if self._parts is None else self._parts.sinks
        return off_loop(lambda: self._watch.watcher.settle(timeout) and (sinks is None or sinks.flush(timeout)))

    def cut(self, loop: Loop) -> None:
        """End the current block of ``loop`` as if it had gone idle; call it on the loop's thread. For tests."""
        self._watch.cut(loop)

    # -- hooks of the services ------------------------------------------------------------------------------------

    def _loop_runs(self, loop: Loop) -> None:
        self._begin_export()
        self._made().offloading.loop_started(loop)

    def _loop_gone(self, reading: LoopReading) -> None:
        parts = self._made()
        parts.telemetry.loop_gone(reading)
        parts.sinks.loop_gone(reading)

    def _begin_export(self) -> None:
        """Start exporting if there is something to watch: a loop, or pools and child processes."""
        parts, has_loops = self._parts, bool(self._watch.loops)
        if self._state == "on" and parts is not None and (has_loops or parts.health.in_use):
            parts.telemetry.begin(forks=not has_loops)
            self._has_begun = True

    def _tick(self, now: float) -> None:
        """Periodic work; called by the watcher's thread once a tick."""
        self._forks.bring_back()
        if (parts := self._parts) is not None:
            parts.health.tick(now)
            parts.sinks.tick(now, self._watch.threads_of_loops(), self._watch.watcher.longest_sleep())
            parts.telemetry.tick()

    def _cpu(self) -> float:
        """Return the processor time of the agent's own threads, in seconds."""
        parts = self._parts
        return self._watch.cpu + (0.0 if parts is None else parts.sinks.cpu + parts.health.cpu + parts.telemetry.cpu)

    def _relay(self, action: Action) -> bool:
        """Hand a log line to the sink thread where a loop or the watcher would have to wait for the handler."""
        in_watcher = self._watch.watcher.is_own_thread(threading.get_ident())
        must_not_wait = running_loop() is not None or in_watcher or self._forks.running > 0
        return must_not_wait and self._parts is not None and self._parts.sinks.do(action)

    def _drop_configured_callback(self) -> None:
        self._config = self._config.replaced(on_stall=None)

    def _part_failed(self, part: str) -> None:
        if part in ("watcher", "hang") and self._parts is not None:
            self._parts.sinks.local.disarm()

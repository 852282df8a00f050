"""Wires the parts: finds loops and watches them, and has the services take what was seen. No globals."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from loopwatch.config import Config, ContextSource
from loopwatch.core import log
from loopwatch.core.child_exit import Leaving
from loopwatch.core.faults import Action, Faults
from loopwatch.core.off_loop import off_loop, running_loop
from loopwatch.core.originals import time
from loopwatch.core.own_thread import OwnThread, until_gone
from loopwatch.core.patches import PatchSet, loaded
from loopwatch.core.subinterpreters import in_subinterpreter
from loopwatch.errors import ConfigError
from loopwatch.events import AgentStats, FlaggedFunction, Snapshot, Stall
from loopwatch.offloading.service import Moving
from loopwatch.sinks.thread import Teller
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.observation import LoopReading, Observation
from loopwatch.watch.probes.base import Loop
from loopwatch.watch.service import Hooks, WatchService

if TYPE_CHECKING:
    from loopwatch.health.records import PoolReading
    from loopwatch.services import Services

FORK = "fork"
"""What faults around a fork are counted under."""

SUBINTERPRETER = "a sub-interpreter: only loops of the main interpreter are watched"

Callback = Callable[[Stall], object]


class Agent:
    """Watches event loops and says what blocks them. Usually made by :func:`loopwatch.install`.

    Args:
        config: settings, default :class:`loopwatch.Config`.
        patches: where replaced attributes are kept, so that a later agent finds residues of this one.

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
        self._config = config or Config()
        self._patches = patches or PatchSet()
        self._faults = Faults(self._relay, self._part_failed)
        self._lock = threading.RLock()
        self._callbacks: list[Callback] = []
        self._state = "off"
        self._reason = "not started"
        self._started_at = time.time()
        self._teller = Teller(self._tell, self._faults)
        hooks = Hooks(
            self._observed, self._loop_begins, self._loop_runs, self._loop_gone,
            self._report_start, self._each_tick, self._cpu,
        )  # fmt: skip
        self._watch = WatchService(lambda: self._config, self._patches, self._faults, hooks)
        self._moving = Moving(self._watch.open_loops, self._patches, self._faults)
        self._leaving = Leaving(self._patches, self._faults, self._end_of_child)
        self._has_begun = False
        self._next_flush = 0.0
        self._forks = 0
        """Forks under way: nothing is logged meanwhile, as a handler may wait or import."""
        self._returning: deque[OwnThread] = deque()
        """Threads that are to be back after a fork."""
        self._is_new_child = False
        """Whether this process was forked, and has run no loop since."""
        self._services: Services | None = None
        self._providers: dict[Any, Any] = {}
        self._is_spent = False

    # -- life -----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._config

    def start(self, *, discover: bool = True) -> None:
        """Find and watch loops from now on; a second call does nothing. Starts no thread before a loop runs.

        Args:
            discover: False to watch only what is given to :meth:`watch_loop`, and to replace nothing global.

        Raises:
            ConfigError: ``prometheus_port`` cannot be opened, or a standard ``OTEL_*`` variable is not allowed; nothing
                has started then.
        """
        own = running_loop()
        if not off_loop(lambda: self._start(discover=discover, own=own)) or own is None:
            return
        with self._faults.guard("search"):
            self._watch.take(own)
            if self._services is not None:
                self._services.pools.adopt(own)

    def _start(self, *, discover: bool, own: Loop | None) -> bool:
        """Start, and watch the loops that run already but for ``own``; return whether loops are discovered now."""
        with self._lock:
            if self._state != "off":
                return False
            refusal = "disabled by configuration (enabled=False)" if not self._config.enabled else _unsupported()
            if refusal and self._config.enabled:
                # A pool of sub-interpreters imports the program's modules, which may install, in each of them.
                level = logging.INFO if refusal is SUBINTERPRETER else logging.ERROR
                self._faults.say(level, "loopwatch: not started: %s", refusal)
            if refusal:
                self._reason = refusal
                return False
            services = self._opened_services()
            log.stderr.begin()
            self._state, self._reason = "on", ""
            self._started_at = time.time()
            services.start(discover=discover)
            self._watch.start()
            if discover:
                self._leaving.start()
                for loop in self._watch.discover(own):
                    services.pools.adopt(loop)
            return discover

    def _opened_services(self) -> Services:
        """Return the services, ready to start; they are made once, and kept for what can be read after a stop.

        Raises:
            ConfigError: what is configured cannot be had.
        """
        from loopwatch.services import Services  # whoever only names the class Agent need not load them

        if self._is_spent:  # not at the end: whoever comes late then finds those that start nothing any more
            self._renew()
            self._watch.renew()
            if self._services is not None:
                self._services.renew(self._teller)
        services = self._services or Services(
            lambda: self._config, self._patches, self._faults, self._watch, self._teller,
            moving=self._moving, callbacks=self._who_is_called, drop=self._drop_callback, snapshot=self._snapshot,
            loop_name=self._watch.name_of, polled=self._begin_export,
        )  # fmt: skip
        if self._services is None and self._providers:
            services.telemetry.use(self._providers)
        services.open()
        self._services = services
        return services

    def _renew(self) -> None:
        self._is_spent = False
        self._teller = Teller(self._tell, self._faults)

    def stop(self, timeout: float = 1.0, *, leaving: bool = False) -> None:
        """Take everything back: patches, threads, timers, files. Stalls stay readable. Waits at most ``timeout`` s.

        Args:
            timeout: s for each part.
            leaving: the interpreter exits: providers of the program that shut down after us can still collect what was
                counted.
        """
        off_loop(lambda: self._stop(timeout, leaving=leaving))

    def _stop(self, timeout: float, *, leaving: bool) -> None:
        with self._lock:
            services = self._services
            if self._state == "off":
                return
            if services is not None:
                services.telemetry.begin_stop()
            self._state, self._reason = "off", "stopped"
            self._watch.end_discovery()
            self._leaving.stop()
            self._moving.stop()
            if services is not None:
                services.pools.stop(timeout)
            self._watch.stop(timeout)
            self._patches.undo_all()  # only now: a loop of uvloop must not close unseen while it is read
        if services is not None:
            services.stop(timeout, leaving=leaving)
        else:
            self._teller.stop(timeout)
        log.stderr.flush()
        self._is_spent = True

    def hold_for_fork(self) -> Callable[[], None]:
        """Come to rest before a fork; return what has everything go on after it.

        The child is to be as it would be without us: no thread is there, so that no lock of a sink is held and no
        module half imported; and its parent is not warned of threads that are not its own.
        """
        self._forks += 1
        services = self._services
        held, leaving, timer = self._own_threads(), [], contextlib.ExitStack()
        for thread in held:
            with self._faults.guard(FORK):
                leaving.append(thread.hold())
        with self._faults.guard(FORK):
            until_gone([thread for thread in leaving if thread is not None])
            if services is not None:
                timer.enter_context(services.sinks.held())

        def go_on() -> None:
            with self._faults.guard(FORK):
                timer.close()
            if services is None:
                have_back()
            else:
                services.pools.when_forked(have_back)

        def have_back() -> None:
            self._forks -= 1
            watcher = self._watch.thread
            self._returning.extend(thread for thread in held if thread is not watcher)
            with self._faults.guard(FORK):
                watcher.release()
            if not watcher.exists:
                self._have_others_back()

        return go_on

    def _have_others_back(self) -> None:
        """In the watcher's thread, where there is one, so that who forks waits for the start of a single thread."""
        while self._returning:
            with self._faults.guard(FORK):
                self._returning.popleft().release()

    def _own_threads(self) -> list[OwnThread]:
        others = [] if self._services is None else self._services.threads
        return [self._watch.thread, self._teller.thread, *others]

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child, where none of the threads exist and any lock may be held for ever.

        Nothing is imported, opened, logged or started here, as a module or handler may have been in use by a thread
        that is no more: that comes with the first loop.
        """
        self._lock = threading.RLock()
        self._forks = 1
        self._returning.clear()
        was_on, goes_on = self._state == "on", self._config.follow_fork
        self._renew()
        self._teller.thread.hold()
        self._is_new_child = True
        self._started_at, self._has_begun = time.time(), False
        services = self._services
        if services is not None:
            services.after_fork_in_child(self._teller, again=was_on and goes_on)
        self._watch.after_fork_in_child(goes_on=goes_on or not was_on)
        self._moving.after_fork_in_child()
        if was_on and not goes_on:
            self._leaving.stop()
            if services is not None:
                services.end_in_child()
            self._patches.undo_all()
            self._state, self._reason = "off", "a forked child (follow_fork=False)"
        self._forks = 0

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
            ``{field: (old, new)}`` for what changed.

        Raises:
            ConfigError: an unknown field or a value that is not allowed; nothing has changed then.

        Example:
            >>> Agent().configure(threshold=0.05)
            {'threshold': (0.1, 0.05)}
        """
        changes = off_loop(lambda: self._configure(settings))
        if changes:
            self._watch.apply_settings()
            told = ", ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items())
            self._faults.say(logging.INFO, "loopwatch: reconfigured: %s", told)
        return changes

    def _configure(self, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        with self._lock:
            services = self._services
            old, is_on = self._config, self._state == "on"
            new = old.replaced(**settings)
            changes = new.changes_from(old)
            put_into_force = None if services is None else services.configure(old, new, is_on=is_on)
            self._config = new
            if not changes:
                return changes
            if put_into_force is not None:
                put_into_force()
                self._begin_export()
            if is_on:
                self._moving.configure(new, changes)
            if "enabled" in changes:
                self.start() if new.enabled else self.stop()
        return changes

    # -- what the user asks ---------------------------------------------------------------------------------------

    def stalls(self) -> tuple[Stall, ...]:
        """Return the latest stalls, oldest first; at most ``Config.max_stalls``."""
        services = self._services
        return () if services is None else tuple(services.pipeline.ring)

    def flagged(self, now: float | None = None) -> tuple[FlaggedFunction, ...]:
        """Return the functions that keep blocking, most blocked time first.

        A function is flagged while it is the culprit of ``Config.flag_after`` stalls within ``Config.flag_window`` s,
        counted where running it off the loop is a cure (python, native_gil, native, io, sleep).

        Args:
            now: s since the epoch at which the window ends, default the present.
        """
        at = time.time() if now is None else now
        services = self._services
        return () if services is None else services.pipeline.flagged(at)

    def snapshot(self) -> Snapshot:
        """Return what the agent knows now: loops, pools, functions that keep blocking or are moved, its own cost."""
        services = self._services
        return self._snapshot(() if services is None else off_loop(services.pools.readings))

    def _snapshot(self, pools: Sequence[PoolReading]) -> Snapshot:
        now, off, services = time.monotonic(), self._faults.off(), self._services
        return Snapshot(
            at=time.time(),
            pid=os.getpid(),
            loops=self._watch.stats(now),
            pools=tuple(pool.stats for pool in pools),
            findings=() if services is None else services.pools.findings(),
            offload=self._moving.stats(),
            places=self._moving.places(),
            agent=AgentStats(
                state=self._watch.state,
                reason=self._reason or ("its watcher failed" if "watcher" in off else ""),
                cpu=self._cpu(),
                cpu_share=self._watch.share,
                stretch=self._watch.watcher.stretch,
                faults=dict(self._faults.counts),
                switched_off=off,
                dropped=self._teller.dropped,
                prometheus="" if services is None else services.scraped.url,
            ),
            tasks=_count_tasks(),
            flagged=() if services is None else services.pipeline.flagged(time.time()),
        )

    def on_stall(self, callback: Callback) -> Callable[[], None]:
        """Have ``callback`` called with each stall, in a thread of the agent.

        A callback that raises is removed and logged once.

        Returns:
            A function that removes it again.

        Raises:
            ConfigError: ``callback`` is not callable.
        """
        if not callable(callback):
            raise ConfigError(f"on_stall={callback!r}: must be a callable that takes a Stall")
        self._callbacks.append(callback)
        return lambda: _discard(self._callbacks, callback)

    def add_context(self, source: ContextSource) -> Callable[[], None]:
        """Label stalls with what ``source`` says: a context variable's name, or a callable that returns a mapping.

        It is read in a copy of the blocking callback's own context, in a thread of the agent.

        Returns:
            A function that removes it again.
        """
        sources = self._watch.sources
        if source not in sources:
            sources.append(source)
        return lambda: _discard(sources, source)

    def use_providers(
        self, *, tracer_provider: Any = None, meter_provider: Any = None, logger_provider: Any = None
    ) -> None:
        """Tell OpenTelemetry through these providers, whatever has been set globally.

        Without it those that the program sets globally are used, else what ``OTEL_*`` variables and ``otlp_endpoint``
        say. They are left alone: never shut down, never made global. A later call replaces what an earlier one gave.

        Args:
            tracer_provider: makes the spans of stalls; None: as without this call.
            meter_provider: makes the metrics; None: likewise.
            logger_provider: of ``opentelemetry._logs``, makes the log records; None: likewise.

        Raises:
            ConfigError: something that is no such provider.

        Example:
            ``loopwatch.install().use_providers(tracer_provider=my_provider)``
        """
        from loopwatch.telemetry.otel.otlp_config import Signal

        given = {}
        for name, signal, method, provider in (
            ("tracer_provider", Signal.TRACES, "get_tracer", tracer_provider),
            ("meter_provider", Signal.METRICS, "get_meter", meter_provider),
            ("logger_provider", Signal.LOGS, "get_logger", logger_provider),
        ):
            if provider is None:
                continue
            if not callable(getattr(provider, method, None)):
                raise ConfigError(
                    f"{name}={provider!r}: must be a provider of OpenTelemetry (with {method}()), or None"
                )
            given[signal] = provider
        self._providers = given
        if self._services is not None:
            self._services.telemetry.use(given)

    def expect_typed_code(self, is_expected: bool) -> None:
        """Set whether blocks by code typed at a prompt or in a notebook are expected; at first they are not."""
        self._watch.watcher.expects_typed = is_expected

    def watch_loop(self, loop: Loop, name: str | None = None) -> None:
        """Watch ``loop``: for loops that are not found by themselves, or to give one a name.

        Args:
            loop: any event loop, running or not.
            name: what to call it, default after its thread.

        Raises:
            ConfigError: ``loop`` is no event loop, or is closed.
        """
        needed = ("call_soon_threadsafe", "call_later", "is_running", "is_closed")
        missing = [part for part in needed if not callable(getattr(loop, part, None))]
        if missing:
            raise ConfigError(
                f"watch_loop({loop!r}): not an event loop (it has no {missing[0]}()); pass asyncio.get_running_loop()"
            )
        if loop.is_closed():
            raise ConfigError(f"watch_loop({loop!r}): the loop is closed; pass one that is open")
        self._watch.take(loop, name, given=True)

    def watch_executor(self, executor: Any, name: str | None = None) -> None:
        """Watch ``executor``: one that is not found by itself, or to give one a name.

        Found by themselves are ``ThreadPoolExecutor``, ``ProcessPoolExecutor`` and what is made of them, default
        executors of loops, ``multiprocessing.Pool`` and loky. Of any other it is known what is submitted to it and what
        became of that; its run times are those from ``submit`` to the result.

        Args:
            executor: has ``submit(function, *args, **kwargs)``, which returns a future; it is not kept alive by this.
            name: what to call it, default after its class and where this is called.

        Raises:
            ConfigError: ``executor`` is no executor.

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
        known = isinstance(getattr(executor, "_cache", None), dict) and callable(getattr(executor, "apply_async", None))
        if isinstance(executor, type) or (not known and not callable(getattr(executor, "submit", None))):
            raise ConfigError(
                f"watch_executor({executor!r}): not an executor (it has no submit()); pass a "
                "concurrent.futures.Executor or a multiprocessing.Pool"
            )
        if name is not None and not (isinstance(name, str) and name):
            raise ConfigError(f"watch_executor(name={name!r}): must be a str that is not empty, such as 'thumbnails'")
        services = self._services if self._state == "on" else None
        if services is None:
            return
        try:
            services.pools.watch(executor, name)
        except TypeError as exc:
            raise ConfigError(
                f"watch_executor({executor!r}): its submit() cannot be replaced ({exc}); "
                "watch the executor that it uses"
            ) from None

    def adopt_executor(self, executor: Any, place: str) -> None:
        """Watch an executor that was made before the agent, at ``place``: ``file:line in function``."""
        if self._state == "on" and self._services is not None:
            self._services.pools.found(executor, place)

    def bridge(self, coroutine: Awaitable[Any]) -> Awaitable[Any]:
        """Return what to await instead of ``coroutine``, so that what ``transparent_offload`` names can be moved in it.

        For tasks that are not made with ``create_task``, and for frameworks that serve many requests in one task. From
        the first use on tasks as such are bridged no longer: what is given here alone pays for it.

        Example:
            ``response = await agent.bridge(handler(request))``
        """
        return self._moving.bridge(coroutine)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until what has been seen so far is told, at most ``timeout`` s; return whether it is. For tests."""
        return off_loop(lambda: self._watch.watcher.settle(timeout) and self._teller.flush(timeout))

    def cut(self, loop: Loop) -> None:
        """End what holds ``loop`` right now as if it had gone idle; call it on the loop's thread. For tests."""
        known = self._watch.find(loop)
        if known is not None:
            known.probe.cut(time.monotonic())

    # -- loops ----------------------------------------------------------------------------------------------------

    def _loop_begins(self) -> None:
        """On the loop's thread, before it is watched: what a forked child has left undone is done now."""
        if self._is_new_child:
            self._is_new_child = False
            self._teller.thread.release()
            if (services := self._services) is not None:
                off_loop(lambda: services.sinks.open(leftovers=False))

    def _loop_runs(self, loop: Loop) -> None:
        self._begin_export()
        self._moving.loop_started(loop)

    def _loop_gone(self, reading: LoopReading) -> None:
        if self._services is not None:
            self._services.loop_gone(reading)

    # -- what was seen --------------------------------------------------------------------------------------------

    def _observed(self, seen: Observation) -> None:
        """In the watcher's thread."""
        self._teller.put(seen)

    def _tell(self, seen: Observation) -> None:
        """In the teller's thread."""
        services = self._services
        if services is not None:
            services.pipeline.take(seen)

    def _who_is_called(self) -> tuple[Callback, ...]:
        configured = (self._config.on_stall,) if self._config.on_stall is not None else ()
        return (*configured, *self._callbacks)

    def _drop_callback(self, callback: Callback) -> None:
        _discard(self._callbacks, callback)
        if callback is self._config.on_stall:
            self._config = self._config.replaced(on_stall=None)

    def _report_start(self, expectation: Expectation, listens: bool) -> None:
        """The start of a server is over: log what held its loop, after what was handed on before."""

        def log() -> None:
            services = self._services
            if services is not None:
                services.log_start(expectation, listens=listens)

        self._teller.do(log)

    def _begin_export(self) -> None:
        """Export from now on, if there is something to watch."""
        services = self._services
        if self._state == "on" and services is not None and services.begin_export(has_loops=bool(self._watch.loops)):
            self._has_begun = True

    def _end_of_child(self) -> None:
        """Tell what there is, at the end of a child that runs no ``atexit`` functions."""
        if self._has_begun:
            self.stop(leaving=True)

    def _cpu(self) -> float:
        """Return the processor s of the agent's own threads."""
        services = self._services
        others = 0.0 if services is None else services.cpu
        return self._watch.cpu + self._teller.cpu + others

    def _each_tick(self, now: float) -> None:
        """In the watcher's thread, once a tick."""
        self._have_others_back()
        if (services := self._services) is not None:
            services.tick(now, self._watch.threads_of_loops(), self._watch.watcher.longest_sleep())
        if log.stderr.waiting and now >= self._next_flush:
            self._next_flush = now + 1.0
            self._teller.do(log.stderr.flush)

    def _relay(self, action: Action) -> bool:
        """Leave a log line to the teller where a loop or the watcher would have to wait for the handler."""
        in_watcher = self._watch.watcher.is_own_thread(threading.get_ident())
        must_not_wait = running_loop() is not None or in_watcher or self._forks > 0
        return must_not_wait and self._teller.do(action)

    def _part_failed(self, part: str) -> None:
        if part in ("watcher", "hang") and (services := self._services) is not None:
            services.sinks.disarm()


def _discard(items: list[Any], item: Any) -> None:
    if item in items:
        items.remove(item)


def _count_tasks() -> int | None:
    """Return how many tasks this process has, where their number is known without walking them."""
    tasks = loaded("asyncio.tasks")
    registry = getattr(tasks, "_scheduled_tasks", None)  # 3.12, 3.13
    if registry is None:
        registry = getattr(tasks, "_all_tasks", None)  # 3.11
    eager = getattr(tasks, "_eager_tasks", ())
    return len(registry) + len(eager) if registry is not None else None


def _unsupported() -> str:
    """Return why this process cannot be watched, "" if it can."""
    if in_subinterpreter():
        return SUBINTERPRETER
    monkey = loaded("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return "gevent has patched this process: asyncio cannot be watched beside it; run loopwatch without gevent"
    return ""

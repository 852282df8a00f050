"""Wires the parts: finds loops, watches them, judges what was seen, tells the sinks. No globals."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from loopwatch import __version__, stacks
from loopwatch._faults import Action, Faults
from loopwatch._patches import PatchSet, loaded
from loopwatch.config import Config, ContextSource
from loopwatch.core import log
from loopwatch.core.off_loop import off_loop, running_loop
from loopwatch.core.originals import time
from loopwatch.core.own_thread import OwnThread, until_gone
from loopwatch.core.subinterpreters import in_subinterpreter
from loopwatch.core.text import error_text, printable
from loopwatch.diagnosis.site import Site
from loopwatch.diagnosis.stall import diagnose, undiagnosed
from loopwatch.discovery import Discovery
from loopwatch.errors import ConfigError
from loopwatch.events import AgentStats, FlaggedFunction, Frame, Snapshot, Stall
from loopwatch.evidence import thread_name
from loopwatch.expectations import Expectation
from loopwatch.flagging import Flagging
from loopwatch.governor import Governor
from loopwatch.leaving import Leaving
from loopwatch.moving import Moving
from loopwatch.observation import Observation
from loopwatch.pools.reading import PoolReading
from loopwatch.pools.watch import PoolWatch
from loopwatch.probes.choice import is_known, keeps_real_time, make_probe
from loopwatch.probes.probe import Loop
from loopwatch.server_start import LONGEST, ServerStarts
from loopwatch.sinks import Sinks
from loopwatch.telemetry.otel import Telemetry
from loopwatch.telemetry.points import Inputs, LoopReading
from loopwatch.telemetry.scraped import Scraped
from loopwatch.telemetry.targets import Signal
from loopwatch.telemetry.traces import Traces
from loopwatch.telemetry.victims import current_span_variable
from loopwatch.teller import Teller
from loopwatch.victims import Victims
from loopwatch.watched import Case, WatchedLoop
from loopwatch.watcher import Watcher
from loopwatch.workers import settings as offloading

FORK = "fork"
"""What faults around a fork are counted under."""

SUBINTERPRETER = "a sub-interpreter: only loops of the main interpreter are watched"

MAX_KINDS = 20
"""Kinds of loop of which it is said that they are left alone."""

_TELEMETRY = frozenset({"enabled", "otlp_endpoint", "export_interval", "max_culprits"})
"""Settings after a change of which telemetry begins anew."""

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
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._ring: deque[Stall] = deque(maxlen=self._config.max_stalls)
        self._flagging = Flagging(self._config.flag_after, self._config.flag_window, self._config.max_culprits)
        self._callbacks: list[Callback] = []
        self._sources: list[ContextSource] = []
        self._state = "off"
        self._reason = "not started"
        self._discovery: Discovery | None = None
        self._slow_told = False
        self._left_alone: set[str] = set()
        self._started_at = time.time()
        self._telemetry = Telemetry(self._inputs, self._do, self._faults, __version__)
        self._scraped = Scraped(self._telemetry.account, self._faults)
        self._pools = PoolWatch(lambda: self._config, self._patches, self._faults, self._name_of, self._begin_export)
        self._moving = Moving(self._open_loops, self._patches, self._faults)
        self._starts = ServerStarts(self._patches, self._faults, self._find, self._longest_start, self._report_start)
        self._leaving = Leaving(self._patches, self._faults, self._end_of_child)
        self._has_begun = False
        self._next_flush = 0.0
        self._site = Site.here(self._config.user_code, self._config.library_code)
        self._forks = 0
        """Forks under way: nothing is logged meanwhile, as a handler may wait or import."""
        self._returning: deque[OwnThread] = deque()
        """Threads that are to be back after a fork."""
        self._is_new_child = False
        """Whether this process was forked, and has run no loop since."""
        self._make_parts()

    def _make_parts(self) -> None:
        config, self._is_spent = self._config, False
        self._teller = Teller(self._tell, self._faults)
        self._watcher = Watcher(lambda: self._config, self._teller.put, self._faults, self._each_tick)
        self._watcher.sources = self._sources
        self._traces = Traces(self._telemetry.tracer, self._telemetry.logger)
        self._victims = Victims(current_span_variable, self._traces.begin, self._traces.tell_victims, self._faults)
        self._watcher.victims, self._watcher.foresee = self._victims, self._foresee
        self._watcher.retired = self._loop_retired
        self._governor = Governor(config.cpu_budget)
        self._sinks = Sinks(config, self._patches, self._faults)

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
            self._take(own)
            self._pools.adopt(own)

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
            if self._is_spent:
                self._make_parts()  # not at the end: whoever comes late then finds those that start nothing any more
            log.stderr.begin()
            tell = self._telemetry.prepare(self._config)
            self._scraped.open(self._config)
            self._state, self._reason = "on", ""
            self._started_at = time.time()
            tell()
            self._scraped.start()
            self._sinks.open()
            self._watcher.gc.start()
            self._moving.start(self._config)
            self._discovery = Discovery(
                self._patches,
                self._loop_started,
                self._loop_stopped,
                self._loop_closing,
                lambda text: self._faults.say(logging.WARNING, text),
            )
            if not discover:
                return False
            self._start_pools()
            self._leaving.start()
            self._starts.start()
            self._discovery.start()
            with self._faults.guard("search"):  # apart from the discovery of loops that start later
                for loop in self._discovery.running():
                    if loop is not own:
                        self._take(loop)
                        self._pools.adopt(loop)
            return True

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
            if self._state == "off":
                return
            self._telemetry.begin_stop()
            self._state, self._reason = "off", "stopped"
            if self._discovery is not None:
                self._discovery.stop()
            self._leaving.stop()
            self._starts.stop()
            self._moving.stop()
            self._pools.stop(timeout)
            with self._faults.guard("watcher"):
                self._watcher.stop(timeout)
            self._patches.undo_all()  # only now: a loop of uvloop must not close unseen while it is read
        self._scraped.close(timeout)
        with self._faults.guard("victims"):
            self._victims.stop(timeout)
        with self._faults.guard("teller"):
            self._teller.stop(timeout)
        self._telemetry.stop(timeout, leaving=leaving)
        self._sinks.close()
        log.stderr.flush()
        self._is_spent = True

    def hold_for_fork(self) -> Callable[[], None]:
        """Come to rest before a fork; return what has everything go on after it.

        The child is to be as it would be without us: no thread is there, so that no lock of a sink is held and no
        module half imported; and its parent is not warned of threads that are not its own.
        """
        self._forks += 1
        held, leaving, timer = self._own_threads(), [], contextlib.ExitStack()
        for thread in held:
            with self._faults.guard(FORK):
                leaving.append(thread.hold())
        with self._faults.guard(FORK):
            until_gone([thread for thread in leaving if thread is not None])
            timer.enter_context(self._sinks.held())

        def go_on() -> None:
            with self._faults.guard(FORK):
                timer.close()
            self._pools.when_forked(have_back)

        def have_back() -> None:
            self._forks -= 1
            watcher = self._watcher.thread
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
        parts = (self._watcher, self._teller, self._victims, self._telemetry, self._pools)
        return [*(thread for part in parts if (thread := part.thread) is not None), *self._scraped.threads]

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child, where none of the threads exist and any lock may be held for ever.

        Nothing is imported, opened, logged or started here, as a module or handler may have been in use by a thread
        that is no more: that comes with the first loop.
        """
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._forks = 1
        self._returning.clear()
        was_on, old, sinks = self._state == "on", self._watcher, self._sinks
        self._ring.clear()
        self._flagging.clear()
        self._starts.forget()
        self._make_parts()
        self._teller.thread.hold()
        self._is_new_child = True
        old.abandon()
        sinks.abandon()
        self._started_at, self._has_begun = time.time(), False
        self._telemetry.after_fork_in_child()
        self._pools.after_fork_in_child()
        self._moving.after_fork_in_child()
        self._scraped.after_fork_in_child(again=was_on and self._config.follow_fork)
        if was_on:
            self._go_on_in_child(old)
        self._forks = 0

    def _go_on_in_child(self, old: Watcher) -> None:
        if self._config.follow_fork:
            self._watcher.gc = old.gc
            self._watcher.paused = old.paused
        else:
            old.gc.stop()
            if self._discovery is not None:
                self._discovery.stop()
            self._starts.stop()
            self._pools.stop(0.0)
            self._patches.undo_all()
            self._telemetry.stop(0.0)
            self._state, self._reason = "off", "a forked child (follow_fork=False)"

    def pause(self) -> None:
        """Stop watching until :meth:`resume`; costs next to nothing meanwhile."""
        self._watcher.paused = True
        self._apply_limits()

    def resume(self) -> None:
        """Watch again after :meth:`pause`."""
        self._watcher.paused = False
        self._apply_limits()
        self._watcher.wake()

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
            for loop in self._watcher.loops:
                loop.heart.set_interval(self._config.heartbeat)
            self._apply_limits()
            self._watcher.wake()
            told = ", ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items())
            self._faults.say(logging.INFO, "loopwatch: reconfigured: %s", told)
        return changes

    def _configure(self, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        with self._lock:
            new = self._config.replaced(**settings)
            changes = new.changes_from(self._config)
            tell = self._telemetry.prepare(new) if new.enabled and _TELEMETRY & set(changes) else None
            if {"prometheus_port", "prometheus_host", "prometheus_names"} & set(changes) and self._state == "on":
                self._scraped.move(self._config, new)
            self._config = new
            if not changes:
                return changes
            if tell is not None and self._state == "on":
                tell()
                self._begin_export()
            self._ring = deque(self._ring, maxlen=new.max_stalls)
            self._site = Site.here(new.user_code, new.library_code)
            self._governor.budget = new.cpu_budget
            self._flagging.after, self._flagging.window = new.flag_after, new.flag_window
            self._flagging.max_culprits = new.max_culprits
            self._sinks.configure(new, is_open=self._state == "on")
            if self._state == "on":
                self._moving.configure(new, changes)
            if "enabled" in changes:
                self.start() if new.enabled else self.stop()
        return changes

    # -- what the user asks ---------------------------------------------------------------------------------------

    def stalls(self) -> tuple[Stall, ...]:
        """Return the latest stalls, oldest first; at most ``Config.max_stalls``."""
        return tuple(self._ring)

    def flagged(self, now: float | None = None) -> tuple[FlaggedFunction, ...]:
        """Return the functions that keep blocking, most blocked time first.

        A function is flagged while it is the culprit of ``Config.flag_after`` stalls within ``Config.flag_window`` s,
        counted where running it off the loop is a cure (python, native_gil, native, io, sleep).

        Args:
            now: s since the epoch at which the window ends, default the present.
        """
        at = time.time() if now is None else now
        return self._faults.attempt("flagging", lambda: self._flagging.flagged(at), ())

    def snapshot(self) -> Snapshot:
        """Return what the agent knows now: loops, pools, functions that keep blocking or are moved, its own cost."""
        return self._snapshot(off_loop(self._pools.readings))

    def _snapshot(self, pools: Sequence[PoolReading]) -> Snapshot:
        now, off = time.monotonic(), self._faults.off()
        return Snapshot(
            at=time.time(),
            pid=os.getpid(),
            loops=tuple(loop.stats(now) for loop in self._watcher.loops if not loop.gone),
            pools=tuple(pool.stats for pool in pools),
            findings=self._pools.findings(),
            offload=self._moving.stats(),
            places=self._moving.places(),
            agent=AgentStats(
                state=self._describe_state(),
                reason=self._reason or ("its watcher failed" if "watcher" in off else ""),
                cpu=self._cpu(),
                cpu_share=self._governor.share,
                stretch=self._watcher.stretch,
                faults=dict(self._faults.counts),
                switched_off=off,
                dropped=self._teller.dropped,
                prometheus=self._scraped.url,
            ),
            tasks=_count_tasks(),
            flagged=self.flagged(),
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
        if source not in self._sources:
            self._sources.append(source)
        return lambda: _discard(self._sources, source)

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
        self._telemetry.use(given)

    def expect_typed_code(self, is_expected: bool) -> None:
        """Set whether blocks by code typed at a prompt or in a notebook are expected; at first they are not."""
        self._watcher.expects_typed = is_expected

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
        self._take(loop, name, given=True)

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
        if self._state != "on":
            return
        try:
            self._pools.watch(executor, name)
        except TypeError as exc:
            raise ConfigError(
                f"watch_executor({executor!r}): its submit() cannot be replaced ({exc}); "
                "watch the executor that it uses"
            ) from None

    def adopt_executor(self, executor: Any, place: str) -> None:
        """Watch an executor that was made before the agent, at ``place``: ``file:line in function``."""
        if self._state == "on":
            self._pools.found(executor, place)

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
        return off_loop(lambda: self._watcher.settle(timeout) and self._teller.flush(timeout))

    def cut(self, loop: Loop) -> None:
        """End what holds ``loop`` right now as if it had gone idle; call it on the loop's thread. For tests."""
        known = self._find(loop)
        if known is not None:
            known.probe.cut(time.monotonic())

    # -- loops ----------------------------------------------------------------------------------------------------

    def _take(self, loop: Loop, name: str | None = None, *, given: bool = False) -> None:
        """Watch a loop that may run already, in any thread; ``given`` by the program, which wants it to be watched."""
        known = self._find(loop)
        if known is not None:
            known.name = name or known.name
        elif _runs_here(loop) or not (given or is_known(loop)):
            self._loop_started(loop, name, given=given)
        else:
            loop.call_soon_threadsafe(functools.partial(self._loop_started, loop, name, given=given))

    def _find(self, loop: Loop) -> WatchedLoop | None:
        return next((known for known in self._watcher.loops if known.ref() is loop), None)

    def _loop_started(self, loop: Loop, name: str | None = None, *, given: bool = False) -> None:
        """On the loop's thread, before it runs."""
        with self._faults.guard("discovery"):
            if self._state != "on" or self._faults.is_off("discovery"):
                return
            if not threading.main_thread().is_alive():
                return  # the interpreter is about to exit and starts no more threads
            if self._is_new_child:
                self._wake_up_in_child()
            known = self._find(loop) or self._attach(loop, name, given=given)
            if known is None:
                return
            known.started()
            self._starts.loop_started(known)
            self._watcher.ensure_thread()
            self._begin_export()
            self._moving.loop_started(loop)
            if self._state != "on":  # a signal handler or another thread has stopped us meanwhile
                self._watcher.remove((known,))

    def _wake_up_in_child(self) -> None:
        self._is_new_child = False
        self._teller.thread.release()
        off_loop(lambda: self._sinks.open(leftovers=False))

    def _open_loops(self) -> list[Loop]:
        return [loop for known in self._watcher.loops if (loop := known.ref()) is not None]

    def _attach(self, loop: Loop, name: str | None, *, given: bool) -> WatchedLoop | None:
        """Begin to watch ``loop``; return None, and say so once a kind, if it is of a kind that must be left alone."""
        self._watcher.remove(known for known in self._watcher.loops if known.gone)
        if self._discovery is not None:
            self._discovery.see_closing()

        def failed(exc: BaseException) -> None:
            self._faults.add("probe", exc)

        probe = make_probe(loop, self._limit(), self._patches, failed, given=given)
        if probe is None:
            self._leave_alone(type(loop))
            return None
        beats = given or keeps_real_time(loop)
        heartbeat = self._config.heartbeat if beats else None
        known = WatchedLoop(loop, printable(name) or self._name(), probe, heartbeat, failed)
        self._watcher.add(known)
        return known

    def _leave_alone(self, kind: type) -> None:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in self._left_alone or len(self._left_alone) >= MAX_KINDS:
            return
        self._left_alone.add(name)
        self._faults.say(
            logging.INFO,
            "loopwatch: loops of %s are not watched: their time may be simulated, and a timer would be seen there; "
            "agent.watch_loop(loop) watches one all the same",
            name,
        )

    def _loop_stopped(self, loop: Loop) -> None:
        """On the loop's thread, after it ran."""
        if os.getpid() != self._pid:
            return  # asyncio's own handler of a fork, which runs before ours (on_fork in asyncio/events.py since 3.12)
        with self._faults.guard("discovery"):
            known = self._find(loop)
            if known is not None:
                known.stopped()
                self._starts.loop_stopped(known)
                self._watcher.wake_if_blocked(known)

    def _loop_closing(self, loop: Loop) -> None:
        """Right before the memory of a loop of uvloop goes away."""
        with self._faults.guard("discovery"):
            self._watcher.detach(loop)

    def _name_of(self, loop: Loop) -> str | None:
        known = self._find(loop)
        return None if known is None else known.name

    def _name(self) -> str:
        name = "main" if threading.get_ident() == threading.main_thread().ident else printable(thread_name())
        taken = {known.name for known in self._watcher.loops}
        return next(free for n in range(1, len(taken) + 2) if (free := name if n == 1 else f"{name}-{n}") not in taken)

    def _limit(self) -> float:
        return float("inf") if self._watcher.paused else self._config.threshold

    def _apply_limits(self) -> None:
        now = time.monotonic()
        for loop in self._watcher.loops:
            with self._faults.guard("probe"):
                # What came before is judged by the limit that was in force.
                loop.probe.cut(now) if _runs_here(loop.ref()) else loop.probe.busy_since(now)
                loop.probe.set_limit(self._limit())

    # -- telling --------------------------------------------------------------------------------------------------

    def _tell(self, seen: Observation) -> None:
        """In the teller's thread."""
        stall = self._diagnosed(seen)
        if stall is None:
            self._traces.forget(seen.id)
            return
        if seen.expectation is not None:
            self._traces.forget(seen.id)
            seen.expectation.count(stall)
            self._sinks.record_expected(stall)
            return
        self._ring.append(stall)
        self._faults.attempt("telemetry", lambda: self._telemetry.saw(stall), None)
        flagged = self._newly_flagged(stall)
        self._sinks.tell(stall, flagged)
        self._faults.attempt("traces", lambda: self._tell_traces(stall, flagged, seen.span), None)
        configured = (self._config.on_stall,) if self._config.on_stall is not None else ()
        for callback in (*configured, *self._callbacks):
            self._call(callback, stall)

    def _longest_start(self) -> float:
        return max(LONGEST, self._config.hang_after)

    def _report_start(self, expectation: Expectation, listens: bool) -> None:
        """The start of a server is over: log what held its loop, after what was handed on before."""

        def log() -> None:
            blocks = expectation.counted
            if blocks.blocks:
                self._sinks.log_expected(blocks, "" if listens else "it has not come to listen")

        self._teller.do(log)

    def _tell_traces(self, stall: Stall, flagged: FlaggedFunction | None, span: Any) -> None:
        self._traces.tell(stall, span)
        if flagged is not None:
            self._traces.tell_flagged(flagged)

    def _foresee(self, seen: Observation, case: Case, then: Callable[[], object]) -> None:
        """In the watcher's thread, while a loop is blocked: have it said what that looks like, for its victims."""

        def judge() -> None:
            case.foreseen = self._faults.attempt("diagnosis", lambda: self._diagnose(seen), None)
            then()

        self._teller.do(judge)

    def _newly_flagged(self, stall: Stall) -> FlaggedFunction | None:
        flagged = self._faults.attempt("flagging", lambda: self._flagging.add(stall), None)
        if flagged is not None:
            offloading.causes[flagged.name] = flagged.cause
        self._moving.saw(stall)
        return flagged

    # -- telling in figures ---------------------------------------------------------------------------------------

    def _begin_export(self) -> None:
        """Export from now on, if there is something to watch: a loop, or pools and children."""
        loops = bool(self._watcher.loops)
        if self._state != "on" or (not loops and not self._pools.in_use):
            return
        self._has_begun = True
        self._scraped.begin()
        self._faults.attempt("telemetry", lambda: self._telemetry.begin(forks=not loops), None)

    def _end_of_child(self) -> None:
        """Tell what there is, at the end of a child that runs no ``atexit`` functions."""
        if self._has_begun:
            self.stop(leaving=True)

    def _do(self, action: Action) -> bool:
        return self._teller.do(action)  # a later one, after stop() and in a forked child

    def _cpu(self) -> float:
        """Return the processor s of the agent's own threads."""
        parts = (self._watcher, self._teller, self._victims, self._telemetry, self._pools, self._scraped)
        return sum(part.cpu for part in parts)

    def _inputs(self) -> Inputs:
        """Return what figures are made of; from any thread."""
        pools = self._pools.readings()
        snapshot, now = self._snapshot(pools), time.monotonic()
        held_back = self._traces.held_back()
        return Inputs(
            snapshot=snapshot,
            loops=[_loop_reading(loop, now) for loop in self._watcher.loops if not loop.gone],
            pools=pools,
            collections=[(each["collections"], each["collected"], each["uncollectable"]) for each in gc.get_stats()],
            started_at=self._started_at,
            dropped={
                "stalls": snapshot.agent.dropped,
                "metrics": self._telemetry.dropped["metrics"],
                "traces": self._telemetry.dropped["traces"] + held_back.get("traces", 0),
                "logs": self._telemetry.dropped["logs"] + held_back.get("logs", 0),
            },
        )

    def _loop_retired(self, loop: WatchedLoop) -> None:
        self._starts.retired(loop)
        self._faults.attempt(
            "telemetry", lambda: self._telemetry.loop_gone(_loop_reading(loop, time.monotonic())), None
        )

    def _start_pools(self) -> None:
        self._pools.start()
        offloading.opened = self._pools.own
        own = loaded("loopwatch.workers.pool")
        for pool in () if own is None else own.open_pools():
            self._pools.own(pool)

    def _diagnosed(self, seen: Observation) -> Stall | None:
        """Return the stall; one without a cause where it cannot be diagnosed, None where there is none."""
        dump = self._sinks.dump_of(seen)
        bare = undiagnosed(seen, self._config.threshold)
        return self._faults.attempt("diagnosis", lambda: self._diagnose(seen, dump), bare, about=seen.id)

    def _diagnose(self, seen: Observation, dump: tuple[Frame, ...] = ()) -> Stall | None:
        return diagnose(seen, self._site, self._config.threshold, _call_name, dump, attempt=self._faults.attempt)

    def _call(self, callback: Callback, stall: Stall) -> None:
        try:
            callback(stall)
        except BaseException as exc:  # noqa: BLE001 - not even sys.exit() or a cancelled future may end the teller
            self._faults.count("callback")
            self._faults.say(
                logging.ERROR, "loopwatch: the on_stall callback %r raised %s and is removed",
                callback, error_text(exc), exc=exc,
            )  # fmt: skip
            _discard(self._callbacks, callback)
            if callback is self._config.on_stall:
                self._config = self._config.replaced(on_stall=None)

    def _each_tick(self, now: float) -> None:
        """In the watcher's thread, once a tick."""
        self._have_others_back()
        self._pools.tick(now)
        stretch = self._governor.update(now, self._cpu())
        self._watcher.stretch = stretch
        if stretch > 1 and not self._slow_told:
            self._slow_told = True
            self._faults.say(
                logging.INFO,  # nothing is wrong with the program, and there is nothing to be done
                "loopwatch: its own processor time (%.1f %% of a core) is over cpu_budget=%g; it looks less often now",
                self._governor.share * 100, self._config.cpu_budget,
            )  # fmt: skip
        self._starts.tick(now)
        self._sinks.tick(now, self._threads_of_loops(), self._watcher.longest_sleep())
        self._telemetry.tick()
        if log.stderr.waiting and now >= self._next_flush:
            self._next_flush = now + 1.0
            self._teller.do(log.stderr.flush)

    def _threads_of_loops(self) -> dict[int, str]:
        return {loop.thread.ident: loop.name for loop in self._watcher.loops if loop.thread and loop.is_running}

    def _relay(self, action: Action) -> bool:
        """Leave a log line to the teller where a loop or the watcher would have to wait for the handler."""
        in_watcher = self._watcher.is_own_thread(threading.get_ident())
        must_not_wait = running_loop() is not None or in_watcher or self._forks > 0
        return must_not_wait and self._teller.do(action)

    def _part_failed(self, part: str) -> None:
        if part in ("watcher", "hang"):
            self._sinks.disarm()

    def _describe_state(self) -> str:
        if self._state == "off" or self._faults.is_off("watcher"):
            return "off"
        if self._watcher.paused:
            return "paused"
        return "watching" if self._watcher.loops else "waiting"


def _call_name(stack: stacks.RawStack) -> str | None:
    return stacks.call_at(stack.frames[0], stack.globals) if stack.frames else None


def _runs_here(loop: Loop) -> bool:
    return loop is not None and running_loop() is loop


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


def _loop_reading(loop: WatchedLoop, now: float) -> LoopReading:
    return LoopReading(loop.key, loop.stats(now), loop.lags(), loop.callbacks(now), loop.victims)


def _unsupported() -> str:
    """Return why this process cannot be watched, "" if it can."""
    if in_subinterpreter():
        return SUBINTERPRETER
    monkey = loaded("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return "gevent has patched this process: asyncio cannot be watched beside it; run loopwatch without gevent"
    return ""

"""Watch service: discovers this process's event loops, watches them with one thread, recognises server starts."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loopwatch.config import Config
from loopwatch.core.dataclasses import dataclass
from loopwatch.core.faults import Faults
from loopwatch.core.off_loop import running_loop
from loopwatch.core.originals import time
from loopwatch.core.patches import PatchSet
from loopwatch.core.setting_kinds import ContextSource
from loopwatch.core.text import printable
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.errors import ConfigError
from loopwatch.events import LoopStats
from loopwatch.system.threads import thread_name
from loopwatch.watch.contention import LATE
from loopwatch.watch.discovery import LoopDiscovery
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.expected_code import marks
from loopwatch.watch.governor import Governor
from loopwatch.watch.lapse import Lapse
from loopwatch.watch.limits import lowest
from loopwatch.watch.observation import Case, LoopReading, Observation
from loopwatch.watch.probes.base import Loop
from loopwatch.watch.probes.choice import is_known, keeps_real_time, make_probe
from loopwatch.watch.server_start import LONGEST, ServerStarts
from loopwatch.watch.watched_loop import WatchedLoop
from loopwatch.watch.watcher import Watcher, WatcherHooks

if TYPE_CHECKING:
    from loopwatch.watch.waiters import Waiters

MAX_KINDS = 20
"""Kinds of loop that are logged as not watched, at most."""

DiagnoseEarly = Callable[[Observation, Case, Callable[[], object]], object]


@dataclass(frozen=True, slots=True)
class WatchHooks:
    """Callbacks of a :class:`WatchService`. None may raise.

    Attributes:
        observed: receives each observation of a block; in the watcher's thread, must not block.
        loop_begins: called before each loop is watched, the first one after :meth:`WatchService.after_fork_in_child`
            included; on its thread.
        loop_runs: receives a watched loop that is about to run; on its thread.
        loop_gone: receives the last statistics of a loop that is no longer watched; in any thread.
        start_over: receives the finished start of a server, and whether it listens; must not block.
        ticked: called once a tick with ``time.monotonic`` seconds; in the watcher's thread.
        cpu: returns the processor time of the whole agent, seconds.
    """

    observed: Callable[[Observation], None]
    loop_begins: Callable[[], object]
    loop_runs: Callable[[Loop], object]
    loop_gone: Callable[[LoopReading], object]
    start_over: Callable[[Expectation, bool], object]
    ticked: Callable[[float], object]
    cpu: Callable[[], float]


class WatchService:
    """Watches the loops of one agent: attaches a probe to each, and owns the watcher.

    Args:
        config: returns the current settings.
        patches: holds replaced attributes; undone by its owner, after :meth:`stop`.
        faults: of the agent.
        hooks: callbacks of the service.

    Attributes:
        watcher: the watcher in use; another one after a stop and in a forked child.
        sources: sources of the blocking callback's labels.
    """

    def __init__(self, config: Callable[[], Config], patches: PatchSet, faults: Faults, hooks: WatchHooks) -> None:
        self._config, self._patches, self._faults, self._hooks = config, patches, faults, hooks
        self._pid = os.getpid()
        self._has_said_slow = False
        self._is_on = False
        self._left_alone: set[str] = set()
        self._waiters: Waiters | None = None
        self._diagnose_early: DiagnoseEarly = lambda _seen, _case, _then: None
        self._discovery: LoopDiscovery | None = None
        self._has_stopped = False
        self._starts = ServerStarts(patches, faults, self.find, self._longest_start, hooks.start_over)
        self._watcher_hooks = WatcherHooks(
            hooks.observed, self._tick, self._retired, lambda: self._waiters,
            lambda seen, case, then: self._diagnose_early(seen, case, then),
        )  # fmt: skip
        self.sources: list[ContextSource] = []
        self._renew()

    # -- life -----------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        """Make a new watcher, after the old one was stopped; holders of the old one find it ended."""
        self._has_stopped = False
        self.watcher = Watcher(self._config, self._watcher_hooks, self._faults, self.sources)
        self._governor = Governor(self._config().cpu_budget)

    def use(self, waiters: Waiters, diagnose_early: DiagnoseEarly) -> None:
        """Set the finder of waiting callbacks, and the early diagnosis of a block for their traces."""
        self._waiters, self._diagnose_early = waiters, diagnose_early

    def start(self) -> None:
        """Accept loops from now on; starts no thread before the first loop."""
        if self._has_stopped:
            self._renew()
        self._set_on(True)
        self.watcher.gc.start()
        self._discovery = LoopDiscovery(
            self._patches,
            self.loop_started,
            self._loop_stopped,
            self._loop_closing,
            lambda text: self._faults.say(logging.WARNING, text),
        )

    def discover(self, own: Loop | None) -> list[Loop]:
        """Discover loops from now on; return the running ones that are watched now, except ``own``."""
        self._starts.start()
        if self._discovery is None:
            return []
        self._discovery.start()
        found: list[Loop] = []
        with self._faults.guard("search"):  # a part of its own: its faults do not end the discovery of later loops
            for loop in self._discovery.running():
                if loop is not own:
                    self.take(loop)
                    found.append(loop)
        return found

    def end_discovery(self) -> None:
        """Accept no more loops; watched ones stay watched."""
        self._set_on(False)
        if self._discovery is not None:
            self._discovery.stop()
        self._starts.stop()

    def _set_on(self, is_on: bool) -> None:
        """Accept loops, or none; code that is expected to block is marked while any agent does."""
        if is_on != self._is_on:
            self._is_on = is_on
            marks.watchers += 1 if is_on else -1

    def stop(self, timeout: float) -> None:
        """End the thread and detach from every loop; waits at most ``timeout`` seconds."""
        self._has_stopped = True
        with self._faults.guard("watcher"):
            self.watcher.stop(timeout)

    def after_fork_in_child(self, *, goes_on: bool) -> None:
        """Start over in a forked child, which runs none of the loops; ``goes_on`` is ``Config.follow_fork``."""
        old = self.watcher
        self._pid = os.getpid()
        self._starts.forget()
        self._renew()
        old.abandon()
        if goes_on:
            self.watcher.gc, self.watcher.paused = old.gc, old.paused
        else:
            old.gc.stop()
            self.end_discovery()

    def look(self) -> None:
        """Sample the loops that are blocked, in the calling thread, after a fork."""
        self.watcher.look()

    def pause(self, is_paused: bool) -> None:
        """Pause or resume watching."""
        self.watcher.paused = is_paused
        self.apply_settings()

    def apply_settings(self) -> None:
        """Apply the current settings to every loop from now on."""
        now, config = time.monotonic(), self._config()
        self._governor.budget = config.cpu_budget
        for loop in self.loops:
            loop.heart.set_interval(config.heartbeat)
            with self._faults.guard("probe"):
                # Blocks before now are judged by the previous limit.
                loop.probe.cut(now) if _runs_here(loop.ref()) else loop.probe.busy_since(now)
                loop.probe.set_limit(self._limit())
        self.watcher.wake()

    # -- state ----------------------------------------------------------------------------------------------------

    def has_stopped(self) -> bool:
        """Whether the service accepts no loops."""
        return not self._is_on

    @property
    def loops(self) -> tuple[WatchedLoop, ...]:
        """The watched loops."""
        return self.watcher.loops

    @property
    def thread(self) -> OwnThread:
        """The watcher's thread."""
        return self.watcher.thread

    @property
    def cpu(self) -> float:
        """Processor seconds of the watcher's thread."""
        return self.watcher.cpu

    @property
    def share(self) -> float:
        """Share of a processor that the whole agent used recently."""
        return self._governor.share

    @property
    def state(self) -> str:
        """``off``, ``paused``, ``watching``, or ``waiting`` while there is no loop."""
        if not self._is_on or self._faults.is_off("watcher"):
            return "off"
        if self.watcher.paused:
            return "paused"
        return "watching" if self.loops else "waiting"

    def open_loops(self) -> list[Loop]:
        """Return the event loops themselves."""
        return [loop for known in self.loops if (loop := known.ref()) is not None]

    def stats(self, now: float) -> tuple[LoopStats, ...]:
        """Return the statistics of all loops at ``now``, ``time.monotonic`` seconds."""
        return tuple(loop.stats(now) for loop in self.loops if not loop.gone)

    def readings(self, now: float) -> list[LoopReading]:
        """Return the readings that loop metrics are computed from, at ``now``, ``time.monotonic`` seconds."""
        return [loop.reading(now) for loop in self.loops if not loop.gone]

    def threads_of_loops(self) -> dict[int, str]:
        """Return the names of the running loops, by the ident of their threads."""
        return {loop.thread.ident: loop.name for loop in self.loops if loop.thread and loop.is_running}

    def find(self, loop: Loop) -> WatchedLoop | None:
        """Return the :class:`WatchedLoop` of ``loop``, None if it is not watched."""
        return next((known for known in self.loops if known.ref() is loop), None)

    def name_of(self, loop: Loop) -> str | None:
        """Return the name of ``loop``, None if it is not watched."""
        known = self.find(loop)
        return None if known is None else known.name

    # -- loops ----------------------------------------------------------------------------------------------------

    def watch(self, loop: Loop, name: str | None) -> None:
        """Watch a loop given by the program, under ``name``, by default named after its thread.

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
        self.take(loop, name, given=True)

    def take(self, loop: Loop, name: str | None = None, *, given: bool = False) -> None:
        """Watch a loop that may be running, in any thread; ``given``: the program asked for it."""
        known = self.find(loop)
        if known is not None:
            known.name = name or known.name
        elif (runs_here := _runs_here(loop)) or not (given or is_known(loop)):
            self.loop_started(loop, name, given=given, in_callback=runs_here)
        else:
            loop.call_soon_threadsafe(functools.partial(self.loop_started, loop, name, given=given))

    def add_context(self, source: ContextSource) -> Callable[[], None]:
        """Add ``source`` to the sources of the blocking callback's labels; return a function that removes it."""
        if source not in self.sources:
            self.sources.append(source)

        def remove() -> None:
            if source in self.sources:
                self.sources.remove(source)

        return remove

    def lapse(self) -> Lapse[Any]:
        """Return what another thread of the agent reports to when it was kept from running."""
        return Lapse(lambda: self.watcher.glimpse(), lambda *late: self.watcher.came_late(*late), LATE)

    def was_kept(self) -> bool:
        """Whether a call has just kept the GIL from the agent's threads for long."""
        return self.watcher.was_kept()

    def cut(self, loop: Loop) -> None:
        """End the busy span of ``loop`` now, as if it had gone idle; on its thread."""
        known = self.find(loop)
        if known is not None:
            known.probe.cut(time.monotonic())

    def loop_started(
        self, loop: Loop, name: str | None = None, *, given: bool = False, in_callback: bool = False
    ) -> None:
        """Watch a loop that is about to run, or is running a callback (``in_callback``); on its thread."""
        self._faults.run("discovery", self._loop_started, loop, name, given=given, in_callback=in_callback)

    def _loop_started(self, loop: Loop, name: str | None, *, given: bool, in_callback: bool) -> None:
        if self.has_stopped() or not threading.main_thread().is_alive():
            return  # in the latter case the interpreter is about to exit and starts no more threads
        self._hooks.loop_begins()
        known = self.find(loop) or self._attach(loop, name, given=given)
        if known is None:
            return
        known.started(in_callback=in_callback)
        self._starts.loop_started(known)
        self.watcher.ensure_thread()
        self._hooks.loop_runs(loop)
        if self.has_stopped():  # a signal handler or another thread has stopped the service meanwhile
            self.watcher.remove((known,))

    def _attach(self, loop: Loop, name: str | None, *, given: bool) -> WatchedLoop | None:
        """Attach a probe to ``loop``; return None for a kind that must not be watched, which is logged once."""
        self.watcher.remove(known for known in self.loops if known.gone)
        if self._discovery is not None:
            self._discovery.see_closing()

        def failed(exc: BaseException) -> None:
            self._faults.add("probe", exc)

        probe = make_probe(loop, self._limit(), self._patches, failed, given=given)
        if probe is None:
            self._leave_alone(type(loop))
            return None
        beats = given or keeps_real_time(loop)
        heartbeat = self._config().heartbeat if beats else None
        known = WatchedLoop(loop, printable(name) or self._name(), probe, heartbeat, failed)
        self.watcher.add(known)
        return known

    def _leave_alone(self, kind: type[Any]) -> None:
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
        """Record that ``loop`` has stopped running; on its thread."""
        if os.getpid() != self._pid:
            return  # asyncio's own fork handler, run before the agent's (on_fork in asyncio/events.py since 3.12)
        self._faults.always("discovery", self._end_run, loop)

    def _end_run(self, loop: Loop) -> None:
        known = self.find(loop)
        if known is not None:
            known.stopped()
            self._starts.loop_stopped(known)
            self.watcher.wake_if_blocked(known)

    def _loop_closing(self, loop: Loop) -> None:
        """Detach from a uvloop loop, right before its memory is freed."""
        self._faults.always("discovery", self.watcher.detach, loop)

    def _retired(self, loop: WatchedLoop) -> None:
        self._starts.retired(loop)
        self._hooks.loop_gone(loop.reading(time.monotonic()))

    def _name(self) -> str:
        name = "main" if threading.get_ident() == threading.main_thread().ident else printable(thread_name())
        taken = {known.name for known in self.loops}
        return next(free for n in range(1, len(taken) + 2) if (free := name if n == 1 else f"{name}-{n}") not in taken)

    def _limit(self) -> float:
        return float("inf") if self.watcher.paused else lowest(self._config())

    def _longest_start(self) -> float:
        return max(LONGEST, self._config().hang_after)

    def _tick(self, now: float) -> None:
        stretch = self._governor.update(now, self._hooks.cpu())
        self.watcher.stretch = stretch
        if stretch > 1 and not self._has_said_slow:
            self._has_said_slow = True
            self._faults.say(
                logging.INFO,  # nothing is wrong with the program, and nothing needs to be done
                "loopwatch: its own processor time (%.1f %% of a core) is over cpu_budget=%g; it looks less often now",
                self._governor.share * 100, self._config().cpu_budget,
            )  # fmt: skip
        self._starts.tick(now)
        self._hooks.ticked(now)


def _runs_here(loop: Loop | None) -> bool:
    return loop is not None and running_loop() is loop

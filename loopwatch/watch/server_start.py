"""Starts of servers: blocks of the loop are expected until the server listens, then reported in one line.

Imports of the application and blocking work in its lifespan block the loop before any client can wait for it. A start
begins when a known server's coroutine for it runs on a loop, and ends when the server listens, when the loop stops, or
after :data:`LONGEST`. A loop on which a server already listens has no further start.

Nothing here runs more often than a server or a loop is started.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator
from types import CodeType, CoroutineType, ModuleType
from typing import Any

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.faults import Faults
from loopwatch.core.originals import time
from loopwatch.core.patches import ListItem, PatchSet, when_imported
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.probes.base import IDLE, Loop
from loopwatch.watch.watched_loop import WatchedLoop

PART = "server start"
"""Name under which faults are counted."""

LONGEST = 20.0
"""Seconds that a start may take; a later block, and one that goes on then, is reported as usual.

Less than the 30 seconds after which gunicorn kills a worker that does not answer, and after which a hang pages someone.
"""

SETTLED = 0.2
"""Seconds after the end of a start until its blocks have been passed on."""

_DEPTH = 100
"""Frames, or coroutines that await each other, that are searched."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is recognised. Names missing in the installed version are skipped.

    Attributes:
        name: of the package.
        module: in which the names below are looked up.
        begins: coroutine functions whose call begins the start.
        listens: function called when the server listens, or will within the same pass of the loop; None where the
            loop is stopped then.
        lasting: functions of ``begins`` that run as long as the server: one found running does not show a start.
    """

    name: str
    module: str
    begins: tuple[str, ...]
    listens: str | None = None
    lasting: tuple[str, ...] = ()


SERVERS = (
    # Also with its --workers and --reload, and as a worker class of gunicorn.
    Server("uvicorn", "uvicorn.server", ("Server.serve", "Server.startup"), "Server.main_loop"),
    Server("hypercorn", "hypercorn.asyncio.run", ("Lifespan.handle_lifespan",), "raise_shutdown"),
    Server("aiohttp", "aiohttp.web", ("BaseRunner.setup", "_run_app"), "BaseSite.start", lasting=("_run_app",)),
    # Runs the loop once for the application's lifespan, and then again for requests.
    Server("granian", "granian.asgi", ("LifespanProtocol.startup",)),
    # Likewise, to build its routes.
    Server("sanic", "sanic.app", ("Sanic._startup",)),
)


@dataclass(frozen=True, slots=True)
class _Role:
    """The role of a server's function: whether the server listens when it is called, and whether it lasts."""

    server: Server
    listens: bool
    lasting: bool


@dataclass(slots=True)
class _Start:
    """The start of a server on one loop: whether it has listened, the loop has stopped, it is reported."""

    loop: WatchedLoop
    server: Server
    expectation: Expectation
    has_listened: bool = False
    has_stopped: bool = False
    is_reported: bool = False


class ServerStarts:
    """Recognises the starts of servers on watched loops.

    Args:
        patches: holds the replaced functions; undone by its owner.
        faults: of the agent.
        find: returns the watched loop for a loop, None if it is not watched.
        longest: returns the seconds that a start may take.
        report: receives a finished start, and whether the server listens; must not block.
    """

    def __init__(
        self,
        patches: PatchSet,
        faults: Faults,
        find: Callable[[Loop], WatchedLoop | None],
        longest: Callable[[], float],
        report: Callable[[Expectation, bool], object],
    ) -> None:
        self._patches, self._faults = patches, faults
        self._find, self._longest, self._report = find, longest, report
        self._is_on = self._is_hooked = False
        self._hooks: list[ListItem] = []
        self._roles: dict[CodeType, _Role] = {}
        self._starts: dict[Hashable, _Start] = {}
        self._listening: set[Hashable] = set()

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recognise servers from now on; installs no hook before a loop runs."""
        self._is_on = True

    def stop(self) -> None:
        """Recognise no more servers, and remove the import hooks."""
        self._is_on = self._is_hooked = False
        for hook in self._hooks:
            hook.undo()
        self._hooks.clear()
        self._roles.clear()

    def forget(self) -> None:
        """Drop the state of all loops, in a forked child, which runs none of them."""
        self._starts.clear()
        self._listening.clear()

    # -- on the loop's thread -------------------------------------------------------------------------------------

    def loop_started(self, loop: WatchedLoop) -> None:
        """Look for a start on a loop that is about to run, or was found running."""
        if not self._is_on or self._faults.is_off(PART):
            return
        with self._faults.guard(PART):
            self._hook()
            target = loop.ref()
            if self._roles and target is not None:
                self._look_for_start(loop, target)

    def loop_stopped(self, loop: WatchedLoop) -> None:
        """Forget that a server listens on a loop that stops: the next server on it has a start of its own."""
        self._listening.discard(loop.key)
        start = self._starts.get(loop.key)
        if start is not None:
            start.expectation.end(time.monotonic())
            start.has_stopped = True
            start.has_listened |= start.server.listens is None

    def _hook(self) -> None:
        if not self._is_hooked:
            self._is_hooked = True
            for server in SERVERS:
                self._hooks += when_imported(server.module, functools.partial(self._imported, server))

    def _imported(self, server: Server, module: ModuleType) -> None:
        if not self._is_on or self._faults.is_off(PART):
            return
        with self._faults.guard(PART):
            for name in (*server.begins, server.listens):
                owner, attribute = _owner_of(module, name) if name is not None else (None, "")
                function = getattr(owner, attribute, None)
                if owner is None or function is None:
                    continue  # another version: blocks of a start that is not recognised are reported as usual
                listens = name == server.listens
                if (code := getattr(function, "__code__", None)) is not None:
                    self._roles[code] = _Role(server, listens, name in server.lasting)
                around = self._listens if listens else functools.partial(self._begins, server)
                self._patches.around(owner, attribute, around)

    def _begins(self, server: Server, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        loop = self._running_loop()
        if loop is not None:
            with self._faults.guard(PART):
                self._begin(loop, server)
        return original(*args, **kwargs)

    def _listens(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        loop = self._running_loop()
        if loop is not None:
            with self._faults.guard(PART):
                self._listening.add(loop.key)
                start = self._starts.get(loop.key)
                if start is not None:
                    start.expectation.end(time.monotonic())
                    start.has_listened = True
        return original(*args, **kwargs)

    def _running_loop(self) -> WatchedLoop | None:
        known = None
        if not self._faults.is_off(PART):
            with self._faults.guard(PART):
                loop = asyncio._get_running_loop()
                known = None if loop is None else self._find(loop)
        return known

    def _begin(self, loop: WatchedLoop, server: Server) -> None:
        """Begin the start of ``server`` on ``loop``, unless a server listens or has begun since the loop runs."""
        now, before = time.monotonic(), self._starts.get(loop.key)
        if loop.key in self._listening or (before is not None and not before.has_stopped):
            return
        if before is not None:
            self._end(before)
        start = _Start(loop, server, Expectation(f"start-up of {server.name}", loop.name, now, now + self._longest()))
        self._starts[loop.key] = start
        loop.expectations.add(start.expectation)

    def _look_for_start(self, loop: WatchedLoop, target: Loop) -> None:
        """Find a server that starts with the loop or, where the agent was installed later, is still starting."""
        found: set[Server] = set()
        for code, is_new in _running_in(target):
            role = self._roles.get(code)
            if role is None:
                continue
            if role.listens:
                self._listening.add(loop.key)
                return
            if is_new or not role.lasting:
                found.add(role.server)
        for server in found:
            self._begin(loop, server)

    # -- in the watcher's thread ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Report finished starts, once their blocks have been passed on."""
        if not self._starts or self._faults.is_off(PART):
            return
        with self._faults.guard(PART):
            for start in tuple(self._starts.values()):
                ended = start.expectation.until
                if now >= ended + SETTLED and (start.loop.since == IDLE or start.loop.since > ended):
                    self._end(start)

    def retired(self, loop: WatchedLoop) -> None:
        """Report the start on a loop that is no longer watched, after its last blocks; from any thread."""
        self._listening.discard(loop.key)
        start = self._starts.pop(loop.key, None)
        if start is not None:
            with self._faults.guard(PART):
                self._end(start)

    def _end(self, start: _Start) -> None:
        if not start.is_reported:
            start.is_reported = True
            self._report(start.expectation, start.has_listened)


def _owner_of(module: ModuleType, name: str) -> tuple[Any, str]:
    """Return the object that has ``name``, ``Class.method`` or ``function`` of ``module``, and the attribute's name."""
    owner, _, attribute = name.rpartition(".")
    return (getattr(module, owner, None) if owner else module), attribute


def _running_in(loop: Loop) -> Iterator[tuple[CodeType, bool]]:
    """Yield the code of coroutines in ``loop``'s tasks and of this thread's frames, and whether it has yet to begin."""
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        for _ in range(_DEPTH):
            if not isinstance(coroutine, CoroutineType):
                break
            frame = coroutine.cr_frame
            yield coroutine.cr_code, frame is not None and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
            coroutine = coroutine.cr_await
    frame = sys._getframe(1) if asyncio._get_running_loop() is loop else None
    for _ in range(_DEPTH):
        if frame is None:
            break
        yield frame.f_code, False
        frame = frame.f_back

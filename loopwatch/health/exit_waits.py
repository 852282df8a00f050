"""Notices that a program does not end, as its last steps wait for the jobs of executors or for threads.

These steps are ``loop.shutdown_default_executor()``, by which :func:`asyncio.run` ends, ``shutdown(wait=True)`` of any
executor on a loop's thread, and the interpreter's own: ``threading._shutdown``, which also runs
``concurrent.futures.thread._python_exit``. Each is only noted when it begins and ends; a thread of the agent looks.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from loopwatch.config import Config
from loopwatch.core.dataclasses import dataclass
from loopwatch.core.frames import current_frames
from loopwatch.core.off_loop import running_loop
from loopwatch.core.originals import time
from loopwatch.core.patches import Patch
from loopwatch.core.text import printable
from loopwatch.core.threads.own_thread import OWN_THREADS
from loopwatch.health.hooks import Hooks
from loopwatch.health.records import Awaited, ExitWait, Waiter
from loopwatch.health.watched_pool import Watched

INTERPRETER = "the interpreter"
"""What the wait of ``threading._shutdown`` is reported under."""
MAX_FRAMES = 50
"""Frames read of a thread."""


@dataclass(slots=True)
class _Wait:
    """A step that has begun and not ended.

    Attributes:
        waiter: which step it is.
        since: when it began, ``time.monotonic`` seconds.
        watched: the executor it waits for, None for the interpreter's own step.
        is_seen: whether it was looked at after ``Config.hang_after``.
    """

    waiter: Waiter
    since: float
    watched: Watched | None = None
    is_seen: bool = False


class ExitWaits:
    """The waits of a program that is about to end.

    Args:
        config: returns the current settings.
        begun: called when a wait begins, with whether a thread can still be started.
    """

    def __init__(self, config: Callable[[], Config], begun: Callable[[bool], object] = lambda _may_start: None) -> None:
        self._config, self._begun = config, begun
        self._waits: dict[object, _Wait] = {}

    def start(self, hooks: Hooks) -> None:
        """Hook the interpreter's last step, which calls ``threading._shutdown`` by its name (pylifecycle.c)."""
        hooks.patches.replace(threading, "_shutdown", _around).state = (
            hooks.guarded(self._interpreter_begins, whose=threading),
            hooks.guarded(self._interpreter_ends, whose=threading),
        )

    def forget(self) -> None:
        """Forget all waits, such as those of other threads in a forked child."""
        self._waits = {}

    # -- what happens ---------------------------------------------------------------------------------------------

    def begin(self, watched: Watched) -> None:
        """Note that the calling thread waits for the end of an executor: counted if a loop waits with it."""
        if watched.identity.kind == "default":
            waiter = Waiter.RUN
        elif running_loop() is not None:
            waiter = Waiter.LOOP
        else:
            return
        self._waits[watched] = _Wait(waiter, time.monotonic(), watched)
        self._begun(True)

    def end(self, watched: Watched) -> None:
        """Note that a wait for ``watched`` is over."""
        self._waits.pop(watched, None)

    def _interpreter_begins(self) -> None:
        if any(True for _ in _unfinished_threads()):
            self._waits[INTERPRETER] = _Wait(Waiter.INTERPRETER, time.monotonic())
            self._begun(False)  # since 3.12 no thread starts then (Modules/_threadmodule.c)

    def _interpreter_ends(self) -> None:
        self._waits.pop(INTERPRETER, None)

    # -- what is seen ---------------------------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        """Whether there is a wait."""
        return bool(self._waits)

    def due(self) -> float:
        """Return when a wait has to be looked at first (``time.monotonic`` seconds), infinite if there is none."""
        after = self._config().hang_after
        return min((wait.since + after for wait in self._all() if not wait.is_seen), default=float("inf"))

    def overdue(self, now: float, pools: Iterable[Watched]) -> tuple[ExitWait, ...]:
        """Return the waits that have lasted for ``Config.hang_after``, with what they wait for.

        Args:
            now: ``time.monotonic`` seconds.
            pools: all watched executors.
        """
        after = self._config().hang_after
        late = [wait for wait in self._all() if now - wait.since >= after]
        if not late:
            return ()
        pools, where = list(pools), _Whereabouts(self._config())
        found = []
        for wait in late:
            wait.is_seen = True
            jobs = tuple(_of(wait.watched, where) if wait.watched is not None else _of_all(pools, where))
            if jobs:
                subject = INTERPRETER if wait.watched is None else wait.watched.identity.name
                found.append(ExitWait(wait.waiter, subject, now - wait.since, jobs))
        return tuple(found)

    def _all(self) -> list[_Wait]:
        return list(self._waits.copy().values())


def _around(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def _shutdown() -> Any:
        if not patch.active:
            return original()
        begins, ends = patch.state
        begins()
        try:
            return original()
        finally:
            ends()

    return _shutdown


def _unfinished_threads() -> Iterator[threading.Thread]:
    """Yield the threads that the interpreter waits for."""
    main = threading.main_thread()
    for thread in threading.enumerate():
        if not thread.daemon and thread is not main and not thread.name.startswith(OWN_THREADS) and thread.is_alive():
            yield thread


def _of(watched: Watched, where: _Whereabouts) -> Iterator[Awaited]:
    for name, thread in watched.unfinished():
        yield Awaited(name, *(("", "") if thread is None else where.of(thread)))


def _of_all(pools: Sequence[Watched], where: _Whereabouts) -> Iterator[Awaited]:
    """Yield the jobs that keep the interpreter waiting, then the threads that belong to no watched executor."""
    threads = list(_unfinished_threads())
    for watched in pools:
        if any(watched.has_thread(thread) for thread in threads):
            yield from _of(watched, where)
    for thread in threads:
        if not any(watched.has_thread(thread) for watched in pools):
            yield Awaited(f"thread {printable(thread.name)!r}", *where.of(thread))


class _Whereabouts:
    """Locates threads: the line of the program that each is in, and the call that it makes there.

    Args:
        config: settings, which decide whose code a frame is.
    """

    def __init__(self, config: Config) -> None:
        from loopwatch.diagnosis.site import Site

        self._site = Site.here(config.user_code, config.library_code, sys.orig_argv)

    def of(self, thread: threading.Thread) -> tuple[str, str]:
        """Return ``module:function (file:line)`` and the dotted name of the innermost call; empty where unknown."""
        from loopwatch.watch.stacks import call_at, take, to_frames, uncollected

        with uncollected():
            frame = current_frames().get(thread.ident or 0)
            if frame is None:
                return "", ""
            stack, _ = take(frame, None, MAX_FRAMES)
            del frame
        frames = to_frames(stack.frames)
        shown = next((index for index in reversed(range(len(frames))) if self._site.is_user(frames[index])), -1)
        if not frames:
            return "", ""
        place, inner = frames[shown], frames[shown + 1 :] if shown >= 0 else ()
        if inner:
            call = f"{inner[0].module}.{inner[0].function}"
        else:
            call = printable(call_at(stack.frames[0], stack.globals) or "")
        return f"{place.module}:{place.function} ({place.file}:{place.line})", call

"""Finds the callbacks that waited during a block (its victims), and hands their trace contexts to a thread.

A callback that is ready carries its context, and in it what OpenTelemetry calls the current span. When a block ends the
loop's thread looks into the contexts of those that are ready or due, a bounded number, and only where somebody uses
tracing; if there are any it waits until the thread has told them, at most :data:`PATIENCE`, as their spans may end
right after. Nothing of OpenTelemetry runs on the loop's thread.

- asyncio: at the end of a long pass the ready handles and due timers are read, and one pass later those that were woken
  by them or by the first poll. Handles *behind* the blocking one in its own pass would run before that: during the
  block a handle of ours is put before them.
- uvloop: a callback of ours is scheduled during the block. It runs after what was ready then, whose spans are told in
  advance (with the duration so far), and before everything that timers and events have woken since.

What cannot be had: a request that came in during the block has no span yet; blocks that are over before the watcher can
look (those that keep the GIL) on uvloop; loops that are neither asyncio's nor uvloop's.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from loopwatch.core.alarm import Alarm
from loopwatch.core.dataclasses import dataclass
from loopwatch.core.faults import Faults
from loopwatch.core.off_loop import wait_until
from loopwatch.core.originals import time
from loopwatch.core.own_thread import OwnThread
from loopwatch.watch.observation import Case, Episode, Notice, Variable
from loopwatch.watch.probes.base import LET_IN, Loop
from loopwatch.watch.watched_loop import WatchedLoop

PATIENCE = 0.0015
"""s that a loop waits at most, at the end of a block, until the traces of those who waited are told.

Measured: 0.45 ms for 5 of them, 0.85 ms for 20, of which 0.05 ms are the way to the thread."""
BATCH = 4
"""Contexts that are told at a time: between two batches a loop that has waited long enough gets the GIL."""
MAX_HANDLES = 200
"""Callbacks of which it is looked into their contexts."""
MAX_CONTEXTS = 40
"""Contexts that are handed over at a time."""


@dataclass(slots=True)
class _Job:
    run: Callable[[], object]
    is_done: bool = False


class Waiters:
    """Finds those who wait, and has them told in a daemon thread, which starts when tracing is first seen in use.

    Args:
        variable: returns the variable in which contexts carry the current span, None while nobody uses tracing; cheap.
        begin: takes a block that will be a stall, and its start in s since the epoch: what can be done before it ends.
        tell: tells those of a notice.
        faults: where failures are counted.
    """

    def __init__(
        self,
        variable: Callable[[], Variable | None],
        begin: Callable[[Case, float], object],
        tell: Callable[[Notice], object],
        faults: Faults,
    ) -> None:
        self._find = variable
        self._begin = begin
        self._tell = tell
        self._faults = faults
        self._variable: Variable | None = None
        self._jobs: deque[_Job] = deque()
        self._alarm = Alarm()
        self.thread = OwnThread(
            "victims", self._run, lambda: self._alarm.wake(), lambda: self._jobs, lambda exc: faults.add("victims", exc)
        )
        self._stopping = False

    @property
    def cpu(self) -> float:
        """Processor s of its thread."""
        return self.thread.cpu

    # -- life -----------------------------------------------------------------------------------------------------

    def renew(self, loops: Iterable[WatchedLoop], *, wanted: bool = True) -> None:
        """Find out whether somebody uses tracing now, and have the probes tell who waits if so; once a tick."""
        wanted = wanted and not self._stopping and not self._faults.is_off("victims")
        self._variable = self._find() if wanted else None
        if self._variable is not None:
            self.thread.start()
        for loop in loops:
            if self._variable is None:
                loop.probe.on_end(None)
            else:
                loop.pending = loop.pending or Pending(self, loop)
                loop.probe.on_end(loop.pending.waited if loop.probe.handles else loop.pending.overslept)

    @property
    def in_use(self) -> bool:
        """Whether somebody uses tracing."""
        return self._variable is not None

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread; waits at most ``timeout`` seconds."""
        self._stopping, self._variable = True, None
        self.thread.end(timeout)

    def _run(self) -> None:
        while self.thread.stays():
            while self._jobs and not self.thread.is_asked:
                job = self._jobs.popleft()
                with self._faults.guard("victims"):
                    job.run()
                job.is_done = True
                del job  # it would keep the program's objects until the next one
            if not self.thread.is_asked:
                self._alarm.wait()

    def _do(self, run: Callable[[], object], patience: float = 0.0) -> None:
        job = _Job(run)
        self._jobs.append(job)
        self._alarm.wake()
        if patience > 0:
            wait_until(lambda: job.is_done, patience)

    # -- during a block, in the watcher's thread --------------------------------------------------------------------

    def suspected(self, loop: WatchedLoop, since: float, threshold: float, behind: int) -> None:
        """See to it that the loop tells at the end of what may become a stall; once a block.

        Args:
            loop: the loop that is held.
            since: key of the block.
            threshold: s, from which on it is a stall.
            behind: handles that stand behind the blocking one in its pass.
        """
        case = loop.case_of(since)
        if not case.prepared:
            case.prepared = True
            self._do(lambda: self._prepare(loop, case, threshold, behind))

    def _prepare(self, loop: WatchedLoop, case: Case, threshold: float, behind: int) -> None:
        target, pending = loop.ref(), loop.pending
        queue = None if target is None else _queue_of(target)
        if target is None or queue is None or pending is None:
            return
        start = loop.probe.started(case.key)
        call = functools.partial(pending.reached, case, start, threshold, queue)
        if not loop.probe.handles:
            try:
                target.call_soon_threadsafe(call, context=contextvars.Context())
            except RuntimeError:  # it has been closed meanwhile
                pass
        elif behind and _contexts(list(queue)[:behind], self._variable):
            # The loop takes from the left as many as there were when its pass began: one of them is left for the next.
            queue.appendleft(asyncio.Handle(call, (), target, contextvars.Context()))

    def held(self, loop: WatchedLoop, since: float, episode: Episode, span: Any) -> Case | None:
        """Take note of a block that will be a stall; return it if it should be said what it looks like by now.

        Args:
            loop: the loop that is held.
            since: key of the block.
            episode: what was seen of it.
            span: context of the span that is current in the callback.
        """
        case, seen = loop.case_of(since), len(episode.samples)
        case.span = span
        if not case.judged:
            start = loop.probe.started(since)
            self._do(lambda: self._begin(case, _since_the_epoch(start)))
        if seen < 2 * case.judged:
            return None
        case.judged = seen
        return case

    def tell_in_advance(self, loop: WatchedLoop, case: Case) -> None:
        """Tell those who will run before the loop can tell that the block is over; once a block, from any thread."""
        if loop.probe.handles or case.told_in_advance:
            return
        case.told_in_advance = True
        self._do(lambda: self._tell_the_ready(loop, case))

    def _tell_the_ready(self, loop: WatchedLoop, case: Case) -> None:
        target = loop.ref()
        queue = None if target is None else _queue_of(target)
        if queue is not None and loop.since == case.key:
            start, contexts = loop.probe.started(case.key), _contexts(list(queue), self._variable)
            self._tell_those(loop, case, start, time.monotonic(), contexts, ongoing=True)

    # -- at its end -------------------------------------------------------------------------------------------------

    def hand_over(self, loop: WatchedLoop, key: float, start: float, end: float, contexts: tuple[Any, ...]) -> None:
        """Have those who carry ``contexts`` told, and wait for it; on the loop's thread."""
        self._do(lambda: self._tell_those(loop, loop.case_of(key), start, end, contexts), PATIENCE)

    def _tell_those(
        self,
        loop: WatchedLoop,
        case: Case,
        start: float,
        end: float,
        contexts: tuple[Any, ...],
        *,
        ongoing: bool = False,
    ) -> None:
        if loop.expectations.of(start, end) is not None:
            return
        began, until = _since_the_epoch(start), time.monotonic() + PATIENCE
        for index in range(0, len(contexts), BATCH):
            self._tell(Notice(case, loop.name, began, end - start, ongoing, contexts[index : index + BATCH]))
            if time.monotonic() >= until:
                time.sleep(LET_IN)  # the loop has gone on waiting for nothing but the GIL

    def contexts(self, handles: Iterable[Any]) -> tuple[Any, ...]:
        """Return what ``handles`` carry of OpenTelemetry; on the loop's thread."""
        return _contexts(handles, self._variable)


class Pending:
    """Those of one loop who were handed over for its latest block; all of it runs on the loop's thread."""

    def __init__(self, victims: Waiters, loop: WatchedLoop) -> None:
        self._victims = victims
        self._loop = loop
        self._key = 0.0
        self._told: set[int] = set()

    def waited(self, key: float, start: float, end: float, handles: Iterable[Any]) -> None:
        """Have those told who had to wait from ``start`` to ``end``, but for those who were before; must not raise."""
        victims = self._victims
        if not victims.in_use:
            return
        with victims._faults.guard("victims"):
            if key != self._key:
                self._key = key
                self._told.clear()
            new = tuple(found for found in victims.contexts(handles) if id(found) not in self._told)
            if new:
                self._told.update(map(id, new))
                victims.hand_over(self._loop, key, start, end, new)

    def overslept(self, key: float, start: float, end: float, _handles: Iterable[Any]) -> None:
        """A beat shows that the loop slept from ``start`` to ``end``, as no other loop than one of uvloop is told."""
        with self._victims._faults.guard("victims"):
            target = self._loop.ref()
            queue = None if target is None else _queue_of(target)
            if target is None or queue is None:
                return
            self.waited(key, start, end, _first(queue))
            # Behind this beat other timers may be due, whose callbacks make more tasks ready.
            target.call_soon(lambda: self.waited(key, start, end, _first(queue)), context=contextvars.Context())

    def reached(self, case: Case, start: float, threshold: float, queue: deque[Any]) -> None:
        """The loop has come to what was scheduled during the block: asyncio behind the callback, uvloop later."""
        case.reached = now = time.monotonic()
        if now - start >= threshold:
            self.waited(case.key, start, now, _first(queue))


def _since_the_epoch(monotonic: float) -> float:
    return time.time() - (time.monotonic() - monotonic)


def _queue_of(loop: Loop) -> deque[Any] | None:
    """Return the callbacks of ``loop`` that are ready, None if they cannot be reached."""
    queue = getattr(loop, "_ready", None)
    if type(queue) is deque:
        return queue
    # uvloop keeps its only deque in a C field; the collector is shown it.
    found = [item for item in gc.get_referents(loop) if type(item) is deque]
    return found[0] if len(found) == 1 else None


def _first(queue: deque[Any]) -> list[Any]:
    """Return the callbacks that run next; on the loop's thread, while others may be adding to them."""
    return [queue[index] for index in range(min(len(queue), MAX_HANDLES))]


def _contexts(handles: Iterable[Any], variable: Variable | None) -> tuple[Any, ...]:
    """Return what the contexts of ``handles`` have in ``variable``, each once, a bounded number."""
    found: dict[int, Any] = {}
    if variable is None:
        return ()
    for handle in islice(handles, MAX_HANDLES):
        context = _context_of(handle)
        carried = context.get(variable) if context is not None else None
        if carried:
            found[id(carried)] = carried
            if len(found) >= MAX_CONTEXTS:
                break
    return tuple(found.values())


def _context_of(handle: Any) -> contextvars.Context | None:
    context = getattr(handle, "_context", None)
    if isinstance(context, contextvars.Context):
        return None if getattr(handle, "_cancelled", False) else context
    return next((item for item in gc.get_referents(handle) if isinstance(item, contextvars.Context)), None)

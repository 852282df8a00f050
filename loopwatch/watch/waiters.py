"""Finds the callbacks that waited during a block (its victims), and has a thread annotate their trace spans.

A ready callback carries its context, and in it OpenTelemetry's current span. When a block ends, the loop's thread reads
the contexts of ready and due callbacks, a bounded number, and only where tracing is in use; if it finds any, it waits
until the thread has annotated their spans, at most :data:`PATIENCE`, as they may end right after. No OpenTelemetry code
runs on the loop's thread.

- asyncio: at the end of a long pass the ready handles and due timers are read, and one pass later the handles woken by
  them or by the first poll. Handles *behind* the blocking one in its own pass would run before that: during the block
  a handle of the agent is put before them.
- uvloop: a callback of the agent is scheduled during the block. It runs after the callbacks that were ready then, whose
  spans are annotated in advance (with the duration so far), and before everything woken by timers and events since.

Not covered: requests that came in during the block, which have no span yet; on uvloop, blocks that end before the
watcher can read them (blocks that keep the GIL); loops of neither asyncio nor uvloop.
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

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.faults import Faults
from loopwatch.core.off_loop import wait_until
from loopwatch.core.originals import time
from loopwatch.core.threads.alarm import Alarm
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.watch.observation import Case, Episode, Notice, Variable
from loopwatch.watch.probes.base import LET_IN, Loop
from loopwatch.watch.watched_loop import WatchedLoop

PATIENCE = 0.0015
"""Seconds that a loop waits at most, at the end of a block, until the spans of its waiters are annotated.

Measured: 0.45 ms for 5 spans, 0.85 ms for 20, of which 0.05 ms are the way to the thread."""
BATCH = 4
"""Contexts handled at a time: between two batches a loop that has waited long enough gets the GIL."""
MAX_HANDLES = 200
"""Most callbacks whose contexts are read."""
MAX_CONTEXTS = 40
"""Most contexts handed over at a time."""


@dataclass(slots=True)
class _Job:
    run: Callable[[], object]
    is_done: bool = False


class Waiters:
    """Finds waiting callbacks, and annotates their spans in a daemon thread, started once tracing is in use.

    Args:
        variable: returns the context variable that carries the current span, None while tracing is not in use; cheap.
        begin: receives a block that will be a stall, and its start in seconds since the epoch, before the block ends.
        annotate: annotates the spans of a notice.
        faults: where failures are counted.
    """

    def __init__(
        self,
        variable: Callable[[], Variable | None],
        begin: Callable[[Case, float], object],
        annotate: Callable[[Notice], object],
        faults: Faults,
    ) -> None:
        self._find = variable
        self._begin = begin
        self._annotate = annotate
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
        """Processor seconds of its thread."""
        return self.thread.cpu

    # -- life -----------------------------------------------------------------------------------------------------

    def renew(self, loops: Iterable[WatchedLoop], *, wanted: bool = True) -> None:
        """Find out whether tracing is in use, and set or remove the probes' callback for waiters; once a tick."""
        wanted = wanted and not self._stopping and not self._faults.is_off("victims")
        self._variable = self._find() if wanted else None
        if self._variable is not None:
            self.thread.start()
        for loop in loops:
            if self._variable is None:
                loop.probe.on_end(None)
            else:
                loop.pending = loop.pending or Pending(self, loop)
                loop.probe.on_end(loop.pending.waited if loop.probe.traits.ends_first else loop.pending.overslept)

    @property
    def in_use(self) -> bool:
        """Whether tracing is in use."""
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
                del job  # it would keep the program's objects alive until the next job
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
        """Schedule the agent's callback for the end of a possible stall, where it is needed; once a block.

        Args:
            loop: the blocked loop.
            since: key of the block.
            threshold: seconds from which on it is a stall.
            behind: handles behind the blocking one in its pass.
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
        if not loop.probe.traits.ends_first:
            try:
                target.call_soon_threadsafe(call, context=contextvars.Context())
            except RuntimeError:  # the loop has been closed meanwhile
                pass
        elif behind and _contexts(list(queue)[:behind], self._variable):
            # The loop pops as many handles as were ready when its pass began: one of them is left for the next pass.
            queue.appendleft(asyncio.Handle(call, (), target, contextvars.Context()))

    def held(self, loop: WatchedLoop, since: float, episode: Episode, span: Any) -> Case | None:
        """Record a block that will be a stall; return its case if an early diagnosis is due, else None.

        Args:
            loop: the blocked loop.
            since: key of the block.
            episode: samples of the block.
            span: span context current in the blocking callback.
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

    def annotate_in_advance(self, loop: WatchedLoop, case: Case) -> None:
        """Annotate the spans of callbacks that run before the block's end is detected; once a block, any thread."""
        if loop.probe.traits.ends_first or case.annotated_in_advance:
            return
        case.annotated_in_advance = True
        self._do(lambda: self._annotate_ready(loop, case))

    def _annotate_ready(self, loop: WatchedLoop, case: Case) -> None:
        target = loop.ref()
        queue = None if target is None else _queue_of(target)
        if queue is not None and loop.since == case.key:
            start, contexts = loop.probe.started(case.key), _contexts(list(queue), self._variable)
            self._annotate_contexts(loop, case, start, time.monotonic(), contexts, ongoing=True)

    # -- at its end -------------------------------------------------------------------------------------------------

    def hand_over(self, loop: WatchedLoop, key: float, start: float, end: float, contexts: tuple[Any, ...]) -> None:
        """Annotate the spans in ``contexts``, and wait for it; on the loop's thread."""
        self._do(lambda: self._annotate_contexts(loop, loop.case_of(key), start, end, contexts), PATIENCE)

    def _annotate_contexts(
        self,
        loop: WatchedLoop,
        case: Case,
        start: float,
        end: float,
        contexts: tuple[Any, ...],
        *,
        ongoing: bool = False,
    ) -> None:
        if loop.expectations.of(start, end) is not None or case.is_expected or end - start < case.limit:
            return
        began, until = _since_the_epoch(start), time.monotonic() + PATIENCE
        for index in range(0, len(contexts), BATCH):
            self._annotate(Notice(case, loop.name, began, end - start, ongoing, contexts[index : index + BATCH]))
            if time.monotonic() >= until:
                time.sleep(LET_IN)  # the loop's patience is over: it waits only for the GIL

    def contexts(self, handles: Iterable[Any]) -> tuple[Any, ...]:
        """Return the OpenTelemetry contexts that ``handles`` carry; on the loop's thread."""
        return _contexts(handles, self._variable)


class Pending:
    """The waiters of one loop handed over for its latest block; every method runs on the loop's thread."""

    def __init__(self, victims: Waiters, loop: WatchedLoop) -> None:
        self._victims = victims
        self._loop = loop
        self._key = 0.0
        self._told: set[int] = set()

    def waited(self, key: float, start: float, end: float, handles: Iterable[Any]) -> None:
        """Hand over ``handles`` that waited from ``start`` to ``end``, each context once a block; must not raise."""
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
        """Hand over the waiters of a uvloop loop that overslept from ``start`` to ``end``, by a late heartbeat."""
        with self._victims._faults.guard("victims"):
            target = self._loop.ref()
            queue = None if target is None else _queue_of(target)
            if target is None or queue is None:
                return
            self.waited(key, start, end, _first(queue))
            # Behind this heartbeat other timers may be due, whose callbacks make more tasks ready.
            target.call_soon(lambda: self.waited(key, start, end, _first(queue)), context=contextvars.Context())

    def reached(self, case: Case, start: float, threshold: float, queue: deque[Any]) -> None:
        """Run as the callback scheduled during the block: on asyncio behind the blocking one, on uvloop later."""
        case.reached = now = time.monotonic()
        if now - start >= threshold:
            self.waited(case.key, start, now, _first(queue))


def _since_the_epoch(monotonic: float) -> float:
    return time.time() - (time.monotonic() - monotonic)


def _queue_of(loop: Loop) -> deque[Any] | None:
    """Return the ready callbacks of ``loop``, None if they cannot be reached."""
    queue = getattr(loop, "_ready", None)
    if type(queue) is deque:
        return queue
    # uvloop keeps its only deque in a C field, visible to the garbage collector.
    found = [item for item in gc.get_referents(loop) if type(item) is deque]
    return found[0] if len(found) == 1 else None


def _first(queue: deque[Any]) -> list[Any]:
    """Return the callbacks that run next; on the loop's thread, while other threads may be adding to them."""
    return [queue[index] for index in range(min(len(queue), MAX_HANDLES))]


def _contexts(handles: Iterable[Any], variable: Variable | None) -> tuple[Any, ...]:
    """Return the values of ``variable`` in the contexts of ``handles``, each once, a bounded number."""
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

"""One offloadable function: decides where each call runs, runs it there, keeps its measurements."""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import threading
import types
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.process_state import living
from loopwatch.core.text import MAX_LINE, printable
from loopwatch.core.unseen import unseen
from loopwatch.errors import NotPicklable, OffloadError
from loopwatch.events import Cause, Decision, OffloadStats
from loopwatch.offloading import default_pool
from loopwatch.offloading.policy import BUDGET, ENOUGH, Measured, decide
from loopwatch.offloading.remote_call import Raised, Reference, Timed, Within, read_clocks, used_since
from loopwatch.offloading.side_effects import Probation, State
from loopwatch.workers import launch, worker
from loopwatch.workers.interpreters import gil_enabled
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.settings import settings
from loopwatch.workers.thread_backend import ThreadBackend, in_own_thread
from loopwatch.workers.totals import spent_by

KEPT = 50
"""Calls whose run times are kept for a function that runs where it is best."""
TRIPS = 5
"""Trips to a process after which it is known what one costs."""
AGAIN = 200
"""Calls after which a function of which an argument could not be pickled may go to a process again."""
CHANGES = 10
"""Decisions that are kept."""
_KEEPS_GIL = {Cause.PYTHON: True, Cause.NATIVE_GIL: True, Cause.NATIVE: False}


class Moved:
    """A function and what is known of it.

    Args:
        function: the plain function or coroutine function.
        to: a place, a backend, or None for what is configured.
        options: of its calls.
        pool: for calls to a process, None for the default one.
        way: how the user named it: see :class:`OffloadStats`.

    Attributes:
        bound: why it must not run in another process; empty if it may.
        probation: compares what it changes before its first trip to a process; None if it is not asked.
        stays: why it must not run on any other thread; empty if it may.
        shares_context: what it sets in a thread is seen by its caller, as it is of a function that was not moved.
        left: why calls that were to be moved ran inline nevertheless, and how many.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        to: Any,
        options: CallOptions,
        pool: WorkerPool | None = None,
        way: str = "offload",
    ) -> None:
        self.function, self.options, self.pool, self.way = function, options, pool, way
        self.name = f"{printable(function.__module__)}:{printable(function.__qualname__)}"
        self.bound = self.stays = ""
        self.shares_context = False
        self.probation: Probation | None = None
        self.left: Counter[str] = Counter()
        self._to = to
        self._is_coroutine = inspect.iscoroutinefunction(function)
        self._reference: Any = function
        if "<locals>" not in function.__qualname__ and "<lambda>" not in function.__qualname__:
            self._reference = Reference(function.__module__, function.__qualname__)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._inline, self._backend = spent_by(self, "inline"), spent_by(self, "backend")
        self._away = 0
        self._runs: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._trips: deque[float] = deque(maxlen=TRIPS)
        self._decision = Decision("inline", "not called yet")
        self._is_slow = True
        """Whether its last call took so long that measuring it well costs nothing beside it, or is not known yet."""
        self._cause = Cause.UNKNOWN
        self._bound_until: int | None = None
        self._changes: deque[Decision] = deque(maxlen=CHANGES)
        living(Moved).add(self)

    @property
    def to(self) -> Any:
        """Where its calls are sent: what it was decorated with, else what is configured."""
        return settings.offload_to if self._to is None else self._to

    @property
    def decision(self) -> Decision:
        """Where its next call runs, and why."""
        if self.stays:
            return Decision("inline", self.stays)
        return self._decision if self.to == "auto" else Decision(_label(self.to), "as it was told")

    def place(self) -> Any:
        """Return where the next call is to run."""
        if worker.here.is_worker:
            return "inline"  # no pools within pools
        if self.to != "auto":
            return "inline" if self.to == "thread" and in_own_thread() else self.to
        to = self._decision.to
        if self.stays or (to == "thread" and in_own_thread()):
            return "inline"
        if to == "process" and self.probation is not None and self.probation.left:
            return "inline"
        return to

    async def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call where it is to run."""
        return await self.run(self.place(), args, kwargs)

    @unseen
    async def run(self, place: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call at ``place``."""
        if place == "inline":
            return await self._inline_to_its_end(args, kwargs)
        result = await self.elsewhere(place, args, kwargs)
        if type(result) is Raised:
            raise result.error
        return result

    async def elsewhere(self, place: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call in another thread or process, or on a backend.

        Of a function that shares the context of its caller, returns :class:`Raised` for what it raised that cannot be
        raised here.
        """
        self._counts["calls"] += 1
        try:
            if self.to == "auto":
                result = await self._measured_elsewhere(place, args, kwargs)
                self._counts["failed"] += type(result) is Raised
                return result
            self._counts[_label(place)] += 1
            return await self._send(place, self._sent(place), args, kwargs)
        except BaseException:
            self._counts["failed"] += 1
            raise

    def _timed(self, function: Any) -> Timed:
        """Return what is sent for the function: with the context of its caller it does what a call does."""
        return Timed(function, as_called=self.shares_context, awaits=self._is_coroutine or not self.shares_context)

    def _sent(self, place: Any) -> Any:
        """Return what is sent there for the function: itself, or to another process its name, if it is known there."""
        by_name = place != "thread" and (launch.main_is_importable() or not _of_main(self.function))
        return self._reference if by_name else self.function

    async def _send(self, place: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if place == "thread":
            return await default_pool.in_thread(function, args, kwargs, self.options, stays=self.way == "offload")
        if place == "process" and self.pool is None:
            return await default_pool.in_process(function, args, kwargs, self.options, stays=self.way == "offload")
        backend: Any = self.pool if place == "process" else place
        if isinstance(backend, WorkerPool | ThreadBackend):
            return await backend.submit(function, args, kwargs, self.options)
        began = time.perf_counter()
        try:
            return await backend.submit(function, args, kwargs, self.options)
        finally:
            self._backend.run += time.perf_counter() - began

    # -- inline ---------------------------------------------------------------------------------------------------

    @unseen
    def inline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call of a plain function here and now, and measure it."""
        self._counts["calls"] += 1
        self._counts["inline"] += 1
        before = self._before(args, kwargs)
        began = read_clocks(exact=self._is_slow)
        try:
            result = self.function(*args, **kwargs)
        except BaseException:
            self._counts["failed"] += 1
            raise
        finally:
            run, cpu = used_since(began)
            self._inline.run += run
            self._measured(run, cpu)
        self._after(before, args, kwargs, result)
        return result

    @unseen
    async def _inline_to_its_end(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not self._is_coroutine:
            result = self.inline(args, kwargs)
            return await result if inspect.isawaitable(result) else result
        self._counts["calls"] += 1
        self._counts["inline"] += 1
        before = self._before(args, kwargs)
        try:
            result = await _in_steps(self.function(*args, **kwargs), self._stepped, exact=self._is_slow)
        except BaseException:
            self._counts["failed"] += 1
            raise
        self._after(before, args, kwargs, result)
        return result

    def _before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> State | None:
        if self.probation is None or not self.probation.left or worker.here.is_worker:
            return None
        return self.probation.before((args, kwargs))

    def _after(self, before: State | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        if self.probation is None:
            return
        self.probation.after(before, (args, kwargs), result)
        if self.probation.against:
            self.bound, self.probation = self.probation.against, None
            self._decide()

    # -- elsewhere, and measured ----------------------------------------------------------------------------------

    async def _measured_elsewhere(self, place: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run where the policy says, with the function measured there."""
        began, alone = time.perf_counter(), self._away == 0
        self._away += 1
        try:
            if place == "thread" and self.shares_context:
                result, run, cpu = await self._in_the_same_context(args, kwargs)
            else:
                if place == "process" and await self._differs_there():
                    return await self._measured_elsewhere("thread", args, kwargs)
                result, run, cpu = await self._send(place, self._timed(self._sent(place)), args, kwargs)
        except NotPicklable as exc:
            self._bind_for_now(str(exc))
            if isinstance(exc.__cause__, worker.RemoteTraceback):  # of the result: the call has run, and runs once
                raise
            return await self._measured_elsewhere("thread", args, kwargs)
        except OffloadError as exc:
            if type(exc) is OffloadError and self.shares_context and not self.bound:  # what it raised did not survive
                self.bound = str(exc)
                self._decide()
            raise
        finally:
            self._away -= 1
        self._counts[place] += 1
        if place == "process" and alone:  # else it may have waited for those before it: that is no part of the way
            self._trips.append(time.perf_counter() - began - run)
        self._measured(run, cpu)
        return result

    async def _differs_there(self) -> bool:
        """Whether the function finds something else in a worker; asked before its first trip, if it is on probation."""
        if self.probation is None or self.probation.is_same_there:
            return False
        probation, name = self.probation, ""
        here = probation.globals_here()
        if here is not None:
            try:
                name = await self._send("process", here, (), {})
            except Exception as exc:  # noqa: BLE001 - nothing of the program has run yet
                self._bind_for_now(f"a worker could not be prepared for it: {type(exc).__name__}: {exc}")
                return True
        if name:
            probation.against = f"the global {name} is another one there: it was set after its module was imported"
        probation.is_same_there = not probation.against
        if probation.against:
            self.bound, self.probation = probation.against, None
            self._decide()
        return bool(probation.against)

    def _bind_for_now(self, why: str) -> None:
        """Keep the function out of processes for the next :data:`AGAIN` calls."""
        self.bound, self._bound_until = why, self._counts["calls"] + AGAIN
        self._decide()

    async def _in_the_same_context(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run in a thread, in a copy of the context; what is set there is set here, whatever the end."""
        context = contextvars.copy_context()
        before = dict(context)
        try:
            return await self._send("thread", self._timed(Within(context, self.function)), args, kwargs)
        finally:
            for variable, value in context.items():
                if before.get(variable, before) is not value:
                    variable.set(value)

    def _measured(self, run: float, cpu: float) -> None:
        with self._lock:
            self._runs.append((run, cpu))
            self._is_slow = run >= BUDGET / 2 or len(self._runs) < ENOUGH
        # To judge a quick call takes longer than to measure it: that is made up for with the next slow one.
        if self.to == "auto" and (self._is_slow or self._decision.to != "inline"):
            self._decide()

    def _stepped(self, run: float, cpu: float, held: float) -> None:
        """A coroutine has ended here: s and processor s of its longest step, and s for which all of them ran."""
        self._inline.run += held
        self._measured(run, cpu)

    def known_from(self, stalls: int, run: float, cause: Cause) -> None:
        """Begin with what was seen of its stalls: their number, their mean s, and why they held the loop."""
        cpu = 0.0 if cause in (Cause.IO, Cause.SLEEP) else run
        self._cause = cause
        with self._lock:
            self._runs.extend([(run, cpu)] * min(stalls, KEPT))
        self._decide()

    def _decide(self) -> None:
        with self._lock:
            slow = sorted(self._runs)[-max(len(self._runs) // 10, 1) :]
        if not slow:
            return
        if self._bound_until is not None and self._counts["calls"] >= self._bound_until:
            self.bound, self._bound_until = "", None
        run = sum(each for each, _ in slow) / len(slow)
        cpu = sum(each for _, each in slow) / len(slow)
        measured = Measured(
            calls=len(self._runs),
            run=run,
            cpu_share=min(cpu / run, 1.0) if run > 0 else 1.0,
            # The shortest: others had to wait, the first ones for a worker to start.
            trip=min(self._trips) if len(self._trips) == TRIPS else None,
            keeps_gil=_KEEPS_GIL.get(settings.causes.get(self.name, self._cause)) if gil_enabled() else False,
            bound=self.bound,
        )
        before, self._decision = self._decision, decide(measured, self._decision)
        if self._decision.to != before.to:
            self._changes.append(self._decision)

    # -- what is told of it ---------------------------------------------------------------------------------------

    def stats(self) -> OffloadStats:
        """Return its figures."""
        if self.to == "auto":
            self._decide()
        decision, counts, runs = self.decision, self._counts, sorted(run for run, _ in self._runs)
        known = {name: counts[name] for name in ("calls", "inline", "thread", "process", "failed")}
        return OffloadStats(
            name=self.name,
            way=self.way,
            to=decision.to,
            reason=printable(decision.reason, MAX_LINE),
            **known,
            backend=sum(counts.values()) - sum(known.values()),
            run=runs[len(runs) // 2] if runs else None,
            left={printable(why, MAX_LINE): count for why, count in self.left.items()},
            changes=tuple(Decision(each.to, printable(each.reason, MAX_LINE)) for each in self._changes),
        )

    def explain(self) -> str:
        """Say in words where it runs, and why."""
        return self.stats().explain()


def _begin_anew() -> None:
    """This is a forked child, where a lock may be held for ever."""
    for moved in list(living(Moved)):
        moved._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def known() -> list[Moved]:
    """Return the functions of this process that may run somewhere else, in order of their names."""
    return sorted(living(Moved), key=lambda moved: (moved.name, moved.way))


@types.coroutine
@unseen
def _in_steps(coroutine: Any, held: Callable[[float, float, float], None], *, exact: bool) -> Generator[Any, Any, Any]:
    """Await ``coroutine``; tell how long the longest of its steps held the loop, its processor s, and all of them."""
    longest, total = (0.0, 0.0), 0.0
    step: Any = functools.partial(coroutine.send, None)
    try:
        while True:
            began = read_clocks(exact=exact)
            try:
                waits_for = step()
            except StopIteration as end:
                return end.value
            finally:
                used = used_since(began)
                longest, total = max(longest, used), total + used[0]
            try:
                value = yield waits_for
            except BaseException as exc:  # noqa: BLE001 - it is for the coroutine
                step = functools.partial(coroutine.throw, exc)
            else:
                step = functools.partial(coroutine.send, value)
    finally:
        held(*longest, total)


def _of_main(function: Callable[..., Any]) -> bool:
    return function.__module__ in ("__main__", "__mp_main__")


def _label(to: Any) -> str:
    return to if isinstance(to, str) else str(getattr(to, "name", "backend"))

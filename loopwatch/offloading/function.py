"""One offloadable function: runs each call at the destination of its route, and counts the outcomes."""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import types
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from typing import Any

from loopwatch.core.originals import time
from loopwatch.core.process_state import living
from loopwatch.core.text import MAX_LINE, printable
from loopwatch.core.unseen import unseen
from loopwatch.errors import NotPicklable, OffloadError
from loopwatch.events import Decision, OffloadStats
from loopwatch.offloading import default_pool
from loopwatch.offloading.measurements import Measurements
from loopwatch.offloading.remote_call import Raised, Reference, Timed, Within, read_clocks, used_since
from loopwatch.offloading.route import Route, label
from loopwatch.offloading.side_effects import State
from loopwatch.workers import launch, worker
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.thread_backend import ThreadBackend
from loopwatch.workers.totals import totals_of


class OffloadedFunction:
    """A function whose calls may be offloaded: its identity, its calls, their outcomes.

    Args:
        function: the plain function or coroutine function.
        route: gives the destination of its calls.
        measurements: of its calls, input of ``route``.
        options: of its calls.
        pool: for calls to a process, None for the default one.
        way: how the user named it: see :class:`OffloadStats`.
        shares_context: its caller sees context variables that it sets in a thread, as after an inline call.

    Attributes:
        route: as given.
        left: number of calls that ran inline instead of at their destination, by reason.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        route: Route,
        measurements: Measurements,
        options: CallOptions,
        *,
        pool: WorkerPool | None = None,
        way: str = "offload",
        shares_context: bool = False,
    ) -> None:
        self.name, self.way, self.route = name_of(function), way, route
        self.left: Counter[str] = Counter()
        self._function, self._options, self._pool = function, options, pool
        self._shares_context = shares_context
        self._is_coroutine = inspect.iscoroutinefunction(function)
        self._reference: Any = function
        if "<locals>" not in function.__qualname__ and "<lambda>" not in function.__qualname__:
            self._reference = Reference(function.__module__, function.__qualname__)
        self._measurements = measurements
        self._counts: Counter[str] = Counter()
        self._inline, self._backend = totals_of(self, "inline"), totals_of(self, "backend")
        self._away = 0
        living(OffloadedFunction).add(self)

    async def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call at the destination of its route."""
        return await self.run(self.route.place(), args, kwargs)

    @unseen
    async def run(self, place: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call at the destination ``place``."""
        if place == "inline":
            return await self._inline_to_its_end(args, kwargs)
        result = await self.elsewhere(place, args, kwargs)
        if type(result) is Raised:
            raise result.error
        return result

    async def elsewhere(self, place: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call in another thread or process, or on a backend.

        If the function shares the context of its caller, an exception that a future cannot raise is returned as
        :class:`Raised`.
        """
        self._counts["calls"] += 1
        try:
            if self.route.is_measured:
                result = await self._measured_elsewhere(place, args, kwargs)
                self._counts["failed"] += type(result) is Raised
                return result
            self._counts[label(place)] += 1
            return await self._send(place, self._sent(place), args, kwargs)
        except BaseException:
            self._counts["failed"] += 1
            raise

    def _timed(self, function: Any) -> Timed:
        """Return the timed function to submit; if it shares its caller's context, it behaves as a direct call."""
        return Timed(function, as_called=self._shares_context, awaits=self._is_coroutine or not self._shares_context)

    def _sent(self, place: Any) -> Any:
        """Return the function to submit: itself, or its name for another process that can import it."""
        by_name = place != "thread" and (launch.main_is_importable() or not _of_main(self._function))
        return self._reference if by_name else self._function

    async def _send(self, place: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if place == "thread":
            return await default_pool.in_thread(function, args, kwargs, self._options, stays=self.way == "offload")
        if place == "process" and self._pool is None:
            return await default_pool.in_process(function, args, kwargs, self._options, stays=self.way == "offload")
        backend: Any = self._pool if place == "process" else place
        if isinstance(backend, WorkerPool | ThreadBackend):
            return await backend.submit(function, args, kwargs, self._options)
        began = time.perf_counter()
        try:
            return await backend.submit(function, args, kwargs, self._options)
        finally:
            self._backend.run += time.perf_counter() - began

    # -- inline ---------------------------------------------------------------------------------------------------

    @unseen
    def inline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call of a plain function on the calling thread, and measure it."""
        self._counts["calls"] += 1
        self._counts["inline"] += 1
        before = self._before(args, kwargs)
        began = read_clocks(exact=self._measurements.is_slow)
        try:
            result = self._function(*args, **kwargs)
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
            result = await _in_steps(self._function(*args, **kwargs), self._stepped, exact=self._measurements.is_slow)
        except BaseException:
            self._counts["failed"] += 1
            raise
        self._after(before, args, kwargs, result)
        return result

    def _before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> State | None:
        probation = self.route.probation
        if probation is None or not probation.left or worker.here.is_worker:
            return None
        return probation.before((args, kwargs))

    def _after(self, before: State | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        probation = self.route.probation
        if probation is None:
            return
        probation.after(before, (args, kwargs), result)
        if probation.against:
            self.route.bind(probation.against, self._counts["calls"])

    # -- offloaded and measured -----------------------------------------------------------------------------------

    async def _measured_elsewhere(self, place: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call at ``place``, measured there; in a thread where a process cannot take it."""
        began, alone = time.perf_counter(), self._away == 0
        self._away += 1
        try:
            if place == "thread" and self._shares_context:
                result, run, cpu = await self._in_the_same_context(args, kwargs)
            else:
                if place == "process" and await self._differs_there():
                    return await self._measured_elsewhere("thread", args, kwargs)
                result, run, cpu = await self._send(place, self._timed(self._sent(place)), args, kwargs)
        except NotPicklable as exc:
            self.route.bind_for_now(str(exc), self._counts["calls"])
            if isinstance(exc.__cause__, worker.RemoteTraceback):  # of the result: the call has run already
                raise
            return await self._measured_elsewhere("thread", args, kwargs)
        except OffloadError as exc:
            # Its exception could not be pickled.
            if type(exc) is OffloadError and self._shares_context and not self.route.bound:
                self.route.bind(str(exc), self._counts["calls"])
            raise
        finally:
            self._away -= 1
        self._counts[place] += 1
        if place == "process" and alone:  # else it may have waited for earlier calls: no part of the trip
            self._measurements.add_trip(time.perf_counter() - began - run)
        self._measured(run, cpu)
        return result

    async def _differs_there(self) -> bool:
        """Whether a global of the function differs in a worker; checked before its first trip, if on probation."""
        probation, calls = self.route.probation, self._counts["calls"]
        if probation is None or probation.is_same_there:
            return False
        here, name = probation.globals_here(), ""
        if here is not None:
            try:
                name = await self._send("process", here, (), {})
            except Exception as exc:  # noqa: BLE001 - no code of the program has run yet
                why = f"a worker could not be prepared for it: {type(exc).__name__}: {exc}"
                self.route.bind_for_now(why, calls)
                return True
        if name:
            probation.against = f"the global {name} is another one there: it was set after its module was imported"
        probation.is_same_there = not probation.against
        if probation.against:
            self.route.bind(probation.against, calls)
        return bool(probation.against)

    async def _in_the_same_context(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run in a thread, in a copy of the context; variables set there are set here, even after an exception."""
        context = contextvars.copy_context()
        before = dict(context)
        try:
            return await self._send("thread", self._timed(Within(context, self._function)), args, kwargs)
        finally:
            for variable, value in context.items():
                if before.get(variable, before) is not value:
                    variable.set(value)

    def _measured(self, run: float, cpu: float) -> None:
        self._measurements.add(run, cpu)
        # A decision takes longer than measuring a quick call, so it is left to the next slow one.
        if self.route.is_measured and (self._measurements.is_slow or self.route.decision.to != "inline"):
            self.route.decide(self._counts["calls"])

    def _stepped(self, run: float, cpu: float, held: float) -> None:
        """Add an inline coroutine: seconds and processor seconds of its longest step, and seconds of all steps."""
        self._inline.run += held
        self._measured(run, cpu)

    # -- statistics -----------------------------------------------------------------------------------------------

    def stats(self) -> OffloadStats:
        """Return its statistics."""
        if self.route.is_measured:
            self.route.decide(self._counts["calls"])
        decision, counts = self.route.decision, self._counts
        known = {name: counts[name] for name in ("calls", "inline", "thread", "process", "failed")}
        return OffloadStats(
            name=self.name,
            way=self.way,
            to=decision.to,
            reason=printable(decision.reason, MAX_LINE),
            **known,
            backend=sum(counts.values()) - sum(known.values()),
            run=self._measurements.median,
            left={printable(why, MAX_LINE): count for why, count in self.left.items()},
            changes=tuple(Decision(each.to, printable(each.reason, MAX_LINE)) for each in self.route.changes),
        )

    def explain(self) -> str:
        """Describe in words where it runs, and why."""
        return self.stats().explain()


def name_of(function: Callable[..., Any]) -> str:
    """Return ``module:qualname``, printable."""
    return f"{printable(function.__module__)}:{printable(function.__qualname__)}"


def _after_fork_in_child() -> None:
    for function in list(living(OffloadedFunction)):
        function._measurements.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def known() -> list[OffloadedFunction]:
    """Return the offloadable functions of this process, sorted by name."""
    return sorted(living(OffloadedFunction), key=lambda function: (function.name, function.way))


@types.coroutine
@unseen
def _in_steps(coroutine: Any, held: Callable[[float, float, float], None], *, exact: bool) -> Generator[Any, Any, Any]:
    """Await ``coroutine``; call ``held`` with its longest step (seconds, processor seconds) and the sum of all."""
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
            except BaseException as exc:  # noqa: BLE001 - thrown into the coroutine
                step = functools.partial(coroutine.throw, exc)
            else:
                step = functools.partial(coroutine.send, value)
    finally:
        held(*longest, total)


def _of_main(function: Callable[..., Any]) -> bool:
    return function.__module__ in ("__main__", "__mp_main__")

"""OpenTelemetry tracing of calls: the trace context is passed to the worker, and each call is a span.

Nothing here imports OpenTelemetry in a program that has not done so itself; then a call costs one lookup. The span is a
child of the caller's, begins when the call is submitted and ends when its caller gets the outcome, whatever that is. In
a viewer its length is thus how long the caller waited; the run stands inside it, by the exact times of its events
``begun`` and ``done``, and the spans that the function makes in its worker are its children. (A span for the run alone
would hide the wait, and could not be known in the worker before it begins.)

    offload thumbnail        |------------------------------------------|
                                encode   queue_wait    run       decode
                                              begun *---------* done
      resize (in the worker)                          |----|
"""

from __future__ import annotations

import contextvars
import functools
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from loopwatch.core import log
from loopwatch.core.originals import time

Submitted = TypeVar("Submitted")

FLUSH_WITHIN = 500
"""ms that a worker that ends may take to export its own spans."""


class Trip:
    """The span of one call.

    Attributes:
        carrier: the trace context, for the other process: see :func:`receive`.
        encode, decode: seconds in which the call was pickled, and its result unpickled.

    Example:
        ``trip = tracing.begin(function, "threads")``, and if that is not None ``trip.enter(context)`` before
        ``context.run(function)``; afterwards ``trip.ran(began, run, cpu)`` and ``trip.end()`` or ``trip.end(error)``.
    """

    __slots__ = ("_context", "_ran", "_span", "_start", "_wall", "carrier", "decode", "encode")

    def __init__(self, span: Any, context: Any, carrier: Mapping[str, str], start: int, wall: int) -> None:
        self.carrier = carrier
        self.encode = self.decode = 0.0
        self._span, self._context = span, context
        self._start, self._wall = start, wall
        self._ran = False

    def enter(self, context: contextvars.Context) -> None:
        """Make this the current span in ``context``, for calls that run in this process."""
        from opentelemetry.context import attach

        context.run(attach, self._context)

    def encoding(self, held: Callable[[float], None]) -> Callable[[float], None]:
        """Return a wrapper of ``held`` that also adds to :attr:`encode`."""

        def both(seconds: float) -> None:
            self.encode += seconds
            held(seconds)

        return both

    def decoding(self, held: Callable[[float], None]) -> Callable[[float], None]:
        """Return a wrapper of ``held`` that also adds to :attr:`decode`."""

        def both(seconds: float) -> None:
            self.decode += seconds
            held(seconds)

        return both

    def ran(self, began: int, run: int, cpu: int | None) -> None:
        """Record the run.

        Args:
            began: when, by ``time.perf_counter_ns``, which all processes of a system share.
            run, cpu: ns that it took, and ns of processor time of its thread (None if that is not known).
        """
        span = self._span
        if span is None:
            return
        self._ran = True
        try:
            span.add_event("begun", timestamp=self._at(began))
            span.add_event("done", timestamp=self._at(began + run))
            span.set_attribute("loopwatch.offload.queue_wait", max((began - self._start) / 1e9 - self.encode, 0.0))
            span.set_attribute("loopwatch.offload.run", run / 1e9)
            if cpu is not None:
                span.set_attribute("loopwatch.offload.cpu", cpu / 1e9)
        except Exception as exc:  # noqa: BLE001 - the program's span processors
            _failed(exc)

    def lost(self, pid: int) -> None:
        """Record that the worker has died, and the call is sent to another."""
        if self._span is not None:
            try:
                self._span.add_event("worker died", {"loopwatch.worker.pid": pid})
            except Exception as exc:  # noqa: BLE001 - as above
                _failed(exc)

    def end(
        self,
        error: BaseException | None = None,
        *,
        pid: int | None = None,
        attempts: int = 1,
        begun: float | None = None,
    ) -> None:
        """End the span; a second call does nothing.

        Args:
            error: raised for the caller instead of a result.
            pid: of the worker that had it last.
            attempts: times that it was begun.
            begun: seconds of ``time.perf_counter`` at which it presumably began, if its worker died before it reported
                that.
        """
        now = time.perf_counter_ns()
        if begun is not None and not self._ran:
            since = int(begun * 1e9)
            self.ran(since, now - since, None)
        span, self._span = self._span, None
        if span is None:
            return
        try:
            _finish(span, self, error, pid, attempts)
        except Exception as exc:  # noqa: BLE001 - as above
            _failed(exc)
        finally:
            try:
                span.end(self._at(now))
            except Exception as exc:  # noqa: BLE001 - as above
                _failed(exc)

    def _at(self, moment: int) -> int:
        """Return the wall-clock time of a moment, in ns; the clock may have been set meanwhile."""
        return self._wall + moment - self._start


def _finish(span: Any, trip: Trip, error: BaseException | None, pid: int | None, attempts: int) -> None:
    from asyncio import CancelledError  # here, so that a worker need not import it

    span.set_attribute("loopwatch.offload.encode", trip.encode)
    span.set_attribute("loopwatch.offload.decode", trip.decode)
    if pid is not None:
        span.set_attribute("loopwatch.worker.pid", pid)
    if attempts > 1:
        span.set_attribute("loopwatch.offload.attempts", attempts)
    if isinstance(error, CancelledError):  # by the caller: no error
        span.add_event("cancelled")
    elif error is not None:
        from opentelemetry.trace import Status, StatusCode

        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR, f"{kind.__qualname__}: {error}"))
        span.record_exception(error)


def begin(function: Any, pool: str) -> Trip | None:
    """Begin the span of a call, if there is a current span.

    Args:
        function: the function that is called.
        pool: name of the pool.
    """
    current = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current is None:
        return None
    try:
        return _begin(function, pool) if current().get_span_context().is_valid else None
    except Exception as exc:  # noqa: BLE001 - the program's samplers, processors and propagators
        _failed(exc)
        return None


def traced(function: Any, pool: str, submit: Callable[[Trip | None], Submitted]) -> Submitted:
    """Call ``submit`` with the span of the call and return its result; end the span if it raises.

    Args:
        function, pool: as for :func:`begin`.
        submit: submits the call.
    """
    trip = begin(function, pool)
    try:
        return submit(trip)
    except BaseException as exc:
        if trip is not None:
            trip.end(exc)
        raise


def _begin(function: Any, pool: str) -> Trip:
    from opentelemetry import context, propagate, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    start, wall = time.perf_counter_ns(), time.time_ns()
    here = context.get_current()
    module, name = _named(function)
    attributes = {"code.function.name": f"{module}.{name}" if module else name, "loopwatch.pool.name": pool}
    span = trace.get_tracer("loopwatch").start_span(f"offload {name}", here, attributes=attributes, start_time=wall)
    there = trace.set_span_in_context(span, here)
    carrier: dict[str, str] = {}
    propagate.inject(carrier, there)
    # A worker may lack a propagator that the program has set: it finds the trace by the standard one.
    TraceContextTextMapPropagator().inject(carrier, there)
    return Trip(span, there, carrier, start, wall)


def _named(function: Any) -> tuple[str, str]:
    """Return the module and the name of a callable; never its address or arguments, which differ each time."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return str(getattr(named, "__module__", None) or ""), named.__qualname__


# ------------------------------------------------------------------------------------------------- in the worker


def is_used() -> bool:
    """Whether this program has a tracer provider."""
    trace = sys.modules.get("opentelemetry.trace")
    try:
        return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    except Exception as exc:  # noqa: BLE001 - half imported, or a provider that cannot be loaded
        _failed(exc)
        return False


def prepare() -> None:
    """Import what tracing needs, before the first traced call has to wait for it."""
    try:
        import opentelemetry.propagate
        import opentelemetry.trace.propagation.tracecontext  # noqa: F401
    except Exception as exc:  # noqa: BLE001 - not installed here, or a propagator that cannot be loaded
        _failed(exc)


def receive(carrier: Mapping[str, str]) -> None:
    """Continue the trace of the caller in the current context, from its ``carrier``."""
    try:
        from opentelemetry import context, propagate, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        found = propagate.extract(carrier)
        if not trace.get_current_span(found).get_span_context().is_valid:
            found = TraceContextTextMapPropagator().extract(carrier, found)
        context.attach(found)
    except Exception as exc:  # noqa: BLE001 - the program's propagators
        _failed(exc)


def flush() -> None:
    """Export the spans that were made here: this process ends without its ``atexit`` functions."""
    trace = sys.modules.get("opentelemetry.trace")
    try:
        force = getattr(trace.get_tracer_provider(), "force_flush", None) if trace is not None else None
        if force is not None:
            force(FLUSH_WITHIN)
    except Exception as exc:  # noqa: BLE001 - the program's exporter
        _failed(exc)


@functools.cache
def _say(kind: str) -> None:
    log.write(
        logging.WARNING, "loopwatch: a call could not be traced as it should be (%s); logged once", kind,
        error=sys.exception(),
    )  # fmt: skip


def _failed(exc: Exception) -> None:
    _say(type(exc).__qualname__)

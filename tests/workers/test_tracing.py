"""Calls as OpenTelemetry spans: the trace context is propagated, times are exact, and each span ends once."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from loopwatch.errors import NotPicklable, PoolClosed, QueueFull, TaskTimeout, WorkerCrashed
from loopwatch.workers import tracing
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.thread_backend import ThreadBackend
from tests.conftest import Run, runner
from tests.workers.helpers import WAYS, Gate, hold, script

PARTS = ("encode", "queue_wait", "run", "decode")
USER: contextvars.ContextVar[str] = contextvars.ContextVar("traced_user")


class Spans(InMemorySpanExporter):
    """Exported spans by name, and how often each span ended."""

    def of(self, name: str) -> list[ReadableSpan]:
        """Return the spans of this name."""
        return [each for each in self.get_finished_spans() if each.name == name]

    def only(self, name: str) -> ReadableSpan:
        """Return the one span of this name."""
        (found,) = self.of(name)
        return found


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """A tracer provider set as the program's own while the test runs."""
    exporter = Spans()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate for calls of :func:`hold`."""
    made = Gate(tmp_path)
    yield made
    made.close()


async def traced(awaited: Callable[[], Any]) -> Any:
    """Await something within a span named ``request``."""
    with trace.get_tracer("test").start_as_current_span("request"):
        return await awaited()


def ids() -> tuple[int, int, str | None]:
    """Return the current trace id, span id and a baggage item."""
    found = trace.get_current_span().get_span_context()
    value = baggage.get_baggage("tenant")
    return found.trace_id, found.span_id, None if value is None else str(value)


async def ids_later() -> tuple[int, int, str | None]:
    """As :func:`ids`, on a loop."""
    await asyncio.sleep(0)
    return ids()


class ToFile(SpanExporter):
    """Appends spans to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def export(self, spans: Any) -> SpanExportResult:
        """Write a line for each."""
        with Path(self.path).open("a") as file:
            for each in spans:
                row = [each.name, each.context.trace_id, each.context.span_id, each.parent and each.parent.span_id]
                file.write(json.dumps([*row, each.start_time, each.end_time]) + "\n")
        return SpanExportResult.SUCCESS


def provide(path: str) -> None:
    """Initialize a worker whose program sets up tracing."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ToFile(path)))
    trace.set_tracer_provider(provider)


def resize() -> int:
    """Make a span of its own."""
    with trace.get_tracer("worker").start_as_current_span("resize"):
        time.sleep(0.01)
    return os.getpid()


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_trace_context_is_propagated(run: Run, spans: Spans, method: str) -> None:
    """The function sees the caller's trace and baggage, and the call's span is a child of the caller's span."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method, context=(USER,)) as pool:
            USER.set("ann")
            token = context.attach(baggage.set_baggage("tenant", "acme"))
            for function in (ids, ids_later):
                spans.clear()
                trace_id, span_id, tenant = await traced(lambda function=function: pool.run(function))  # type: ignore[misc]
                request, own = spans.only("request"), spans.only(f"offload {function.__qualname__}")
                assert trace_id == own.context.trace_id == request.context.trace_id
                assert span_id == own.context.span_id and own.parent.span_id == request.context.span_id  # type: ignore[union-attr]
                assert tenant == "acme" and own.kind is SpanKind.INTERNAL and own.status.status_code is StatusCode.UNSET
            context.detach(token)
            # Large arguments are prepared in a task; the context of the call applies.
            spans.clear()
            await traced(lambda: pool.run(len, list(range(10_000))))
            assert spans.only("offload len").parent.span_id == spans.only("request").context.span_id  # type: ignore[union-attr]
            # No context is left for the next call, and without a caller's span there is no span.
            spans.clear()
            assert await pool.run(ids) == (0, 0, None)
            assert spans.get_finished_spans() == ()

    run(main())


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_spans_of_the_worker(run: Run, spans: Spans, tmp_path: Path, method: str) -> None:
    """Spans made by the function lie within the call's span by id and time, and are exported when the worker ends."""
    path = tmp_path / "spans"

    async def main() -> int:
        async with WorkerPool(1, start_method=method, initializer=provide, initargs=(str(path),)) as pool:
            pid: int = await traced(lambda: pool.run(resize))
            return pid

    pid = run(main())
    own = spans.only("offload resize")
    assert own.attributes is not None and own.attributes["loopwatch.worker.pid"] == pid
    ((name, trace_id, _, parent, start, end),) = map(json.loads, path.read_text().splitlines())
    assert (name, trace_id, parent) == ("resize", own.context.trace_id, own.context.span_id)
    begun, done = own.events
    assert (begun.name, done.name) == ("begun", "done")
    slack = 5_000_000  # Two processes read the wall clock, which may be adjusted in between.
    assert begun.timestamp <= start + slack and end <= done.timestamp + slack


def timings(span: ReadableSpan) -> dict[str, float]:
    """Return the times of a call by their short names, in seconds."""
    assert span.attributes is not None
    prefix = "loopwatch.offload."
    return {key[len(prefix) :]: value for key, value in span.attributes.items() if key.startswith(prefix)}  # type: ignore[misc]


def seconds(span: ReadableSpan) -> float:
    """Return the length of a span in seconds."""
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_times(run: Run, spans: Spans, gate: Gate, method: str) -> None:
    """Wait, pickling, run and unpickling are measured separately, and their sum is no longer than the span."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method, prefetch=1, name="images") as pool:
            held = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            await gate.entered()
            rows = [{"n": n} for n in range(20_000)]
            waiting = asyncio.ensure_future(traced(lambda: pool.run(slowly, rows)))
            await asyncio.sleep(0.05)
            gate.open()
            await held
            assert await waiting == rows

    run(main())
    span = spans.only("offload slowly")
    found = timings(span)
    assert set(found) == {*PARTS, "cpu"} and all(value >= 0 for value in found.values())
    assert found["queue_wait"] > 0.01 and found["run"] >= 0.1 > found["cpu"] and min(found.values()) > 0
    assert sum(found[part] for part in PARTS) <= seconds(span) + 1e-9
    begun, done = span.events
    assert span.start_time is not None and span.end_time is not None
    assert span.start_time < begun.timestamp < done.timestamp < span.end_time
    assert abs((done.timestamp - begun.timestamp) / 1e9 - found["run"]) < 1e-6
    assert abs((begun.timestamp - span.start_time) / 1e9 - found["queue_wait"] - found["encode"]) < 1e-6
    assert span.attributes is not None
    assert span.attributes["code.function.name"] == f"{__name__}.slowly"
    assert span.attributes["loopwatch.pool.name"] == "images"


def slowly(rows: Any) -> Any:
    """Wait and return the argument."""
    time.sleep(0.1)
    return rows


def fail(words: str) -> None:
    """Raise."""
    raise ValueError(words)


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: str) -> None:
    """Be killed the first time."""
    if not Path(path).exists():
        Path(path).touch()
        die()


def lock() -> Any:
    """Return an object that cannot be pickled."""
    return threading.Lock()


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_each_outcome_ends_one_span(run: Run, spans: Spans, gate: Gate, tmp_path: Path, method: str) -> None:
    """Whatever the outcome of a call, its span ends once, with the error and message that the caller received."""

    async def main() -> None:
        async with WorkerPool(1, start_method=method, max_queue=1, prefetch=1) as pool:

            async def outcome(
                name: str, error: type[BaseException] | None, function: Any, *args: Any, **options: Any
            ) -> ReadableSpan:
                spans.clear()
                call = functools.partial(pool.options(**options).run, function, *args)
                if error is None:
                    await traced(call)
                else:
                    with pytest.raises(error):
                        await traced(call)
                await pool.ready()
                span = spans.only(f"offload {name}")
                assert len(spans.get_finished_spans()) == 2
                assert seconds(span) + 1e-9 >= sum(timings(span).get(part, 0) for part in PARTS)
                if error is None:
                    assert span.status.status_code is StatusCode.UNSET
                    return span
                assert span.status.status_code is StatusCode.ERROR
                (recorded,) = [each for each in span.events if each.name == "exception"]
                assert recorded.attributes is not None and span.attributes is not None
                assert str(recorded.attributes["exception.type"]).endswith(error.__qualname__)
                assert recorded.attributes["exception.type"] == span.attributes["error.type"]
                assert str(recorded.attributes["exception.message"]) in str(span.status.description)
                return span

            assert (await outcome("abs", None, abs, -1)).events[0].name == "begun"
            span = await outcome("fail", ValueError, fail, "no such image")
            assert span.status.description == "ValueError: no such image"
            assert "in fail" in str(span.events[-1].attributes)  # the worker's traceback
            assert timings(span)["run"] > 0
            span = await outcome("die", WorkerCrashed, die)
            assert "died while it ran" in str(span.status.description) and timings(span)["run"] > 0
            await pool.ready()
            span = await outcome("sleep", TaskTimeout, time.sleep, 1000, timeout=0.05)
            assert timings(span)["run"] >= 0.04
            span = await outcome("die_once", None, die_once, str(tmp_path / "died"), retries=1)
            assert timings(span)["attempts"] == 2
            assert [each.name for each in span.events] == ["worker died", "begun", "done"]
            await outcome("fail", NotPicklable, fail, threading.Lock())
            await outcome("fail", NotPicklable, fail, [threading.Lock()] * 3000)
            span = await outcome("lock", NotPicklable, lock)
            assert timings(span)["run"] > 0

            held = asyncio.ensure_future(pool.run(hold, *gate.wait_args))
            await gate.entered()
            waiting = asyncio.ensure_future(pool.run(abs, -1))
            await asyncio.sleep(0)
            await outcome("len", QueueFull, len, "")
            gate.open()
            await asyncio.gather(held, waiting)
        spans.clear()
        with pytest.raises(PoolClosed):
            await traced(lambda: pool.run(abs, 1))
        assert spans.only("offload abs").status.status_code is StatusCode.ERROR

    run(main())


def test_cancelled_calls(run: Run, spans: Spans, gate: Gate) -> None:
    """A call cancelled while running, waiting or being prepared ends its span once, without an error."""

    async def main() -> None:
        async with WorkerPool(1, max_queue=2, prefetch=1) as pool:

            async def begin(*args: Any, **options: Any) -> asyncio.Task[Any]:
                return asyncio.ensure_future(traced(lambda: pool.options(**options).run(*args)))

            running = await begin(hold, *gate.wait_args)
            await gate.entered()
            waiting = await begin(abs, -1)
            large = await begin(len, list(range(50_000)))
            await asyncio.sleep(0)
            for_room = await begin(max, 1, 2, on_full="wait")
            await asyncio.sleep(0)
            for each in (large, for_room, waiting, running):
                each.cancel()
            await asyncio.wait([large, for_room, waiting, running])
            for name in ("offload abs", "offload len", "offload max", "offload hold"):
                span = spans.only(name)
                assert span.status.status_code is StatusCode.UNSET
                assert span.events[-1].name == "cancelled"
            assert [each.name for each in spans.only("offload hold").events] == ["begun", "done", "cancelled"]
            # The slots of the queue are free again, also that of a call whose preparation never began.
            for _ in range(3):
                gone = asyncio.ensure_future(pool.run(len, list(range(50_000))))
                await asyncio.sleep(0)
                gone.cancel()
                await asyncio.wait([gone])
            await pool.ready()
            assert await asyncio.gather(*(pool.run(abs, -n) for n in range(2))) == [0, 1]
            await pool.drain()

    run(main())


def test_closing(spans: Spans, gate: Gate) -> None:
    """Calls left unanswered by a closed pool or a closed loop end their spans too."""

    async def forced() -> None:
        pool = WorkerPool(1, prefetch=1)
        tasks = [asyncio.ensure_future(traced(lambda: pool.run(hold, *gate.wait_args))) for _ in range(3)]
        await gate.entered()
        await pool.close(force=True)
        assert all(isinstance(each, PoolClosed) for each in await asyncio.gather(*tasks, return_exceptions=True))
        assert len(spans.of("offload hold")) == len(spans.of("request")) == 3

    runner("asyncio")(forced())
    spans.clear()
    loop = asyncio.new_event_loop()
    pool = WorkerPool(1, prefetch=1)
    with trace.get_tracer("test").start_as_current_span("request"):
        loop.run_until_complete(pool.ready())
        futures = []

        async def begin() -> None:
            futures.append(asyncio.ensure_future(pool.run(hold, *gate.wait_args)))
            futures.append(asyncio.ensure_future(pool.run(abs, 1)))
            await gate.entered()

        loop.run_until_complete(begin())
    loop.close()
    pool.abandon()
    assert len(spans.of("offload hold")) == len(spans.of("offload abs")) == 1
    for each in futures:
        each._log_destroy_pending = False  # type: ignore[attr-defined]


class Own:
    """A propagator that only the parent knows."""

    fields = frozenset({"x-own"})

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        """Inject nothing."""
        carrier["x-own"] = "1"

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        """Extract nothing."""
        return context


def test_own_propagator_and_sampling(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace arrives with any propagator set in the parent, and the sampling decision also holds in the worker."""

    async def main() -> None:
        async with WorkerPool(1) as pool:
            found = await traced(lambda: pool.run(ids))
            assert found[:2] == spans.only("offload ids").context[:2]
            provider: Any = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
            monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
            spans.clear()
            with trace.get_tracer("test").start_as_current_span("request") as span:
                trace_id, span_id, _ = await pool.run(ids)
                assert trace_id == span.get_span_context().trace_id and span_id != 0
            assert spans.get_finished_spans() == ()

    propagate_before = propagate.get_global_textmap()
    propagate.set_global_textmap(Own())  # type: ignore[arg-type]
    try:
        runner("asyncio")(main())
    finally:
        propagate.set_global_textmap(propagate_before)


class Broken(SimpleSpanProcessor):
    """Fails with each span."""

    def on_end(self, span: ReadableSpan) -> None:
        """Fail."""
        raise RuntimeError("no such exporter")


def test_tracing_that_fails(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """Span processors, samplers and propagators that raise do not affect calls, and the error is logged once."""
    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(Broken(spans))
    tracing._say.cache_clear()
    request = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1)))

    async def main() -> None:
        async with WorkerPool(1) as pool:
            with trace.use_span(request):
                assert await asyncio.gather(*(pool.run(abs, -n) for n in range(10))) == list(range(10))

    runner("asyncio")(main())
    assert [each.name for each in caplog.records] == ["loopwatch"]
    assert "RuntimeError" in caplog.text


def test_threads_can_use_it(spans: Spans) -> None:
    """A call to a thread is a span as well, and it is the current span in the context the thread runs in."""

    async def main() -> None:
        with trace.get_tracer("test").start_as_current_span("request"):
            trip = tracing.begin(ids, "threads")
            assert trip is not None
            inside = contextvars.copy_context()
            trip.enter(inside)
            began = time.perf_counter_ns()
            found = await asyncio.get_running_loop().run_in_executor(None, inside.run, ids)
            trip.ran(began, time.perf_counter_ns() - began, 0)
            trip.end()
            trip.end(ValueError("not any more"))
            await asyncio.get_running_loop().shutdown_default_executor()
        span = spans.only("offload ids")
        assert found[:2] == span.context[:2] and span.status.status_code is StatusCode.UNSET

    runner("asyncio")(main())


def test_names() -> None:
    """A span is named after the function, without anything that differs from call to call."""
    assert tracing._named(functools.partial(functools.partial(ids), 1)) == (__name__, "ids")
    assert tracing._named(len) == ("builtins", "len")
    assert tracing._named("x".split) == ("", "str.split")
    assert tracing._named(Gate.open) == ("loopwatch.offloading.conformance", "Gate.open")
    assert tracing._named(functools.partial(hold)) == ("loopwatch.offloading.conformance_calls", "hold")


def test_without_opentelemetry(tmp_path: Path) -> None:
    """If the program has no OpenTelemetry, none of it is imported in the parent or in the workers."""
    result = script(
        tmp_path,
        """
        import asyncio, sys
        from loopwatch import WorkerPool

        def loaded():
            return [name for name in sys.modules if name.startswith("opentelemetry")]

        async def main():
            async with WorkerPool(1) as pool:
                print(await pool.run(loaded), loaded())
                import opentelemetry.trace as trace
                span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True))
                print(trace.get_tracer_provider() is not None, await pool.run(loaded))
                with trace.use_span(span):
                    print(await pool.run(current), "opentelemetry.sdk" in sys.modules)
                print("opentelemetry.sdk" in await pool.run(loaded))

        def current():
            from opentelemetry import trace
            return trace.get_current_span().get_span_context()[:2]

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert (result.stdout, result.stderr) == ("[] []\nTrue []\n(1, 2) False\nFalse\n", "")


def test_calls_in_threads(run: Run, spans: Spans) -> None:
    """A call to a thread is a span, current in the thread and enclosing its run; every outcome ends it once."""

    async def main() -> None:
        threads = ThreadBackend(1, max_queue=1, name="disk")
        held = threading.Event()

        async def call(function: Any, *args: Any, **options: Any) -> Any:
            return await traced(lambda: threads.submit(function, args, {}, CallOptions(**options)))

        for function in (ids, ids_later):
            spans.clear()
            trace_id, span_id, _ = await call(function)
            request, own = spans.only("request"), spans.only(f"offload {function.__qualname__}")
            assert trace_id == own.context.trace_id == request.context.trace_id and span_id == own.context.span_id
            assert own.parent is not None and own.parent.span_id == request.context.span_id
            begun, done = own.events
            assert own.start_time is not None and own.end_time is not None
            assert own.start_time <= begun.timestamp <= done.timestamp <= own.end_time
            assert own.attributes is not None and own.attributes["loopwatch.pool.name"] == "disk"

        async def outcome(name: str, error: type[BaseException], calling: Any) -> str:
            spans.clear()
            with pytest.raises(error):
                await calling
            return spans.only(f"offload {name}").status.status_code.name

        assert await outcome("fail", ValueError, call(fail, "on purpose")) == "ERROR"
        assert await outcome("Event.wait", TaskTimeout, call(held.wait, timeout=0.01)) == "ERROR"
        held.set()
        held = threading.Event()
        running = asyncio.ensure_future(threads.submit(held.wait, (), {}, CallOptions()))
        waiting = asyncio.ensure_future(call(ids))
        await asyncio.sleep(0)
        assert await outcome("fail", QueueFull, call(fail, "")) == "ERROR"
        waiting.cancel()
        assert await outcome("ids", asyncio.CancelledError, waiting) == "UNSET"
        held.set()
        await running
        await threads.close()
        assert await outcome("ids", PoolClosed, call(ids)) == "ERROR"

    run(main())

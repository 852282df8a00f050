"""The instrumentor needs no line of code in the program, uses its providers, and annotates traces of ASGI requests."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import loopwatch

pytest.importorskip("opentelemetry.instrumentation")

from loopwatch.integrations.opentelemetry import LoopwatchInstrumentor

from tests.conftest import Run, runner
from tests.telemetry.traced import STALL, Exported, events, set_globally

pytestmark = pytest.mark.measures

DEADLINE = 40.0


@pytest.fixture
def instrumentor() -> Iterator[LoopwatchInstrumentor]:
    """The instrumentor, which is a singleton, uninstrumented before and after."""
    made = LoopwatchInstrumentor()
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()


async def blocked() -> None:
    """Block the loop once for 0.2 seconds."""
    await asyncio.sleep(0.05)
    time.sleep(0.2)
    await asyncio.sleep(0.05)


# ---------------------------------------------------------------------------------------------------- by hand


def test_off_on_off_on(instrumentor: LoopwatchInstrumentor) -> None:
    """Instrumenting installs an agent with the given settings and uninstrumenting removes it, any number of times."""
    for threshold in (0.2, 0.3):
        assert loopwatch.current_agent() is None
        instrumentor.instrument(threshold=threshold, log_level="CRITICAL")
        agent = loopwatch.current_agent()
        assert agent is not None
        assert agent.config.threshold == threshold
        instrumentor.uninstrument()
    assert loopwatch.current_agent() is None


def test_given_providers_are_used(
    instrumentor: LoopwatchInstrumentor, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Spans, records and metrics go to the given providers, not to the global ones."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader, given = InMemoryMetricReader(), Exported()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    with set_globally(monkeypatch, Exported()) as elsewhere:
        instrumentor.instrument(
            log_level="CRITICAL",
            tracer_provider=given.tracer_provider,
            logger_provider=given.logger_provider,
            meter_provider=meters,
        )
        run(blocked())
        agent = loopwatch.current_agent()
        assert agent is not None
        assert agent.flush(5)
        data: Any = reader.get_metrics_data()
        instrumentor.uninstrument()
        assert (len(given.spans()), len(given.records())) == (1, 1)
        assert (len(elsewhere.spans()), len(elsewhere.records())) == (0, 0)
    names = {metric.name for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics}
    assert "asyncio.eventloop.stalls" in names
    meters.shutdown()
    given.close()


@pytest.mark.parametrize("before", [True, False])
def test_the_programs_providers_are_used_whenever_they_are_set(
    instrumentor: LoopwatchInstrumentor, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """The program's global providers, set before or after, get the span and the record, and stay the global ones."""
    from opentelemetry import trace

    exported = Exported()
    if not before:
        instrumentor.instrument(log_level="CRITICAL")
    with set_globally(monkeypatch, exported):
        if before:
            instrumentor.instrument(log_level="CRITICAL")
        runner("asyncio")(blocked())
        agent = loopwatch.current_agent()
        assert agent is not None
        assert agent.flush(5)
        assert (len(exported.spans()), len(exported.records())) == (1, 1)
        assert trace.get_tracer_provider() is exported.tracer_provider
        instrumentor.uninstrument()
        assert trace.get_tracer_provider() is exported.tracer_provider
        with exported.tracer.start_as_current_span("still works"):
            pass
        assert exported.span("still works")


def test_installed_agent_stays(instrumentor: LoopwatchInstrumentor) -> None:
    """An agent that was installed before is reconfigured, and still there afterwards."""
    agent = loopwatch.install(threshold=0.5, log_level="CRITICAL")
    instrumentor.instrument(threshold=0.4)
    assert agent.config.threshold == 0.4
    instrumentor.uninstrument()
    assert loopwatch.current_agent() is agent


def test_bad_variables_are_logged(
    instrumentor: LoopwatchInstrumentor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without arguments an invalid variable is one log line, and the program goes on without an agent."""
    monkeypatch.setenv("LOOPWATCH_THRESHOLD", "soon")
    instrumentor.instrument()
    assert loopwatch.current_agent() is None
    assert [record.getMessage() for record in caplog.records] == [
        "loopwatch: not started: LOOPWATCH_THRESHOLD='soon': must be a number, such as 0.1"
    ]
    instrumentor.uninstrument()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"threshold": -1}, "threshold=-1"), ({"tracer_provider": 7}, "tracer_provider=7"), ({"colour": 1}, "'colour'")],
)
def test_bad_arguments_are_errors(instrumentor: LoopwatchInstrumentor, settings: dict[str, Any], named: str) -> None:
    """An invalid argument is named in the error, and nothing is installed."""
    with pytest.raises(loopwatch.ConfigError, match=named):
        instrumentor.instrument(**settings)
    assert loopwatch.current_agent() is None
    assert not instrumentor.is_instrumented_by_opentelemetry


def test_a_declarative_configuration_installs_it(instrumentor: LoopwatchInstrumentor) -> None:
    """The settings are read from ``instrumentation/development``."""
    found = pytest.importorskip("opentelemetry.configuration.instrumentation")
    models = pytest.importorskip("opentelemetry.configuration.models")
    found.configure_instrumentation(models.ExperimentalInstrumentation(python={"loopwatch": {"threshold": 0.25}}))
    agent = loopwatch.current_agent()
    assert agent is not None
    assert agent.config.threshold == 0.25


def test_missing_package_is_named() -> None:
    """Without opentelemetry-instrumentation the import fails with the command that installs it."""
    code = """
        import sys
        sys.modules["opentelemetry.instrumentation"] = None
        try:
            import loopwatch.integrations.opentelemetry
        except ImportError as exc:
            print(exc)
    """
    assert "pip install 'loopwatch[opentelemetry]'" in _python(code)


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout


# ------------------------------------------------------------------------------------- opentelemetry-instrument

PROGRAM = """
    import asyncio, time

    async def main():
        await asyncio.sleep(0.2)
        time.sleep(0.3)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    print("done")
"""

SERVED = """
    import asyncio, time

    async def blocks():  # also once the server listens: what holds the loop before that is its start-up
        while True:
            await asyncio.sleep(0.5)
            time.sleep(0.3)

    async def app(scope, receive, send):
        while scope["type"] == "lifespan":
            message = await receive()
            if message["type"] == "lifespan.startup":
                app.task = asyncio.create_task(blocks())
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
"""

CONSOLE = {
    "OTEL_TRACES_EXPORTER": "console",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture
def instrument(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start programs under ``opentelemetry-instrument``; they end with the test."""
    if not _has_entry_point():
        pytest.skip("loopwatch is not installed with its entry points: pip install -e .")
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "served.py").write_text(textwrap.dedent(SERVED))
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **variables: str) -> subprocess.Popen[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("LOOPWATCH_", "OTEL_", "COV"))
        }
        command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, *args]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**kept, **CONSOLE, **variables}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _has_entry_point() -> bool:
    from importlib.metadata import entry_points

    return any(point.name == "loopwatch" for point in entry_points(group="opentelemetry_instrumentor"))


def _stalls(text: str) -> list[Mapping[str, Any]]:
    """Return the spans of stalls in the console exporter's output."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := text.find("{\n", at)) >= 0:
        try:
            span, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            at += 1
            continue
        if span.get("name") == STALL:
            found.append(span)
    return found


def test_a_program_without_a_line_of_code(instrument: Callable[..., subprocess.Popen[str]]) -> None:
    """``opentelemetry-instrument python program.py`` exports its stall through the providers of the distribution."""
    output, _ = instrument("program.py").communicate(timeout=DEADLINE)
    (span,) = _stalls(output)
    assert span["attributes"]["loopwatch.cause"] == "sleep"
    assert span["attributes"]["loopwatch.stall.duration"] == pytest.approx(0.3, abs=0.15)
    assert span["attributes"]["code.line.number"] == 6
    assert span["resource"]["attributes"]["telemetry.auto.version"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LOOPWATCH_THRESHOLD": "soon"}, "loopwatch: not started: LOOPWATCH_THRESHOLD='soon': must be a number"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "loopwatch"}, ""),
        ({"LOOPWATCH_ENABLED": "0"}, ""),
    ],
)
def test_a_program_that_starts_without_the_agent(
    instrument: Callable[..., subprocess.Popen[str]], variables: dict[str, str], said: str
) -> None:
    """With an invalid variable, a disabled instrumentation or the kill switch the program runs without an agent."""
    process = instrument("program.py", **variables)
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert output.rstrip().endswith("done")
    assert _stalls(output) == []
    assert said in output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_each_worker_of_a_server(instrument: Callable[..., subprocess.Popen[str]], server: str) -> None:
    """Two workers, spawned or forked, export their stalls, each under its own process id."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("gunicorn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = {
        "uvicorn": ["served:app", "--workers", "2", "--port", str(port)],
        "gunicorn": ["served:app", "-w", "2", "-k", "uvicorn.workers.UvicornWorker", "-b", f"127.0.0.1:{port}"],
    }
    process = instrument("-W", "ignore", "-m", server, *arguments[server], PYTHONPATH=".")
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,))
    reader.start()
    deadline, pids = time.monotonic() + DEADLINE, set()
    while len(pids) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        pids = {span["attributes"]["process.pid"] for span in _stalls("".join(lines))}
    os.killpg(process.pid, signal.SIGKILL)
    reader.join()
    assert len(pids) == 2, "".join(lines)
    assert process.pid not in pids


# ------------------------------------------------------------------------------------------- an ASGI server's


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The program's providers."""
    with set_globally(monkeypatch, Exported()) as made:
        yield made


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_why_a_request_was_slow_stands_in_its_trace(
    instrumentor: LoopwatchInstrumentor, exported: Exported, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Under uvicorn, with the ASGI instrumentation of OpenTelemetry: the spans of the waiting requests have the event,
    and a link to the trace of the blocking request, which contains the stall's span with its times.
    """
    pytest.importorskip(kind)
    uvicorn = pytest.importorskip("uvicorn")
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    applications, routing = pytest.importorskip("starlette.applications"), pytest.importorskip("starlette.routing")
    from loopwatch.integrations.asgi import LoopwatchMiddleware
    from starlette.responses import PlainTextResponse

    from loopwatch.watch import waiters

    monkeypatch.setattr(waiters, "PATIENCE", 5.0)  # on a busy machine the exporting thread may be late
    waiting, due, truth = threading.Semaphore(0), asyncio.Event(), []

    async def slow(_request: object) -> PlainTextResponse:
        waiting.release()
        await due.wait()
        return PlainTextResponse("slow")

    async def blocking(_request: object) -> PlainTextResponse:
        asyncio.get_running_loop().call_later(0.1, due.set)
        began = time.time()
        time.sleep(0.8)
        truth.extend([began, time.time()])
        return PlainTextResponse("blocking")

    async def found(_request: object) -> PlainTextResponse:
        await asyncio.sleep(0.2)
        return PlainTextResponse("found")

    paths = {"/slow/{id}": slow, "/block/{id}": blocking, "/found": found}
    app = applications.Starlette(routes=[routing.Route(path, endpoint) for path, endpoint in paths.items()])
    traced = asgi.OpenTelemetryMiddleware(LoopwatchMiddleware(app), tracer_provider=exported.tracer_provider)
    instrumentor.instrument(threshold=0.1, log_level="CRITICAL")
    config = uvicorn.Config(traced, port=0, loop=kind, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        get(port, "/found")  # the agent discovers the loop here
        asking = [threading.Thread(target=get, args=(port, f"/slow/{number}?token=s3cret")) for number in range(3)]
        for each in asking:
            each.start()
        for _ in asking:
            assert waiting.acquire(timeout=DEADLINE)
        get(port, "/block/1?token=s3cret")
        for each in asking:
            each.join()
    finally:
        server.should_exit = True
        thread.join()
    agent = loopwatch.current_agent()
    assert agent is not None
    assert agent.flush(5)

    stall = exported.span()
    attributes: Mapping[str, Any] = stall.attributes or {}
    requests = [each for each in exported._spans.get_finished_spans() if each.kind.name == "SERVER"]
    culprit = next(each for each in requests if (each.attributes or {}).get("http.target") == "/block/1")
    victims_ = [each for each in requests if str((each.attributes or {}).get("http.target")).startswith("/slow")]
    assert stall.context.trace_id == culprit.context.trace_id
    assert stall.parent is not None
    assert stall.start_time is not None and stall.end_time is not None
    assert abs(stall.start_time / 1e9 - truth[0]) <= attributes["loopwatch.stall.uncertainty"] + 0.02
    assert abs(stall.end_time / 1e9 - truth[1]) <= attributes["loopwatch.stall.uncertainty"] + 0.02
    assert attributes["http.route"] == "/block/{id}"
    assert attributes["loopwatch.cause"] == "sleep"
    assert attributes["loopwatch.culprit"].endswith("blocking")
    assert len(victims_) == 3
    for each in victims_:
        (event,) = events(each)
        assert event.attributes["loopwatch.stall.duration"] == pytest.approx(0.8, abs=0.1)
        assert event.attributes["loopwatch.culprit"] == attributes["loopwatch.culprit"]
        assert [link.context.trace_id for link in each.links] == [culprit.context.trace_id]
        assert each.context.trace_id != culprit.context.trace_id
    assert events(culprit) == []
    assert "s3cret" not in stall.to_json()


def get(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("GET", path)
    assert connection.getresponse().status == 200
    connection.close()

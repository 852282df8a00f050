"""Which providers are used: the application's, set before, after or long after install(); otherwise private ones that
are not set globally."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_receiver import Handler, grpc_receiver, items_of, points_of, receiver, until

import loopwatch
from loopwatch.agent import Agent
from loopwatch.errors import ConfigError
from loopwatch.telemetry.otel import exporter
from loopwatch.testing import FakeClock

pytestmark = pytest.mark.measures

STALLS = "asyncio.eventloop.stalls"


@pytest.fixture(autouse=True)
def fresh_globals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No provider and no variable of OpenTelemetry is set, as in a program that has just started."""
    for module, name in (
        (metrics._internal, "_METER_PROVIDER"), (trace, "_TRACER_PROVIDER"), (_logs._internal, "_LOGGER_PROVIDER"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, None)
        once = getattr(module, f"{name}_SET_ONCE")
        monkeypatch.setattr(once, "_done", False)
    # It keeps the provider that was set last, and gives it to libraries that ask later.
    monkeypatch.setattr(metrics._internal, "_PROXY_METER_PROVIDER", metrics._internal._ProxyMeterProvider())
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    yield
    loopwatch.uninstall()


class Application:
    """Providers as an application sets them up, and what was exported to them."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.records = InMemoryLogRecordExporter()
        self.loggers = LoggerProvider(shutdown_on_exit=False)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.records))

    def set(self) -> None:
        metrics.set_meter_provider(self.meters)
        trace.set_tracer_provider(self.tracers)
        _logs.set_logger_provider(self.loggers)

    def metric(self, name: str) -> dict[tuple[Any, ...], float]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return {
            tuple((point.attributes or {}).values()): getattr(point, "value", getattr(point, "count", None))
            for scope in scopes
            for each in scope.metrics
            if each.name == name
            for point in each.data.data_points
        }


def block(agent: Agent, times: int = 1) -> None:
    """Block a loop for 60 ms, and wait until the stall is exported."""

    async def main() -> None:
        for _ in range(times):
            time.sleep(0.06)
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert agent.flush(20)


def count(agent: Agent) -> int:
    """Return the number of stalls: at least one for each block, and on a busy machine some more."""
    return sum(not stall.ongoing for stall in agent.stalls())


def install(**settings: Any) -> Agent:
    return loopwatch.install(**({"threshold": 0.05, "log_level": "DEBUG", "cpu_budget": 1.0} | settings))


def set_globally() -> list[Any]:
    return [metrics._internal._METER_PROVIDER, trace._TRACER_PROVIDER, _logs._internal._LOGGER_PROVIDER]


# -- the application's ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after", "later"])
def test_providers_of_the_application_are_used(when: str) -> None:
    """Whether set before install(), right after it or long after, they receive everything and are left unchanged."""
    application = Application()
    if when == "before":
        application.set()
    agent = install()
    if when == "after":
        application.set()
    block(agent)
    before = 0
    if when == "later":
        before = count(agent)
        application.set()
        block(agent)  # its spans are exported already
    until(lambda: sum(application.metric(STALLS).values()) == count(agent) >= (2 if when == "later" else 1))
    expected = count(agent) - before
    assert [span.name for span in application.spans.get_finished_spans()] == ["asyncio.eventloop.stall"] * expected
    assert len(application.records.get_finished_logs()) == expected >= 1
    assert set_globally() == [application.meters, application.tracers, application.loggers]
    loopwatch.uninstall()
    assert application.metric(STALLS) == {}
    assert application.meters.get_meter("theirs").create_counter("still") is not None
    assert len(application.tracers._active_span_processor._span_processors) == 1
    assert application.tracers.get_tracer("theirs").start_span("works").is_recording()


def test_a_second_agent_exports_to_the_same_provider() -> None:
    """The second agent exports to the application's provider as the first did, and nothing is exported twice."""
    application = Application()
    application.set()
    block(install())
    loopwatch.uninstall()
    agent = install()
    block(agent, times=2)
    assert sum(application.metric(STALLS).values()) == count(agent) >= 2


def test_nothing_configured_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Without configuration there is no thread, log line, tracer, meter or provider; OpenTelemetry is not imported."""
    agent = install()
    block(agent)
    assert agent._parts.telemetry.providers.tracer() is None
    assert agent._parts.telemetry.providers.logger() is None
    assert agent._parts.telemetry.providers.meters() == []
    assert set_globally() == [None] * 3
    assert [record.getMessage() for record in caplog.records] == []
    code = """
        import asyncio, sys, time, loopwatch, threading
        agent = loopwatch.install(threshold=0.05, log_level="DEBUG")
        async def main(): time.sleep(0.06)
        asyncio.run(main()); agent.flush()
        print("opentelemetry" in sys.modules, [t.name for t in threading.enumerate() if "export" in t.name])
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=environ
    )
    assert done.stdout.strip() == "False []"


def test_provider_variables_create_no_global_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_PYTHON_METER_PROVIDER`` makes the API create a provider on demand; loopwatch does not demand one."""
    monkeypatch.setenv("OTEL_PYTHON_METER_PROVIDER", "sdk_meter_provider")
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider")
    with receiver() as server:
        block(install(otlp_endpoint=server.url, export_interval=0.1))
        until(lambda: server.of("metrics"))
        assert set_globally() == [None] * 3
        loopwatch.uninstall()


# -- private ones -----------------------------------------------------------------------------------------------------


def test_private_providers_export_all_signals() -> None:
    """Metrics, spans and log records arrive with the resource of this process; nothing is set globally."""
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        block(agent, times=2)
        assert set_globally() == [None] * 3
        loopwatch.uninstall()
        assert sum(server.points()[STALLS].values()) == count(agent) >= 2
        lag = server.points()["asyncio.eventloop.lag"][("main",)]
        assert sum(lag.bucket_counts) == lag.count > 0
        assert lag.sum > 0
        for signal in ("metrics", "traces", "logs"):
            resource = server.resource(signal)
            assert resource["process.pid"] == os.getpid()
            assert resource["service.name"]
        spans = server.items("traces")
        assert [span.name for span in spans] == ["asyncio.eventloop.stall"] * count(agent)
        assert all(span.end_time_unix_nano - span.start_time_unix_nano >= 50_000_000 for span in spans)
        assert {record.event_name for record in server.items("logs")} == {"asyncio.eventloop.stall"}


def test_many_spans_in_one_message() -> None:
    """Spans are encoded in small batches into one message; all arrive, once and in order."""
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        tracer = agent._parts.telemetry.providers.tracer()
        assert tracer is not None
        for number in range(100):
            tracer.start_span(f"span-{number}").end()
        block(agent)
        loopwatch.uninstall()
        names = [span.name for span in server.items("traces") if span.name.startswith("span-")]
        assert names == [f"span-{number}" for number in range(100)]
        assert len(server.of("traces")) == 1


def test_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, headers, compression, service name and disabled signals are taken from the environment."""
    with receiver() as server:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret%21",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_METRIC_EXPORT_INTERVAL": "50",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }.items():
            monkeypatch.setenv(name, value)
        block(install())
        loopwatch.uninstall()
        assert {each.signal for each in server.received} == {"metrics", "logs"}
        assert server.received[0].headers["api-key"] == "secret!"
        resource = server.resource()
        assert (resource["service.name"], resource["deployment.environment.name"]) == ("shop", "test")


def test_grpc_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """All signals are sent over grpc if configured; uninstall() closes every channel."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with grpc_receiver() as (url, lines):
        block(install(otlp_endpoint=url, export_interval=0.1))
        private = loopwatch.current_agent()._parts.telemetry.providers._private  # type: ignore[union-attr]
        assert private is not None
        loopwatch.uninstall()
        assert all(sender._channel is None for sender in private._senders.values())
        methods: set[str] = set()
        while len(methods) < 3 and (line := lines.readline()):
            methods.add(line.split()[0].rpartition(".")[2])
        assert methods == {"MetricsService/Export", "TraceService/Export", "LogsService/Export"}


def test_grpc_at_exit() -> None:
    """The last spans are sent over grpc during interpreter shutdown, when no thread can be started any more (3.12)."""
    program = (
        "import asyncio, sys, time, loopwatch\n"
        "loopwatch.install(threshold=0.05, log_level='CRITICAL', otlp_endpoint=sys.argv[1], export_interval=60)\n"
        "async def main():\n"
        "    await asyncio.sleep(0.1); time.sleep(0.1); await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    with grpc_receiver() as (url, lines):
        command = [sys.executable, "-W", "error", "-c", program, url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        methods = {lines.readline().split()[0].rpartition(".")[2] for _ in range(3)}
    assert methods == {"MetricsService/Export", "TraceService/Export", "LogsService/Export"}
    assert "cannot" not in done.stderr and "switched off" not in done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_children_export_at_exit(method: str, tmp_path: Path) -> None:
    """They run no ``atexit`` functions; their last spans, records and metrics are exported nevertheless."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import asyncio, multiprocessing, sys, time, loopwatch
            loopwatch.install(threshold=0.05, log_level="CRITICAL", otlp_endpoint=sys.argv[1], export_interval=60)

            async def main():
                await asyncio.sleep(0.1)
                time.sleep(0.15)

            def work():
                asyncio.run(main())

            if __name__ == "__main__":
                child = multiprocessing.get_context("{method}").Process(target=work)
                child.start()
                child.join()
                print(child.pid, child.exitcode)
        """)
    )
    with receiver() as server:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", str(program), server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        pid, exitcode = done.stdout.split()
        assert exitcode == "0", done.stderr
        assert server.resource("traces")["process.pid"] == int(pid)
        assert server.resource("logs")["process.pid"] == int(pid)
        assert any("asyncio.eventloop.stalls" in points_of(each) for each in server.of("metrics"))


def test_disabled_by_the_standard_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_SDK_DISABLED`` takes precedence over every setting."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        block(agent)
        assert agent._parts.telemetry.providers.tracer() is None
        loopwatch.uninstall()
        assert server.requests == 0


@pytest.mark.parametrize("temporality", ["delta", "lowmemory"])
def test_deltas_add_up_to_the_totals(temporality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deltas of all messages add up to the totals; with lowmemory only histograms are deltas."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality)
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        for number in (1, 2):
            block(agent)
            until(lambda number=number: len(server.of("metrics")) >= 2 * number)
        loopwatch.uninstall()
        messages = [server.points(at) for at in range(len(server.of("metrics")))]
        stalls = [sum(points.get(STALLS, {}).values()) for points in messages]
        assert (sum(stalls) if temporality == "delta" else stalls[-1]) == count(agent) >= 2
        lags = [point for points in messages for point in points.get("asyncio.eventloop.lag", {}).values()]
        assert sum(point.sum for point in lags) > 0
        spans = [(point.start_time_unix_nano, point.time_unix_nano) for point in lags]
        assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(spans)), "a gap, or counted twice"


def test_providers_set_later_replace_the_private_ones() -> None:
    """From then on only the application's providers receive data, and counters continue from their totals."""
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        block(agent, times=2)
        until(lambda: server.of("metrics") and sum(server.points().get(STALLS, {}).values()) == count(agent))
        before = count(agent)
        application = Application()
        application.set()
        block(agent)
        until(lambda: sum(application.metric(STALLS).values()) == count(agent))
        assert len(application.spans.get_finished_spans()) == count(agent) - before >= 1
        private = agent._parts.telemetry.providers._private
        assert private is not None
        until(lambda: not private._exporter.alive, "the exporting thread ends")
        requests = server.requests
        block(agent)
        assert server.requests == requests
        assert set_globally() == [application.meters, application.tracers, application.loggers]


def test_a_tracer_provider_of_the_application_takes_spans_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the application sets only a tracer provider, it receives the spans, and the receiver the metrics and logs."""
    application = Application()
    trace.set_tracer_provider(application.tracers)
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        block(agent)
        loopwatch.uninstall()
        assert {each.signal for each in server.received} == {"metrics", "logs"}
        assert len(application.spans.get_finished_spans()) == count(agent) >= 1


def test_endpoint_is_changed_at_run_time() -> None:
    """configure() redirects the export; an invalid endpoint changes nothing."""
    with receiver() as first, receiver() as second:
        agent = install(otlp_endpoint=first.url, export_interval=0.1)
        block(agent)
        until(lambda: first.of("metrics"))

        async def main() -> None:
            agent.configure(otlp_endpoint=second.url)
            while not second.of("metrics"):
                await asyncio.sleep(0.01)

        asyncio.run(main())
        with pytest.raises(ConfigError, match="otlp_endpoint"):
            agent.configure(otlp_endpoint="nonsense")
        assert agent.config.otlp_endpoint == second.url
        loopwatch.uninstall()
        assert sum(second.points()[STALLS].values()) == count(agent) >= 1


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no-equals"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
    ],
)
def test_bad_variables_at_install(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one line that names the variable; nothing is installed, and install() works once it is right."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as caught:
        install()
    assert "\n" not in str(caught.value)
    assert loopwatch.current_agent() is None
    monkeypatch.delenv(name)
    block(install())


def test_bad_variables_are_ignored_with_providers_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the application has its own providers, loopwatch does not validate the variables."""
    Application().set()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "no-equals")
    block(install())


BEHAVIOURS: dict[str, Callable[[Handler], None]] = {
    "refusing": lambda handler: handler.answer(400),
    "busy": lambda handler: handler.answer(429, Retry_After="0.1"),
    "unavailable": lambda handler: handler.answer(503),
    "dropping": Handler.drop,
    "slow": lambda _handler: time.sleep(0.3),
}


@pytest.mark.parametrize("trouble", BEHAVIOURS)
def test_a_failing_receiver(trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line is logged, the program continues, and the exported totals are right once the receiver has recovered."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(exporter, "SHORTEST_PAUSE", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1" if trouble == "slow" else "10")
    with receiver(BEHAVIOURS[trouble]) as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1, log_level="DEBUG")
        block(agent, times=2)
        until(lambda: server.requests >= 3)
        server.behave = Handler.take
        until(lambda: server.of("metrics"), "metrics arrive again")
        loopwatch.uninstall()
        assert sum(server.points()[STALLS].values()) == count(agent) >= 2
        lines = [record.getMessage() for record in caplog.records if "cannot export" in record.getMessage()]
        assert len(lines) == 1, lines
        assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
        assert agent._faults.counts == {}


PROGRAM = """
import asyncio, time, loopwatch
{first}
loopwatch.install(threshold=0.05, log_level="DEBUG")
async def main():
    time.sleep(0.06)
    await asyncio.sleep(0)
asyncio.run(main())
"""
OWN = """
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
"""


@pytest.mark.parametrize("first", ["", OWN], ids=["private", "own"])
def test_a_short_program_exports_at_exit(first: str, tmp_path: Path) -> None:
    """A program that ends before its first export interval exports at exit, with private providers and with its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(first=first))
    with receiver() as server:
        environ = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        done = subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, check=True, env=environ, timeout=60
        )
        assert done.stderr == ""
        assert sum(server.points()[STALLS].values()) >= 1
        assert server.points()["asyncio.eventloop.passes"][("main",)] >= 2
        assert ("off",) not in server.points()["loopwatch.agent.state"], "an exit is not reported as switched off"


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"), ("OTEL_ATTRIBUTE_COUNT_LIMIT", "-3")]
)
def test_variables_that_the_sdk_rejects(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that only the SDK reads are an error of one line too."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as caught:
        install(otlp_endpoint="http://127.0.0.1:1")
    assert "\n" not in str(caught.value)


def test_an_absent_receiver_does_not_delay_the_exit(tmp_path: Path) -> None:
    """A program without a reachable receiver logs that once, and ends without waiting for retries."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio, json, time, loopwatch
            loopwatch.install(threshold=0.05, otlp_endpoint="http://127.0.0.1:1", export_interval=0.1)
            async def main():
                for _ in range(4): await asyncio.sleep(0.1)
            asyncio.run(main())
            began = time.monotonic(); loopwatch.uninstall(); print(json.dumps(time.monotonic() - began))
        """)
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.count("\n") == 1
    assert "cannot export metrics to http://127.0.0.1:1/v1/metrics: Connection refused" in done.stderr
    assert json.loads(done.stdout) < 10, "the exit waits for no retries"


def test_dropped_spans_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans beyond the queue's limit are dropped while the receiver is away; their number is exported afterwards."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with receiver() as server:
        agent = install(otlp_endpoint=server.url, export_interval=0.1)
        tracer = agent._parts.telemetry.providers.tracer()
        assert tracer is not None
        server.behave = lambda handler: handler.answer(503)
        for _ in range(5):
            tracer.start_span("asyncio.eventloop.stall").end()
        assert agent._parts.telemetry.providers.dropped["traces"] == 3
        server.behave = Handler.take
        block(agent)
        loopwatch.uninstall()
        exported = len(server.items("traces")) + 1 - count(agent)
        dropped = server.points()["loopwatch.agent.dropped"][("traces",)]
        assert (exported >= 2, dropped >= 3, exported + dropped) == (True, True, 6), "five, and that of the block"


def test_a_failing_provider_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    """One line is logged and one fault counted; the program and all other exports continue."""

    class Broken(MeterProvider):
        fails = False

        def get_meter(self, *args: Any, **settings: Any) -> Any:
            if self.fails:
                raise RuntimeError("no meters today")
            return super().get_meter(*args, **settings)

    provider = Broken(shutdown_on_exit=False)
    metrics.set_meter_provider(provider)  # libraries with proxy meters call it at once
    provider.fails = True
    agent = install()
    block(agent)
    assert agent._faults.counts == {"providers": 1}
    assert [each.getMessage() for each in caplog.records if "no meters today" in each.getMessage()]
    reading = agent._parts.telemetry.metrics.read()
    assert reading is not None
    assert sum(point.value for point in reading.points[STALLS]) == count(agent) >= 1


def test_a_failed_reading_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single failure may be a race with the program; a reading that keeps failing is counted and switched off."""
    agent = install()
    telemetry = agent._parts.telemetry.metrics
    look = telemetry._look

    def fails() -> Any:
        raise RuntimeError("dictionary changed size during iteration")

    for _ in range(2):
        monkeypatch.setattr(telemetry, "_look", fails)
        assert telemetry.read() is None
        monkeypatch.setattr(telemetry, "_look", look)
        assert telemetry.read() is not None
    assert agent._faults.counts == {}
    monkeypatch.setattr(telemetry, "_look", fails)
    assert [telemetry.read() for _ in range(5)] == [None] * 5
    assert agent._faults.counts == {"telemetry": 3}  # from the third on
    agent._faults._clock = FakeClock(time.monotonic())
    while not agent._faults.is_off("telemetry"):
        agent._faults._clock.advance(1.0)
        telemetry.read()
    counted = agent._faults.counts["telemetry"]
    assert telemetry.read() is None
    assert agent._faults.counts["telemetry"] == counted


# -- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_exports_its_own_data(tmp_path: Path) -> None:
    """A child exports with its own pid, without its parent's queue, from totals of 0; the parent continues."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio, os, sys, time, loopwatch
            agent = loopwatch.install(threshold=0.05, log_level="DEBUG", export_interval=0.1)
            async def main(times):
                for _ in range(times):
                    time.sleep(0.06)
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.3)
            asyncio.run(main(3))
            agent.flush(20)
            pid = os.fork()
            asyncio.run(main(1 if not pid else 2))
            if pid: os.waitpid(pid, 0)
            loopwatch.uninstall()
            print(os.getpid(), len(agent.stalls()), flush=True)
            os._exit(0)
        """)
    )
    with receiver() as server:
        environ = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(program)], capture_output=True, text=True, check=True, env=environ,
            timeout=60,
        )  # fmt: skip
        stalls = dict(tuple(map(int, line.split())) for line in done.stdout.splitlines())
        child, parent = stalls
        assert stalls[child] >= 1
        assert stalls[parent] >= 5
        fields = {"metrics": "resource_metrics", "traces": "resource_spans", "logs": "resource_logs"}
        last: dict[int, Any] = {}
        spans: dict[int, int] = {}
        for each in server.received:
            resources = getattr(each.message, fields[each.signal])
            (pid,) = (item.value.int_value for item in resources[0].resource.attributes if item.key == "process.pid")
            if each.signal == "metrics":
                last[pid] = each.message
            if each.signal == "traces":
                spans[pid] = spans.get(pid, 0) + len(items_of(each.message, "traces"))
        assert {pid: sum(points_of(message)[STALLS].values()) for pid, message in last.items()} == stalls
        assert spans == stalls
        assert done.stderr == ""


def test_a_process_without_a_loop_exports_its_children() -> None:
    """A supervisor that runs no loop exports metrics of its child processes as soon as it has one."""
    program = (
        "import subprocess, sys, loopwatch\n"
        "loopwatch.install(otlp_endpoint=sys.argv[1], export_interval=0.2)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(input()); child.kill(); child.wait()\n"
    )
    with receiver() as server:
        command = [sys.executable, "-c", program, server.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            until(lambda: any("loopwatch.pool.started" in points_of(each) for each in server.of("metrics")))
            process.communicate("done\n", timeout=30)
        assert process.returncode == 0
        assert server.points()["loopwatch.pool.started"] == {("children", "children"): 1}

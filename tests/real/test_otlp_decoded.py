"""Decoded OTLP, with a decoder that is not loopwatch's: a metric with its exemplar, the spans of the blocking and the
waiting request with event and link, the log record. One program that traces by itself, and leaves metrics and logs to
loopwatch.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytestmark = [pytest.mark.long, pytest.mark.measures]

oteltap = pytest.importorskip("oteltap", reason="oteltap is not installed: pip install oteltap")

DEADLINE = 40.0
PROGRAM = """
    import asyncio, time
    import loopwatch
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    loopwatch.install(threshold=0.1, log_level="CRITICAL", export_interval=0.5, cpu_budget=1.0)
    tracer = trace.get_tracer("shop")

    async def slow():
        with tracer.start_as_current_span("GET /report"):
            await asyncio.sleep(0.05)
            time.sleep(0.3)

    async def quick():
        with tracer.start_as_current_span("GET /ping"):
            await asyncio.sleep(0.15)

    async def main():
        while True:
            await asyncio.gather(slow(), quick())
            await asyncio.sleep(0.3)

    asyncio.run(main())
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def received(port: int) -> tuple[Any, Any, Any, Any]:
    settings = oteltap.OtelTapHttpProtobufReceiverSettings(http_port=port)
    async with oteltap.OtelTapHttpProtobufReceiver(settings) as tap:
        environ = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PROGRAM)], env=environ)
        try:
            victim, stall, log, lag = await asyncio.gather(
                tap.await_trace(lambda span: span.name == "GET /ping" and len(span.links) > 0, DEADLINE),
                tap.await_trace(lambda span: span.name == "asyncio.eventloop.stall", DEADLINE),
                tap.await_log(lambda record: record.event_name == "asyncio.eventloop.stall", DEADLINE),
                tap.await_metric(
                    lambda metric: (
                        metric.name == "asyncio.eventloop.lag"
                        and any(point.exemplars for point in metric.histogram.data_points)
                    ),
                    DEADLINE,
                ),
            )
        finally:
            process.kill()
            process.wait()
    return victim, stall, log, lag


def test_decoded_telemetry() -> None:
    """The victim's span links to the trace of the stall, whose span, record and exemplar belong together."""
    victim, stall, log, lag = asyncio.run(received(free_port()))
    (event,) = [each for each in victim.events if each.name == "asyncio.eventloop.stall"]
    attributes = {each.key: each.value for each in event.attributes}
    assert 0.25 < attributes["loopwatch.stall.duration"].double_value < 5
    assert len(victim.links[0].trace_id) == 16
    assert victim.links[0].trace_id != victim.trace_id, "it leads to the trace of the blocking request"
    assert stall.parent_span_id, "a child of the request that blocked"
    assert 0.25 < (stall.end_time_unix_nano - stall.start_time_unix_nano) / 1e9 < 5
    culprit = {each.key: each.value.string_value for each in stall.attributes}
    assert (culprit["loopwatch.culprit"], culprit["loopwatch.cause"]) == ("__main__:slow", "sleep")
    assert len(log.trace_id) == 16 and "blocked" in log.body.string_value
    exemplars = [each for point in lag.histogram.data_points for each in point.exemplars]
    assert all(len(each.trace_id) == 16 and each.as_double > 0.1 for each in exemplars)

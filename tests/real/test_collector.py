"""A real collector accepts loopwatch's exports over http and over gRPC: metrics, spans and log records of one stall."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from real_servers import await_that, missing, program, rotel

from loopwatch.telemetry.metrics.catalog import BY_NAME

WHY_NOT = missing("rotel")
pytestmark = [pytest.mark.long, pytest.mark.measures, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

SHOWN = ("--exporter=blackhole", "--debug-log-verbosity=detailed")
SHOWN += ("--debug-log=traces", "--debug-log=metrics", "--debug-log=logs")

SERVICE = """
    import asyncio, json, time, loopwatch
    loopwatch.install(threshold=0.1, log_level="CRITICAL")

    def hold():
        began = time.time_ns()
        time.sleep(0.3)
        print(json.dumps([began, time.time_ns()]), flush=True)

    async def serve():
        await asyncio.sleep(0.3)
        hold()
        await asyncio.sleep(3600)

    asyncio.run(serve())
"""


def records(text: str, kind: str) -> list[str]:
    """Return the collector's output of each ``Span``, ``LogRecord`` or ``Metric``."""
    parts = re.split(rf"(?m)^{kind} #\d+\n", text)[1:]
    ends = re.compile(r"(?m)^(Resource\w* #|Resource\w+ #|(Span|LogRecord|Metric) #\d+$)")
    return [ends.split(part)[0] for part in parts]


def field(record: str, name: str) -> str:
    """Return a field or an attribute of a record."""
    found = re.search(rf"(?m)^[ \->]*{re.escape(name)}\s*: (?:\w+\()?(.*?)\)?$", record)
    assert found is not None, f"no {name} in:\n{record}"
    return found[1]


def whole(said: Callable[[], str], kind: str, having: str) -> Callable[[], str]:
    """Return a function that finds the first record with a text, once it is printed completely."""

    def find() -> str:
        found = [record for record in records(said(), kind) if having in record]
        return found[0] if found and said().endswith("\n") else ""

    return find


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_all_signals_arrive(protocol: str, tmp_path: Path) -> None:
    """One block of 0.3 seconds is a span from its start to its end, a log record in the same trace, and an increment of
    the counters, all with the resource of the service; metrics have the units of the catalog, and counters are totals.
    """
    with rotel(tmp_path, *SHOWN) as (http, grpc, collected):
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": http if protocol == "http/protobuf" else grpc,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "LOOPWATCH_EXPORT_INTERVAL": "0.5",
        }
        command = [sys.executable, "-c", textwrap.dedent(SERVICE)]
        with program(command, tmp_path, "service", env) as (_, said):
            printed = await_that(lambda: re.findall(r"(?m)^\[.*\]$", said()), "the block is over", 60)
            began, ended = json.loads(printed[0])
            span = await_that(whole(collected, "Span", "asyncio.eventloop.stall"), "a span")
            log = await_that(whole(collected, "LogRecord", "asyncio.eventloop.stall"), "a log record")
            stalls = await_that(whole(collected, "Metric", "Name: asyncio.eventloop.stalls\n"), "the counter of stalls")
            await_that(lambda: "Name: loopwatch.agent.cpu.time" in collected(), "metrics of the agent")
        seen = collected()

    assert "service.name: Str(shop)" in seen
    assert field(span, "loopwatch.culprit") == "__main__:hold"
    assert field(span, "loopwatch.cause") == "sleep"
    start, end = int(field(span, "Start time")), int(field(span, "End time"))
    assert start == pytest.approx(began, abs=0.05e9) and end == pytest.approx(ended, abs=0.05e9)
    assert (end - start) / 1e9 == pytest.approx(float(field(span, "loopwatch.stall.duration")), abs=0.001)

    assert field(log, "EventName") == "asyncio.eventloop.stall"
    assert field(log, "SeverityText") == "WARN"
    assert field(log, "Trace ID") == field(span, "Trace ID") != "0" * 32
    assert field(log, "Span ID") == field(span, "ID")
    assert field(log, "loopwatch.stall.id") == field(span, "loopwatch.stall.id")

    assert field(stalls, "loopwatch.culprit") == "__main__:hold"
    assert field(stalls, "Value") == "1"
    metrics = {field(record, "Name"): record for record in records(seen, "Metric")}
    assert {"asyncio.eventloop.lag", "asyncio.eventloop.time", "cpython.gc.collections"} <= metrics.keys()
    for name, record in metrics.items():
        assert field(record, "Unit") == BY_NAME[name].unit
        if "DataType: Sum" in record or "DataType: Histogram" in record:
            assert "AGGREGATION_TEMPORALITY_CUMULATIVE" in record

"""A real Prometheus scrapes real programs: metrics, restarts and exemplars arrive, and it discovers the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from real_servers import Prometheus, await_that, free_port, missing, program, prometheus

WHY_NOT = missing("prometheus")
pytestmark = [pytest.mark.long, pytest.mark.measures, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

TRACE, SPAN = f"{0xABC:032x}", f"{0xDEF:016x}"

SERVICE = f"""
    import asyncio, os, time, loopwatch
    from opentelemetry import trace
    loopwatch.install(threshold=0.05, heartbeat=0.01, cpu_budget=1.0, log_level="CRITICAL")
    span = trace.NonRecordingSpan(trace.SpanContext(0x{TRACE}, 0x{SPAN}, is_remote=False))

    def hold():
        time.sleep(0.12)

    async def serve():
        with trace.use_span(span):
            while True:
                await asyncio.sleep(0.1)
                hold()

    while not os.fork():  # a worker, and again one in place of one that is gone
        asyncio.run(serve())
    while True:
        os.wait()
        if not os.fork():
            asyncio.run(serve())
"""


def two_free_ports() -> int:
    """Return the first of two consecutive free ports."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def configured(port: int) -> dict[str, Any]:
    discovered = [{"url": f"http://127.0.0.1:{port}/targets", "refresh_interval": "1s"}]
    return {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "shop", "http_sd_configs": discovered}],
    }


def value(server: Prometheus, expression: str) -> float:
    """Return the value of the only series of an expression, -1 while there is none."""
    found = server.query(expression)
    return float(found[0]["value"][1]) if len(found) == 1 else -1.0


def test_a_service_as_prometheus_sees_it(tmp_path: Path) -> None:
    """Both processes are discovered over ``/targets`` and up; stalls of the worker are counted under its culprit, their
    trace is in the exemplars of the lag, and the worker that replaces a killed one is the same instance for Prometheus,
    with another process id and a later start.
    """
    port, began = two_free_ports(), time.time()
    env = {"LOOPWATCH_PROMETHEUS_PORT": str(port), "OTEL_SERVICE_NAME": "shop"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SERVICE)]
    with program(command, tmp_path, "service", env) as (_, said), prometheus(tmp_path, configured(port)) as server:
        await_that(lambda: value(server, 'sum(up{job="shop"})') == 2, said())
        worker = f'instance="127.0.0.1:{port + 1}"'
        stalls = (
            f'sum(asyncio_eventloop_stalls_total{{{worker}, loopwatch_cause="sleep", loopwatch_culprit=~".*hold"}})'
        )
        await_that(lambda: value(server, stalls) >= 3, f"stalls by culprit: {server.query(stalls)}")
        info = server.query(f"target_info{{{worker}}}")[-1]["metric"]
        assert (info["service_name"], info["loopwatch_worker_index"]) == ("shop", "0")

        lag = f"asyncio_eventloop_lag_seconds_bucket{{{worker}}}"
        found = await_that(lambda: server.exemplars(lag, began, time.time() + 60), "an exemplar")
        exemplar = found[0]["exemplars"][0]
        assert exemplar["labels"] == {"trace_id": TRACE, "span_id": SPAN}
        assert 0.05 <= float(exemplar["value"]) < 10
        assert began <= float(exemplar["timestamp"]) <= time.time()
        bound = float(found[0]["seriesLabels"]["le"])
        assert float(exemplar["value"]) <= bound

        starts = f"loopwatch_agent_start_time_seconds{{{worker}}}"
        first = value(server, starts)
        os.kill(int(info["process_pid"]), signal.SIGKILL)
        await_that(lambda: value(server, starts) > first > began - 1, "a worker that started later")
        pids = f"count(count_over_time(target_info{{{worker}}}[5m]))"
        await_that(lambda: value(server, pids) == 2, "two processes, one after the other, at one address")

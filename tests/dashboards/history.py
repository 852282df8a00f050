"""Half an hour of metrics of an unhealthy process, collected in two ways, and a Prometheus that serves them.

The samples are generated from the catalog, with values that can be computed by hand. Job ``scraped`` has the series
that Prometheus scrapes from the process. Job ``sent`` has those of the same process from a collector that received its
metrics over OTLP: with labels of scope and resource on every series, bucket bounds in another notation, and without
an instance, as if ``service.instance.id`` was not set.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwatch.telemetry.metrics import catalog
from loopwatch.telemetry.metrics.catalog import CATALOG, Kind, Metric

STEP, LENGTH = 15, 1800
"""Seconds between samples; seconds of history."""
LATE = 1200
"""Seconds from the start to the first stall, failure, crash and so on; before that their series do not exist."""

WAYS: dict[str, dict[str, str]] = {
    "scraped": {"job": "scraped", "instance": "10.0.0.1:9464"},
    "sent": {
        "job": "sent",
        "otel_scope_name": "loopwatch",
        "otel_scope_version": "0.1.0",
        "service_name": "sent",
        "process_pid": "7",
    },
}

VALUES = {
    catalog.LOOP: ("main",),
    catalog.LOOP_STATE: ("busy", "idle"),
    catalog.CAUSE: ("python", "sleep"),
    catalog.CULPRIT: ("app:resize", "app:nap"),
    catalog.STARVED_BY: ("quota", "neighbours"),
    catalog.GENERATION: ("0", "2"),
    catalog.POOL: ("images",),
    catalog.POOL_KIND: ("process",),
    catalog.WORKER_STATE: ("busy", "idle", "hung", "zombie", "orphan"),
    catalog.ERROR_TYPE: ("ValueError",),
    catalog.CRASH: ("SIGSEGV",),
    catalog.FINDING: ("cpu-bound-threads",),
    catalog.FUNCTION: ("app:resize",),
    catalog.PLACE: ("inline", "process"),
    catalog.REMEDY: ("Move it.",),
    catalog.STATE: ("watching",),
    catalog.PART: ("journal",),
    catalog.SIGNAL: ("spans",),
}
"""Values of each attribute, combined in order."""

RISES = {
    "asyncio.eventloop.stalls": 1.0,
    "asyncio.eventloop.stall.duration": 3.0,
    "asyncio.eventloop.stall.victims": 30.0,
    "asyncio.eventloop.stall.starved": 0.75,
    "loopwatch.offload.saved": 7.5,
}
"""Increase of counters per step; others increase by 1."""
HOLDS = {
    "asyncio.eventloop.utilization": 0.75,
    "asyncio.eventloop.lag.p99": 0.2,
    "asyncio.eventloop.blocked_for": 4.0,
}
"""Values of gauges; others are 2."""
FROM_THE_BEGIN = {"asyncio.eventloop.time", "cpython.gc.collections", "asyncio.eventloop.lag"}


def is_late(metric: Metric) -> bool:
    """Whether the series of ``metric`` begin to exist with their first event."""
    of_events = {catalog.CULPRIT, catalog.ERROR_TYPE, catalog.CRASH, catalog.FUNCTION, catalog.PART, catalog.SIGNAL}
    return metric.kind is Kind.COUNTER and bool(of_events & set(metric.attributes))


def label_sets(metric: Metric) -> list[dict[str, str]]:
    """Return the label sets of its series, without the labels of ``WAYS``."""
    values = {attribute.replace(".", "_"): VALUES[attribute] for attribute in metric.attributes}
    most = max(map(len, values.values()), default=1)
    return [{name: several[at % len(several)] for name, several in values.items()} for at in range(most)]


def openmetrics(begin: int) -> Iterator[str]:
    """Yield the lines of all samples from ``begin`` on, in seconds since the epoch."""
    for metric in CATALOG:
        name = metric.prometheus.removesuffix("_total")
        yield f"# TYPE {name} {metric.kind.value}"
        for way, more in WAYS.items():
            for labels in label_sets(metric):
                yield from _series(metric, name, {**labels, **more}, begin, way)
    yield "# EOF"


def _series(metric: Metric, name: str, labels: dict[str, str], begin: int, way: str) -> Iterator[str]:
    first = LATE if is_late(metric) else 0
    for offset in range(first, LENGTH + 1, STEP):
        count = (offset - first) // STEP + 1
        at = begin + offset
        if metric.kind is Kind.HISTOGRAM:
            # In each step ten took less than the first bound, and one fell into the fifth bucket.
            for position, bound in enumerate((*metric.bounds, None)):
                written = "+Inf" if bound is None else f"{bound:g}" if way == "sent" else str(float(bound))
                value = count * (10 if position < 4 else 11)
                yield f"{name}_bucket{_labels({**labels, 'le': written})} {value} {at}"
            yield f"{name}_count{_labels(labels)} {count * 11} {at}"
            yield f"{name}_sum{_labels(labels)} {count * 0.5} {at}"
        elif metric.kind is Kind.COUNTER:
            yield f"{name}_total{_labels(labels)} {count * RISES.get(metric.name, 1.0)} {at}"
        else:
            yield f"{name}{_labels(labels)} {HOLDS.get(metric.name, 2.0)} {at}"


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


@dataclass(frozen=True)
class Prometheus:
    """A server with the history.

    Attributes:
        port: on loopback.
        end: time of the last sample, in seconds since the epoch.
    """

    port: int
    end: int

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the vector of an expression at a time, by default at the end."""
        found = self._ask("query", query=expr, time=str(self.end if at is None else at))
        assert found["resultType"] == "vector", found["resultType"]
        result: list[dict[str, Any]] = found["result"]
        return result

    def range(self, expr: str, within: int = 900, step: int = 30) -> list[dict[str, Any]]:
        """Return the matrix of an expression over the last ``within`` seconds."""
        found = self._ask("query_range", query=expr, start=str(self.end - within), end=str(self.end), step=str(step))
        result: list[dict[str, Any]] = found["result"]
        return result

    def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        body = urllib.parse.urlencode(parameters).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}", body, timeout=20) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
                return data
        except urllib.error.HTTPError as exc:
            with exc:
                raise AssertionError(f"{parameters['query']}: {json.load(exc)['error']}") from None


_QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def write(folder: Path) -> int:
    """Write the history into a folder as Prometheus blocks; return the time of the last sample."""
    end = int(time.time()) // STEP * STEP
    (folder / "history.om").write_text("\n".join(openmetrics(end - LENGTH)) + "\n")
    (folder / "prometheus.yml").write_text("global: {}\n")
    make = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.om", "data"]
    subprocess.run(make, cwd=folder, check=True, **_QUIET)
    return end


@contextlib.contextmanager
def prometheus(folder: Path, end: int) -> Iterator[Prometheus]:
    """Run a Prometheus on the folder of :func:`write`, and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"]
    server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, **_QUIET)
    try:
        deadline = time.monotonic() + 30
        while not _ready(port):
            assert server.poll() is None and time.monotonic() < deadline, "Prometheus does not start"
            time.sleep(0.02)
        yield Prometheus(port, end)
    finally:
        server.terminate()
        server.wait()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

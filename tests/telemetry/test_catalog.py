"""The catalog of metrics: bounded, documented, and named by the rules of OpenTelemetry and Prometheus."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import loopwatch
from loopwatch.telemetry.metrics import document
from loopwatch.telemetry.metrics.catalog import BY_NAME, CATALOG, MAX_SAMPLES, Kind, Metric

DOCS = Path(loopwatch.__file__).parent.parent / "docs" / "metrics.md"


def test_samples_of_a_process_are_bounded() -> None:
    """All metrics with all their attribute sets are at most 600 Prometheus samples, including target_info."""
    assert sum(metric.samples for metric in CATALOG) + 1 <= MAX_SAMPLES == 600


def test_samples_of_a_histogram() -> None:
    """A histogram with two bounds has three buckets, a count and a sum in each set."""
    assert Metric("a", "s", Kind.HISTOGRAM, "", ("x",), 4, (1.0, 2.0)).samples == 4 * 5
    assert Metric("a", "s", Kind.GAUGE, "", ("x",), 4).samples == 4


@pytest.mark.parametrize("metric", CATALOG, ids=lambda metric: metric.name)
def test_every_metric_is_documented(metric: Metric) -> None:
    """Each metric has a question it answers, what it does not mean and an example; its bounds fit its kind."""
    assert metric.question.endswith("?")
    assert metric.is_not.endswith(".")
    assert re.search(r"\d|nything", metric.example), "an example has numbers"
    assert metric.description.endswith(".")
    assert re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", metric.name)
    assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert metric.sets == 1 or metric.attributes


def test_names_are_unique() -> None:
    """No two metrics share a name, neither in OpenTelemetry nor in Prometheus."""
    assert len(BY_NAME) == len(CATALOG) == len({metric.prometheus for metric in CATALOG})


@pytest.mark.parametrize(
    ("name", "prometheus"),
    [
        ("asyncio.eventloop.lag", "asyncio_eventloop_lag_seconds"),
        ("asyncio.eventloop.lag.p99", "asyncio_eventloop_lag_p99_seconds"),
        ("asyncio.eventloop.utilization", "asyncio_eventloop_utilization_ratio"),
        ("asyncio.eventloop.time", "asyncio_eventloop_time_seconds_total"),
        ("asyncio.eventloop.stalls", "asyncio_eventloop_stalls_total"),
        ("asyncio.tasks", "asyncio_tasks"),
        ("cpython.gc.collected_objects", "cpython_gc_collected_objects_total"),
        ("loopwatch.pool.workers", "loopwatch_pool_workers"),
        ("loopwatch.pool.memory", "loopwatch_pool_memory_bytes"),
        ("loopwatch.pool.cpu.time", "loopwatch_pool_cpu_time_seconds_total"),
        ("loopwatch.agent.start_time", "loopwatch_agent_start_time_seconds"),
        ("loopwatch.agent.stretch", "loopwatch_agent_stretch_ratio"),
    ],
)
def test_names_in_prometheus(name: str, prometheus: str) -> None:
    """Units and ``_total`` are appended as the specification requires, and units in braces are left out."""
    assert BY_NAME[name].prometheus == prometheus


def test_page_is_up_to_date() -> None:
    """``docs/metrics.md`` is what python -m loopwatch.telemetry.metrics.document writes."""
    assert DOCS.read_text() == document.document()


def test_page_names_every_metric() -> None:
    """The page has a section for each metric, in plain text of 120 columns, and links to it."""
    text = document.document()
    assert re.findall(r"^### (.+)$", text, re.MULTILINE) == [metric.name for metric in CATALOG]
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    for metric in CATALOG:
        assert f"(#{metric.name.replace('.', '')})" in text

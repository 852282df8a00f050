"""The names that a collector gives our metrics are those in catalog, dashboards and rules."""

from __future__ import annotations

import doctest

import faster_rules
import pytest
from collector_exporter import CUMULATIVE, PrometheusExporter, prometheus_name
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp

from loopwatch.telemetry.metrics.catalog import CATALOG, Kind, Metric

pytestmark = pytest.mark.long


def as_otlp(metric: Metric) -> otlp.Metric:
    """Return a metric as it is sent."""
    made = otlp.Metric(name=metric.name, unit=metric.unit, description=metric.description)
    if metric.kind is Kind.COUNTER:
        made.sum.is_monotonic, made.sum.aggregation_temporality = True, CUMULATIVE
        made.sum.data_points.add(as_double=3.5)
    elif metric.kind is Kind.GAUGE:
        made.gauge.data_points.add(as_double=3.5)
    else:
        made.histogram.aggregation_temporality = CUMULATIVE
        point = made.histogram.data_points.add(count=3, sum=1.75)
        point.explicit_bounds.extend(metric.bounds)
        point.bucket_counts.extend([1, 2] + [0] * (len(metric.bounds) - 1))
    return made


@pytest.mark.parametrize("metric", CATALOG, ids=lambda metric: metric.name)
def test_the_catalog_has_the_names_of_a_collector(metric: Metric) -> None:
    """Suffixes for unit, gauges of 1 and counters, by the rules of the specification, give the name in the catalog."""
    assert prometheus_name(as_otlp(metric)) == metric.prometheus


def test_exposition_of_a_collector() -> None:
    """Resource attributes become job and instance, buckets are cumulative, and series no longer sent expire."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for name, value in (("service.name", "shop"), ("service.namespace", "eu"), ("service.instance.id", 'a"1')):
        resource.resource.attributes.add(key=name).value.string_value = value
    scope = resource.scope_metrics.add()
    scope.scope.name = "loopwatch"
    scope.metrics.extend(as_otlp(metric) for metric in CATALOG)
    exporter = PrometheusExporter()
    exporter.take(request)
    lines = exporter.text().splitlines()
    who = 'job="eu/shop",instance="a\\"1",otel_scope_name="loopwatch",otel_scope_version=""'
    lag = [line for line in lines if line.startswith("asyncio_eventloop_lag_seconds")]
    assert lag[:3] == [
        f'asyncio_eventloop_lag_seconds_bucket{{{who},le="0.001"}} 1',
        f'asyncio_eventloop_lag_seconds_bucket{{{who},le="0.005"}} 3',
        f'asyncio_eventloop_lag_seconds_bucket{{{who},le="0.01"}} 3',
    ]
    assert lag[-3:] == [
        f'asyncio_eventloop_lag_seconds_bucket{{{who},le="+Inf"}} 3',
        f"asyncio_eventloop_lag_seconds_count{{{who}}} 3",
        f"asyncio_eventloop_lag_seconds_sum{{{who}}} 1.75",
    ]
    assert sum(line.startswith("asyncio_tasks{") and line.endswith(" 3.5") for line in lines) == 1
    assert "# TYPE asyncio_eventloop_stalls_total counter" in lines
    forgetful = PrometheusExporter(expiration=-1)
    forgetful.take(request)
    assert [line for line in forgetful.text().splitlines() if not line.startswith("#")] == []


def test_time_passes_faster_in_rules() -> None:
    """Windows, offsets, waiting times and limits that are durations are scaled; names, shares and rates stay."""
    assert doctest.testmod(faster_rules).failed == 0
    fast = faster_rules.shipped(60)
    assert "job:asyncio_eventloop_blocked_own:ratio_rate1h > 14.4 * 0.01" in fast["alerts.yml"]
    assert "for: 15000ms" in fast["alerts.yml"] and "for: 15m" not in fast["alerts.yml"]
    assert "avg_over_time(job:asyncio_eventloop_blocked_own:ratio_rate5m[259200000ms])" not in fast["recording.yml"]
    assert "avg_over_time(job:asyncio_eventloop_blocked_own:ratio_rate5m[4320000ms])" in fast["recording.yml"]
    assert "culprit:asyncio_eventloop_stalls:max_rate5m > 0.1" in fast["alerts.yml"]
    assert faster_rules.shipped(1) != fast

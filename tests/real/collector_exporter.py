"""A collector's Prometheus exporter for OTLP, for machines without such a collector.

Written after "Prometheus and OpenMetrics Compatibility" of the OpenTelemetry specification and the documentation of the
collector's ``prometheusexporter``; nothing of loopwatch is used, so that it can contradict the catalog's names.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp

CUMULATIVE = otlp.AGGREGATION_TEMPORALITY_CUMULATIVE
_UNITS = {"s": "seconds", "By": "bytes", "ms": "milliseconds", "Cy": "cycles", "%": "percent"}

Labels = tuple[tuple[str, str], ...]


class PrometheusExporter:
    """Keeps the last points of every series, and shows them as Prometheus wants them.

    Args:
        expiration: seconds after which a series that was not sent again is forgotten (``metric_expiration``).
    """

    def __init__(self, expiration: float = 300.0) -> None:
        self._expiration = expiration
        self._lock = threading.Lock()
        self._families: dict[str, str] = {}
        self._series: dict[str, dict[Labels, tuple[float, list[str]]]] = {}

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Accept posts to ``/v1/metrics``, answer scrapes of ``/metrics``, and drop traces and logs."""
        if path == "/v1/metrics":
            self.take(ExportMetricsServiceRequest.FromString(body))
        return 200, self.text().encode() if path == "/metrics" else b""

    def take(self, request: ExportMetricsServiceRequest) -> None:
        """Accept an export."""
        with self._lock:
            for resource in request.resource_metrics:
                target = _labels(resource.resource.attributes)
                namespace, name = target.pop("service_namespace", ""), target.pop("service_name")
                who = {
                    "job": f"{namespace}/{name}" if namespace else name,
                    "instance": target.pop("service_instance_id", ""),
                }
                self._keep("target_info", "gauge", {**who, **target}, lambda labels: [f"target_info{labels} 1"])
                for scope in resource.scope_metrics:
                    ours = {**who, "otel_scope_name": scope.scope.name, "otel_scope_version": scope.scope.version}
                    for metric in scope.metrics:
                        self._take(metric, ours)

    def _take(self, metric: otlp.Metric, who: Mapping[str, str]) -> None:
        kind = metric.WhichOneof("data")
        name = prometheus_name(metric)
        if kind == "histogram":
            assert metric.histogram.aggregation_temporality == CUMULATIVE, metric.name
            for histogram in metric.histogram.data_points:
                labels = {**_labels(histogram.attributes), **who}
                self._keep(name, "histogram", labels, lambda _, h=histogram, o=labels: _histogram(name, h, o))
            return
        if kind == "sum":
            assert metric.sum.aggregation_temporality == CUMULATIVE, metric.name
        family = "counter" if kind == "sum" and metric.sum.is_monotonic else "gauge"
        for point in getattr(metric, kind).data_points:
            value = getattr(point, point.WhichOneof("value"))
            self._keep(
                name, family, {**_labels(point.attributes), **who}, lambda text, v=value: [f"{name}{text} {v!r}"]
            )

    def _keep(self, name: str, kind: str, labels: Mapping[str, str], lines: object) -> None:
        assert self._families.setdefault(name, kind) == kind, f"{name} is both {kind} and {self._families[name]}"
        key = tuple(sorted(labels.items()))
        self._series.setdefault(name, {})[key] = (time.monotonic(), lines(_text(key)))  # type: ignore[operator]

    def text(self) -> str:
        """Return the text of a scrape."""
        oldest = time.monotonic() - self._expiration
        with self._lock:
            lines = []
            for name, series in self._series.items():
                lines.append(f"# TYPE {name} {self._families[name]}")
                for key, (at, rendered) in list(series.items()):
                    if at < oldest:
                        del series[key]
                    else:
                        lines += rendered
            return "\n".join(lines) + "\n"


def prometheus_name(metric: otlp.Metric) -> str:
    """Return the name with its suffixes: unit without annotations in braces, ``ratio`` for gauges of 1, ``total``."""
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", metric.name) if word]
    kind = metric.WhichOneof("data")
    unit = re.sub(r"\{[^}]*\}", "", metric.unit).strip()
    total = kind == "sum" and metric.sum.is_monotonic
    if unit and unit != "1":
        long = _UNITS.get(unit, unit)
        if long not in words:
            words.append(long)
    if total:
        words = [word for word in words if word != "total"] + ["total"]
    elif metric.unit == "1" and kind == "gauge":
        words = [word for word in words if word != "ratio"] + ["ratio"]
    return "_".join(words)


def _labels(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {re.sub(r"[^a-zA-Z0-9_]", "_", item.key): _value(item.value) for item in attributes}


def _value(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    return (
        "" if kind is None else str(getattr(value, kind)).lower() if kind == "bool_value" else str(getattr(value, kind))
    )


def _text(labels: Iterable[tuple[str, str]]) -> str:
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for _, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for (name, _), value in zip(labels, quoted, strict=True)) + "}"


def _histogram(name: str, point: otlp.HistogramDataPoint, labels: Mapping[str, str]) -> list[str]:
    lines, seen = [], 0
    for bound, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
        seen += count
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_text([*labels.items(), ('le', le)])} {seen}")
    whole = _text(list(labels.items()))
    return [*lines, f"{name}_count{whole} {point.count}", f"{name}_sum{whole} {point.sum!r}"]

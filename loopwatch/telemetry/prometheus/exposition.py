"""Converts points to metric families of prometheus_client, under the names that OTLP collectors use. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loopwatch.telemetry.metrics.attributes import utf8
from loopwatch.telemetry.metrics.catalog import CATALOG, LOOP, Kind, Metric
from loopwatch.telemetry.metrics.exemplars import Exemplar, Exemplars
from loopwatch.telemetry.metrics.records import Point, Reading, Spread

Family = Any
"""A ``prometheus_client.metrics_core.Metric``."""


def families(reading: Reading, exemplars: Exemplars | None = None) -> Iterator[Family]:
    """Return the families of all metrics that have points, in the order of the catalog.

    Args:
        reading: the current points.
        exemplars: stalls to attach to the lag that they caused.
    """
    from prometheus_client.metrics_core import Metric as MetricFamily

    for metric in CATALOG:
        points = reading.points.get(metric.name, ())
        spreads = reading.spreads.get(metric.name, ())
        if points or spreads:
            name = metric.prometheus.removesuffix("_total")
            family = MetricFamily(name, metric.description, metric.kind.value)
            labels = tuple(label(attribute) for attribute in metric.attributes)
            for point in points:
                _add_point(family, metric, labels, point)
            apart = {spread.attributes[0] for spread in spreads}
            for spread in spreads:
                caused = exemplars.of(spread.attributes[0], apart) if exemplars and metric.attributes == (LOOP,) else {}
                _add_spread(family, metric, labels, spread, caused)
            yield family


def label(attribute: str) -> str:
    """Return an attribute's name in Prometheus, where letters, digits and underscores are allowed.

    Example:
        >>> label("loopwatch.pool.name"), label("2nd-team")
        ('loopwatch_pool_name', 'key_2nd_team')
    """
    name = re.sub(r"[^a-zA-Z0-9_]", "_", attribute)
    # Names that begin with two underscores are reserved by Prometheus.
    return f"key_{name.lstrip('_')}" if name[:1].isdigit() or name.startswith("__") else name


def text(value: object) -> str:
    """Return an attribute's value as valid UTF-8."""
    return utf8(str(value))


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(names, map(text, values), strict=True))


def _add_point(family: Family, metric: Metric, labels: tuple[str, ...], point: Point) -> None:
    suffix = "_total" if metric.kind is Kind.COUNTER else ""
    family.add_sample(family.name + suffix, _labels(labels, point.attributes), point.value)


def _add_spread(
    family: Family, metric: Metric, labels: tuple[str, ...], spread: Spread, caused: Mapping[int, Exemplar]
) -> None:
    from prometheus_client.samples import Exemplar as Sampled

    own, bucket = _labels(labels, spread.attributes), f"{family.name}_bucket"
    bounds = (*map(str, metric.bounds), "+Inf")
    for at, (bound, count) in enumerate(zip(bounds, spread.histogram.at_most(metric.bounds), strict=True)):
        one = caused.get(at)
        exemplar = None if one is None else Sampled(dict(one.trace), one.value, one.at)
        family.add_sample(bucket, {**own, "le": bound}, count, exemplar=exemplar)
    family.add_sample(f"{family.name}_count", own, spread.histogram.count)
    family.add_sample(f"{family.name}_sum", own, spread.histogram.total)

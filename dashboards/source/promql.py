"""Expressions over loopwatch's metrics; names, suffixes and labels come from the catalog, what it has not fails.

Every expression aggregates by labels that it names. So the labels that differ with the way metrics came (a collector
may add ``otel_scope_name`` and a process's resource attributes) fall away, and both ways give the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loopwatch.telemetry.metrics import catalog
from loopwatch.telemetry.metrics.catalog import Kind, Metric

JOB = "job"
INSTANCE = "instance"
TARGET = (JOB, INSTANCE)
"""What tells processes apart: labels that a scrape adds, and collectors make of ``service.name`` and
``service.instance.id``."""

RATE = "$__rate_interval"
RECENT = "5m"
RANGE = "$__range"

ALERTS = "ALERTS"
"""The one series that is not loopwatch's: Prometheus writes it where it has our rules."""
_FIRING = 'alertname=~"Loopwatch.+", alertstate="firing"'

_VARIABLES = {JOB: "job", INSTANCE: "instance", catalog.LOOP: "loop", catalog.POOL: "pool"}
"""Attributes that a dashboard can be narrowed by, and the variables that do it."""


def metric(name: str) -> Metric:
    """Return the metric of the catalog.

    Raises:
        KeyError: there is none of that name.
    """
    return catalog.BY_NAME[name]


def m(name: str) -> str:
    """Return the name in Prometheus.

    Example:
        >>> m("asyncio.eventloop.lag")
        'asyncio_eventloop_lag_seconds'
    """
    return metric(name).prometheus


def label(attribute: str) -> str:
    """Return the label that an attribute becomes.

    Example:
        >>> label("asyncio.eventloop.name")
        'asyncio_eventloop_name'
    """
    return attribute.replace(".", "_")


def legend(*attributes: str) -> str:
    """Return a format of Grafana that shows these labels."""
    return " ".join(f"{{{{{label(attribute)}}}}}" for attribute in attributes)


def by(*attributes: str) -> str:
    """Return the clause that keeps these labels; nothing for none."""
    return f" by ({', '.join(map(label, attributes))})" if attributes else ""


@dataclass(frozen=True, slots=True)
class Scope:
    """Expressions that are narrowed by the variables of one dashboard.

    Attributes:
        variables: attributes of :data:`_VARIABLES` that it has a variable for.

    Example:
        >>> Scope(("job",)).of("asyncio.tasks")
        'asyncio_tasks{job=~"$job"}'
    """

    variables: tuple[str, ...]

    def of(self, name: str, *matchers: str, suffix: str = "") -> str:
        """Return the selector of a metric: the variables that apply to it, and ``matchers``."""
        has = (*TARGET, *metric(name).attributes)
        narrowed = [f'{label(item)}=~"${_VARIABLES[item]}"' for item in self.variables if item in has]
        every = ", ".join([*narrowed, *matchers])
        return f"{m(name)}{suffix}{{{every}}}" if every else f"{m(name)}{suffix}"

    def now(self, name: str, *keep: str, how: str = "max", matchers: Sequence[str] = ()) -> str:
        """Return a gauge, aggregated by ``how``."""
        self._check(name, keep, Kind.GAUGE)
        return f"{how}{by(*keep)} ({self.of(name, *matchers)})"

    def rate(self, name: str, *keep: str, how: str = "sum", matchers: Sequence[str] = ()) -> str:
        """Return the growth of a counter per second."""
        self._check(name, keep, Kind.COUNTER)
        return f"{how}{by(*keep)} (rate({self.of(name, *matchers)}[{RATE}]))"

    def grown(self, name: str, *keep: str, window: str = RATE, matchers: Sequence[str] = ()) -> str:
        """Return by how much a counter has grown within ``window``, its first value counted.

        A counter that has an attribute such as the culprit begins to exist with its first event, and not at 0, so that
        ``increase()`` never sees that event: a culprit that blocks once would not be shown at all. Here a series that
        did not exist before the window counts with its whole value.
        """
        self._check(name, keep, Kind.COUNTER)
        series = self.of(name, *matchers)
        return f"sum{by(*keep)} (({series} unless {series} offset {window}) or increase({series}[{window}]))"

    def pace(self, name: str, *keep: str, seconds: int = 1) -> str:
        """Return the growth of a counter within so many ``seconds``, its first value counted.

        That is :meth:`rate` where names come and go: of a pool that is made for each call, all lies in first values.
        """
        return f"{self.grown(name, *keep)} / ($__rate_interval_ms / {1000 * seconds})"

    def share(self, name: str, *keep: str) -> str:
        """Return the share of the time by which a counter of seconds grows, its first value counted."""
        if metric(name).unit != "s":
            raise ValueError(f"{name} is counted in {metric(name).unit}, not in seconds")
        return self.pace(name, *keep)

    def buckets(self, name: str, *keep: str, window: str = RATE, way: str = "rate") -> str:
        """Return the buckets of a histogram."""
        self._check(name, keep, Kind.HISTOGRAM)
        kept = ", ".join([*map(label, keep), "le"])
        return f"sum by ({kept}) ({way}({self.of(name, suffix='_bucket')}[{window}]))"

    def quantile(self, q: float, name: str, *keep: str, window: str = RATE) -> str:
        """Return a quantile over everything that is aggregated, from the buckets of a histogram."""
        return f"histogram_quantile({q}, {self.buckets(name, *keep, window=window)})"

    def values(self, name: str, attribute: str) -> str:
        """Return the query of a variable: the values of one label."""
        self._check(name, (attribute,), metric(name).kind)
        return f"label_values({self.of(name)}, {label(attribute)})"

    @staticmethod
    def alerts() -> str:
        """Return our alerts that fire, which Prometheus tells of itself; those of a whole service have no instance."""
        return f'max by (alertname, severity, {JOB}, {INSTANCE}) ({ALERTS}{{{_FIRING}, {JOB}=~"$job"}})'

    @staticmethod
    def _check(name: str, keep: Sequence[str], kind: Kind) -> None:
        found = metric(name)
        unknown = set(keep) - {*TARGET, *found.attributes}
        if found.kind is not kind or unknown:
            raise ValueError(f"{name} is a {found.kind} with {found.attributes}; asked for {kind} and {sorted(keep)}")

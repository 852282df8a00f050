"""Writes ``docs/metrics.md`` from the catalog: ``python -m loopwatch.telemetry.metrics.document > docs/metrics.md``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator

from loopwatch.telemetry.metrics import catalog
from loopwatch.telemetry.metrics.catalog import CATALOG, Kind, Metric

_WIDTH = 120
_INTRODUCTION = f"""\
# Metrics

Written by `python -m loopwatch.telemetry.metrics.document` from `loopwatch/telemetry/metrics/catalog.py`; do not edit.

Every metric that loopwatch exports, over OTLP and to Prometheus alike: the question of an operator that it answers,
what it does not mean, an example. Attributes keep their names over OTLP; in Prometheus dots become underscores
(`{catalog.LOOP}` is the label `{catalog.LOOP.replace(".", "_")}`). Counters count from when the agent
starts.

Whatever happens in a process, it exports at most {catalog.MAX_SAMPLES} samples: {catalog.MAX_LOOPS} loops, \
{catalog.MAX_POOLS} pools and {catalog.MAX_CULPRITS} culprits have series of their own (`max_culprits` lowers that), \
and what is beyond a bound is exported as `{catalog.OTHER}`: the sum of what can be added, and of shares and lags \
the worst. In all there can be {{samples}}. Those that are busiest, in trouble, or have the most tasks come first; \
one that came after the first has to last for two readings. "In the last window" means 10 s; the first window of a \
loop is one second long.
"""
_PARTS = (
    ("Event loops and the interpreter", catalog.LOOPS),
    ("Pools and processes", catalog.POOLS),
    ("Offloading", catalog.OFFLOAD),
    ("The agent itself", catalog.AGENT),
)


def document() -> str:
    """Return the text of ``docs/metrics.md``."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    samples = sum(metric.samples for metric in CATALOG)
    for paragraph in _INTRODUCTION.format(samples=samples).strip().split("\n\n"):
        yield from _wrapped(paragraph)
        yield ""
    for title, metrics in _PARTS:
        yield from (
            f"## {title}",
            "",
            "| metric | unit | kind | samples at most | |",
            "| --- | --- | --- | --- | --- |",
        )
        for metric in metrics:
            link = metric.name.replace(".", "")
            yield (
                f"| [`{metric.name}`](#{link}) | `{metric.unit}` | {metric.kind.value} | {metric.samples} "
                f"| {metric.description} |"
            )
        yield ""
        for metric in metrics:
            yield from _section(metric)


def _section(metric: Metric) -> Iterator[str]:
    yield from (f"### {metric.name}", "")
    yield from _wrapped(f"**{metric.question}**")
    yield from ("", *_wrapped(metric.description), "")
    yield f"- Prometheus: `{metric.prometheus}`{_parts(metric)}"
    if metric.attributes:
        names = ", ".join(f"`{name}`" for name in metric.attributes)
        yield from _wrapped(f"- By {names}: {metric.sets} sets at most", "  ")
    if metric.bounds:
        yield from _wrapped(f"- Buckets: {', '.join(f'{bound:g}' for bound in metric.bounds)} s", "  ")
    yield from _wrapped(f"- {metric.is_not}", "  ")
    yield from _wrapped(f"- Example: {metric.example}", "  ")
    yield ""


def _parts(metric: Metric) -> str:
    return " with `_bucket`, `_count` and `_sum`" if metric.kind is Kind.HISTOGRAM else ""


def _wrapped(text: str, indent: str = "") -> Iterable[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    sys.stdout.write(document())

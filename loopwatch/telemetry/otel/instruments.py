"""Every instrument of the catalog on one meter, through the API of OpenTelemetry only.

Instruments cannot be removed from a meter. So those on a provider of the application are made once and found again by
the next agent; without an agent they export nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loopwatch.core.histogram import Histogram
from loopwatch.core.process_state import one
from loopwatch.telemetry.metrics.account import EMPTY, Account, Pause, nap_off_the_loop
from loopwatch.telemetry.metrics.cardinality import Key
from loopwatch.telemetry.metrics.catalog import BY_NAME, CATALOG, Kind, Metric
from loopwatch.telemetry.metrics.exemplars import Exemplar
from loopwatch.telemetry.metrics.records import Reading

MOST_RECORDS = 500
"""Durations of one series that are recorded at a collection; of more, an even sample."""
_RECORDS = 32
"""Durations that are recorded in one go, a fifth of a millisecond."""
_NEW, _TIED = 60.0, 256
"""Seconds to wait for the lag that a stall caused; stalls remembered whose lag is recorded."""
_BEAT = 0.06
"""Seconds; a stall is longer than its lag by the rest until the next heartbeat of a busy loop, 0.05 by default."""
_LAG = "asyncio.eventloop.lag"


class Instruments:
    """The instruments of one meter.

    Args:
        meter: on which they are made.
        metrics: those exported on it.
        with_histograms: whether durations are recorded too.

    Attributes:
        meter: the same.
        pause: called between two instruments, to yield the GIL; may be replaced.
    """

    def __init__(self, meter: Any, metrics: Sequence[Metric] = CATALOG, *, with_histograms: bool = True) -> None:
        from opentelemetry.context import Context
        from opentelemetry.metrics import Observation
        from opentelemetry.trace import INVALID_SPAN, set_span_in_context

        # Never the context of the collecting thread: it may belong to the program.
        self._nowhere = set_span_in_context(INVALID_SPAN, Context())
        self.meter = meter
        self.pause: Pause = nap_off_the_loop
        self._account = EMPTY
        self._observation = Observation
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._asked: set[str] = set()
        self._begun = False
        self._histograms: dict[str, Any] = {}
        self._recorded: dict[tuple[str, Key], Histogram] = {}
        self._tied: deque[float] = deque(maxlen=_TIED)
        for metric in metrics:
            if with_histograms or metric.kind is not Kind.HISTOGRAM:
                self._create(metric)

    def attach(self, account: Account) -> None:
        """Export the metrics of ``account`` from now on."""
        self._lock = threading.Lock()
        self._reading, self._asked, self._begun = None, set(), False
        self._recorded = {}
        self._tied.clear()
        self._account = account

    def detach(self) -> None:
        """Export nothing from now on."""
        self._account = EMPTY
        self._reading = None

    def _create(self, metric: Metric) -> None:
        about = {"name": metric.name, "unit": metric.unit, "description": metric.description}
        if metric.kind is Kind.HISTOGRAM:
            bounds = list(metric.bounds)
            self._histograms[metric.name] = self.meter.create_histogram(
                **about, explicit_bucket_boundaries_advisory=bounds
            )
        elif metric.kind is Kind.COUNTER:
            self.meter.create_observable_counter(**about, callbacks=[self._callback(metric)])
        else:
            self.meter.create_observable_gauge(**about, callbacks=[self._callback(metric)])

    def _callback(self, metric: Metric) -> Callable[[Any], Iterator[Any]]:
        def observe(_options: Any) -> Iterator[Any]:
            self.pause()
            reading = self._shared(metric.name)
            if reading is None:
                return
            for point in reading.points.get(metric.name, ()):
                yield self._observation(point.value, dict(zip(metric.attributes, point.attributes, strict=True)))

        return observe

    def _shared(self, name: str) -> Reading | None:
        """Return the reading of this collection: an instrument that asks a second time begins the next one."""
        with self._lock:
            if self._reading is None or name in self._asked:
                self._asked = set()
                self._reading = self._account.read(self.pause)
                if self._reading is not None:
                    self._record(self._reading)
            self._asked.add(name)
            return self._reading

    def _record(self, reading: Reading) -> None:
        """Record the growth of the histograms of ``reading`` since the last one."""
        for metric in (BY_NAME[name] for name in self._histograms):
            apart = {spread.attributes[0] for spread in reading.spreads.get(metric.name, ())}
            for spread in reading.spreads.get(metric.name, ()):
                key = (metric.name, spread.attributes)
                before = self._recorded.get(key)
                self._recorded[key] = spread.histogram
                grown = spread.histogram if before is None else spread.histogram.since(before)
                if not self._begun and grown.count > MOST_RECORDS:
                    continue  # a provider that was set late starts with later durations
                found = self._news(spread.attributes[0], apart, reading.at) if metric.name == _LAG else {}
                attributes = dict(zip(metric.attributes, spread.attributes, strict=True))
                self._replay(self._histograms[metric.name], grown, attributes, found)
        self._begun = True

    def _news(self, loop: str, apart: set[str], now: float) -> dict[int, Exemplar]:
        """Return the recent exemplars of a loop that are not recorded yet, by bucket."""
        found = self._account.exemplars.of(loop, apart).items()
        return {bucket: each for bucket, each in found if now - each.at < _NEW and each.at not in self._tied}

    def _replay(
        self, instrument: Any, grown: Histogram, attributes: Mapping[str, str], exemplars: dict[int, Exemplar]
    ) -> None:
        for number, value in enumerate(_values(grown)):
            if not number % _RECORDS:
                self.pause()
            caused = _cause_of(value, exemplars)
            if caused is not None:
                self._tied.append(caused.at)
            instrument.record(value, attributes, self._nowhere if caused is None else _within(caused))


def _values(grown: Histogram) -> Iterator[float]:
    """Return the durations, longest first; if there are too many, an even sample of them."""
    step = max(grown.count / MOST_RECORDS, 1.0)
    passed, due = 0, 0.0
    for value, count in reversed(grown.items()):
        passed += count
        while due < passed:
            yield value
            due += step


def _cause_of(lag: float, exemplars: dict[int, Exemplar]) -> Exemplar | None:
    """Take the stall that explains a lag: as long, to the precision of both, or longer by less than a heartbeat."""
    for at, each in exemplars.items():
        if 0.9 * lag <= each.value <= 1.1 * lag + _BEAT:
            return exemplars.pop(at)
    return None


def _within(exemplar: Exemplar) -> Any:
    """Return a context in which the blocking span is the current one, so that an SDK makes it the value's exemplar."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    trace = exemplar.trace
    span = SpanContext(
        int(trace["trace_id"], 16), int(trace["span_id"], 16), False, TraceFlags(TraceFlags.SAMPLED)
    )  # fmt: skip
    return set_span_in_context(NonRecordingSpan(span), Context())


class _Kept(weakref.WeakKeyDictionary[Any, Instruments]):
    """The instruments on providers of the application, by provider."""


def instruments_of(provider: Any, version: str) -> Instruments:
    """Return the instruments on a provider of the application; made by the first call."""
    kept = one(_Kept)
    try:
        found = kept.get(provider)
    except TypeError:  # it cannot be weakly referenced, or hashed
        return Instruments(provider.get_meter("loopwatch", version))
    if found is None:
        found = kept[provider] = Instruments(provider.get_meter("loopwatch", version))
    return found

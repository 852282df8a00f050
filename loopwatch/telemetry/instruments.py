"""Every instrument of the catalog on one meter, through the API of OpenTelemetry only.

Instruments cannot be taken back from a meter. So those of a provider that is the application's are made once and found
again by the next agent; without an agent they tell nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from loopwatch.telemetry.catalog import CATALOG, Kind, Metric
from loopwatch.telemetry.readings import Reading

Read = Callable[[], Reading | None]


def _nothing() -> Reading | None:
    return None


class Instruments:
    """The instruments of one meter.

    Args:
        meter: on which they are made.

    Attributes:
        meter: the same.
        pause: called between two instruments; of a thread that must not keep the GIL for long.
    """

    def __init__(self, meter: Any) -> None:
        from opentelemetry.metrics import Observation

        self.meter = meter
        self.pause: Callable[[], None] = lambda: None
        self._read: Read = _nothing
        self._observation = Observation
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._asked: set[str] = set()
        self._spreads: dict[str, Any] = {}
        for metric in CATALOG:
            self._create(metric)

    def attach(self, read: Read) -> None:
        """Tell what ``read`` returns from now on."""
        self._lock = threading.Lock()
        self._reading, self._asked = None, set()
        self._read = read

    def detach(self) -> None:
        """Tell nothing from now on."""
        self._read = _nothing
        self._reading = None

    def _create(self, metric: Metric) -> None:
        about = {"name": metric.name, "unit": metric.unit, "description": metric.description}
        if metric.kind is Kind.HISTOGRAM:
            bounds = list(metric.bounds)
            self._spreads[metric.name] = self.meter.create_histogram(
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
                self._reading = self._read()
            self._asked.add(name)
            return self._reading


_kept: weakref.WeakKeyDictionary[Any, Instruments] = weakref.WeakKeyDictionary()
"""The instruments on providers of the application, which outlive agents as these providers do."""


def instruments_of(provider: Any, version: str) -> Instruments:
    """Return the instruments on a provider of the application; made with the first call."""
    found = _kept.get(provider)
    if found is None:
        found = _kept[provider] = Instruments(provider.get_meter("loopwatch", version))
    return found

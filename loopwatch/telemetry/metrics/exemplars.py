"""Exemplars of the lag histogram: for each bucket the latest stall that belongs to a known trace."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping

from loopwatch.core.dataclasses import dataclass
from loopwatch.events import Stall
from loopwatch.telemetry.metrics.catalog import LAG_BOUNDS, OTHER

MOST = 16
"""Loops whose exemplars are kept: those that stalled last."""
_TRACE = ("trace_id", "span_id")


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A stall as an example of the lag that it caused.

    Attributes:
        value: seconds for which it held the loop.
        trace: ``trace_id`` and ``span_id`` of the blocking span.
        at: its end, seconds since the epoch.
    """

    value: float
    trace: Mapping[str, str]
    at: float


class Exemplars:
    """Latest exemplars by loop and bucket; written by one thread, read by others."""

    def __init__(self) -> None:
        self._by_loop: dict[str, dict[int, Exemplar]] = {}

    def saw(self, stall: Stall) -> None:
        """Keep a stall, if it is over and belongs to a trace."""
        if stall.ongoing or not all(stall.context.get(name) for name in _TRACE):
            return
        found = Exemplar(
            stall.duration, {name: stall.context[name] for name in _TRACE}, stall.started_at + stall.duration
        )
        kept = {**self._by_loop.get(stall.loop, {}), bisect.bisect_left(LAG_BOUNDS, stall.duration): found}
        others = [(loop, each) for loop, each in self._by_loop.items() if loop != stall.loop]
        self._by_loop = dict([*others[-MOST + 1 :], (stall.loop, kept)])

    def clear(self) -> None:
        """Remove all exemplars."""
        self._by_loop = {}

    def of(self, loop: str, apart: Collection[str] = ()) -> Mapping[int, Exemplar]:
        """Return the exemplars of one loop, by index of their bucket in :data:`LAG_BOUNDS`.

        Args:
            loop: its name, or :data:`OTHER` for loops without a series of their own.
            apart: names of the loops with a series of their own.
        """
        by_loop = self._by_loop
        found = dict(by_loop.get(loop, {}))
        if loop == OTHER:
            for each in by_loop.keys() - set(apart):
                found |= by_loop[each]
        return found

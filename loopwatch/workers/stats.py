"""Statistics of one pool; written on its loop's thread, read from any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from loopwatch.core.histogram import Histogram
from loopwatch.core.originals import time
from loopwatch.events import PoolStats, WorkerStats
from loopwatch.health.naming import error_name, task_name
from loopwatch.health.records import PoolReading
from loopwatch.workers.connection import Connection
from loopwatch.workers.totals import totals_of
from loopwatch.workers.worker import resident

COUNTED = (
    "submitted", "completed", "failed", "cancelled", "timed_out", "crashed", "retried", "started", "recycled",
)  # fmt: skip
"""Counters that have the same name in :class:`PoolStats`."""
SMOOTHING = 0.1
"""Weight of the newest call in the mean run time."""
TOGETHER = 64
"""Calls whose times enter the histograms as one batch: a tenth of a millisecond."""
MOST_TYPES = 32
"""Exception types, and crash reasons, that are distinguished; further ones count as ``other``."""
UNKNOWN_RUN = 0.001
"""Assumed mean run time in seconds before the first call has run."""


class Times(NamedTuple):
    """Run and wait times of calls; the ``latest`` (run, wait) are not in the histograms yet."""

    runs: Histogram
    waits: Histogram
    latest: list[tuple[float, float]]

    def together(self) -> Times:
        """Return a copy with the latest in the histograms; this object stays unchanged for its readers."""
        runs, waits = self.runs.copy(), self.waits.copy()
        for run, wait in self.latest.copy():
            runs.record(run)
            waits.record(wait)
        return Times(runs, waits, [])


class PoolCounts:
    """Counters and times of a pool, and the longest block of its loop by one call."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """Failed calls, by type of the exception."""
        self.crashes: Counter[str] = Counter()
        """Workers that died unexpectedly, by reason."""
        self.spent = totals_of(self, "process")
        self.mean_run = UNKNOWN_RUN
        self._times = Times(Histogram(), Histogram(), [])
        self._busy = 0.0
        self._encoding = self._decoding = 0.0
        self._longest_encode = self._longest_decode = 0.0

    def failed(self, error: BaseException) -> None:
        """Count a call that failed with ``error``."""
        self.counts["failed"] += 1
        _count(self.failures, error_name(error))

    def died(self, reason: str) -> None:
        """Count a worker that died unexpectedly."""
        _count(self.crashes, reason)

    def ran(self, seconds: float, waited: float, taken: float) -> None:
        """Record a call: the ``seconds`` it ran, the time it ``waited`` before, the time ``taken`` until its result."""
        self._busy += seconds
        spent = self.spent
        spent.run += seconds
        if taken > seconds:
            spent.trip += taken - seconds
        latest = self._times.latest
        latest.append((seconds, waited))
        if len(latest) == TOGETHER:
            self._times = self._times.together()
        self.mean_run += SMOOTHING * (seconds - self.mean_run)

    def encoded(self, seconds: float) -> None:
        """Record that pickling a call blocked the loop for ``seconds``."""
        self._longest_encode = max(self._longest_encode, seconds)
        self._encoding += seconds
        self.spent.held += seconds

    def decoded(self, seconds: float) -> None:
        """Record that unpickling a result blocked the loop for ``seconds``."""
        self._longest_decode = max(self._longest_decode, seconds)
        self._decoding += seconds
        self.spent.held += seconds
        self.spent.trip += seconds

    def reading(
        self,
        name: str,
        connections: Iterable[Connection] = (),
        alive: float = 0.0,
        *,
        queued: int = 0,
        decoding: int = 0,
        **fields: Any,
    ) -> PoolReading:
        """Return all statistics of the pool as one record.

        Args:
            name: of the pool.
            connections: to its workers.
            alive: seconds that its workers have lived, in total.
            queued, decoding: waiting calls; calls whose result is being unpickled.
            **fields: further fields of :class:`PoolStats`.
        """
        now = time.monotonic()
        connections = list(connections)
        calls = [call for connection in connections for call in list(connection.calls.values()) if call is not None]
        times = self._times.together()
        counted: dict[str, Any] = {name: self.counts[name] for name in COUNTED}
        stats = PoolStats(
            name=name,
            workers=tuple(_worker(connection, now) for connection in connections),
            queued=queued,
            running=sum(not call.future.done() for call in calls) + decoding,
            **counted,
            wait=times.waits.stats(),
            run=times.runs.stats(),
            longest_encode=self._longest_encode,
            longest_decode=self._longest_decode,
            utilization=min(self._busy / alive, 1.0) if alive > 0 else 0.0,
            failures=dict(self.failures),
            crashes=dict(self.crashes),
            encoding=self._encoding,
            decoding=self._decoding,
            **fields,
        )
        return PoolReading(stats, times.waits, times.runs)


def _worker(connection: Connection, now: float) -> WorkerStats:
    call = connection.running()
    begun = None if call is None else call.begun
    return WorkerStats(
        connection.pid,
        connection.state,
        len(connection.calls),
        connection.done,
        now - connection.started_at,
        resident(connection.pid),
        task=None if call is None else task_name(call.function),
        running_for=None if begun is None else max(time.perf_counter() - begun, 0.0),
    )


def _count(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < MOST_TYPES else "other"] += 1

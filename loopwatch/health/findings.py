"""Applies the finding rules to pools and processes, with minimum hold and clear times. Pure: time is an argument.

A rule becomes a finding once it has held for :attr:`Rule.hold` seconds, and ceases to be one once it has not held for
:data:`CLEAR_AFTER` seconds. What is uncertain is no finding: the thresholds keep a healthy program silent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from loopwatch.core.dataclasses import dataclass, replace
from loopwatch.core.median import median
from loopwatch.events import Finding
from loopwatch.health.finding_rules import RULES
from loopwatch.health.history import CRASH_WINDOW, History, Scene
from loopwatch.health.records import End, ExitWait, PoolReading

CLEAR_AFTER = 30.0
"""Seconds for which a rule must not hold before its finding is cleared."""
MOST_POOLS = 500
"""Closed pools whose history is kept."""


class FindingTracker:
    """Keeps the history of all pools, and applies the rules to it.

    Example:
        >>> FindingTracker().update((), 0.0, cpus=2)
        ()
    """

    def __init__(self) -> None:
        self._histories: dict[tuple[int, str, str], History] = {}
        self._over: deque[History] = deque(maxlen=MOST_POOLS)
        self._held: dict[tuple[str, str], _Held] = {}
        self._gil_waits: deque[float] = deque(maxlen=5)

    def update(
        self,
        readings: Iterable[PoolReading],
        now: float,
        cpus: float,
        ends: Sequence[End] = (),
        *,
        affinity: float | None = None,
        gil_wait: float | None = None,
        exits: Sequence[ExitWait] = (),
        at: float = 0.0,
    ) -> tuple[Finding, ...]:
        """Add one round of readings and return the current findings.

        Args:
            readings: of all pools.
            now: ``time.monotonic`` seconds.
            cpus: processors that this process may use.
            ends: ends of child processes, oldest first.
            affinity: processors that it may run on; more than ``cpus`` under a CPU limit of the container. Default:
                ``cpus``.
            gil_wait: seconds that a thread just waited for the GIL.
            exits: waits at the end of the program.
            at: seconds since the epoch.
        """
        present = set()
        for reading in readings:
            key = (reading.number, reading.stats.kind, reading.stats.name)
            present.add(key)
            history = self._histories.get(key)
            if history is None:
                history = self._histories[key] = History(reading.stats, now, now)
            history.add(reading, now)
        if gil_wait is not None:
            self._gil_waits.append(gil_wait)
        for key in [key for key in self._histories if key not in present]:
            self._over.append(self._histories.pop(key))
        while self._over and now - self._over[0].last_seen > CRASH_WINDOW:
            self._over.popleft()
        scene = Scene(
            list(self._histories.values()),
            list(self._over),
            ends,
            cpus,
            cpus if affinity is None else affinity,
            median(self._gil_waits) if self._gil_waits else None,
            now,
            exits,
        )
        return self._hold(scene, at)

    def _hold(self, scene: Scene, at: float) -> tuple[Finding, ...]:
        for rule in RULES:
            for finding in rule.check(scene):
                key = (finding.kind, finding.subject)
                held = self._held.setdefault(key, _Held(scene.now, finding))
                held.last, held.finding = scene.now, replace(finding, at=held.finding.at)
                if not held.reported and scene.now - held.since >= rule.hold:
                    held.reported = True
                    held.finding = replace(finding, at=at)
        for key, held in list(self._held.items()):
            # A rule that is no finding yet has to hold without interruption.
            if held.last < scene.now and (not held.reported or scene.now - held.last > CLEAR_AFTER):
                del self._held[key]
        return tuple(held.finding for held in self._held.values() if held.reported)


@dataclass(slots=True)
class _Held:
    since: float
    finding: Finding
    last: float = 0.0
    reported: bool = False

"""Where the calls of one offloadable function run: as its decorator says, or as its measurements suggest."""

from __future__ import annotations

from collections import deque
from typing import Any

from loopwatch.events import Cause, Decision
from loopwatch.offloading.measurements import Measurements
from loopwatch.offloading.policy import decide
from loopwatch.offloading.side_effects import Probation
from loopwatch.workers import worker
from loopwatch.workers.interpreters import gil_enabled
from loopwatch.workers.settings import settings
from loopwatch.workers.thread_backend import in_own_thread

AGAIN = 200
"""Calls after which a function of which an argument could not be pickled may go to a process again."""
CHANGES = 10
"""Decisions that are kept."""
_KEEPS_GIL = {Cause.PYTHON: True, Cause.NATIVE_GIL: True, Cause.NATIVE: False}


class Route:
    """Where one function runs, and why.

    Args:
        name: of the function, ``module:qualname``.
        to: a place, a backend, or None for what is configured.
        measurements: of the function.
        stays: why it must not run on any other thread; empty if it may.
        bound: why it must not run in another process; empty if it may.
        probation: compares what it changes before its first trip to a process; None if it is not asked.
        cause: why its stalls held the loop, as far as that is known.

    Attributes:
        changes: the latest decisions that differ from the one before.
    """

    def __init__(
        self,
        name: str,
        to: Any,
        measurements: Measurements,
        *,
        stays: str = "",
        bound: str = "",
        probation: Probation | None = None,
        cause: Cause = Cause.UNKNOWN,
    ) -> None:
        self.stays, self.bound, self.probation = stays, bound, probation
        self.changes: deque[Decision] = deque(maxlen=CHANGES)
        self._name, self._to, self._measurements, self._cause = name, to, measurements, cause
        self._decision = Decision("inline", "not called yet")
        self._bound_until: int | None = None

    @property
    def to(self) -> Any:
        """Where calls are sent: what was decorated, else what is configured."""
        return settings.offload_to if self._to is None else self._to

    @property
    def is_measured(self) -> bool:
        """Whether measurements decide."""
        return bool(self.to == "auto")

    @property
    def decision(self) -> Decision:
        """Where the next call runs, and why."""
        if self.stays:
            return Decision("inline", self.stays)
        return self._decision if self.is_measured else Decision(label(self.to), "as it was told")

    def place(self) -> Any:
        """Return where the next call is to run: ``inline``, ``thread``, ``process`` or a backend."""
        if worker.here.is_worker:
            return "inline"  # no pools within pools
        if not self.is_measured:
            return "inline" if self.to == "thread" and in_own_thread() else self.to
        to = self._decision.to
        if self.stays or (to == "thread" and in_own_thread()) or (to == "process" and self._is_on_probation):
            return "inline"
        return to

    @property
    def _is_on_probation(self) -> bool:
        return self.probation is not None and bool(self.probation.left)

    def keep_inline(self, why: str) -> None:
        """Run it on the calling thread for ever."""
        self.stays = why

    def bind(self, why: str, calls: int = 0) -> None:
        """Keep it out of processes for ever.

        Args:
            why: shown to the user.
            calls: that it has had so far.
        """
        self.bound, self.probation = why, None
        self.decide(calls)

    def bind_for_now(self, why: str, calls: int) -> None:
        """Keep it out of processes for the next :data:`AGAIN` calls; arguments as of :meth:`bind`."""
        self.bound, self._bound_until = why, calls + AGAIN
        self.decide(calls)

    def decide(self, calls: int) -> None:
        """Decide anew, after ``calls`` in all."""
        if self._bound_until is not None and calls >= self._bound_until:
            self.bound, self._bound_until = "", None
        keeps_gil = _KEEPS_GIL.get(settings.causes.get(self._name, self._cause)) if gil_enabled() else False
        measured = self._measurements.measured(keeps_gil=keeps_gil, bound=self.bound)
        if measured is None:
            return
        before, self._decision = self._decision, decide(measured, self._decision)
        if self._decision.to != before.to:
            self.changes.append(self._decision)


def label(to: Any) -> str:
    """Return the name of a place or backend."""
    return to if isinstance(to, str) else str(getattr(to, "name", "backend"))

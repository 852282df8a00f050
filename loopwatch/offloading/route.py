"""The route of one offloadable function: the destination of its calls, fixed or decided from measurements."""

from __future__ import annotations

from collections import deque
from typing import Any

from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.events import Cause, Decision
from loopwatch.offloading.measurements import Measurements
from loopwatch.offloading.policy import decide
from loopwatch.offloading.side_effects import Probation
from loopwatch.workers import worker
from loopwatch.workers.interpreters import gil_enabled
from loopwatch.workers.settings import settings
from loopwatch.workers.thread_backend import in_own_thread

AGAIN = 200
"""Calls after which a function may run in a process again, if an argument could not be pickled."""
CHANGES = 10
"""Latest decisions kept."""


class Route:
    """The destination of the calls of one function, and the reason for it.

    Args:
        name: of the function, ``module:qualname``.
        to: a destination, a backend, or None for the configured default.
        measurements: of the function.
        stays: why it must not run on any other thread; empty if it may.
        bound: why it must not run in another process; empty if it may.
        probation: checks it for side effects before its first trip to a process; None for no check.
        cause: of its stalls, as far as known.

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
        """The destination given at decoration, else the configured default."""
        return settings.offload_to if self._to is None else self._to

    @property
    def is_measured(self) -> bool:
        """Whether measurements decide the destination."""
        return bool(self.to == "auto")

    @property
    def decision(self) -> Decision:
        """The destination of the next call, and the reason."""
        if self.stays:
            return Decision("inline", self.stays)
        return self._decision if self.is_measured else Decision(label(self.to), "as configured")

    def place(self) -> Any:
        """Return the destination of the next call: ``inline``, ``thread``, ``process`` or a backend."""
        if worker.here.is_worker:
            return "inline"  # no nested pools
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
        """Run it on the calling thread from now on."""
        self.stays = why

    def bind(self, why: str, calls: int = 0) -> None:
        """Do not run it in other processes from now on.

        Args:
            why: reason shown to the user.
            calls: number of its calls so far.
        """
        self.bound, self.probation = why, None
        self.decide(calls)

    def bind_for_now(self, why: str, calls: int) -> None:
        """Do not run the next :data:`AGAIN` calls in other processes; arguments as of :meth:`bind`."""
        self.bound, self._bound_until = why, calls + AGAIN
        self.decide(calls)

    def decide(self, calls: int) -> None:
        """Update the decision; ``calls`` is the number of calls so far."""
        if self._bound_until is not None and calls >= self._bound_until:
            self.bound, self._bound_until = "", None
        cause = settings.causes.get(self._name, self._cause)
        keeps_gil = CAUSES[cause].keeps_gil if gil_enabled() else False
        measured = self._measurements.measured(keeps_gil=keeps_gil, bound=self.bound)
        if measured is None:
            return
        before, self._decision = self._decision, decide(measured, self._decision)
        if self._decision.to != before.to:
            self.changes.append(self._decision)


def label(to: Any) -> str:
    """Return the name of a destination or backend."""
    return to if isinstance(to, str) else str(getattr(to, "name", "backend"))

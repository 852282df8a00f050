"""The way of a stall: an observation is diagnosed, the stall kept, its function flagged, and emitted to every sink.

All of it runs in the sink thread. Sinks are guarded here and nowhere else: one that raises is counted under its
part's name, left out for a while if it goes on, and keeps no other sink from its stall.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.diagnosis.culprit import Site
from loopwatch.diagnosis.diagnose import diagnose, undiagnosed
from loopwatch.diagnosis.flagging import Flagging
from loopwatch.events import FlaggedFunction, Frame, Stall
from loopwatch.watch import stacks
from loopwatch.watch.observation import Observation


class StallSink(Protocol):
    """Takes stalls that are over, and hangs that go on."""

    def emit(self, stall: Stall, flagged: FlaggedFunction | None, span: Any) -> object:
        """Take one stall; what is raised is counted.

        Args:
            stall: what is emitted.
            flagged: the function that it has flagged, None if it has not.
            span: context of the span that was current where the loop was blocked, None if there was none.
        """


NamedSinks = Callable[[], Iterable[tuple[str, StallSink]]]
"""Returns sinks, each with its part's name, in the order in which they take a stall."""


class StallPipeline:
    """Makes stalls of observations.

    Args:
        config: returns the settings in force.
        faults: of the agent.
        sinks: returns the sinks in use.
        expected: takes a block that was expected, which is no stall.
        dropped: takes the id of an observation of which no stall is made.
        dump_of: returns the stack that was written down during a block, empty if there is none.

    Attributes:
        ring: the latest stalls, oldest first.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        faults: Faults,
        sinks: NamedSinks,
        *,
        expected: Callable[[Stall], object],
        dropped: Callable[[str], object],
        dump_of: Callable[[Observation], tuple[Frame, ...]],
    ) -> None:
        self._config, self._faults, self._sinks = config, faults, sinks
        self._expected, self._dropped, self._dump_of = expected, dropped, dump_of
        now = config()
        self.ring: deque[Stall] = deque(maxlen=now.max_stalls)
        self._flagging = Flagging(now.flag_after, now.flag_window, now.max_culprits)
        self._site = Site.here(now.user_code, now.library_code)

    def configure(self) -> None:
        """Take the settings in force."""
        now = self._config()
        self.ring = deque(self.ring, maxlen=now.max_stalls)
        self._site = Site.here(now.user_code, now.library_code)
        self._flagging.after, self._flagging.window = now.flag_after, now.flag_window
        self._flagging.max_culprits = now.max_culprits

    def clear(self) -> None:
        """Forget all stalls, in a forked child."""
        self.ring.clear()
        self._flagging.clear()

    def flagged(self, now: float) -> tuple[FlaggedFunction, ...]:
        """Return the functions that keep blocking at ``now``, seconds since the epoch; most blocked time first."""
        return self._faults.attempt("flagging", lambda: self._flagging.flagged(now), ())

    def take(self, seen: Observation) -> None:
        """Take an observation: emit the stall that it is."""
        dump = self._dump_of(seen)
        bare = undiagnosed(seen, self._config().threshold)
        stall = self._faults.attempt("diagnosis", lambda: self._diagnose(seen, dump), bare, about=seen.id)
        if stall is None or seen.expectation is not None:
            self._dropped(seen.id)
            if stall is not None and seen.expectation is not None:
                seen.expectation.count(stall)
                self._expected(stall)
            return
        self.ring.append(stall)
        flagged = self._faults.attempt("flagging", lambda: self._flagging.add(stall), None)
        for part, sink in self._sinks():
            self._emit(part, sink, stall, flagged, seen.span)

    def _emit(self, part: str, sink: StallSink, stall: Stall, flagged: FlaggedFunction | None, span: Any) -> None:
        self._faults.attempt(part, lambda: sink.emit(stall, flagged, span), None)

    def diagnose_early(self, seen: Observation) -> Stall | None:
        """Return what a block that goes on looks like by now; None where that cannot be said."""
        return self._faults.attempt("diagnosis", lambda: self._diagnose(seen), None)

    def _diagnose(self, seen: Observation, dump: tuple[Frame, ...] = ()) -> Stall | None:
        threshold = self._config().threshold
        return diagnose(seen, self._site, threshold, _call_name, dump, attempt=self._faults.attempt)


def _call_name(stack: stacks.RawStack) -> str | None:
    return stacks.call_at(stack.frames[0], stack.globals) if stack.frames else None

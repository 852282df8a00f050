"""The stall pipeline: diagnoses an observation, keeps the stall, flags its function, and emits it to every sink.

All of it runs in the sink thread. Sinks are guarded here and nowhere else: an exception is counted under the sink's
part name, a sink that keeps failing is switched off for a while, and the other sinks still get the stall.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.diagnosis.diagnose import diagnose, undiagnosed
from loopwatch.diagnosis.feeder import on_behalf_of
from loopwatch.diagnosis.flagging import Flagging
from loopwatch.diagnosis.no_sample import with_neighbour
from loopwatch.diagnosis.own_part import contradictions
from loopwatch.diagnosis.site import Site
from loopwatch.events import FlaggedFunction, Frame, Stall
from loopwatch.system.signals import handler_code
from loopwatch.watch import stacks
from loopwatch.watch.observation import Observation
from loopwatch.watch.stacks import RawStack


class StallSink(Protocol):
    """A sink: takes stalls that are over, and hangs that go on."""

    def emit(self, stall: Stall, flagged: FlaggedFunction | None, span: Any) -> object:
        """Take one stall; an exception is counted.

        Args:
            stall: the stall.
            flagged: the function that it flagged, None if it did not.
            span: context of the span that was current where the loop was blocked, None if there was none.
        """


NamedSinks = Callable[[], Iterable[tuple[str, StallSink]]]
"""Returns sinks with their part names, in the order in which they take a stall."""


class StallPipeline:
    """Turns observations into stalls and emits them.

    Args:
        config: returns the current settings.
        faults: of the agent.
        sinks: returns the sinks in use.
        expected: takes an expected block, which is no stall.
        dropped: called with the id of an observation that makes no stall.
        dump_of: returns the stack that the hang timer wrote during a block, empty if there is none.
        goes_on: called between two sinks.
        submitter: returns the stack of the latest submission to a process pool before a time.

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
        goes_on: Callable[[], object],
        submitter: Callable[[float], RawStack | None] = lambda _before: None,
    ) -> None:
        self._config, self._faults, self._sinks, self._goes_on = config, faults, sinks, goes_on
        self._expected, self._dropped, self._dump_of = expected, dropped, dump_of
        self._submitter = submitter
        now = config()
        self.ring: deque[Stall] = deque(maxlen=now.max_stalls)
        self._flagging = Flagging(now.flag_after, now.flag_window, now.max_culprits)
        self._site = Site.here(now.user_code, now.library_code, sys.orig_argv)

    def configure(self) -> None:
        """Apply the current settings."""
        now = self._config()
        self.ring = deque(self.ring, maxlen=now.max_stalls)
        self._site = Site.here(now.user_code, now.library_code, sys.orig_argv)
        self._flagging.after, self._flagging.window = now.flag_after, now.flag_window
        self._flagging.max_culprits = now.max_culprits

    def clear(self) -> None:
        """Forget all stalls, in a forked child."""
        self.ring.clear()
        self._flagging.clear()

    def flagged(self, now: float) -> tuple[FlaggedFunction, ...]:
        """Return the functions that are flagged at ``now``, seconds since the epoch; most blocked time first."""
        return self._faults.attempt("flagging", lambda: self._flagging.flagged(now), ())

    def take(self, seen: Observation) -> None:
        """Diagnose an observation and emit its stall."""
        if seen.is_below:
            self._dropped(seen.id)
            return
        dump = self._dump_of(seen)
        bare = undiagnosed(seen, self._threshold(seen))
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
            self._goes_on()  # what the previous one has written
            self._faults.run(part, sink.emit, stall, flagged, seen.span)

    def diagnose_early(self, seen: Observation) -> Stall | None:
        """Return the early diagnosis of an ongoing block; None if there is none."""
        return self._faults.attempt("diagnosis", lambda: self._diagnose(seen), None)

    def _threshold(self, seen: Observation) -> float:
        """Return the threshold in force for ``seen``."""
        return self._config().threshold if seen.limit is None else seen.limit

    def _diagnose(self, seen: Observation, dump: tuple[Frame, ...] = ()) -> Stall | None:
        submitter = self._submitter(seen.end)
        seen.hog, seen.collector = on_behalf_of(seen.hog, submitter), on_behalf_of(seen.collector, submitter)
        stall = diagnose(
            seen,
            self._site,
            self._threshold(seen),
            _call_name,
            dump,
            handlers=handler_code(),
            attempt=self._faults.attempt,
        )
        if stall is not None and not stall.ongoing and contradictions(stall.evidence):
            self._faults.count("evidence")
        return None if stall is None else with_neighbour(stall, reversed(self.ring))


def _call_name(stack: stacks.RawStack) -> str | None:
    return stacks.call_at(stack.frames[0], stack.globals) if stack.frames else None

"""Fault isolation: failures inside the agent are counted and logged; a part that keeps failing is switched off.

A fault affects one stall, pool or loop, never the whole part. Only a part that fails on :data:`OCCASIONS` occasions
within :data:`WINDOW` seconds is switched off, for :data:`FIRST_PAUSE` seconds, and then tried again. If it fails again,
it is off for twice as long, at most :data:`LONGEST_PAUSE`. Recovery is logged too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

from loopwatch.core import log
from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.originals import time
from loopwatch.core.signals import raised_by_handler
from loopwatch.core.text import error_text
from loopwatch.core.threads.own_thread import OWN_THREADS

Action = Callable[[], object]
Found = TypeVar("Found")
Other = TypeVar("Other")
P = ParamSpec("P")

OCCASIONS = 3
"""Faults on distinct occasions within :data:`WINDOW` that switch a part off."""
WINDOW = 60.0
"""Seconds."""
APART = 0.1
"""Minimum seconds between faults on distinct occasions."""
FIRST_PAUSE = 10.0
"""Seconds for which a part is off the first time."""
LONGEST_PAUSE = 600.0
"""Maximum seconds for which a part is off; a part that has worked for as long starts again with the first pause."""
TRIAL = 10.0
"""Seconds without a fault after which a part counts as recovered, unless a success shows it earlier."""


class Attempt(Protocol):
    """Type of :meth:`Faults.attempt`: runs an action that may fail without harm, such as code of the program."""

    def __call__(self, part: str, do: Callable[[], Found], otherwise: Other, /) -> Found | Other:
        """Return ``do()``; if it fails, count a fault of ``part`` and return ``otherwise``."""


def plainly(_part: str, do: Callable[[], Found], _otherwise: Other, /) -> Found | Other:
    """Return ``do()``; exceptions propagate."""
    return do()


NEVER_OFF = frozenset({"callback", "fork", "pool", "probe", "prometheus", "search", "teller"})
"""Parts that are never switched off: they skip the failed object themselves (a loop's probe, a pool, a scrape, an
action)."""


_NEVER = float("inf")


@dataclass(slots=True)
class _Part:
    """Fault history of one part.

    Attributes:
        occasions: times of recent faults.
        about: subject of the last fault.
        pause: seconds for which it is switched off the next time.
        well_since: time of the last recovery.
        said: whether the switch-off was logged and the recovery was not yet.
    """

    occasions: list[float] = field(default_factory=list)
    about: object = None
    pause: float = FIRST_PAUSE
    well_since: float = float("-inf")
    said: bool = False


class Faults:
    """Counts the faults of one agent by part, and switches off parts that keep failing.

    Args:
        relay: hands an action to another thread and returns True, or returns False: the caller runs it. A log handler
            may block, and neither a loop nor the watcher may wait for it.
        failed: called with the name of a part at each fault; must not raise.
        clock: monotonic clock in seconds.

    Attributes:
        counts: faults by part, since the start.

    Example:
        >>> faults = Faults()
        >>> with faults.guard("journal"):
        ...     raise OSError("no space left")
        >>> faults.counts, faults.is_off("journal")
        ({'journal': 1}, False)
    """

    def __init__(
        self,
        relay: Callable[[Action], bool] = lambda _action: False,
        failed: Callable[[str], object] = lambda _part: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: dict[str, int] = {}
        self._relay = relay
        self._failed = failed
        self._clock = clock
        # No lock, only single dict operations: faults come from any thread, signal handlers and around forks.
        self._parts: dict[str, _Part] = {}
        self._off: dict[str, float] = {}  # when each part is tried again
        self._trials: dict[str, float] = {}  # since when each part is on trial

    @contextmanager
    def guard(self, part: str, about: object = None, *, for_good: bool = False) -> Iterator[None]:
        """Catch an exception of ``part`` and count it.

        Args:
            part: its name.
            about, for_good: as in :meth:`add`.
        """
        try:
            yield
        except BaseException as exc:
            if not _is_fault(exc):
                raise
            self.add(part, exc, about, for_good=for_good)
        else:
            if part in self._trials:
                self._works_again(part)

    def run(self, part: str, do: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call ``do(*args, **kwargs)`` unless ``part`` is switched off; count a fault.

        For entry points on a loop's thread: unlike :meth:`guard`, nothing is allocated before the ``try``, so a
        MemoryError cannot leave it.
        """
        try:
            if not self.is_off(part):
                do(*args, **kwargs)
                if part in self._trials:
                    self._works_again(part)
        except BaseException as exc:
            if not _is_fault(exc):
                raise
            self.add(part, exc)

    def always(self, part: str, do: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Like :meth:`run`, also while ``part`` is switched off: for what undoes or ends something."""
        try:
            do(*args, **kwargs)
        except BaseException as exc:
            if not _is_fault(exc):
                raise
            self.add(part, exc)

    def attempt(self, part: str, do: Callable[[], Found], otherwise: Other, about: object = None) -> Found | Other:
        """Return ``do()``, or ``otherwise`` if it fails or ``part`` is switched off."""
        if not self.is_off(part):
            with self.guard(part, about):
                return do()
        return otherwise

    def add(self, part: str, exc: BaseException, about: object = None, *, for_good: bool = False) -> None:
        """Count a fault of ``part``: log the first, switch the part off for a while if they repeat.

        Args:
            part: its name.
            exc: the fault.
            about: its subject, such as the id of a stall, never an object of the program; several faults with the same
                subject are one occasion.
            for_good: the part cannot recover, as its thread or hook has ended.
        """
        first = self.count(part) == 1
        self._failed(part)
        state, now = self._parts.setdefault(part, _Part()), self._clock()
        if part in self._off:
            return
        on_trial = self._trials.pop(part, None) is not None
        if not (for_good or on_trial or (_is_repeated(state, now, about) and part not in NEVER_OFF)):
            if first:
                self._log(part, f"failed (the program is not affected): {error_text(exc)}", exc)
            return
        if not on_trial and now - state.well_since >= LONGEST_PAUSE:
            state.pause = FIRST_PAUSE
        pause = _NEVER if for_good else state.pause
        self._off[part] = now + pause
        state.pause = min(2 * state.pause, LONGEST_PAUSE)
        state.occasions.clear()
        if not state.said:
            state.said = True
            until = "until the agent is installed anew" if for_good else f"for {pause:g} s, and tried again then"
            times = f"{self.counts[part]} times " if self.counts[part] > 1 else ""
            what = f"failed {times}and is switched off {until} (the program is not affected)"
            self._log(part, f"{what}: {error_text(exc)}", exc)

    def count(self, part: str) -> int:
        """Count a fault without logging it; return the number of faults of ``part``."""
        self.counts[part] = found = self.counts.get(part, 0) + 1
        return found

    def add_one(self, part: str, exc: BaseException) -> None:
        """Count a fault of one watched object of the kind ``part``; log the first, switch nothing off."""
        if self.count(part) == 1:
            self.say(
                logging.WARNING,
                "loopwatch: one %s could not be watched and is left alone (the program is not affected): %s",
                part,
                error_text(exc),
                exc=exc if log.logger.isEnabledFor(logging.DEBUG) else None,
            )

    def is_off(self, part: str) -> bool:
        """Whether ``part`` is switched off; costs next to nothing while no part is."""
        if not self._off and not self._trials:
            return False
        ends, begun = self._off.get(part), self._trials.get(part)
        if ends is None:
            if begun is not None and self._clock() - begun >= TRIAL:
                self._works_again(part)
            return False
        now = self._clock()
        if now < ends:
            return True
        self._trials[part] = now
        self._off.pop(part, None)
        return False

    def off(self) -> dict[str, float | None]:
        """Return the parts that are switched off, with the seconds until each is tried again; None: never."""
        now = self._clock()
        return {part: None if ends == _NEVER else ends - now for part, ends in self._off.copy().items() if ends > now}

    def say(self, level: int, text: str, *args: object, exc: BaseException | None = None) -> None:
        """Log a line about the agent itself. A log handler that raises is counted as a fault of ``log``."""

        def write() -> None:
            try:
                log.write(level, text, *args, error=exc)
            except Exception:  # noqa: BLE001 - nowhere left to log it
                self.counts.setdefault("log", 1)

        if log.logger.isEnabledFor(level) and not self._relay(write):
            write()

    def _works_again(self, part: str) -> None:
        if self._trials.pop(part, None) is None:
            return  # another thread was faster
        state = self._parts[part]
        state.well_since = self._clock()
        if state.said:
            state.said = False
            self._log(part, f"works again, after {self.counts[part]} faults in all", None)

    def _log(self, part: str, what: str, exc: BaseException | None) -> None:
        shown = exc if log.logger.isEnabledFor(logging.DEBUG) else None
        self.say(logging.WARNING, "loopwatch: its %s %s", part, what, exc=shown)


def _is_fault(exc: BaseException) -> bool:
    """Whether ``exc`` is a fault of the agent, not an exception that is meant for the program.

    In the program's threads, KeyboardInterrupt and the like are meant for the program. In the agent's threads they come
    from a callback (``sys.exit()``, a cancelled future) and would end the thread silently.
    """
    if not isinstance(exc, Exception) and not threading.current_thread().name.startswith(OWN_THREADS):
        return False
    return not raised_by_handler(exc)


def _is_repeated(state: _Part, now: float, about: object) -> bool:
    """Record a fault; return whether enough distinct occasions are recent."""
    known = state.occasions
    if known and (now - known[-1] < APART or (about is not None and about == state.about)):
        return False
    state.about = about
    state.occasions = [at for at in known if now - at < WINDOW] + [now]
    return len(state.occasions) >= OCCASIONS

"""What happens when a part of the agent itself fails: it is counted, logged once, and the part is switched off."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("loopwatch")

Action = Callable[[], object]

OWN_THREADS = "loopwatch-"
"""How the names of the agent's threads begin."""


class Faults:
    """Faults of one agent, by the name of the part that failed.

    Args:
        relay: has an action done by another thread and returns True, or returns False: do it here. A log handler may
            block, and neither a loop nor the watcher may wait for it.
        switched_off: called with the name of each part that fails, the first time; must not raise.

    Example:
        >>> faults = Faults()
        >>> with faults.guard("journal"):
        ...     raise OSError("no space left")
        >>> faults.counts, faults.is_off("journal")
        ({'journal': 1}, True)
    """

    def __init__(
        self,
        relay: Callable[[Action], bool] = lambda _action: False,
        switched_off: Callable[[str], object] = lambda _part: None,
    ) -> None:
        self.counts: dict[str, int] = {}
        self._relay = relay
        self._switched_off = switched_off

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """Keep an exception of ``part`` inside, and switch the part off."""
        try:
            yield
        except BaseException as exc:
            # In a thread of the program, KeyboardInterrupt and its like are meant for the program. In a thread of ours
            # they come from a callback (``sys.exit()``, a cancelled future) and would end that thread unseen.
            if not isinstance(exc, Exception) and not threading.current_thread().name.startswith(OWN_THREADS):
                raise
            self.add(part, exc)

    def add(self, part: str, exc: BaseException) -> None:
        """Count a fault of ``part``; the first one is logged and switches it off."""
        self.counts[part] = self.counts.get(part, 0) + 1
        if self.counts[part] == 1:
            self.say(
                logging.WARNING,
                "loopwatch: its %s failed and is switched off (the program is not affected): %s: %s",
                part, type(exc).__name__, exc, exc=exc if logger.isEnabledFor(logging.DEBUG) else None,
            )  # fmt: skip
            self._switched_off(part)

    def add_one(self, part: str, exc: BaseException) -> None:
        """Count a fault of one of the objects that are watched as ``part``; the first is logged, nothing goes off."""
        self.counts[part] = self.counts.get(part, 0) + 1
        if self.counts[part] == 1:
            self.say(
                logging.WARNING,
                "loopwatch: one %s could not be watched and is left alone (the program is not affected): %s: %s",
                part, type(exc).__name__, _text(exc), exc=exc if logger.isEnabledFor(logging.DEBUG) else None,
            )  # fmt: skip

    def is_off(self, part: str) -> bool:
        """Whether ``part`` has failed."""
        return part in self.counts

    def say(self, level: int, text: str, *args: object, exc: BaseException | None = None) -> None:
        """Log a line about the agent itself. A log handler that raises is counted as a fault of ``log``."""

        def write() -> None:
            try:
                logger.log(level, text, *args, exc_info=exc)
            except Exception:  # noqa: BLE001 - there is nowhere left to tell it
                self.counts.setdefault("log", 1)

        if logger.isEnabledFor(level) and not self._relay(write):
            write()


def _text(exc: BaseException) -> str:
    """Return what it says: a record that had the exception itself would keep the frames of the program alive."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - it is the program's own and may be odd, too; its type is logged
        return "(it cannot be printed)"

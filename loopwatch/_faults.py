"""What happens when a part of the agent itself fails: it is counted, logged once, and the part is switched off."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("loopwatch")


class Faults:
    """Faults of one agent, by the name of the part that failed.

    Example:
        >>> faults = Faults()
        >>> with faults.guard("journal"):
        ...     raise OSError("no space left")
        >>> faults.counts, faults.is_off("journal")
        ({'journal': 1}, True)
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """Keep an exception of ``part`` inside, and switch the part off."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - the seam where an observer's failure stops
            self.add(part, exc)

    def add(self, part: str, exc: BaseException) -> None:
        """Count a fault of ``part`` and log the first one."""
        self.counts[part] = self.counts.get(part, 0) + 1
        if self.counts[part] == 1:
            logger.warning(
                "loopwatch: its %s failed and is switched off (the program is not affected): %s: %s",
                part, type(exc).__name__, exc, exc_info=exc if logger.isEnabledFor(logging.DEBUG) else None,
            )  # fmt: skip

    def is_off(self, part: str) -> bool:
        """Whether ``part`` has failed."""
        return part in self.counts

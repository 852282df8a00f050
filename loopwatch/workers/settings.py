"""Settings of offloading that the agent sets for the whole process; imports little, as it is imported early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwatch.core.process_state import one
from loopwatch.events import Cause


class Settings:
    """What an agent sets for the offloading of its process.

    Attributes:
        workers: worker processes of the default pool, None for as many as processors may be used; for the next pool.
        offload_to: where a function goes that was decorated without saying.
        causes: why functions that the agent has flagged hold their loops, by name (``module:qualname``).
        opened: called with each pool that is used for the first time; must not raise.
    """

    def __init__(self) -> None:
        self.causes: dict[str, Cause] = {}
        self.reset()

    def reset(self) -> None:
        """Go back to what holds without an agent."""
        self.workers: int | None = None
        self.offload_to = "process"
        self.opened: Callable[[Any], object] | None = None
        self.causes.clear()


settings = one(Settings)

"""Process-wide settings of offloading, set by the agent; few imports, as it is imported early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwatch.core.process_state import one
from loopwatch.events import Cause


class Settings:
    """Offloading settings of this process.

    Attributes:
        workers: worker processes of the default pool, None for one per usable processor; applies to the next pool.
        offload_to: destination of decorated functions that name none.
        causes: why flagged functions block their loops, by name (``module:qualname``).
        opened: called with each pool on its first use; must not raise.
    """

    def __init__(self) -> None:
        self.causes: dict[str, Cause] = {}
        self.reset()

    def reset(self) -> None:
        """Restore the defaults that apply without an agent."""
        self.workers: int | None = None
        self.offload_to = "process"
        self.opened: Callable[[Any], object] | None = None
        self.causes.clear()


settings = one(Settings)

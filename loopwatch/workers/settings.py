"""Settings of offloading, as module globals that the agent sets; imports little, as it is imported early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwatch.events import Cause

workers: int | None = None
"""Worker processes of the default pool, None for as many as processors may be used; for the next pool that is made."""
offload_to: str = "process"
"""Where a function goes that was decorated without saying."""
causes: dict[str, Cause] = {}
"""Why functions that the agent has flagged hold their loops, by name (``module:qualname``)."""

opened: Callable[[Any], object] | None = None
"""Called with each pool that is used for the first time; must not raise."""


def forget() -> None:
    """Go back to what holds without an agent."""
    global workers, offload_to, opened
    workers, offload_to, opened = None, "process", None
    causes.clear()

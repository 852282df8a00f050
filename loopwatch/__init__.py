"""loopwatch: says when an asyncio event loop is blocked, by which line, why, and what to do about it.

Example:
    >>> import loopwatch
    >>> agent = loopwatch.install(threshold=0.1)
    >>> agent.stalls()
    ()
    >>> loopwatch.uninstall()
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost more than all the rest

if TYPE_CHECKING:
    from loopwatch._installed import current_agent, install, uninstall
    from loopwatch.agent import Agent
    from loopwatch.config import Config
    from loopwatch.errors import ConfigError, LoopwatchError
    from loopwatch.events import Cause, Evidence, Frame, Snapshot, Stall

__all__ = [
    "Agent",
    "Cause",
    "Config",
    "ConfigError",
    "Evidence",
    "Frame",
    "LoopwatchError",
    "Snapshot",
    "Stall",
    "current_agent",
    "install",
    "uninstall",
]

__version__ = "0.1.0"

# Names are resolved on first use (PEP 562), so that importing the package costs a program nothing.
_HOMES = {
    "Agent": "loopwatch.agent",
    "Cause": "loopwatch.events",
    "Config": "loopwatch.config",
    "ConfigError": "loopwatch.errors",
    "Evidence": "loopwatch.events",
    "Frame": "loopwatch.events",
    "LoopwatchError": "loopwatch.errors",
    "Snapshot": "loopwatch.events",
    "Stall": "loopwatch.events",
    "current_agent": "loopwatch._installed",
    "install": "loopwatch._installed",
    "uninstall": "loopwatch._installed",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'loopwatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

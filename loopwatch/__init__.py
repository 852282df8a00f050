"""loopwatch: says when an asyncio event loop is blocked, by which line, why, and what to do about it.

Example:
    >>> import loopwatch
    >>> agent = loopwatch.install(threshold=0.1)
    >>> agent.stalls()
    ()
    >>> loopwatch.uninstall()
"""

from __future__ import annotations

from importlib import import_module as _import_module  # bound: programs replace it by one that raises on a loop

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost more than all the rest

if TYPE_CHECKING:
    from loopwatch._installed import current_agent, install, uninstall
    from loopwatch._version import __version__ as __version__
    from loopwatch.agent import Agent
    from loopwatch.config import Config
    from loopwatch.errors import (
        ConfigError,
        LoopwatchError,
        NotPicklable,
        OffloadError,
        PoolClosed,
        QueueFull,
        TaskTimeout,
        WorkerCrashed,
    )
    from loopwatch.events import (
        Cause,
        Decision,
        Evidence,
        FlaggedFunction,
        Frame,
        PoolStats,
        Snapshot,
        Stall,
        WorkerStats,
    )
    from loopwatch.offloading.decorator import offload
    from loopwatch.watch.expected_code import expected
    from loopwatch.workers.backend import Backend
    from loopwatch.workers.options import CallOptions
    from loopwatch.workers.pool import WorkerPool
    from loopwatch.workers.shared_buffer import SharedBuffer

__all__ = [
    "Agent",
    "Backend",
    "CallOptions",
    "Cause",
    "Config",
    "ConfigError",
    "Decision",
    "Evidence",
    "FlaggedFunction",
    "Frame",
    "LoopwatchError",
    "NotPicklable",
    "OffloadError",
    "PoolClosed",
    "PoolStats",
    "QueueFull",
    "SharedBuffer",
    "Snapshot",
    "Stall",
    "TaskTimeout",
    "WorkerCrashed",
    "WorkerPool",
    "WorkerStats",
    "current_agent",
    "expected",
    "install",
    "offload",
    "uninstall",
]

# Names are resolved on first use (PEP 562), so that importing the package costs a program nothing.
_HOMES = {
    "__version__": "loopwatch._version",
    "Agent": "loopwatch.agent",
    "Backend": "loopwatch.workers.backend",
    "CallOptions": "loopwatch.workers.options",
    "Cause": "loopwatch.events",
    "Config": "loopwatch.config",
    "ConfigError": "loopwatch.errors",
    "Decision": "loopwatch.events",
    "Evidence": "loopwatch.events",
    "FlaggedFunction": "loopwatch.events",
    "Frame": "loopwatch.events",
    "LoopwatchError": "loopwatch.errors",
    "NotPicklable": "loopwatch.errors",
    "OffloadError": "loopwatch.errors",
    "PoolClosed": "loopwatch.errors",
    "PoolStats": "loopwatch.events",
    "QueueFull": "loopwatch.errors",
    "SharedBuffer": "loopwatch.workers.shared_buffer",
    "Snapshot": "loopwatch.events",
    "Stall": "loopwatch.events",
    "TaskTimeout": "loopwatch.errors",
    "WorkerCrashed": "loopwatch.errors",
    "WorkerPool": "loopwatch.workers.pool",
    "WorkerStats": "loopwatch.events",
    "current_agent": "loopwatch._installed",
    "expected": "loopwatch.watch.expected_code",
    "install": "loopwatch._installed",
    "offload": "loopwatch.offloading.decorator",
    "uninstall": "loopwatch._installed",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'loopwatch' has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

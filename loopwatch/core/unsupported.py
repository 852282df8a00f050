"""Decides whether a process can be watched."""

from __future__ import annotations

import logging

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.patches import loaded
from loopwatch.core.subinterpreters import in_subinterpreter


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason why the agent does not start.

    Attributes:
        text: the reason, and what to do.
        level: of the log line.
    """

    text: str
    level: int


def refusal() -> Refusal | None:
    """Return why this process cannot be watched, None if it can."""
    if in_subinterpreter():
        # Each sub-interpreter of a pool imports the program's modules, which may call install().
        return Refusal("a sub-interpreter: only loops of the main interpreter are watched", logging.INFO)
    monkey = loaded("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return Refusal(
            "gevent has patched this process: asyncio cannot be watched beside it; run loopwatch without gevent",
            logging.ERROR,
        )
    return None

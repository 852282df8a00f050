"""``loopwatch demo``: a service that blocks its loop, the agent inside it, and a client that has to wait.

The service (:mod:`loopwatch.demo.app`) runs in a child process; the load comes from this one. Every report of a block
comes from the agent in the child, one JSON line per stall through a pipe; only this process knows the truth
(:data:`loopwatch.demo.truth.HABITS`), and compares both at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loopwatch
from loopwatch.demo.client import Client
from loopwatch.demo.screen import Screen, introduce, report, summarise, what_next
from loopwatch.demo.service import STOP_TIMEOUT, Child
from loopwatch.demo.truth import EXPORT, HABITS, Habit, Seen
from loopwatch.errors import ConfigError, LoopwatchError
from loopwatch.events import AgentStats, Stall
from loopwatch.sinks.files import journal_path

LOOPS = ("asyncio", "uvloop")
START_TIMEOUT = 60.0
"""Seconds for the child to start."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells: 128 + SIGINT."""


def main(loop: str = "asyncio", seconds: float = 10.0, journal: str | None = None) -> int:
    """Run the demo and print its findings.

    Args:
        loop: ``asyncio`` or ``uvloop``, the event loop of the service.
        seconds: seconds of load; each slow route is requested at least once, which takes about 6 seconds.
        journal: file or directory for the journal, None for a new private directory; both are kept.

    Returns:
        Exit status: 0 after a complete run, 1 if the service failed, 2 for invalid arguments, 130 after Ctrl-C.
    """
    screen = Screen()
    try:
        settings = _settings(loop, seconds, journal)
    except ConfigError as exc:
        sys.stderr.write(f"loopwatch demo: {exc}\n")
        return 2
    try:
        asyncio.run(_run(settings, screen))
    except KeyboardInterrupt:
        screen.line()
        screen.line("Interrupted. The service is stopped.")
        return INTERRUPTED
    except LoopwatchError as exc:
        sys.stderr.write(f"loopwatch demo: {exc}\n")
        return 1
    except BrokenPipeError:  # the reader of the output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    finally:
        settings.tidy_up()
    return 0


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of the demo; ``temporary`` if the directory of the journal was created for it."""

    loop: str
    seconds: float
    journal: str
    temporary: bool

    def tidy_up(self) -> None:
        """Remove the temporary directory if it is empty."""
        if self.temporary:
            with contextlib.suppress(OSError):  # not empty: it is kept
                Path(self.journal).rmdir()


def _settings(loop: str, seconds: float, journal: str | None) -> Settings:
    """Check the arguments, then create the directory.

    Raises:
        ConfigError: a value is invalid, or uvloop is not installed.
    """
    if loop not in LOOPS:
        raise ConfigError(f"loop={loop!r}: must be one of {', '.join(LOOPS)}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"seconds={seconds!r}: must be a number of seconds above 0")
    if loop == "uvloop":
        try:
            import uvloop  # noqa: F401
        except ImportError:
            raise ConfigError("uvloop is not installed: pip install 'loopwatch[uvloop]'") from None
    if journal is not None:
        return Settings(loop, seconds, str(loopwatch.Config(journal=journal).journal), temporary=False)
    return Settings(loop, seconds, tempfile.mkdtemp(prefix="loopwatch-demo-"), temporary=True)


async def _run(settings: Settings, screen: Screen) -> None:
    """Run the demo; the child has ended afterwards in any case.

    Raises:
        LoopwatchError: the service did not start, or ended by itself.
    """
    screen.heading(f"loopwatch demo: a small web service on {settings.loop}, and what blocks its event loop")
    screen.line()
    screen.line("Starting the service and finding out how fast this machine is ...")
    child = Child(settings.loop, settings.journal)
    try:
        seen, habits = await _converse(child, settings.seconds, screen)
        status = child.end()
    except BaseException:
        child.kill()
        raise
    if seen.agent is None or status != 0:
        raise LoopwatchError(f"the service ended by itself (exit status {status}); its own message is above")
    summarise(screen, seen, habits)
    what_next(screen, journal_path(settings.journal, child.pid), temporary=settings.temporary)


async def _converse(child: Child, seconds: float, screen: Screen) -> tuple[Seen, list[Habit]]:
    """Send requests and receive the findings; return both, and the habits of the service on this machine."""
    seen = Seen()
    async with contextlib.aclosing(child.messages()) as messages:
        ready = await _first(messages)
        habits = [habit for habit in HABITS if ready["disk"] or habit.template != EXPORT]
        introduce(screen, habits)
        listening = asyncio.create_task(_listen(messages, seen, screen))
        asking = asyncio.create_task(Client(ready["port"], seen).run(habits, seconds))
        try:
            await asyncio.wait((listening, asking), return_when=asyncio.FIRST_COMPLETED)
            child.ask_to_end()
            await asyncio.wait((listening,), timeout=STOP_TIMEOUT)
        finally:
            asking.cancel()
            listening.cancel()
            results = await asyncio.gather(asking, listening, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return seen, habits


async def _first(messages: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while "port" not in (message := await anext(messages)):
                pass
            return message
    except TimeoutError:
        raise LoopwatchError(f"the service did not start within {START_TIMEOUT:g} s") from None
    except StopAsyncIteration:
        raise LoopwatchError("the service did not start; its own message is above") from None


async def _listen(messages: AsyncIterator[dict[str, Any]], seen: Seen, screen: Screen) -> None:
    async for message in messages:
        if "stall" in message:
            stall = Stall.from_dict(message["stall"])
            report(screen, stall, seen)
            seen.stalls.append(stall)
        elif "end" in message:
            seen.agent = AgentStats(**message["end"]["agent"])

"""The client of the demo: requests /health all the time, and a slow route now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from loopwatch.demo.truth import HEALTH_EVERY, Habit, Seen

QUIET = 1.5
"""Seconds at the start without slow requests."""
PAUSE = 0.2
"""Seconds between two slow requests."""
PATIENCE = 10.0
"""Seconds that the client waits for one response."""


class Connections:
    """Connections to the service, kept open and reused."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str) -> None:
        """Request ``path`` and read the response.

        Raises:
            OSError, asyncio.IncompleteReadError, TimeoutError: there was none.
            ValueError: its status was not "200 OK".
        """
        async with asyncio.timeout(PATIENCE):
            if self._free:
                reader, writer = self._free.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lengths = (line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
                await reader.readexactly(int(next(lengths).partition(":")[2]))
            except BaseException:
                writer.close()
                raise
        self._free.append((reader, writer))
        status = head.partition("\r\n")[0]
        if not status.endswith(" 200 OK"):
            raise ValueError(status)

    def close(self) -> None:
        """Close all connections."""
        for _, writer in self._free:
            writer.close()


_FAILURES = (OSError, ValueError, asyncio.IncompleteReadError)  # TimeoutError is an OSError


class Client:
    """Requests /health all the time, and a slow route now and then."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._connections = Connections(port)
        self._seen = seen

    async def run(self, habits: Sequence[Habit], seconds: float) -> None:
        """Send requests for ``seconds`` seconds, and to each slow route at least once."""
        self._seen.began = time.time()
        steady = asyncio.create_task(self._ask_for_health())
        try:
            await self._ask_for_trouble(habits, time.monotonic() + seconds)
        finally:
            self._seen.ended = time.time()
            steady.cancel()
            await asyncio.gather(steady, return_exceptions=True)
            self._connections.close()

    async def _ask_for_trouble(self, habits: Sequence[Habit], until: float) -> None:
        await asyncio.sleep(QUIET)
        first = True
        while first or time.monotonic() < until:
            for habit in habits:
                if not first and time.monotonic() >= until:
                    break
                asked = time.time()
                try:
                    await self._connections.ask(habit.method, habit.path)
                except _FAILURES as exc:
                    self._seen.failed[habit.route] = _reason(exc)
                self._seen.slow.setdefault(habit, []).append((asked, time.time()))
                await asyncio.sleep(PAUSE)
            first = False

    async def _ask_for_health(self) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while True:
                group.create_task(self._time_health())
                due += HEALTH_EVERY
                await asyncio.sleep(max(due - time.monotonic(), 0.0))

    async def _time_health(self) -> None:
        asked, began = time.time(), time.monotonic()
        try:
            await self._connections.ask("GET", "/health")
        except _FAILURES as exc:
            self._seen.failed["GET /health"] = _reason(exc)
        else:
            self._seen.health.append((asked, time.monotonic() - began))


def _reason(exc: BaseException) -> str:
    return f"no answer within {PATIENCE:g} s" if isinstance(exc, TimeoutError) else f"{type(exc).__name__}: {exc}"

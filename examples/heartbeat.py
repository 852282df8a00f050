"""The longest time that an event loop was held: a timer every 5 ms, and how late it was at most."""

from __future__ import annotations

import asyncio
import time

INTERVAL = 0.005


class Heartbeat:
    """A timer on the running loop; ``longest`` is the longest time, in seconds, that it was late.

    async with Heartbeat() as heart:
        await work()
    print(heart.longest)
    """

    async def __aenter__(self) -> Heartbeat:
        self.longest = 0.0
        self._due = time.perf_counter()
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._record()  # the loop may be held up to this moment
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            self._due = time.perf_counter() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self._record()

    def _record(self) -> None:
        self.longest = max(self.longest, time.perf_counter() - self._due)

"""How long an event loop was held: a beat every 5 ms, and the longest time that one was late."""

from __future__ import annotations

import asyncio
import time

INTERVAL = 0.005


class Heartbeat:
    """Beats on the running loop; ``longest`` is the longest time, in seconds, that it was kept from it.

    async with Heartbeat() as heart:
        await work()
    print(heart.longest)
    """

    async def __aenter__(self) -> Heartbeat:
        self.longest = 0.0
        self._due = time.perf_counter()
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._note()  # the loop may be held up to this moment
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            self._due = time.perf_counter() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self._note()

    def _note(self) -> None:
        self.longest = max(self.longest, time.perf_counter() - self._due)

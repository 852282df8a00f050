"""slow_service.py under the same load twice: as it is, and with one line of configuration.

    pip install 'loopwatch[transparent]' fastapi uvicorn aiohttp
    python compare_service.py       # 25 seconds each
    python compare_service.py 5     # 5 seconds each: too short for the lag, which covers the last 10 seconds

The load comes from another process at a fixed rate (load.py), about a third of the pages that one processor can draw.
The lag is measured by the agent in the service: how late its loop runs a callback that is due.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load import quantile, under_load

try:
    import aiohttp
    import fastapi  # noqa: F401 - for the service
    import greenlet  # noqa: F401 - for transparent_offload
    import uvicorn  # noqa: F401 - for the service
except ImportError as missing:
    sys.exit(f"compare_service.py needs {missing.name}: pip install 'loopwatch[transparent]' fastapi uvicorn aiohttp")

PINGS, PAGES = 40, 6
"""Requests per second."""
WAYS = {"as it is": "", "transparent_offload": "slow_service:render"}


@dataclass
class Measured:
    """Response times in seconds, the lag measured by the agent (None if too short), and where pages were drawn.

    ``stalls`` counts how often ``render`` was found to block under load; ``elsewhere`` is whether other processes drew
    the pages at the end; ``explanation`` is the agent's statement about it.
    """

    pings: list[float]
    pages: list[float]
    lag: dict[str, float] | None
    stalls: int
    elsewhere: bool
    explanation: str


class Service:
    """The service, as a client sees it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session

    async def agent(self) -> Any:
        """Return the agent's snapshot of the service."""
        async with self._session.get(f"{self.url}/agent") as answer:
            return await answer.json()

    async def drawn_by(self) -> int:
        """Ask for a page; return the process that drew it."""
        async with self._session.get(f"{self.url}/page/1") as answer:
            found = re.search(r"drawn by process (\d+)", await answer.text())
            assert found is not None
            return int(found[1])

    async def is_elsewhere(self) -> bool:
        """Return whether pages are drawn outside the service's own process."""
        pids = await asyncio.gather(*(self.drawn_by() for _ in range(4)))
        return (await self.agent())["pid"] not in pids


@asynccontextmanager
async def served(offload: str) -> AsyncIterator[Service]:
    """Run the service in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "uvicorn", "slow_service:app", "--port", str(port), "--log-level", "warning"]
    # A line for each stall would get between those of the table.
    environment = {**os.environ, "LOOPWATCH_TRANSPARENT_OFFLOAD": offload, "LOOPWATCH_LOG_LEVEL": "DEBUG"}
    server = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=Path(__file__).parent, env=environment)
    try:
        async with aiohttp.ClientSession() as session:
            service = Service(f"http://127.0.0.1:{port}", session)
            while server.returncode is None:
                try:
                    await service.agent()
                    break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
            yield service
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGINT)
        await server.wait()


async def measure(offload: str, seconds: float) -> Measured:
    """Warm the service up until its function is offloaded, if it may be, and load it."""
    async with served(offload) as service:
        for _ in range(50 if offload else 5):
            if await service.is_elsewhere():
                break
        ping, page = f"{service.url}/ping", f"{service.url}/page/1"
        async with under_load({ping: PINGS, page: PAGES}) as answers:
            before = await service.agent()
            await asyncio.sleep(seconds)
            after = await service.agent()
        lag = after["loops"][0]["lag"] if seconds >= 20 else None
        stalls = after["culprits"].get("render", 0) - before["culprits"].get("render", 0)
        explanation = "".join(
            f"{each['name']}: {each['reason']}; {each['process']} calls went there" for each in after["offload"]
        )
        return Measured(answers[ping], answers[page], lag, stalls, await service.is_elsewhere(), explanation)


async def main(seconds: float = 25) -> None:
    """Print one line for each way."""
    print(
        "| the service | /ping p50, ms | p99 | /page p50, ms | p99 | lag p50, ms | p99 | stalls by render | drawn by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, offload in WAYS.items():
        found = await measure(offload, seconds)
        cells = [quantile(answers, share) for answers in (found.pings, found.pages) for share in (0.5, 0.99)]
        cells += [found.lag["p50"], found.lag["p99"]] if found.lag else []
        words = [f"{cell * 1e3:.1f}" for cell in cells] + ["-"] * (6 - len(cells))
        by = "workers" if found.elsewhere else "itself"
        print(f"| {name} | {' | '.join(words)} | {found.stalls} | {by} |", flush=True)
    print(f"\n{found.explanation}")


if __name__ == "__main__":
    asyncio.run(main(*map(float, sys.argv[1:])))

"""Asks URLs at a fixed rate, from a process of its own, and prints how long each answer took.

    pip install aiohttp
    python load.py 50 http://127.0.0.1:8000/ping 5 http://127.0.0.1:8000/page/1

asks for the first 50 times a second and for the second 5 times, until its standard input ends (Ctrl-D), and prints one
JSON object: the seconds of all answers by URL. The clock sets the pace, not the answers: a request is sent when it is
due, however many are unanswered, and its time counts from then. So requests delayed by a blocked loop are not omitted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

try:
    import aiohttp
except ImportError:
    sys.exit("load.py needs aiohttp: pip install aiohttp")

Answers = dict[str, list[float]]
"""Seconds of the answers, by URL."""


async def ask(session: aiohttp.ClientSession, url: str, due: float, seconds: list[float]) -> None:
    """Ask once; an answer that is an error ends the program."""
    async with session.get(url) as answer:
        await answer.read()
        answer.raise_for_status()
    seconds.append(time.perf_counter() - due)


async def main(rates: dict[str, float]) -> None:
    """Ask each URL once, so that all is connected and warm, and then at its rate."""
    answers: Answers = {url: [] for url in rates}
    end = asyncio.Event()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def ask_on(url: str, rate: float) -> None:
            due = time.perf_counter()
            async with asyncio.TaskGroup() as asked:  # waits for the answers, too
                while not end.is_set():
                    asked.create_task(ask(session, url, due, answers[url]))
                    due += 1 / rate
                    await asyncio.sleep(max(due - time.perf_counter(), 0))

        for url in rates:
            await ask(session, url, 0, [])
        print("asking", flush=True)
        async with asyncio.TaskGroup() as group:
            for url, rate in rates.items():
                group.create_task(ask_on(url, rate))
            await asyncio.to_thread(sys.stdin.read)
            end.set()
    print(json.dumps(answers))


@asynccontextmanager
async def under_load(rates: dict[str, float]) -> AsyncIterator[Answers]:
    """Run this program in a separate process meanwhile; its results are in the mapping at the end.

    async with under_load({"http://127.0.0.1:8000/ping": 50}) as answers:
        await asyncio.sleep(10)
    print(quantile(answers["http://127.0.0.1:8000/ping"], 0.99))
    """
    words = [word for url, rate in rates.items() for word in (str(rate), url)]
    pipe = asyncio.subprocess.PIPE
    asking = await asyncio.create_subprocess_exec(sys.executable, __file__, *words, stdin=pipe, stdout=pipe)
    assert asking.stdin is not None and asking.stdout is not None
    answers: Answers = {}
    try:
        await asking.stdout.readline()  # it has started
        yield answers
    finally:
        asking.stdin.close()
        found = await asking.stdout.read()
        await asking.wait()
    if asking.returncode:
        raise RuntimeError("load.py could not ask; it says why above")
    answers |= json.loads(found)


def quantile(values: list[float], share: float) -> float:
    """Return the quantile of the values: the value that ``share`` of them do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


if __name__ == "__main__":
    words = sys.argv[1:]
    asyncio.run(main({url: float(rate) for rate, url in zip(words[::2], words[1::2], strict=True)}))

"""A handler of loop.add_signal_handler reads its configuration over HTTP.

---
kind = "plain callback"
after = "habit: SIGHUP reload"
culprit = ["reload"]
causes = ["io"]
remedy = ["create_task", "run_in_executor", "coroutine", "call_soon", "thread"]
never = ["with await", "await on"]
blocks = 1
"""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request

import _truth

port = _truth.slow_http()


def reload() -> None:
    with _truth.truth(), urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        answer.read()


async def main() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(1)


if __name__ == "__main__":
    _truth.run(main())

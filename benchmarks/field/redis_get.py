"""The blocking Redis client in a coroutine.

---
kind = "network client without asyncio"
after = "habit: redis.Redis in async handlers"
culprit = ["cached"]
causes = ["io"]
remedy = ["redis.asyncio"]
needs = ["redis"]
"""

from __future__ import annotations

import asyncio

import _truth
import redis

client = redis.Redis(port=_truth.slow_tcp(b"+OK\r\n"), protocol=2)


async def cached() -> object:
    try:
        return client.get("key")
    except redis.RedisError:
        return None


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await cached()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

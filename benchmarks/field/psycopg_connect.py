"""psycopg connects to a server that does not answer.

---
kind = "blocking database driver"
after = "habit: psycopg.connect in a health check"
culprit = ["health"]
causes = ["io"]
remedy = ["AsyncConnection", "asyncpg"]
needs = ["psycopg"]
"""

from __future__ import annotations

import asyncio
import contextlib

import _truth
import psycopg

port = _truth.slow_tcp(b"E\x00\x00\x00\x19SFATAL\x00C57P03\x00Mbusy\x00\x00")


async def health() -> None:
    with contextlib.suppress(psycopg.Error):
        psycopg.connect(f"host=127.0.0.1 port={port} user=u dbname=d sslmode=disable").close()


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await health()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

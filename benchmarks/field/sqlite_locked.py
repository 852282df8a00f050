"""A second writer waits for SQLite's lock.

---
kind = "busy handler of a database"
after = "reports of 'database is locked' after a stall"
culprit = ["save"]
causes = ["sleep", "io", "lock"]
remedy = ["aiosqlite", "to_thread"]
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import _truth

first, second = (sqlite3.connect("orders.db", timeout=0.5, isolation_level=None) for _ in range(2))


async def save() -> None:
    with contextlib.suppress(sqlite3.OperationalError):
        second.execute("INSERT INTO orders VALUES (1)")


async def main() -> None:
    first.execute("CREATE TABLE orders (id)")
    first.execute("BEGIN IMMEDIATE")
    await asyncio.sleep(0.3)
    with _truth.truth():
        await save()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

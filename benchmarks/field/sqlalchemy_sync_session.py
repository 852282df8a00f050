"""A synchronous Session runs a slow query in a coroutine.

---
kind = "blocking database API"
after = "habit: Session from a sync dependency used in async def endpoints"
culprit = ["totals"]
causes = ["native"]
remedy = ["AsyncSession", "asyncio", "to_thread"]
needs = ["sqlalchemy"]
"""

from __future__ import annotations

import asyncio

import _truth
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine("sqlite://")
SLOW = text("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 3000000) SELECT sum(n) FROM c")


async def totals() -> int:
    with Session(engine) as session:
        return session.execute(SLOW).scalar_one()


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await totals()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

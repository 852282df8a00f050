"""An AsyncSession flushes thousands of new objects one by one.

---
kind = "ORM unit of work in a greenlet"
after = "reports of slow session.commit() after add_all (SQLAlchemy discussions)"
culprit = ["import_users"]
causes = ["python", "native_gil", "native"]
remedy = ["bulk", "insert(", "executemany", "insert()"]
never = ["fewer rows"]
needs = ["sqlalchemy", "aiosqlite", "greenlet"]
blocks = 1
"""

from __future__ import annotations

import asyncio

import _truth
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def import_users(session: AsyncSession) -> None:
    session.add_all([User(id=n, name=f"n{n}") for n in range(12_000)])  # <- the line
    await session.flush()  # <- the line


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    ticking = asyncio.create_task(_truth.ticker(), name="ticker")
    await asyncio.sleep(0.3)
    async with AsyncSession(engine) as session:
        await import_users(session)
    await asyncio.sleep(0.4)
    ticking.cancel()
    await engine.dispose()


if __name__ == "__main__":
    _truth.run(main())

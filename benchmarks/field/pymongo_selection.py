"""PyMongo waits for a server that is not there.

---
kind = "client that waits on a condition"
after = "reports of MongoClient that blocks until serverSelectionTimeoutMS"
culprit = ["profile"]
causes = ["lock", "io"]
remedy = ["AsyncMongoClient"]
needs = ["pymongo"]
"""

from __future__ import annotations

import asyncio
import contextlib

import _truth
import pymongo
from pymongo.errors import PyMongoError

client = pymongo.MongoClient("mongodb://127.0.0.1:9", serverSelectionTimeoutMS=500)


async def profile() -> None:
    with contextlib.suppress(PyMongoError):
        client.shop.users.find_one({"_id": 1})


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await profile()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

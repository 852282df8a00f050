"""A coroutine validates a large body with a TypeAdapter.

---
kind = "validation in native code that keeps the GIL"
after = "habit: TypeAdapter.validate_json of webhooks"
culprit = ["webhook"]
causes = ["native_gil"]
remedy = ["process", "smaller", "fewer", "batch", "chunk", "stream"]
needs = ["pydantic"]
"""

from __future__ import annotations

import asyncio
import json

import _truth
from pydantic import BaseModel, TypeAdapter


class Event(BaseModel):
    id: int
    name: str
    tags: list[str]


EVENTS = TypeAdapter(list[Event])
BODY = json.dumps([{"id": n, "name": f"n{n}", "tags": ["a"]} for n in range(600_000)]).encode()


async def webhook(body: bytes) -> int:
    return len(EVENTS.validate_json(body))


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await webhook(BODY)
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

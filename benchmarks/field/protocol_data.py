"""A Protocol parses what it received in its callback.

---
kind = "plain callback of a transport"
after = "habit: parsers in data_received"
culprit = ["Lines.data_received"]
causes = ["python"]
remedy = ["thread", "process", "queue", "task"]
never = ["replace", "await "]
"""

from __future__ import annotations

import asyncio

import _truth


class Lines(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        with _truth.truth():
            total = 0
            for n in range(5_000_000):
                total += n % 7


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Lines, "127.0.0.1", 0)
    await asyncio.sleep(0.3)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x")
    await asyncio.sleep(1.2)
    writer.close()
    server.close()


if __name__ == "__main__":
    _truth.run(main())

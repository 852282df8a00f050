"""A synchronous gRPC stub waits for its deadline.

---
kind = "RPC without asyncio"
after = "habit: sync stubs in async services"
culprit = ["price"]
causes = ["lock", "io"]
remedy = ["grpc.aio"]
needs = ["grpc"]
"""

from __future__ import annotations

import asyncio
import contextlib

import _truth
import grpc

channel = grpc.insecure_channel(f"127.0.0.1:{_truth.slow_tcp(b'')}")
quote = channel.unary_unary("/shop.Prices/Quote")


async def price() -> None:
    with contextlib.suppress(grpc.RpcError):
        quote(b"", timeout=0.5)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await price()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

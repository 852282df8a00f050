"""An RSA key is made on the loop.

---
kind = "cryptography"
after = "habit: key generation in certificate services"
culprit = ["issue"]
causes = ["native", "native_gil"]
remedy = ["thread", "process", "offload"]
needs = ["cryptography"]
"""

from __future__ import annotations

import asyncio
import time

import _truth
from cryptography.hazmat.primitives.asymmetric import rsa


async def issue() -> None:
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        rsa.generate_private_key(65537, 2048)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await issue()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

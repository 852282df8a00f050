"""dnspython waits for a name server that is silent.

---
kind = "DNS"
after = "habit: dns.resolver in mail validation"
culprit = ["has_mx"]
causes = ["io"]
remedy = ["asyncresolver", "asyncquery"]
needs = ["dns"]
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import _truth
import dns.exception
import dns.resolver

silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 0))
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.port = ["127.0.0.1"], silent.getsockname()[1]


async def has_mx(domain: str) -> None:
    with contextlib.suppress(dns.exception.Timeout):
        resolver.resolve(domain, "MX", lifetime=0.5)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await has_mx("example.org")
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

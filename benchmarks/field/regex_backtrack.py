"""A catastrophic pattern in a library's generator.

---
kind = "regex"
after = "reports of ReDoS in header parsers"
culprit = ["parse_header"]
causes = ["native_gil"]
remedy = ["pattern", "regex", "regular expression", "re2"]
"""

from __future__ import annotations

import asyncio
import re

import _truth

PATTERN = re.compile(r"(\w+\s?)+:$")


async def parse_header(text: str) -> bool:
    return PATTERN.match(text) is not None


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await parse_header("a" * 23 + "!")
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

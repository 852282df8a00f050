"""A large YAML document is parsed by the pure Python parser.

---
kind = "parser in Python"
after = "reports of slow yaml.safe_load (PyYAML)"
culprit = ["settings"]
causes = ["python"]
remedy = ["CSafeLoader", "CLoader", "process"]
needs = ["yaml"]
"""

from __future__ import annotations

import asyncio

import _truth
import yaml

TEXT = "\n".join(f"- {{name: n{n}, tags: [a, b]}}" for n in range(1_500))


async def settings() -> object:
    return yaml.safe_load(TEXT)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await settings()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

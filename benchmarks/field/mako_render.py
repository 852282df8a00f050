"""A coroutine renders a large Mako template.

---
kind = "generated code of a template engine"
after = "habit: Mako templates rendered in Pyramid or aiohttp handlers"
culprit = ["page"]
causes = ["python", "native_gil"]
remedy = ["thread", "process", "fewer", "cache", "page"]
needs = ["mako"]
"""

from __future__ import annotations

import asyncio

import _truth
from mako.template import Template

template = Template("% for n in range(rows):\n<p>${n} ${str(n).zfill(9)}</p>\n% endfor\n")


async def page() -> str:
    return template.render(rows=300_000)


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await page()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())

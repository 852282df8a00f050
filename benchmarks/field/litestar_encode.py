"""Litestar encodes a large answer after the handler has returned.

---
kind = "response encoding without a user's frame"
after = "reports of large JSON answers that block (fastapi#1224), on Litestar"
culprit = ["export"]
causes = ["native_gil", "python"]
remedy = ["fewer", "page", "pagin", "stream", "smaller", "less"]
needs = ["litestar", "uvicorn"]
blocks = 2
"""

from __future__ import annotations

from typing import Any

import _truth
from litestar import Litestar, get

PRICES = [n / 7 for n in range(100)]
ROWS = [{"id": n, "prices": PRICES} for n in range(80_000)]


@get("/export")
async def export() -> list[dict[str, Any]]:
    return ROWS


app = Litestar([export])

if __name__ == "__main__":
    _truth.serve(app, ["/export"])

"""A Quart view returns a large document, which Quart encodes.

---
kind = "json behind Quart"
after = "habit: jsonify of query results in Quart"
culprit = ["catalogue"]
causes = ["python", "native_gil"]
remedy = ["fewer", "page", "pagin", "stream", "smaller", "thread", "process", "orjson", "less"]
needs = ["quart", "uvicorn"]
blocks = 2
"""

from __future__ import annotations

import _truth
from quart import Quart, Response, jsonify

app = Quart(__name__)
ROWS = [{"id": n, "name": f"n{n}", "tags": ["a", "b"]} for n in range(150_000)]


@app.get("/catalogue")
async def catalogue() -> Response:
    return jsonify(ROWS)


if __name__ == "__main__":
    _truth.serve(app, ["/catalogue"])

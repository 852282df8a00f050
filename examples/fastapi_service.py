"""A FastAPI service with one handler that blocks the event loop, to be run under loopwatch.

    pip install loopwatch fastapi uvicorn
    loopwatch run uvicorn fastapi_service:app --workers 2

Then ask for http://127.0.0.1:8000/report/7 and read the log.
"""

import json
from typing import Any

from fastapi import FastAPI
from loopwatch.integrations.asgi import LoopwatchMiddleware

app = FastAPI()
app.add_middleware(LoopwatchMiddleware)  # names the route in each finding

ROWS = [{"id": number, "name": f"row {number}", "tags": ["a", "b", "c"]} for number in range(250_000)]


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer at once, unless the loop is blocked."""
    return {"status": "ok"}


@app.get("/report/{number}")
async def report(number: int) -> dict[str, Any]:
    """Encode something big on the loop, as many services do."""
    return {"report": number, "bytes": len(json.dumps(ROWS))}

"""A FastAPI service that computes on its event loop, in a plain function that a helper of a handler calls.

    pip install 'loopwatch[transparent]' fastapi uvicorn
    uvicorn slow_service:app
    LOOPWATCH_TRANSPARENT_OFFLOAD=slow_service:render uvicorn slow_service:app

While it draws a page, it serves no other request. The variable, or ``transparent_offload=["slow_service:render"]`` as
another argument of ``install``, allows loopwatch to run ``render`` in a worker process once it was found to block: the
page waits for it, the loop does not. No other line changes. compare_service.py shows both under load.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import loopwatch

agent = loopwatch.install(threshold=0.03)
app = FastAPI()


def render(zoom: float, width: int = 100, height: int = 50) -> str:
    """Draw the Mandelbrot set in characters: some 50 ms of plain Python."""
    lines = []
    for y in range(height):
        line = ""
        for x in range(width):
            point = complex(-0.75 + (x / width - 0.5) * 3 / zoom, 0.1 + (y / height - 0.5) * 2 / zoom)
            value, steps = 0j, 0
            while abs(value) < 2 and steps < 99:
                value, steps = value * value + point, steps + 1
            line += " .:-=+*#%@"[steps // 10]
        lines.append(line)
    return "\n".join([*lines, f"drawn by process {os.getpid()}"])


def build_page(number: int) -> str:
    """Put a page together, without knowing about the loop."""
    return f"Page {number}\n\n{render(1 + number % 10)}\n"


@app.get("/page/{number}")
async def page(number: int) -> PlainTextResponse:
    """Answer with a page."""
    return PlainTextResponse(build_page(number))


@app.get("/ping")
async def ping() -> dict[str, str]:
    """Answer at once, unless the loop is blocked."""
    return {"status": "ok"}


@app.get("/agent")
async def agent_snapshot() -> dict[str, Any]:
    """Return the agent's snapshot; a real service would not publish such a route."""
    culprits = Counter(stall.culprit.function for stall in agent.stalls() if stall.culprit is not None)
    return {**agent.snapshot().to_dict(), "culprits": culprits}

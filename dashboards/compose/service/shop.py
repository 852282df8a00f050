"""A small service with each kind of trouble that loopwatch tells, each behind an address of its own.

uvicorn shop:app, and then ask for http://127.0.0.1:8000/report or another address below.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager

from fastapi import FastAPI
from loopwatch.integrations.asgi import LoopwatchMiddleware

import loopwatch

WATCHED = multiprocessing.parent_process() is None
"""Workers of a spawned pool import this module too; they have no loop to watch."""
if WATCHED:
    loopwatch.install(threshold=0.05, hang_after=1.0, hung_after=20.0)

ROWS = [{"id": number, "name": f"row {number}"} for number in range(60_000)]
pools: dict[str, Executor] = {}
forgotten: list[subprocess.Popen[bytes]] = []


def crawl(rounds: int) -> int:
    """Compute in plain Python."""
    return sum(number * number % 7 for number in range(rounds))


def die() -> None:
    """End the worker without a word, as the kernel does where memory ends."""
    os._exit(3)


def fail() -> None:
    """Raise what nobody looks at."""
    raise ValueError("nobody looks at this")


@loopwatch.offload
def priced(number: int) -> int:
    """Compute in a worker process of loopwatch's pool."""
    return crawl(200_000) + number


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Have pools while the service runs."""
    spawn = multiprocessing.get_context("spawn")
    pools["prices"] = ProcessPoolExecutor(2, mp_context=spawn)
    pools["mail"] = ThreadPoolExecutor(2, thread_name_prefix="mail")
    yield
    for pool in pools.values():
        pool.shutdown(cancel_futures=True)


def trace_requests(application: FastAPI) -> None:
    """Have a span for each request, so that stalls stand in the traces of those who caused them and who waited."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()  # named by OTEL_SERVICE_NAME
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    application.add_middleware(OpenTelemetryMiddleware)


app = FastAPI(lifespan=lifespan)
app.add_middleware(LoopwatchMiddleware)
if WATCHED and {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} & os.environ.keys():
    trace_requests(app)


@app.get("/ping")
async def ping() -> str:
    """Answer at once, unless somebody holds the loop."""
    return "pong"


@app.get("/report")
async def report() -> int:
    """Encode something big (native_gil)."""
    return len(json.dumps(ROWS))


@app.get("/crawl")
async def crawl_here() -> int:
    """Compute on the loop (python)."""
    return crawl(1_500_000)


@app.get("/match")
async def match() -> bool:
    """Run into a regular expression that backtracks (native_gil)."""
    return re.match(r"(a+)+$", "a" * 20 + "b") is None


@app.get("/login")
async def login() -> str:
    """Hash a password on the loop (native)."""
    return hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 300_000).hex()


@app.get("/legacy")
async def legacy() -> str:
    """Call something that sleeps (sleep)."""
    time.sleep(0.2)  # the trouble itself
    return "done"


@app.get("/convert")
async def convert() -> int:
    """Wait for another program on the loop (io)."""
    return subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"], check=True).returncode


@app.get("/hang")
async def hang() -> str:
    """Hold the loop for so long that it is announced before it ends."""
    time.sleep(4)  # the trouble itself
    return "done"


@app.get("/price")
async def price() -> int:
    """Compute in a process pool, as one should."""
    return await asyncio.get_running_loop().run_in_executor(pools["prices"], crawl, 200_000)


@app.get("/priced/{number}")
async def offloaded(number: int) -> int:
    """Compute in loopwatch's own pool."""
    return await priced(number)


@app.get("/thumbnail")
async def thumbnail() -> int:
    """Compute in the default executor, which is for waiting (a finding)."""
    return await asyncio.to_thread(crawl, 500_000)


@app.get("/mail")
async def mail() -> str:
    """Have a task fail that nobody looks at, while others queue."""
    for task in (fail, *[lambda: time.sleep(0.3)] * 6):
        pools["mail"].submit(task)
    return "sent"


@app.get("/crash")
async def crash() -> str:
    """Lose a worker, and with it the pool; make a new one, as a service must."""
    try:
        await asyncio.get_running_loop().run_in_executor(pools["prices"], die)
    except BrokenProcessPool:
        pools["prices"] = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    return "a worker died"


@app.get("/zombie")
async def zombie() -> int:
    """Start a program and never wait for it."""
    forgotten.append(subprocess.Popen([sys.executable, "-c", ""]))
    return len(forgotten)

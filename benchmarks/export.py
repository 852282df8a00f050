"""Prints how late a loop is while loopwatch exports its metrics over OTLP: the export competes for the GIL.

    python benchmarks/export.py                       # http and grpc, typical and full size, about a minute
    python benchmarks/export.py --seconds 5 --only http

A ticker runs on an asyncio loop every millisecond. In the same process the metrics are exported several times a second,
to a receiver in another process: those of a typical service, and as many as the catalog allows. The table shows how
late the ticks during an export were, and how late the worst one of each export was, each less the time that the loop's
thread waited for a processor (/proc/.../schedstat), which the machine caused. The control is the same without exports:
its spans have the same lengths and distances.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from loopwatch.core.faults import Faults
from loopwatch.core.histogram import Histogram
from loopwatch.events import AgentStats, Cause, Evidence, Frame, LagStats, LoopStats, PoolStats, Snapshot, Stall
from loopwatch.health.records import PoolReading
from loopwatch.system.threads import scheduled
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.collect import Collector
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Inputs, Reading
from loopwatch.telemetry.otel.otlp_config import Signal, targets_of
from loopwatch.watch.observation import LoopReading

TICK = 0.001
INTERVAL = 0.25
"""Seconds between two exports: many times as often as in production, to measure many of them."""
WARM_UP = 3
"""First exports, which are not counted."""


# -- metrics -----------------------------------------------------------------------------------------------------------


def account(size: str) -> Account:
    """Return an account that grows with each reading, of a typical service or of a full one."""
    readings = Collector()
    loops, pools, culprits = (1, 2, 3) if size == "typical" else (12, 12, 60)
    lags = [spread() for _ in range(loops)]
    times = [(spread(), spread()) for _ in range(pools)]
    for number in range(culprits):
        readings.saw(stall(number, loops))
    count = 0

    def read(pause: Callable[[], None]) -> Reading:
        nonlocal count
        count += 1
        for histogram in (*lags, *(each for both in times for each in both)):
            histogram.record(random.expovariate(100))
        return readings.read(
            Inputs(
                Snapshot(
                    time.time(),
                    1,
                    (),
                    AgentStats("watching", cpu=count / 1000, faults={f"p{n}": n for n in range(9)}),
                    50,
                ),
                [loop(number, count, lag) for number, lag in enumerate(lags)],
                [pool(number, count, *both) for number, both in enumerate(times)],
                [(count, count, 0)] * 3,
                started_at=1.0,
                dropped=dict.fromkeys(("stalls", "metrics", "traces", "logs"), 0),
            ),
            pause,
        )

    return Account(read, Exemplars())


def spread() -> Histogram:
    """Return durations of all lengths."""
    found = Histogram()
    for _ in range(2000):
        found.record(random.expovariate(1) ** 4 / 100)
    return found


def loop(number: int, count: int, lags: Histogram) -> LoopReading:
    """Return the reading of a loop."""
    lag = LagStats(200, 0.0001, 0.001, 0.001, 0.002, 0.003, 0.01, 0.001)
    stats = LoopStats(f"loop-{number}", "asyncio", True, 10.0, 0.5, count / 2, count / 2, 100 * count, lag=lag)
    return LoopReading(number, stats, lags.copy(), 1000 * count, count)


def pool(number: int, count: int, waits: Histogram, runs: Histogram) -> PoolReading:
    """Return the reading of a pool."""
    stats = PoolStats(
        f"pool-{number}", submitted=count * 100, completed=count * 100, started=4, max_workers=4, utilization=0.5,
        failed=count, failures={f"Error{number}": count}, crashes={"SIGSEGV": count}, cpu=count / 10, kind="process",
    )  # fmt: skip
    return PoolReading(stats, waits.copy(), runs.copy())


def stall(number: int, loops: int) -> Stall:
    """Return a stall of one of many culprits."""
    frame = Frame(f"Service.handler_{number}", "app.services.module", "/srv/app/services/module.py", 10)
    evidence = Evidence(wall=0.2)
    return Stall(f"{number}", f"loop-{number % loops}", 1.0, 0.2, Cause.PYTHON, evidence, culprit=frame, victims=3)


class Tick(NamedTuple):
    """When it was due, its lateness, and its lateness less the time its thread waited for a processor; seconds."""

    due: float
    late: float
    own: float


# -- in the child ------------------------------------------------------------------------------------------------------


def measure(size: str, protocol: str, seconds: float) -> dict[str, Any]:
    """Return the lateness of a loop's ticks during the exports beside it."""
    gc.disable()  # a full collection takes longer than an export
    receiver = subprocess.Popen([sys.executable, __file__, "--receiver", protocol], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    port = int(receiver.stdout.readline())
    spans: list[tuple[float, float]] = []
    ended = threading.Event()
    try:
        if protocol != "control":
            exporting(size, protocol, port, spans)
        else:
            threading.Thread(target=idle_spans, args=(spans, ended), daemon=True).start()
        ticks = asyncio.run(tick(seconds))
    finally:
        ended.set()
        receiver.kill()
        receiver.wait()
    return summary(ticks, spans[WARM_UP:])


def exporting(size: str, protocol: str, port: int, spans: list[tuple[float, float]]) -> None:
    """Begin to export."""
    from loopwatch.telemetry.otel.sdk import PrivateProviders

    name = "grpc" if protocol == "grpc" else "http/protobuf"
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": name, "OTEL_SERVICE_NAME": "benchmark"}
    targets = targets_of(environ, f"http://127.0.0.1:{port}", INTERVAL)
    wanted = {Signal.METRICS: targets.targets[Signal.METRICS]}
    private = PrivateProviders(targets, wanted, account(size), Faults(), "0")
    exporter = private._exporter
    export_round, exported = exporter._round, exporter.exported

    def timed(**options: Any) -> None:
        nonlocal exported
        began = time.monotonic()
        export_round(**options)
        if exporter.exported > exported:
            exported = exporter.exported
            spans.append((began, time.monotonic()))

    exporter._round = timed  # type: ignore[method-assign]
    private.start()


def idle_spans(spans: list[tuple[float, float]], ended: threading.Event) -> None:
    """Record spans as long as an export, in which nothing is done."""
    while not ended.wait(INTERVAL):
        now = time.monotonic()
        spans.append((now, now + 0.03))


async def tick(seconds: float) -> list[Tick]:
    """Tick for a while."""
    ticks = []
    ends = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    thread = threading.get_native_id()
    before = scheduled(thread)
    while time.monotonic() < ends:
        due = time.monotonic() + TICK
        fired = loop.create_future()
        loop.call_at(due, fired.set_result, None)
        await fired
        late, now = time.monotonic() - due, scheduled(thread)
        queued = 0.0 if now is None or before is None else now.run_queue - before.run_queue
        ticks.append(Tick(due, late, max(late - queued, 0.0)))
        before = now
    return ticks


def summary(ticks: list[Tick], spans: list[tuple[float, float]]) -> dict[str, Any]:
    """Return statistics of the ticks within the spans, in ms."""
    during: list[float] = []
    worst: list[float] = []
    for began, ended in spans:
        late = [tick.own for tick in ticks if tick.due + tick.late >= began and tick.due <= ended]
        during += late
        if late:
            worst.append(max(late))
    return {
        "exports": len(worst),
        "length": statistics.median(ended - began for began, ended in spans) * 1000,
        "p50": quantile(during, 0.5),
        "p90": quantile(during, 0.9),
        "worst50": quantile(worst, 0.5),
        "worst90": quantile(worst, 0.9),
    }


def quantile(values: list[float], share: float) -> float:
    """Return a quantile in ms."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000


def receive(protocol: str) -> None:
    """Accept every request."""
    if protocol == "grpc":
        from concurrent.futures import ThreadPoolExecutor

        import grpc

        class Everything(grpc.GenericRpcHandler):
            def service(self, _details: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")

        server = grpc.server(ThreadPoolExecutor(2), handlers=[Everything()])
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        server.wait_for_termination()
        return
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


# -- in the parent -----------------------------------------------------------------------------------------------------


def rows(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run each configuration in a process of its own."""
    for protocol in ("control", "http", "grpc"):
        for size in ("typical", "full"):
            if (options.only and protocol not in (options.only, "control")) or (protocol, size) == ("control", "full"):
                continue
            command = [sys.executable, __file__, "--child", size, protocol, "--seconds", str(options.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            name = "no export" if protocol == "control" else f"{protocol}, {size}"
            yield name, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--only", choices=("http", "grpc"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--receiver", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receiver:
        receive(options.receiver)
    elif options.child:
        print(json.dumps(measure(*options.child, options.seconds)))
    else:
        full = sum(len(found) for found in account("full").read(lambda: None).points.values())  # type: ignore[union-attr]
        print(f"full: {full} points and histograms beside them\n")
        print("| | exports | length ms | ticks p50 ms | p90 | worst of an export p50 | p90 |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, row in rows(options):
            cells = " | ".join(f"{row[key]:.2f}" for key in ("length", "p50", "p90", "worst50", "worst90"))
            print(f"| {name} | {row['exports']} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

"""Prints the cost of loopwatch to the program it watches, beside the same program without it.

Every result is a ratio of medians. Where possible, the agent is switched on and off within one process, in slices that
alternate: two processes of one program differ by more than the measured effect. A second control (A/A) shows the noise
that is left. Instructions per request come from callgrind and are repeatable on any machine; they are those of the
loop's own thread. Peers run in processes and environments of their own, beside the same program without them.

    python benchmarks/overhead.py                      # everything that can be measured here
    python benchmarks/overhead.py micro http           # some parts: micro http callgrind lag idle pending syscalls ...
    python benchmarks/overhead.py micro http --peers --envs ~/.cache/peers
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peers

HERE = Path(__file__).resolve()
VARIANTS = ("off", "again", "on")
"""The program alone, the program alone once more (A/A), and with the agent."""

HTTP_SLICE = 0.1
"""Seconds of one slice of an HTTP service: so short that it and the next one have the same noise of neighbours."""

SLICE = 100_000
"""Callbacks of one slice: a tenth of a second and more, some ticks of the watcher."""

# Without these the layout of the heap doubles the cost of the same server from run to run.
ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456", "PYTHONHASHSEED": "0"}


# ------------------------------------------------------------------------------------------------- inside a child


def watch(variant: str, **settings: Any) -> None:
    """Install the agent in this process, if ``variant`` says so."""
    if variant == "on":
        import loopwatch

        loopwatch.install(log_level="CRITICAL", **settings)


def unwatch() -> None:
    """Uninstall it."""
    import loopwatch

    loopwatch.uninstall()


def tool_of(variant: str) -> peers.Tool:
    """Return the adapter of a variant; for the program alone, one that does nothing."""
    return peers.named(variant)() if variant not in ("off", "again") else peers.Tool()


def child_micro(kind: str, rounds: int) -> dict[str, list[float]]:
    """Return seconds for a fixed number of callbacks or task switches, by variant, alternating in this process."""

    async def main() -> dict[str, list[float]]:
        run, found = _MICRO[kind], {variant: [] for variant in VARIANTS}
        await run(SLICE)
        for number in range(rounds):
            for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
                watch(variant)
                await asyncio.sleep(0.05)
                found[variant].append(await run(SLICE))
                if variant == "on":
                    unwatch()
        return found

    return asyncio.run(main())


def child_micro_alone(variant: str, kind: str, loop: str) -> float:
    """Return the seconds of one variant, in a process of its own."""
    tool = tool_of(variant)

    async def main() -> float:
        await tool.start()
        tool.arm()
        await asyncio.sleep(0.05)
        return statistics.median([await _MICRO[kind](SLICE) for _ in range(7)])

    with asyncio.Runner(loop_factory=tool.loop_factory(loop)) as runner:
        return runner.run(main())


async def _ping_pong(count: int) -> float:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    left = count

    def callback() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(callback)
        else:
            done.set()

    began = time.perf_counter()
    loop.call_soon(callback)
    await done.wait()
    return time.perf_counter() - began


async def _passes_of_100(count: int) -> float:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    left = count

    def callback() -> None:
        nonlocal left
        left -= 1
        if left > 0:
            loop.call_soon(callback)
        elif left == 0:
            done.set()

    began = time.perf_counter()
    for _ in range(100):
        loop.call_soon(callback)
    await done.wait()
    return time.perf_counter() - began


async def _task_switches(count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        await asyncio.sleep(0)
    return time.perf_counter() - began


_MICRO: dict[str, Callable[[int], Any]] = {
    "call_soon ping-pong": _ping_pong,
    "100-callback passes": _passes_of_100,
    "task switches": _task_switches,
}


def child_lag(variant: str, loop: str) -> list[float]:
    """Return lateness (seconds) of a 1 ms ticker beside some work, sorted: p50, p99, p99.9, max."""

    async def main() -> list[float]:
        late = []
        ends = time.perf_counter() + 20
        while (began := time.perf_counter()) < ends:
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)
            sum(range(2000))
        late.sort()
        return [late[int(len(late) * q)] for q in (0.5, 0.99, 0.999)] + [late[-1]]

    watch(variant)
    with asyncio.Runner(loop_factory=peers.plain_loop_factory(loop)) as runner:
        return runner.run(main())


def child_idle(variant: str, loop: str) -> float:
    """Return processor seconds per second of a process that only sleeps."""

    async def main() -> float:
        await asyncio.sleep(3)  # until the heartbeat has stretched
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(15)
        return (time.process_time() - cpu) / (time.perf_counter() - began)

    watch(variant)
    with asyncio.Runner(loop_factory=peers.plain_loop_factory(loop)) as runner:
        return runner.run(main())


def child_pending(variant: str, loop: str, tasks: int) -> float:
    """Return processor seconds of one second of ping-pong per callback, beside ``tasks`` tasks that wait."""

    async def main() -> float:
        event = asyncio.Event()
        waiting = [asyncio.create_task(event.wait()) for _ in range(tasks)]
        await asyncio.sleep(1)
        cpu = time.process_time()
        for _ in range(5):
            await _ping_pong(20_000)
            await asyncio.sleep(0.2)
        cpu = time.process_time() - cpu
        for task in waiting:
            task.cancel()
        return cpu

    import gc

    gc.disable()  # a full collection of a million tasks would distort the measurement
    watch(variant)
    with asyncio.Runner(loop_factory=peers.plain_loop_factory(loop)) as runner:
        return runner.run(main())


class Service:
    """The control interface of the served application; see :meth:`handle`."""

    def __init__(self) -> None:
        self.requests = 0

    async def handle(self, path: str) -> object:
        """Count a request, and return the response.

        ``on`` and ``off`` install and uninstall the agent; ``slices/ROUNDS`` responds with measurements of the service
        under the load that it has meanwhile.
        """
        self.requests += 1
        command, _, argument = path.partition("/")
        if command == "slices":
            return await self.slices(int(argument))
        switch(command)
        return {"hello": "world"}

    async def slices(self, rounds: int) -> dict[str, list[tuple[float, float]]]:
        """Return (requests per second, processor seconds per request) of each variant, in slices that alternate."""
        found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
        for number in range(rounds):
            for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
                switch("on" if variant == "on" else "off")
                await asyncio.sleep(HTTP_SLICE / 2)
                requests, cpu, began = self.requests, time.process_time(), time.perf_counter()
                await asyncio.sleep(HTTP_SLICE)
                served, seconds = self.requests - requests, time.perf_counter() - began
                found[variant].append((served / seconds, (time.process_time() - cpu) / max(served, 1)))
        return found


def switch(to: str) -> None:
    if to == "on":
        watch("on")
    elif to == "off":
        unwatch()


def child_serve(variant: str, server: str, loop: str, port: int) -> None:
    """Serve until the process is ended."""
    tool, service = tool_of(variant), Service()

    async def main() -> None:
        await tool.start()
        tool.arm()
        await (_serve_aiohttp if server == "aiohttp" else _serve_starlette)(port, service)

    with asyncio.Runner(loop_factory=tool.loop_factory(loop)) as runner:
        runner.run(main())


async def _serve_aiohttp(port: int, service: Service) -> None:
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        return web.json_response(await service.handle(request.match_info["to"]))

    app = web.Application()
    app.router.add_get("/{to:.*}", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def _serve_starlette(port: int, service: Service) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def hello(request: Request) -> JSONResponse:
        return JSONResponse(await service.handle(request.path_params["to"]))

    app = Starlette(routes=[Route("/{to:path}", hello)])
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", access_log=False)
    await uvicorn.Server(config).serve()


def child_callgrind(variant: str, loop: str, requests: int) -> None:
    """Serve ``requests`` requests of a raw client in this process, on aiohttp, and end."""
    from aiohttp import web

    async def hello(_request: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
            await reader.readexactly(length)
        writer.close()
        await runner.cleanup()

    # Under valgrind instructions are slow relative to the clock: work driven by the clock would count fifty times.
    if variant == "on":
        from loopwatch.watch.probes import asyncio as asyncio_probe

        asyncio_probe.MARK_EVERY = 60
    watch(variant, **({"heartbeat": 60, "threshold": 60} if variant == "on" else {}))
    with asyncio.Runner(loop_factory=peers.plain_loop_factory(loop)) as made:
        made.run(main())


CHILDREN: dict[str, Callable[..., Any]] = {
    "micro": child_micro,
    "micro alone": child_micro_alone,
    "lag": child_lag,
    "idle": child_idle,
    "pending": child_pending,
    "serve": child_serve,
    "callgrind": child_callgrind,
    "load": lambda port: own_client(port, 3600.0),
}


# ---------------------------------------------------------------------------------------------------- the parent


def command(name: str, *arguments: object, python: str = sys.executable) -> list[str]:
    return [python, str(HERE), "child", name, json.dumps(arguments)]


def measure(name: str, *arguments: object, python: str = sys.executable) -> Any:
    """Run a child and return its result."""
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(
        command(name, *arguments, python=python), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} {arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(rounds: int, variants: tuple[str, ...], one: Callable[[str], float]) -> dict[str, list[float]]:
    """Measure the variants in turn, the order reversed every other round."""
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else tuple(reversed(variants)):
            found[variant].append(one(variant))
    return found


def ratio(found: dict[str, list[float]], variant: str) -> float:
    """Return the median over the rounds of variant / off, each taken within one round."""
    return statistics.median(a / b for a, b in zip(found[variant], found["off"], strict=True))


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(title: str, *columns: str) -> None:
    print(f"\n### {title}\n")
    row(*columns)
    row(*("---" for _ in columns))


def micro(options: argparse.Namespace) -> None:
    table("Micro, asyncio: time relative to the loop alone, switched in one process", "what", "A/A", "on", "allowed")
    for kind in _MICRO:
        found = measure("micro", kind, 6 * options.rounds)
        allowed = "1.10" if kind.startswith("100") else "1.05"
        row(kind, *(f"{ratio(found, variant):.3f}" for variant in VARIANTS[1:]), allowed)
    if not options.envs_of:
        return
    variants = ("off", "again", *options.envs_of)
    table("Micro, asyncio: each in processes of its own, relative to the loop alone", "what", "A/A", *variants[2:])
    for kind in _MICRO:

        def one(variant: str, kind: str = kind) -> float:
            python = options.envs_of.get(variant, sys.executable)
            return float(measure("micro alone", variant, kind, "asyncio", python=python))

        found = alternate(max(options.rounds // 2, 1), variants, one)
        row(kind, *(f"{ratio(found, variant):.2f}" for variant in variants[1:]))


def http(options: argparse.Namespace) -> None:
    slices = 60 * options.rounds
    table(
        f"HTTP services under load, relative to the service alone: switched within one process, {slices} slices of "
        f"{HTTP_SLICE * 1000:.0f} ms; in brackets the interval of 95 of 100 resamples",
        "service", "figure", "A/A", "on", "allowed",
    )  # fmt: skip
    for server, loop in SERVICES:
        with running({"off": sys.executable}, server, loop) as servers:
            _, port = servers["off"]
            get(port, "on")
            with loaded(port):
                answer = json.loads(get(port, f"slices/{slices}", timeout=10 * slices * HTTP_SLICE))
        limits = ("0.995", "1.005") if loop == "uvloop" else ("0.98", "1.02")
        for number, (figure, limit) in enumerate(
            (("throughput", f">= {limits[0]}"), ("CPU/request", f"<= {limits[1]}"))
        ):
            found = {variant: [each[number] for each in answer[variant]] for variant in VARIANTS}
            row(label(server, loop), figure, *(interval(found, variant) for variant in VARIANTS[1:]), limit)
    if options.envs_of:
        http_peers(options)


SERVICES = (("starlette", "asyncio"), ("starlette", "uvloop"), ("aiohttp", "asyncio"))


def label(server: str, loop: str) -> str:
    return f"uvicorn + {server}, {loop}" if server == "starlette" else f"{server}, {loop}"


def interval(found: dict[str, list[float]], variant: str) -> str:
    """Return the median of variant / off over the rounds, with a bootstrapped interval."""
    pairs = [a / b for a, b in zip(found[variant], found["off"], strict=True)]
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(pairs, k=len(pairs))) for _ in range(400))
    return f"{statistics.median(pairs):.3f} ({medians[10]:.3f}-{medians[-11]:.3f})"


def http_peers(options: argparse.Namespace) -> None:
    """Print the same for each peer; peers cannot be uninstalled, so each has a process of its own."""
    load = load_generator()
    others = tuple(options.envs_of)
    table(
        f"HTTP services under {load.__name__}, each in a process of its own, relative to the service alone",
        "service", "figure", "A/A", *others,
    )  # fmt: skip
    for server, loop in SERVICES:
        pythons = {"off": sys.executable, "again": sys.executable, **options.envs_of}
        with running(pythons, server, loop) as servers:
            rates: dict[str, list[float]] = {variant: [] for variant in servers}
            costs: dict[str, list[float]] = {variant: [] for variant in servers}
            for _, port in servers.values():
                load(port, 1.0)
            for number in range(options.rounds):
                for variant in servers if number % 2 == 0 else reversed(servers):
                    process, port = servers[variant]
                    before = processor_time(process.pid)
                    rate, requests = load(port, options.seconds)
                    rates[variant].append(rate)
                    costs[variant].append((processor_time(process.pid) - before) / requests)
        for figure, found in (("throughput", rates), ("CPU/request", costs)):
            cells = (f"{ratio(found, other):.3f}" if other in found else "-" for other in ("again", *others))
            row(label(server, loop), figure, *cells)


@contextmanager
def running(wanted: dict[str, str], server: str, loop: str) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], int]]]:
    """Start one server for each variant, by the interpreter given for it, and end them all."""
    started: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for variant, python in wanted.items():
            port = free_port()
            environment = {**os.environ, **ENVIRONMENT}
            process = subprocess.Popen(command("serve", variant, server, loop, port, python=python), env=environment)
            started[variant] = (process, port)
            if not responds(process, port):
                print(f"{variant}: its server on {loop} does not answer; left out", file=sys.stderr)
                del started[variant]
                process.kill()
                process.wait()
        yield started
    finally:
        for process, _ in started.values():
            process.terminate()
        for process, _ in started.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str = "", timeout: float = 5.0) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=timeout) as answer:
        body: bytes = answer.read()
        return body


def responds(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server answers; return False if it ends, or does not answer within 15 seconds."""
    for _ in range(300):
        try:
            get(port)
            return True
        except OSError:
            if process.poll() is not None:
                return False
            time.sleep(0.05)
    return False


def processor_time(pid: int) -> float:
    """Return the processor seconds of all threads of a process, to the nanosecond (schedstat)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def loaded(port: int) -> Iterator[None]:
    """Keep a service under load meanwhile."""
    if shutil.which("wrk"):
        clients = ["wrk", "-t1", "-c8", "-d3600s", f"http://127.0.0.1:{port}/"]
    else:
        clients = command("load", port)
    process = subprocess.Popen(clients, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.wait()


def load_generator() -> Callable[[int, float], tuple[float, int]]:
    return wrk if shutil.which("wrk") else own_client


def wrk(port: int, seconds: float) -> tuple[float, int]:
    """Return (requests per second, requests) of wrk with 8 connections."""
    done = subprocess.run(
        ["wrk", "-t1", "-c8", f"-d{max(round(seconds), 1)}s", f"http://127.0.0.1:{port}/"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]
    requests = int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]
    return rate, requests


def own_client(port: int, seconds: float) -> tuple[float, int]:
    """The same with a client in Python, where wrk is not installed."""

    async def client(ends: float) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < ends:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))  # type: ignore[index]
            count += 1
        writer.close()
        return count

    async def main() -> int:
        ends = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(client(ends) for _ in range(8))))

    requests = asyncio.run(main())
    return requests / seconds, requests


def callgrind(_options: argparse.Namespace) -> None:
    table(
        "Instructions per request (aiohttp and a raw client in one process, callgrind)",
        "loop", "off", "on", "ratio, allowed 1.02",
    )  # fmt: skip
    if not shutil.which("valgrind"):
        row("valgrind is not installed", "", "", "")
        return
    for loop in ("asyncio", "uvloop"):
        each = {}
        for variant in ("off", "on"):
            few, many = (instructions(variant, loop, requests) for requests in (200, 1000))
            each[variant] = (many - few) / 800
        row(loop, f"{each['off']:,.0f}", f"{each['on']:,.0f}", f"{each['on'] / each['off']:.3f}")


def instructions(variant: str, loop: str, requests: int) -> int:
    """Return the instructions of the loop's thread."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--separate-threads=yes",
                f"--callgrind-out-file={folder}/out",
                *command("callgrind", variant, loop, requests),
            ],
            capture_output=True,
            env={**os.environ, **ENVIRONMENT},
            check=True,
        )
        text = Path(f"{folder}/out-01").read_text(errors="replace")
    return int(re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


def lag(options: argparse.Namespace) -> None:
    table("Lag of a 1 ms ticker, ms (medians of the rounds)", "loop", "variant", "p50", "p99", "p99.9", "max")
    for loop in ("asyncio", "uvloop"):
        found: dict[str, list[list[float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(max(options.rounds // 3, 1)):
            for variant in VARIANTS:
                found[variant].append(measure("lag", variant, loop))
        for variant in VARIANTS:
            row(
                loop,
                variant,
                *(f"{statistics.median(column) * 1000:.3f}" for column in zip(*found[variant], strict=True)),
            )


def idle(options: argparse.Namespace) -> None:
    table("Idle process: share of one core (allowed 0.2 % more)", "loop", "off", "A/A", "on", "more")
    for loop in ("asyncio", "uvloop"):
        found = alternate(
            max(options.rounds // 3, 1), VARIANTS, lambda variant, loop=loop: measure("idle", variant, loop)
        )
        middle = {variant: statistics.median(values) for variant, values in found.items()}
        row(loop, *(f"{middle[variant]:.3%}" for variant in VARIANTS), f"{middle['on'] - middle['off']:.3%}")


def pending(options: argparse.Namespace) -> None:
    table("Tasks that wait beside a ping-pong: processor time relative to the loop alone", "tasks", "A/A", "on")
    for tasks in (0, 10_000, 1_000_000):
        found = alternate(
            max(options.rounds // 3, 1),
            VARIANTS,
            lambda variant, tasks=tasks: measure("pending", variant, "asyncio", tasks),
        )
        row(f"{tasks:,}", f"{ratio(found, 'again'):.3f}", f"{ratio(found, 'on'):.3f}")


def syscalls(_options: argparse.Namespace) -> None:
    table("System calls per request, uvloop (strace -c)", "variant", "all", "epoll")
    if not shutil.which("strace"):
        row("strace is not installed", "", "")
        return
    for variant in VARIANTS:
        python = {"off": sys.executable}
        with running(python, "starlette", "uvloop") as servers, tempfile.TemporaryDirectory() as folder:
            process, port = servers["off"]
            get(port, variant)
            wrk_or_own = load_generator()
            tracer = subprocess.Popen(
                ["strace", "-f", "-c", "-o", f"{folder}/out", "-p", str(process.pid)], stderr=subprocess.PIPE
            )
            assert tracer.stderr is not None
            tracer.stderr.readline()
            _, requests = wrk_or_own(port, 5.0)
            tracer.terminate()
            tracer.communicate()
            text = Path(f"{folder}/out").read_text()
        counts = {
            line.split()[-1]: int(line.split()[3]) for line in text.splitlines() if re.match(r"\s*[\d.]+\s", line)
        }
        total = counts.pop("total", None) or sum(counts.values())
        epoll = sum(count for name, count in counts.items() if name.startswith("epoll_"))
        row(variant, f"{total / requests:.2f}", f"{epoll / requests:.2f}")


def imports(options: argparse.Namespace) -> None:
    table("Start-up, ms", "statement", "time", "modules")
    for statement in ("pass", "import loopwatch", "import loopwatch; loopwatch.install()", "import asyncio"):
        code = (
            f"import sys, time; modules = len(sys.modules); began = time.perf_counter(); {statement}; "
            "print(time.perf_counter() - began, len(sys.modules) - modules)"
        )
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(options.rounds)
        ]
        row(f"`{statement}`", f"{statistics.median(float(run[0]) for run in runs) * 1000:.2f}", runs[0][1])


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "micro": micro,
    "http": http,
    "callgrind": callgrind,
    "lag": lag,
    "idle": idle,
    "pending": pending,
    "syscalls": syscalls,
    "import": imports,
}


def environments(options: argparse.Namespace) -> dict[str, str]:
    """Return the interpreter of each peer that installs, and of loopwatch as one of them."""
    found = {}
    folder = Path(options.envs or tempfile.mkdtemp()).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for tool in peers.TOOLS:
        made = peers.environment(tool, folder, [sys.executable], lambda text: print(text, file=sys.stderr))
        print(f"- {tool.name}: {made.version or 'left out: ' + made.reason}", flush=True)
        if made.python:
            found[tool.name] = made.python
    return found


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to measure, default all")
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds (default 9)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="load on an HTTP service in one slice, seconds (default 1)"
    )
    parser.add_argument("--peers", action="store_true", help="measure the peers of peers.py too")
    parser.add_argument("--envs", help="folder in which the peers' environments are kept (default: a temporary one)")
    options = parser.parse_args()
    options.envs_of = environments(options) if options.peers else {}
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} processors, {options.rounds} rounds", flush=True)
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()

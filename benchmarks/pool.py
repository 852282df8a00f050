"""Prints the speed and the cost of WorkerPool, beside ProcessPoolExecutor and other pools in the same process.

Blocks of calls alternate between the contestants, so that the machine's noise affects all of them; ratios are medians
of ratios to ProcessPoolExecutor within a round, and its second self (A/A) shows the noise that is left. Lag is that of
a 1 ms ticker on the same loop: the median over the rounds of each block's maximum. Others need their packages, see
``pool_peers.py``; a failure or hang is reported in the row of the pool.

    python benchmarks/pool.py                            # everything but the peers and Node
    python benchmarks/pool.py compare --peers all        # some parts: compare references resources endurance
    python benchmarks/pool.py compare --rounds 5 --only no-op,dicts --peers loky,pebble
    python benchmarks/pool.py references --piscina DIR   # DIR: where `npm install piscina` was run
    python benchmarks/pool.py endurance                  # 100,000 calls, a worker killed every second
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pool_calls
import pool_peers
import psutil

import loopwatch

WORKERS = 2
MEGABYTE = 1_000_000
PATIENCE = 60.0
"""Seconds that one block of a contestant may take."""
ENOUGH = 2.0
"""Seconds after which a block of single calls ends."""
IDLE = 3.0
"""Seconds for which an idle pool is measured."""

Run = Callable[..., Awaitable[Any]]


class Hung(Exception):  # noqa: N818 - an outcome of a contestant
    """A contestant did not come back in time, or kept the loop."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt a call that keeps the main thread for longer than ``seconds``, such as a ``submit`` that blocks."""

    def ring(*_: object) -> None:
        raise Hung(f"it kept the loop for {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def within(seconds: float, what: Awaitable[Any]) -> Any:
    """Await ``what`` for ``seconds`` at most, even if it cannot be cancelled."""
    task = asyncio.ensure_future(what)
    with alarm(seconds + 5):
        done, _ = await asyncio.wait([task], timeout=seconds)
    if done:
        return task.result()
    task.cancel()
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    raise Hung(f"hung: not over after {seconds:g} seconds")


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Measure how late a 1 ms ticker is meanwhile; the list holds the longest delay, in seconds."""
    longest = [0.0]

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest[0] = max(longest[0], time.perf_counter() - began - 0.001)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest[0] = 0.0
    try:
        yield longest
    finally:
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker


# ------------------------------------------------------------------------------------------------------ comparison


async def one_by_one(run: Run, count: int, function: Any, *args: Any) -> float:
    """Return the median seconds of one call."""
    each: list[float] = []
    ends = time.perf_counter() + ENOUGH
    while len(each) < count and time.perf_counter() < ends:
        began = time.perf_counter()
        await run(function, *args)
        each.append(time.perf_counter() - began)
    return statistics.median(each)


async def at_once(run: Run, count: int) -> float:
    """Return the seconds of one of ``count`` calls that are under way together."""
    began = time.perf_counter()
    await asyncio.gather(*(run(pool_calls.nothing) for _ in range(count)))
    return (time.perf_counter() - began) / count


@dataclass(frozen=True)
class Measure:
    """One measurement: its name, the function of a block, and the target of WorkerPool."""

    what: str
    block: Callable[[Run], Awaitable[float]]
    allowed: str


def measures() -> dict[str, Measure]:
    """Return the measurements, by short name."""
    data, large = os.urandom(MEGABYTE), os.urandom(50 * MEGABYTE)
    same, dicts = pool_calls.same, pool_calls.dicts
    found = {
        "no-op": Measure(
            "no-op round trip, p50", lambda run: one_by_one(run, 300, pool_calls.nothing), "ratio at most 0.28"
        ),
        "in-flight": Measure("1000 in flight, each", lambda run: at_once(run, 1000), "ratio at most 0.25"),
        "1MB": Measure("1 MB there and back", lambda run: one_by_one(run, 20, same, data), "ratio at most 0.12"),
        "50MB": Measure(
            "50 MB of bytes there and back",
            lambda run: one_by_one(run, 1, same, large),
            "ratio at most 0.25, lag at most 8 ms",
        ),
    }
    with contextlib.suppress(ImportError):
        import numpy

        values = numpy.ones(50 * MEGABYTE // 8)
        found["array"] = Measure(
            "50 MB array there and back",
            lambda run: one_by_one(run, 1, same, values),
            "ratio at most 0.30, lag at most 8 ms",
        )
    many = dicts(100_000)
    found["dicts"] = Measure("100,000 dicts back", lambda run: one_by_one(run, 1, dicts, 100_000), "lag at most 25 ms")
    found["dicts-there"] = Measure("100,000 dicts there", lambda run: one_by_one(run, 1, pool_calls.count, many), "")
    return found


class Contestant:
    """A pool in the race: started again after it has failed, out of it if that fails too."""

    def __init__(self, name: str, peer: pool_peers.Peer) -> None:
        self.name, self.peer = name, peer
        self.started = False
        self.out = ""
        """The reason why it was excluded."""

    async def start(self) -> None:
        """Start it, unless it runs or is out."""
        if self.started or self.out:
            return
        try:
            await within(PATIENCE, self.peer.start(WORKERS))
            self.started = True
        except Exception as exc:  # noqa: BLE001 - any exception of a foreign pool is its result
            self.out = f"did not start: {words(exc)}"

    async def close(self) -> None:
        """Close it, if it can be closed."""
        if self.started:
            self.started = False
            try:
                await within(PATIENCE, self.peer.close())
            except Exception as exc:  # noqa: BLE001 - as above
                print(f"{self.name} did not close: {words(exc)}", file=sys.stderr)


def words(exc: BaseException) -> str:
    """Put an error into one line of a table."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split()) if not isinstance(exc, Hung) else str(exc)
    return text.replace("|", "/")[:100]


@dataclass
class Found:
    """The results of one measurement: seconds and longest lag of each contestant's blocks, or its failure."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    lags: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    async def add(self, contestant: Contestant, measure: Measure, *, counts: bool = True) -> None:
        """Run one block of a contestant that has not failed yet; record its results if it ``counts``."""
        name = contestant.name
        if name in self.failures:
            return
        try:
            async with lag() as longest:
                seconds = await within(PATIENCE, measure.block(contestant.peer.run))
        except Exception as exc:  # noqa: BLE001 - as above
            self.failures[name] = words(exc)
            await contestant.close()
            return
        if counts:
            self.seconds.setdefault(name, []).append(seconds)
            self.lags.setdefault(name, []).append(longest[0])

    def row(self, name: str, control: str) -> str:
        """Return time, ratio to the control, and lag, as cells of a table."""
        if name in self.failures:
            return f"| {self.failures[name]} | | |"
        ratio = "-"
        if control not in self.failures:
            pairs = zip(self.seconds[name], self.seconds[control], strict=True)
            ratio = f"{statistics.median(one / other for one, other in pairs):.2f}"
        middle, longest = statistics.median(self.seconds[name]), statistics.median(self.lags[name])
        return f"| {middle * 1e3:.3f} | {ratio} | {longest * 1e3:.1f} |"


async def race(contestants: list[Contestant], chosen: dict[str, Measure], rounds: int) -> None:
    """Print a table of all measures; the first contestant is the control."""
    print("| what | pool | ms | ratio | lag, ms |")
    print("| --- | --- | --- | --- | --- |")
    for measure in chosen.values():
        found = Found()
        for contestant in contestants:
            await contestant.start()
            if contestant.out:
                found.failures[contestant.name] = contestant.out
            await found.add(contestant, measure, counts=False)
        for number in range(rounds):
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                await found.add(contestant, measure)
        for contestant in contestants:
            target = f" ({measure.allowed})" if isinstance(contestant.peer, pool_peers.Ours) and measure.allowed else ""
            row = found.row(contestant.name, contestants[0].name)
            print(f"| {measure.what} | {contestant.name}{target} {row}", flush=True)
    for contestant in contestants:
        await contestant.close()


def present(peers: list[type[pool_peers.Peer]]) -> list[Contestant]:
    """Return the installed peers; print which are not."""
    found = []
    for kind in peers:
        peer = kind()
        try:
            found.append(Contestant(peer.version(), peer))
        except Exception as exc:  # noqa: BLE001 - an import runs foreign code
            remedy = f" (pip install {peer.requirement})" if peer.requirement else ""
            print(f"{peer.name} is left out: {words(exc)}{remedy}\n", flush=True)
    return found


async def compare(rounds: int, only: list[str], peers: list[type[pool_peers.Peer]]) -> None:
    """Race WorkerPool against its peers; each peer that is never at rest is measured in a race of its own."""
    known = measures()
    unknown = [name for name in only if name not in known]
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: there is {', '.join(known)}")
    chosen = {name: measure for name, measure in known.items() if not only or name in only}
    others = present(peers)
    quiet = [each for each in others if not each.peer.restless]
    for group in (quiet, *([each] for each in others if each.peer.restless)):
        control = pool_peers.Control()
        again = pool_peers.Control()
        again.start = lambda workers, control=control: asyncio.sleep(0)  # type: ignore[method-assign, misc]
        again.run, again.close = control.run, lambda: asyncio.sleep(0)  # type: ignore[method-assign]
        ours = Contestant(pool_peers.Ours.name, pool_peers.Ours())
        if group is not quiet:
            print(f"\nWith {group[0].name}, which is never at rest:\n")
        both = [Contestant(control.name, control), Contestant("the same (A/A)", again)]
        await race([*both, ours, *group], chosen, rounds)


# ------------------------------------------------------------------------------------------------------ references

ECHO = "import os\nwhile data := os.read(0, 65536): os.write(0, data)"


async def references(piscina: str | None) -> None:
    """Print the cost of a trip to another process without a pool, and the times of Node's pool."""
    print("| reference | what | us |\n| --- | --- | --- |")
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for where, allowed in (("", processors), (", both on one processor", processors[:1])):
        if allowed:
            os.sched_setaffinity(0, allowed)  # the child inherits it
        blocking, on_loop = await _ping_pongs()
        print(f"| socket pair, both sides blocking{where} | 8 bytes there and back, p50 | {blocking * 1e6:.1f} |")
        print(f"| socket pair, `add_reader` on this side{where} | the same | {on_loop * 1e6:.1f} |", flush=True)
    if processors:
        os.sched_setaffinity(0, processors)
    if piscina is None:
        print("\nPiscina is left out: --piscina DIR names a folder in which `npm install piscina` was run")
        return
    node = shutil.which("node")
    if node is None:
        print("\nPiscina is left out: there is no `node` on the search path")
        return
    command = [node, str(Path(__file__).parent / "piscina.mjs"), piscina]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        complaint = [line for line in done.stderr.splitlines() if "rror" in line]
        print(f"\nPiscina is left out: {complaint[0] if complaint else f'node ended with {done.returncode}'}")
        return
    measured = json.loads(done.stdout)
    name = measured["versions"]
    print(f"| {name} | no-op round trip, p50 | {measured['no-op'] * 1e6:.1f} |")
    print(f"| {name} | 1000 in flight, each | {measured['in-flight'] * 1e6:.1f} |")
    print(f"| {name} | 50 MB there and back, lag {measured['lag'] * 1e3:.0f} ms | {measured['50MB'] * 1e6:,.0f} |")


async def _ping_pongs() -> tuple[float, float]:
    """Return the seconds of a trip to an echoing process: with a blocking socket, and with one on the loop."""
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen([sys.executable, "-c", ECHO], stdin=theirs.fileno()) as process:
        theirs.close()
        blocking = _ping_pong(ours)
        ours.setblocking(False)
        on_loop = await _ping_pong_on_loop(ours)
        ours.shutdown(socket.SHUT_RDWR)
        process.wait()
    return blocking, on_loop


def _ping_pong(channel: socket.socket) -> float:
    each = []
    for _ in range(5000):
        began = time.perf_counter()
        channel.send(b"8 bytes.")
        channel.recv(65536)
        each.append(time.perf_counter() - began)
    return statistics.median(each)


async def _ping_pong_on_loop(channel: socket.socket) -> float:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    each: list[float] = []
    began = 0.0

    def send() -> None:
        nonlocal began
        began = time.perf_counter()
        channel.send(b"8 bytes.")

    def take() -> None:
        channel.recv(65536)
        each.append(time.perf_counter() - began)
        if len(each) == 5000:
            done.set()
        else:
            send()

    loop.add_reader(channel.fileno(), take)
    send()
    await done.wait()
    loop.remove_reader(channel.fileno())
    return statistics.median(each)


# ------------------------------------------------------------------------------------------------------- resources

RESOURCES: dict[str, Callable[[], pool_peers.Peer]] = {
    "ProcessPoolExecutor, forkserver": pool_peers.Control,
    "WorkerPool, forkserver": pool_peers.Ours,
    "WorkerPool, spawn": lambda: pool_peers.Ours(start_method="spawn"),
}
MANY = 8
"""Workers whose memory is measured."""
FEW = 4
"""Workers that are measured while they are idle."""


def resources() -> None:
    """Print the memory of workers, and the activity of idle ones; each in a fresh process."""
    measured = []
    for name in RESOURCES:
        command = [sys.executable, __file__, "--resources-of", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.splitlines()[-1] if done.stderr else done.returncode}\n")
        else:
            measured.append((name, json.loads(done.stdout)))
    print(
        f"| memory, MB, {MANY} workers | parent, per worker | a worker: own (USS) | its share (PSS) | resident (RSS) "
        "| helper processes (USS) |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, each in measured:
        cells = " | ".join(f"{each[key] / MEGABYTE:.1f}" for key in ("uss", "pss", "rss", "helpers"))
        print(f"| {name} | {each['parent'] / MEGABYTE:.3f} | {cells} |")
    print(
        f"\n| idle for {IDLE:g} seconds, {FEW} workers | parent: CPU, ms | wake-ups | workers and helpers: CPU, ms "
        "| wake-ups |\n| --- | --- | --- | --- | --- |"
    )
    for name, each in measured:
        (cpu, woken), (cpu_others, woken_others) = each["idle"]
        print(f"| {name} | {cpu * 1e3:.2f} | {woken} | {cpu_others * 1e3:.2f} | {woken_others} |")
    print("\nOne wake-up of the parent is that which ends the measurement.", flush=True)


async def resources_of(name: str) -> dict[str, Any]:
    """Return the measurements of one pool in this process, which has used no other."""
    this = psutil.Process()
    await _used(name, 1, lambda: None)  # loads everything that is needed once, for any number of workers

    def measured() -> dict[str, Any]:
        parent = this.memory_full_info().uss
        workers, helpers = _children(this)
        memory = [each.memory_full_info() for each in workers]
        return {
            "parent": (parent - before) / MANY,
            "uss": statistics.median(each.uss for each in memory),
            "pss": statistics.median(each.pss for each in memory),
            "rss": statistics.median(each.rss for each in memory),
            "helpers": sum(each.memory_full_info().uss for each in helpers),
        }

    before = this.memory_full_info().uss
    found: dict[str, Any] = await _used(name, MANY, measured)
    found["idle"] = await _idle(name)
    return found


async def _used(name: str, workers: int, look: Callable[[], Any]) -> Any:
    """Start a pool, run a call in each worker, and return the result of ``look``."""
    peer = RESOURCES[name]()
    await peer.start(workers)
    await asyncio.gather(*(peer.run(time.sleep, 0.2) for _ in range(workers)))
    await asyncio.sleep(0.3)
    try:
        return look()
    finally:
        await peer.close()


def _children(of: psutil.Process) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return the workers, and other processes such as fork servers, which have children or track resources."""
    children = of.children(recursive=True)
    helpers = [each for each in children if each.children() or "resource_tracker" in " ".join(each.cmdline())]
    return [each for each in children if each not in helpers], helpers


async def _idle(name: str) -> tuple[tuple[float, int], tuple[float, int]]:
    """Return (CPU seconds, wake-ups) of this process, and of all others together, while a pool is idle."""
    peer = RESOURCES[name]()
    await peer.start(FEW)
    await asyncio.gather(*(peer.run(time.sleep, 0.2) for _ in range(FEW)))
    await asyncio.sleep(0.5)
    children = [each.pid for each in psutil.Process().children(recursive=True)]
    parent, others = _activity(os.getpid()), [_activity(pid) for pid in children]
    await asyncio.sleep(IDLE)
    now, others_now = _activity(os.getpid()), [_activity(pid) for pid in children]
    await peer.close()
    return (
        (now[0] - parent[0], now[1] - parent[1]),
        (sum(cpu for cpu, _ in others_now) - sum(cpu for cpu, _ in others),
         sum(woken for _, woken in others_now) - sum(woken for _, woken in others)),
    )  # fmt: skip


def _activity(pid: int) -> tuple[float, int]:
    """Return (CPU seconds, voluntary context switches) of all threads of a process (proc(5))."""
    cpu, woken = 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        cpu += int((task / "schedstat").read_text().split()[0])
        status = (task / "status").read_text()
        woken += int(status.split("voluntary_ctxt_switches:")[1].split()[0])
    return cpu / 1e9, woken


# ------------------------------------------------------------------------------------------------------- endurance


RETURNED, CRASHED = 1, 2


@dataclass
class Outcome:
    """The outcomes of the calls of an endurance run.

    Attributes:
        outcomes: of each call, a byte: :data:`RETURNED` the right result, or :data:`CRASHED` with ``WorkerCrashed``.
        wrong: other outcomes, by description.
        resident: samples of the memory of this process, bytes.
        killed: workers that were killed, in a call or between two.
        total: sum of the results.
    """

    outcomes: bytearray
    wrong: Counter[str] = field(default_factory=Counter)
    resident: list[int] = field(default_factory=list)
    killed: int = 0
    total: int = 0


async def endurance(calls: int, retries: int) -> None:
    """Run many calls while a worker is killed every second; each call counts its runs in shared memory."""
    await _warm()
    this = psutil.Process()
    descriptors, children = this.num_fds(), len(this.children(recursive=True))
    began = time.perf_counter()
    with loopwatch.SharedBuffer(8 * calls) as shared:
        async with loopwatch.WorkerPool(workers=4) as pool:
            outcome = await _endure(pool.options(retries=retries), pool, shared, calls)
            stats = pool.stats()
        runs = memoryview(shared).cast("q").tolist()
    seconds = time.perf_counter() - began
    returned, crashed = (
        [number for number in range(calls) if outcome.outcomes[number] == code] for code in (RETURNED, CRASHED)
    )
    lost = calls - len(returned) - len(crashed) - sum(outcome.wrong.values())
    twice = sum(count > 1 for count in runs)
    never = sum(not runs[number] for number in returned)
    quarter = max(len(outcome.resident) // 4, 1)
    first, last = (
        statistics.median(part) / MEGABYTE for part in (outcome.resident[:quarter], outcome.resident[-quarter:])
    )
    good = not lost and not outcome.wrong and not never and outcome.total == sum(number * number for number in returned)
    good = good and (not twice if not retries else max(runs) <= 1 + retries and len(returned) == calls)
    counted = sum(runs[number] for number in crashed)
    print(
        f"retries={retries}: {'as it should be' if good else 'NOT AS IT SHOULD BE'}. "
        f"{calls:,} calls in {seconds:.0f} seconds, {outcome.killed} workers killed: {len(returned):,} returned, "
        f"{len(crashed)} died with their worker ({counted} of them had counted, {stats.crashed} in stats), "
        f"{lost} lost, {twice} run twice, {never} returned without a run, other outcomes: {dict(outcome.wrong) or 0}; "
        f"{stats.retried} runs repeated, {stats.started} workers started"
    )
    await asyncio.sleep(0.5)
    print(
        f"retries={retries}: memory of the parent {first:.1f} MB in the first quarter, {last:.1f} MB in the last; "
        f"descriptors {descriptors} before, {this.num_fds()} after; "
        f"processes {children} before, {len(this.children(recursive=True))} after",
        flush=True,
    )


async def _warm() -> None:
    """Use a pool once, so that one-time initialization precedes the measurement."""
    with loopwatch.SharedBuffer(8) as shared:
        async with loopwatch.WorkerPool(workers=1) as pool:
            await asyncio.gather(*(pool.run(pool_calls.square, shared, 0) for _ in range(200)))


async def _endure(options: Any, pool: loopwatch.WorkerPool, shared: Any, calls: int) -> Outcome:
    outcome, numbers, choice = Outcome(bytearray(calls)), iter(range(calls)), random.Random(1)

    async def kill() -> None:
        while True:
            await asyncio.sleep(1)
            workers = [each for each in pool.stats().workers if each.state in ("idle", "busy")]
            if workers:
                os.kill(choice.choice(workers).pid, signal.SIGKILL)
                outcome.killed += 1

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.25)
            outcome.resident.append(psutil.Process().memory_info().rss)

    async def ask() -> None:
        for number in numbers:
            try:
                value = await options.run(pool_calls.square, shared, number)
            except loopwatch.WorkerCrashed:
                outcome.outcomes[number] = CRASHED
            except Exception as exc:  # noqa: BLE001 - counted, and printed
                outcome.wrong[words(exc)] += 1
            else:
                outcome.total += value
                if value == number * number and not outcome.outcomes[number]:
                    outcome.outcomes[number] = RETURNED
                else:
                    outcome.wrong["a wrong result"] += 1

    others = [asyncio.create_task(kill()), asyncio.create_task(watch())]
    try:
        await within(60 + calls / 50, asyncio.gather(*(ask() for _ in range(200))))
    except Hung as exc:
        outcome.wrong[str(exc)] += 1
    finally:
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return outcome


# ------------------------------------------------------------------------------------------------------------ main

PARTS = ("compare", "references", "resources", "endurance")


async def run(part: str, options: argparse.Namespace) -> None:
    """Print one part."""
    if part == "compare":
        await compare(options.rounds, options.only, options.peers)
    elif part == "references":
        await references(options.piscina)
    elif part == "endurance":
        for retries in (0, 3):
            await endurance(options.calls, retries)


def loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of loops of ``kind``."""
    if kind == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return asyncio.new_event_loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="some measures, with commas")
    parser.add_argument("--peers", type=pool_peers.chosen, default=[], help="all, none (the default), or some names")
    parser.add_argument("--piscina", default=os.environ.get("PISCINA"), help="folder with piscina; or $PISCINA")
    parser.add_argument("--calls", type=int, default=100_000, help="of the endurance run")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--resources-of", choices=list(RESOURCES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    factory = loop_factory(options.loop)
    if options.resources_of:
        with asyncio.Runner(loop_factory=factory) as runner:
            print(json.dumps(runner.run(resources_of(options.resources_of))))
        return
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}: {', '.join(PARTS)}")
    print(f"CPython {sys.version.split()[0]}, {options.loop}, {os.cpu_count()} processors", flush=True)
    for part in options.parts or PARTS:
        print(f"\n## {part}\n", flush=True)
        if part == "resources":
            resources()
        else:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(run(part, options))


if __name__ == "__main__":
    main()

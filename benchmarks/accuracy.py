"""Prints the README's tables of accuracy: detected blocks, and whether culprit, cause and duration are right.

    python benchmarks/accuracy.py                                # loopwatch on asyncio and uvloop, about an hour
    python benchmarks/accuracy.py --only sleep,json --reps 1     # a quick look
    python benchmarks/accuracy.py --hogs 4 --quota 0.6           # as in production: a busy host, a CPU limit
    python benchmarks/accuracy.py --only none --in-a-row         # blocks without a pause between them
    python benchmarks/accuracy.py --peers --envs ~/.cache/peers  # its peers too, in environments of their own

Each tool runs on each kind of loop in a process of its own, which runs the blockers of blockers.py one after the other
at each length and takes the truth around them; then a while of healthy load, in which every stall is invented. Where
processors are short, ``starved`` is right for a block that would have been none on a free machine, and for no other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blockers
import busy_machine
import in_a_row
import peers
from blockers import BLOCKERS, Blocker, Refilled, SkipError, Stage

THRESHOLD = peers.THRESHOLD
LENGTHS = (1.5 * THRESHOLD, 0.3, 2.0)
SETTLE = 0.6
"""Seconds that a tool has to report its findings."""
CLOSE, SHARE = 0.005, 0.05
"""A duration is right within 5 ms or 5 percent of the truth, whichever is more, or within the stated uncertainty."""
SILENCE = 180.0
"""Seconds without a line after which a child counts as hung."""
BORDER = 0.1
"""Share of the threshold by which a block's own part (its length less the time its thread waited for a processor, by
the kernel's account) may lie above it with ``starved`` still right; beyond that, only the intended cause is."""
MORE_VICTIMS = 4
"""Timers and wake-ups of the benchmark and of the tool that may wait beside the planted victims."""

Record = dict[str, Any]


# -- in the child ------------------------------------------------------------------------------------------------------


def child(options: argparse.Namespace) -> None:
    """Run the blockers under one tool on one kind of loop; print JSON lines."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some tools print

    def emit(record: Record) -> None:
        report.write(json.dumps(record) + "\n")
        report.flush()

    tool = peers.named(options.tool)()
    new_loop = tool.loop_factory(options.loop)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(tool, options, new_loop, emit))


async def _serve(
    tool: peers.Tool, options: argparse.Namespace, new_loop: Callable[[], Any], emit: Callable[[Record], None]
) -> None:
    await tool.start()
    await asyncio.sleep(0.5)
    rows = options.only or [blocker.name for blocker in BLOCKERS]
    for blocker in (blocker for blocker in BLOCKERS if blocker.name in rows):
        for seconds in options.lengths:
            emit({"kind": "row", "row": blocker.name, "seconds": seconds})
            try:
                with blocker.setup(seconds) as material:
                    for number in range(options.reps):
                        record = await _repeat(tool, blocker, seconds, material, new_loop=new_loop, first=number == 0)
                        emit(record | {"rep": number})
            except SkipError as exc:
                emit({"kind": "skip", "row": blocker.name, "seconds": seconds, "reason": str(exc)})
            material = None
            gc.collect()
    if options.healthy > 0 and tool.raises:
        reason = "it raises into every blocking call, however short"
        emit({"kind": "skip", "row": "healthy load", "seconds": options.healthy, "reason": reason})
    elif options.healthy > 0:
        await asyncio.sleep(SETTLE)
        tool.drain()
        emit({"kind": "row", "row": "healthy load", "seconds": options.healthy})
        emit(await healthy_load(tool, options.healthy))
    if options.in_a_row:
        emit({"kind": "row", "row": "in a row", "seconds": in_a_row.LENGTH})
        for record in await in_a_row.run(tool, SETTLE):
            emit(record)
    emit({"kind": "end", "cost": tool.own_cost()})
    with contextlib.suppress(Exception):
        await tool.stop()


async def _repeat(
    tool: peers.Tool, blocker: Blocker, seconds: float, material: Any, *, new_loop: Callable[[], Any], first: bool
) -> Record:
    async def other_loop() -> None:
        if not tool.everywhere:
            await tool.start()

    async def other_loop_ends() -> None:
        if not tool.everywhere:
            await tool.stop()

    refilled = isinstance(material, Refilled)
    if isinstance(material, Refilled):
        material = material.make()
    if first or refilled:
        await asyncio.sleep(SETTLE)  # callbacks delayed by the preparation are not judged
    tool.drain()
    stage = Stage(asyncio.get_running_loop(), seconds, new_loop, other_loop, other_loop_ends)
    stage.place_readers()
    await asyncio.sleep(0.2 + 0.2 * random.random())
    waited = blockers.run_queue()
    tool.arm()
    try:
        await blocker.drive(stage, blocker, material)
    finally:
        tool.disarm()
    waited = blockers.run_queue() - waited
    await asyncio.sleep(SETTLE)
    stage.remove_readers()
    now, clock = time.time(), time.monotonic()
    begin, end = (None if at is None else now - (clock - at) for at in (stage.begin, stage.end))
    if stage.error is not None and tool.raises:
        tool.report(None, peers.text_of(stage.error))
    return {
        "kind": "rep",
        "row": blocker.name,
        "seconds": seconds,
        "begin": begin,
        "end": end,
        "cpu": stage.cpu,
        "waited": waited,
        "stretch": tool.own_cost().get("stretch"),
        "error": None if stage.error is None else repr(stage.error),
        "findings": [dataclasses.asdict(finding) for finding in tool.drain()],
    }


# -- healthy load ------------------------------------------------------------------------------------------------------

CLIENTS = 4
"""Requests under way at most, so that no pass of the loop holds more than four callbacks of up to 20 ms."""


async def healthy_load(tool: peers.Tool, seconds: float) -> Record:
    """Serve requests over TCP for ``seconds`` at about half of the loop's capacity; nothing holds the loop for long."""
    begin, busy, served = time.monotonic(), 0.0, 0
    document = json.dumps([{"id": n, "name": str(n)} for n in range(3000)])
    lateness: list[tuple[float, float]] = []

    def work() -> None:
        nonlocal busy, served
        start, length = time.monotonic(), random.choice((0.001, 0.002, 0.005, 0.005, 0.01, 0.018))
        kind = random.randrange(4)
        while (left := length - (time.monotonic() - start)) > 0:
            if kind == 0:
                time.sleep(left)
            elif kind == 1:
                hashlib.sha256(document.encode()).digest()
            elif kind == 2 and left > 0.004:
                json.loads(document)
            else:
                blockers.spin(min(left, 0.001))
        busy += time.monotonic() - start
        served += 1

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.readline():
                work()
                writer.write(b"HTTP/1.1 200 OK\n")
                await writer.drain()
        writer.close()

    async def ask(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        while time.monotonic() - begin < seconds:
            writer.write(b"GET / HTTP/1.1\n")
            await reader.readline()
            await asyncio.sleep(random.uniform(0.01, 0.07))
        writer.close()

    async def tick() -> None:
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            if time.monotonic() - due >= 0.5 * THRESHOLD:
                lateness.append((time.time(), time.monotonic() - due))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    ticker = asyncio.create_task(tick(), name="ticker")
    tool.arm()
    try:
        await asyncio.gather(*(asyncio.create_task(ask(address), name=f"client-{n}") for n in range(CLIENTS)))
    finally:
        tool.disarm()
    took = time.monotonic() - begin
    await asyncio.sleep(SETTLE)
    ticker.cancel()
    server.close()
    return {
        "kind": "healthy",
        "seconds": took,
        "utilization": busy / took,
        "served": served,
        "late": lateness,
        "findings": [dataclasses.asdict(finding) for finding in tool.drain()],
    }


# -- running children --------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Report the progress on stderr, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def private_network() -> tuple[list[str], str]:
    """Return the command prefix for a private network name space that holds the name server's address, and why not."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    found = re.search(r"^nameserver\s+([\d.]+)\s*$", Path("/etc/resolv.conf").read_text(), re.M)
    if unshare is None or ip is None or found is None:
        return [], "no unshare, no ip, or no IPv4 name server in /etc/resolv.conf"
    script = f'{ip} link set lo up && {ip} addr add {found[1]}/32 dev lo && exec "$@"'
    prefix = [unshare, "--net", "--", "sh", "-c", script, "sh"]
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    return (prefix, "") if done.returncode == 0 else ([], (done.stderr.strip().splitlines() or ["not permitted"])[-1])


def run_children(tool: str, loop: str, python: str, prefix: list[str], options: argparse.Namespace) -> list[Record]:
    """Run all rows of one tool on one kind of loop; record a row that ends or hangs its process, and go on."""
    records: list[Record] = []
    rows = [blocker.name for blocker in BLOCKERS if not options.only or blocker.name in options.only]
    peer = tool != peers.Loopwatch.name
    lengths, reps = (options.peer_lengths, options.peer_reps) if peer else (options.lengths, options.reps)
    healthy = options.peer_healthy if peer else options.healthy
    series = options.in_a_row and not peer
    while rows or healthy > 0 or series:
        command = [
            *prefix, python, str(Path(__file__).resolve()), "--child", "--tool", tool, "--loop", loop,
            "--only", ",".join(rows) or "none", "--lengths", ",".join(map(str, lengths)), "--reps", str(reps),
            "--healthy", str(healthy), *["--in-a-row"] * series,
        ]  # fmt: skip
        at, ended, problem = "start", False, ""
        for record in _lines_of(command):
            if record["kind"] == "row":
                at = record["row"]
                say(f"{tool} on {loop}: {at}, {record['seconds']:g} s")
            elif record["kind"] == "problem":
                problem = record["text"]
            else:
                records.append(record)
                ended = ended or record["kind"] == "end"
        if ended:
            break
        records.append({"kind": "crash", "row": at, "reason": problem or "its process ended"})
        say(f"{tool} on {loop}: {at}: {problem}")
        if at == "start" or at not in rows:
            break
        rows = rows[rows.index(at) + 1 :]
    return records


def _lines_of(command: list[str]) -> Iterator[Record]:
    """Run a child and yield its records as they come; at the end, why it failed, if it did."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWATCH_")}
    with tempfile.TemporaryFile("w+") as complaints, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True,
            start_new_session=True, cwd=folder, env=environ,
        )  # fmt: skip
        alarm = _Alarm(process)
        try:
            for line in process.stdout or ():
                alarm.set()
                yield json.loads(line)
            code = process.wait()
        finally:
            alarm.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # helpers that a crash may leave behind
            process.wait()
        complaints.seek(0)
        last = [line for line in complaints.read().splitlines() if line.strip()][-1:] or [""]
        if alarm.rang:
            yield {"kind": "problem", "text": f"silent for {SILENCE:g} s, killed"}
        elif code:
            yield {"kind": "problem", "text": f"ended with {code}: {last[0][:200]}"}


class _Alarm:
    """Kills a child that prints nothing for too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._timer: threading.Timer | None = None
        self.rang = False
        self.set()

    def set(self) -> None:
        self.cancel()
        self._timer = threading.Timer(SILENCE, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


# -- judging -----------------------------------------------------------------------------------------------------------


@dataclass
class Judged:
    """One repetition and the tool's findings, judged; None: not judged.

    Attributes:
        truth: seconds that the loop was held.
        stall: the finding, details included.
        error: reported minus true duration, seconds.
        wrong: the mistakes, in words.
        others: findings that belong to no block.
        split: further findings of the same block.
    """

    row: str
    seconds: float
    truth: float
    cpu: float | None
    stall: Record | None = None
    culprit: bool | None = None
    cause: bool | None = None
    task: bool | None = None
    error: float | None = None
    within: bool | None = None
    strictly: bool | None = None
    victims: bool | None = None
    wrong: list[str] = field(default_factory=list)
    others: list[Record] = field(default_factory=list)
    split: int = 0
    announced: bool = False
    starved: bool = False
    stretch: float | None = None

    @property
    def is_rightly_starved(self) -> bool:
        """Whether it was told as ``starved``, which has no culprit, and was that."""
        return self.stall is not None and self.starved and self.stall["details"]["cause"] == "starved"

    @property
    def detected(self) -> bool:
        return self.stall is not None


def judge(record: Record, blocker: Blocker, tool: str, loop: str) -> Judged | None:
    """Compare one repetition with the truth; None if there was no block to detect."""
    raised = record["error"] is not None and bool(record["findings"])
    truth = (record["end"] or 0.0) - (record["begin"] or 0.0)
    if truth < THRESHOLD and not raised:
        return None
    judged = Judged(blocker.name, record["seconds"], truth, record["cpu"], stretch=record["stretch"])
    if tool == peers.Loopwatch.name:
        _judge_stalls(judged, record, blocker, loop)
    else:
        _judge_texts(judged, record, blocker)
    if tool == peers.Loopwatch.name and judged.stall is not None and "starved" not in blocker.causes:
        _judge_starved(judged, truth - record["waited"])
    return judged


def _judge_starved(judged: Judged, own: float) -> None:
    """Judge a block that may have been too long only because its thread was given no processor.

    Args:
        judged: the repetition.
        own: seconds of the block in which its thread had a processor, or did not want one.
    """
    assert judged.stall is not None
    judged.starved = own < (1 + BORDER) * THRESHOLD
    if judged.is_rightly_starved:
        judged.cause, judged.culprit = True, None
        judged.wrong = [text for text in judged.wrong if not text.startswith(("culprit", "cause"))]


def _judge_stalls(judged: Judged, record: Record, blocker: Blocker, loop: str) -> None:
    def overlap(finding: Record) -> float:
        start = float(finding["start"])
        return float(min(start + finding["duration"], record["end"]) - max(start, record["begin"]))

    judged.announced = any(finding["details"]["ongoing"] for finding in record["findings"])
    final = [finding for finding in record["findings"] if not finding["details"]["ongoing"]]
    same = sorted((finding for finding in final if overlap(finding) > 0), key=overlap)
    judged.others = [finding for finding in final if overlap(finding) <= 0]
    if not same:
        judged.wrong.append("missed")
        return
    judged.stall, judged.split = same[-1], len(same) - 1
    stall = judged.stall["details"]
    judged.cause = stall["cause"] in blocker.causes
    named = stall["culprit"]["function"] if stall["culprit"] else None
    judged.culprit = named is None if blocker.culprit is None else _is_name(named, blocker)
    if blocker.in_task and blocker.culprit is not None:
        judged.task = stall["task"] == blockers.task_name(blocker)
    judged.error = stall["duration"] - judged.truth
    judged.strictly = abs(judged.error) <= max(CLOSE, SHARE * judged.truth)
    judged.within = judged.strictly or abs(judged.error) <= stall["uncertainty"]
    if blocker.known_victims:
        least = blockers.EVENTS if loop == "uvloop" else blockers.CALLBACKS + blockers.TIMERS + blockers.EVENTS
        most = blockers.CALLBACKS + blockers.TIMERS + blockers.EVENTS + MORE_VICTIMS
        judged.victims = stall["victims"] is not None and least <= stall["victims"] <= most
    said = {
        f"culprit {named}": judged.culprit,
        f"cause {stall['cause']}": judged.cause,
        f"duration {stall['duration']:.3f} +- {stall['uncertainty']:.3f}": judged.within,
        f"victims {stall['victims']}": judged.victims,
        f"task {stall['task']}": judged.task,
    }
    judged.wrong = [text for text, right in said.items() if right is False]
    if judged.split:
        judged.wrong.append(f"split into {judged.split + 1}")


def _is_name(named: str | None, blocker: Blocker) -> bool:
    if named is None:
        return blocker.culprit_optional
    return blocker.culprit in named.split(".")


def _judge_texts(judged: Judged, record: Record, blocker: Blocker) -> None:
    found = record["findings"]
    if not found:
        return
    judged.stall = max(found, key=lambda finding: finding["duration"] or 0.0)
    duration = judged.stall["duration"]
    if blocker.culprit is not None:
        judged.culprit = any(blocker.culprit in finding["text"] for finding in found)
    if duration is not None and judged.truth > 0:
        judged.error = duration - judged.truth
        judged.strictly = judged.within = abs(judged.error) <= max(CLOSE, SHARE * judged.truth)


# -- tables ------------------------------------------------------------------------------------------------------------

Results = dict[tuple[str, str], list[Record]]


def _head(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]


def _count(values: Iterable[bool | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known)}/{len(known)}" if known else "-"


def _share(values: Iterable[bool | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.1f} % ({sum(known)}/{len(known)})" if known else "-"


def judged_rows(records: list[Record], tool: str, loop: str) -> list[Judged]:
    """Return the judged repetitions among ``records``."""
    by_name = {blocker.name: blocker for blocker in BLOCKERS}
    judged = (judge(record, by_name[record["row"]], tool, loop) for record in records if record["kind"] == "rep")
    return [item for item in judged if item is not None]


def table_of_rows(rows: list[Judged]) -> list[str]:
    """Return the Markdown table of loopwatch on one kind of loop, one line a blocker."""
    lines = _head(
        "blocker",
        "true length, ms",
        "detected",
        "culprit",
        "cause",
        "duration off by, ms",
        "within limits",
        "within 5 % or 5 ms",
        "victims",
        "stated uncertainty, ms",
    )
    for blocker in BLOCKERS:
        mine = [row for row in rows if row.row == blocker.name]
        if not mine:
            continue
        lengths = [
            statistics.median(row.truth for row in mine if row.seconds == seconds)
            for seconds in sorted({row.seconds for row in mine})
        ]
        errors = [row.error for row in mine if row.error is not None]
        stated = [row.stall["details"]["uncertainty"] for row in mine if row.stall is not None]
        cells = (
            blocker.name,
            ", ".join(f"{1000 * length:.0f}" for length in lengths),
            _count(row.detected for row in mine),
            _count(row.culprit for row in mine),
            _count(row.cause for row in mine),
            f"{1000 * min(errors):+.1f} to {1000 * max(errors):+.1f}" if errors else "-",
            _count(row.within for row in mine),
            _count(row.strictly for row in mine),
            _count(row.victims for row in mine),
            f"{1000 * statistics.median(stated):.1f}" if stated else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_totals(results: Results) -> list[str]:
    """Return the Markdown table of totals, one line a tool and kind of loop."""
    guilty = {blocker.name for blocker in BLOCKERS if blocker.culprit is not None}
    lines = _head(
        "tool, loop",
        "detected",
        "culprit right",
        "cause right",
        "duration within limits",
        "within 5 % or 5 ms",
        "victims plausible",
        "task named",
        "blocks split",
        "starved in truth",
        "reported beside a block",
        "invented under healthy load",
    )
    for (tool, loop), records in results.items():
        rows = judged_rows(records, tool, loop)
        if not rows:
            continue
        healthy = next((record for record in records if record["kind"] == "healthy"), None)
        says_why = any(row.cause is not None for row in rows)
        cells = (
            f"{tool}, {loop}",
            _share(row.detected for row in rows),
            _share(bool(row.culprit) for row in rows if row.row in guilty and not row.is_rightly_starved),
            _share(bool(row.cause) for row in rows) if says_why else "-",
            _share(row.within for row in rows),
            _share(row.strictly for row in rows),
            _share(row.victims for row in rows),
            _share(row.task for row in rows),
            str(sum(row.split for row in rows)),
            str(sum(row.starved for row in rows)),
            str(sum(len(row.others) for row in rows)),
            "-" if healthy is None else f"{len(healthy['findings'])} in {healthy['seconds']:.0f} s",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_peers(results: Results, loop: str) -> list[str]:
    """Return the Markdown table that sets the tools side by side on one kind of loop."""
    tools = [tool for tool, kind in results if kind == loop]
    lines = _head("blocker", *tools)
    rows = {tool: judged_rows(results[tool, loop], tool, loop) for tool in tools}
    for blocker in BLOCKERS:
        cells = [_cell([row for row in rows[tool] if row.row == blocker.name], blocker) for tool in tools]
        if any(cells):
            lines.append(f"| {blocker.name} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return lines


def _cell(rows: list[Judged], blocker: Blocker) -> str:
    """Return reported / true duration, C or n for the culprit, and the detected share if it is not all."""
    if not rows:
        return ""
    found = [row for row in rows if row.detected]
    if not found:
        return "x"
    ratios = [1 + row.error / row.truth for row in found if row.error is not None and row.truth > 0]
    named = [row.culprit for row in found if row.culprit is not None]
    letter = ""
    if blocker.culprit is not None and named:
        letter = "C" if all(named) else f"C {_count(named)}" if any(named) else "n"
    ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
    some = "" if len(found) == len(rows) else f"{len(found)}/{len(rows)}"
    return " ".join(part for part in (ratio, letter, some) if part) or "yes"


def complaints(results: Results) -> list[str]:
    """Return the mistakes of loopwatch: one line for each kind, with the evidence of the first."""
    lines = []
    for (tool, loop), records in results.items():
        if tool != peers.Loopwatch.name:
            continue
        seen: dict[tuple[str, str], list[Judged]] = {}
        for row in judged_rows(records, tool, loop):
            for text in row.wrong:
                seen.setdefault((row.row, text.split()[0]), []).append(row)
        for (name, what), rows in seen.items():
            first = rows[0]
            lines.append(
                f"- {loop}, {name} ({len(rows)} x {what}; first at {first.seconds:g} s, true {first.truth:.3f} s, "
                f"cpu {_number(first.cpu)}, agent's intervals x {_number(first.stretch)}): "
                f"{'; '.join(first.wrong)}{_facts(first.stall)}"
            )
        beside = [(row.row, row.seconds, other) for row in judged_rows(records, tool, loop) for other in row.others]
        for name, seconds, finding in beside:
            lines.append(
                f"- {loop}, {name} {seconds:g} s: reported beside the block: {_stall(finding)}{_facts(finding)}"
            )
        for record in records:
            if record["kind"] == "healthy":
                lines += [
                    f"- {loop}, healthy load: {_stall(item)}; {_lateness(item, record)}{_facts(item)}"
                    for item in record["findings"]
                ]
            elif record["kind"] == "crash":
                lines.append(f"- {loop}, {record['row']}: {record['reason']}")
            elif record["kind"] == "end" and (record["cost"].get("faults") or record["cost"].get("dropped")):
                lines.append(f"- {loop}: the agent's own faults: {record['cost']}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _stall(finding: Record) -> str:
    stall = finding["details"]
    culprit = stall["culprit"]["function"] if stall["culprit"] else None
    early = ", announced early" if stall["ongoing"] else ""
    return f"{stall['cause']} {stall['duration']:.3f} s +- {stall['uncertainty']:.3f}, culprit {culprit}{early}"


def _lateness(finding: Record, record: Record) -> str:
    """Return the lateness of the benchmark's own ticker then: a stall that it measured too was not invented."""
    start, end = finding["start"], finding["start"] + finding["duration"]
    late = [length for at, length in record["late"] if at - length - 0.05 <= end and at + 0.05 >= start]
    ticker = "the benchmark's ticker was"
    return f"{ticker} late by {max(late):.3f} s then" if late else f"{ticker} on time"


def _facts(finding: Record | None) -> str:
    if finding is None:
        return ""
    stall = finding["details"]
    facts = {
        k: round(v, 4) if isinstance(v, float) else v for k, v in stall["evidence"].items() if v not in (None, 0.0)
    }
    leaf = f"{stall['leaf']['function']}:{stall['leaf']['line']}" if stall["leaf"] else None
    return f"\n  samples {stall['samples']}, leaf {leaf}, evidence {json.dumps(facts)}"


# -- main --------------------------------------------------------------------------------------------------------------


def main() -> None:
    options = arguments()
    if options.child:
        child(options)
        return
    for blocker in BLOCKERS if options.list else ():
        print(f"{blocker.name:18} {'/'.join(sorted(blocker.causes)):20} {blocker.culprit}")
    if options.list:
        return
    say(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.2f}")
    prefix, why = private_network()
    if why:
        say(f"dns is left out: no private network name space for a slow name server: {why}")
    results: Results = {}
    versions: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        limited, why = stack.enter_context(busy_machine.quota(options.quota))
        if why:
            sys.exit(f"accuracy.py: {why}")
        stack.enter_context(busy_machine.hogs(options.hogs))
        prefix = [*limited, *prefix]
        folder = Path(options.envs or stack.enter_context(tempfile.TemporaryDirectory())).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for tool in (peers.named(name) for name in options.tool):
            found = peers.environment(tool, folder, peers.interpreters(options.python), say)
            versions[tool.name] = found.version or f"not run: {found.reason}"
            if not found.python:
                say(f"{tool.name} does not install: {found.reason}")
                continue
            for loop in options.loop:
                if tool is not peers.Loopwatch and not _works(tool, loop, found.python, versions):
                    continue
                results[tool.name, loop] = run_children(tool.name, loop, found.python, prefix, options)
    if options.json:
        keyed = {f"{tool}, {loop}": records for (tool, loop), records in results.items()}
        Path(options.json).write_text(json.dumps({"versions": versions, "results": keyed}))
    _print(results, versions, options)


def _works(tool: type[peers.Tool], loop: str, python: str, versions: dict[str, str]) -> bool:
    """Try a peer on the plainest blocker there is; one that cannot be driven is reported, not counted."""
    say(f"{tool.name} on {loop}: does the adapter work? sleep, 0.3 seconds")
    smoke = argparse.Namespace(only=["sleep"], peer_lengths=[0.3], peer_reps=2, peer_healthy=0.0)
    records = run_children(tool.name, loop, python, [], smoke)
    if any(record["kind"] == "rep" and record["findings"] for record in records):
        return True
    crash = next((record["reason"] for record in records if record["kind"] == "crash"), "")
    versions[f"{tool.name} on {loop}"] = f"not counted: {crash or 'it does not see a time.sleep of 0.3 seconds'}"
    say(f"{tool.name} on {loop}: {versions[f'{tool.name} on {loop}']}")
    return False


def _load(options: argparse.Namespace) -> str:
    hogs = f", beside {options.hogs} processes that compute" if options.hogs else ""
    return hogs + (f", quota {options.quota:g} processors" if options.quota else "")


def _print(results: Results, versions: dict[str, str], options: argparse.Namespace) -> None:
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} processors"
    print(f"Python {platform.python_version()}, {system}, threshold {1000 * THRESHOLD:g} ms{_load(options)}\n")
    for name, version in versions.items():
        print(f"- {name}: {version}")
    for (tool, loop), records in results.items():
        reasons = {(record["row"], record["reason"]) for record in records if record["kind"] in ("skip", "crash")}
        for row, reason in sorted(reasons):
            print(f"- {tool} on {loop}, {row}: left out: {reason}")
        for record in records:
            if record["kind"] == "healthy":
                late = max((length for _, length in record["late"]), default=0.0)
                print(
                    f"- {tool} on {loop}, healthy load: {record['seconds']:.0f} s, {record['served']} requests, "
                    f"utilization {record['utilization']:.2f}, worst lateness of a timer {1000 * late:.0f} ms, "
                    f"stalls {len(record['findings'])}"
                )
            elif record["kind"] == "end" and record["cost"]:
                print(f"- {tool} on {loop}, of itself: {record['cost']}")
    for tool, loop in results:
        if tool == peers.Loopwatch.name:
            print(f"\n## {tool} on {loop}\n")
            print("\n".join(table_of_rows(judged_rows(results[tool, loop], tool, loop))))
    print("\n## Totals\n")
    print("A block that was missed has neither culprit nor cause right; durations are those of detected blocks.")
    print(
        "Starved in truth: less the time its thread waited for a processor, by the kernel's account, the block was "
        "below the threshold: `starved` is right there, as the intended cause is.\n"
    )
    print("\n".join(table_of_totals(results)))
    in_rows = [(loop, each) for (_, loop), found in results.items() for each in found if each["kind"] == "series"]
    if in_rows:
        print("\n## Blocks in a row\n")
        print("\n".join(in_a_row.table(in_rows, THRESHOLD)))
    if len({tool for tool, _ in results}) > 1:
        for loop in dict.fromkeys(loop for _, loop in results):
            print(f"\n## Side by side on {loop}\n")
            print("Reported / true duration (median); C names the culprit, n does not; x not detected, - not run.\n")
            print("\n".join(table_of_peers(results, loop)))
    print("\n## What was wrong\n")
    print("\n".join(complaints(results)) or "Nothing.")


def arguments() -> argparse.Namespace:
    """Return the command line."""

    def words(text: str) -> list[str]:
        return [word.strip() for word in text.split(",") if word.strip()]

    def seconds(text: str) -> list[float]:
        return [float(word) for word in words(text)]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=words, help="rows, separated by commas (see --list)")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--loop", type=words, default=["asyncio", "uvloop"], help="kinds of loop")
    parser.add_argument("--tool", type=words, default=[peers.Loopwatch.name], help="tools, separated by commas")
    parser.add_argument("--peers", action="store_true", help="all tools")
    parser.add_argument("--reps", type=int, default=3, help="repetitions of each row and length")
    parser.add_argument("--lengths", type=seconds, default=list(LENGTHS), help="seconds, separated by commas")
    parser.add_argument("--healthy", type=float, default=60.0, help="seconds of healthy load")
    parser.add_argument("--in-a-row", action="store_true", help="blocks in a row as well")
    parser.add_argument("--peer-reps", type=int, default=3)
    parser.add_argument("--peer-lengths", type=seconds, default=[0.3])
    parser.add_argument("--peer-healthy", type=float, default=20.0)
    parser.add_argument("--hogs", type=int, default=0, help="processes that compute beside it all the time")
    parser.add_argument("--quota", type=float, help="processors that each tool's process may use, by a control group")
    parser.add_argument("--envs", help="folder in which the peers' environments are kept (default: a temporary one)")
    parser.add_argument("--python", type=words, default=[], help="further interpreters to try for peers")
    parser.add_argument("--json", help="file for all results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [tool.name for tool in peers.TOOLS]
    if options.child:
        options.tool, options.loop = options.tool[0], options.loop[0]
    elif options.peers:
        options.tool = names
    _check(parser, options.only, [*(blocker.name for blocker in BLOCKERS), "none"], "row")
    _check(parser, [options.tool] if options.child else options.tool, names, "tool")
    _check(parser, [options.loop] if options.child else options.loop, ["asyncio", "uvloop"], "loop")
    return options


def _check(parser: argparse.ArgumentParser, given: list[str] | None, known: list[str], what: str) -> None:
    for name in given or ():
        if name not in known:
            parser.error(f"no {what} {name!r}: known are {', '.join(known)}")


if __name__ == "__main__":
    main()

"""Blocks in a row, as a loaded server has them: each is to be found as one of its own, with its own function.

Used by accuracy.py (``--in-a-row``). A series is a number of calls with a pause between them: the same call, which
keeps the GIL; calls of four different functions; requests that are queued at a real server (uvicorn, Starlette), which
may handle several of them in one pass of the loop: that is one block.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import blockers

CALLS, LENGTH = 12, 0.15
"""Calls of a series, and seconds that each of them takes, about."""
GAPS = (0.0, 0.001, 0.01)
"""Seconds between two calls."""
CLOSE, SHARE = 0.005, 0.05
"""A duration is right within 5 ms or 5 percent of the truth, or within the uncertainty that is stated."""
LARGEST = 0.5
"""Largest uncertainty, as a share of the duration, that still says something."""

Record = dict[str, Any]
Call = tuple[str, float, float, float]
"""Function, begin and end (seconds since the epoch), seconds for which its thread waited for a processor."""


@dataclass
class Truth:
    """What was called."""

    calls: list[Call] = field(default_factory=list)

    def add(self, name: str, began: float) -> None:
        """Record a call that ends now; ``began`` is of ``time.time``."""
        self.calls.append((name, began, time.time(), 0.0))


def _as_long(make: Callable[[int], Callable[[], object]], size: int) -> Callable[[], object]:
    """Return a call that takes about :data:`LENGTH` seconds; its work grows with its size."""
    while True:
        call, began = make(size), time.monotonic()
        call()
        took = time.monotonic() - began
        if took >= LENGTH / 2:
            return make(max(int(size * LENGTH / took), 1))
        size *= 2


def _match_names() -> Callable[[], object]:
    text = next(text for size in range(16, 40) if _seconds_of(text := "a" * size + "b") >= LENGTH / 1.5)

    def match_names() -> None:
        re.match(r"(a+)+$", text)

    return match_names


def _seconds_of(text: str) -> float:
    began = time.monotonic()
    re.match(r"(a+)+$", text)
    return time.monotonic() - began


def _different() -> list[Callable[[], object]]:
    def of_document(size: int) -> Callable[[], object]:
        text = json.dumps([{"id": number, "name": str(number)} for number in range(size)])

        def read_document() -> None:
            json.loads(text)

        return read_document

    def of_rounds(rounds: int) -> Callable[[], object]:
        def hash_password() -> None:
            hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", rounds)

        return hash_password

    def add_up() -> None:
        ends = time.monotonic() + LENGTH
        while time.monotonic() < ends:
            pass

    def wait_for_it() -> None:
        time.sleep(LENGTH)

    return [_as_long(of_document, 20_000), add_up, _as_long(of_rounds, 50_000), wait_for_it]


async def _one_after_the_other(calls: list[Callable[[], object]], gap: float) -> Truth:
    truth = Truth()

    async def handle(call: Callable[[], object]) -> None:
        began = time.time()
        call()
        truth.add(call.__name__, began)

    waited = blockers.run_queue()
    for number in range(CALLS):
        await asyncio.create_task(handle(calls[number % len(calls)]), name=f"handler {number}")
        await asyncio.sleep(gap)
    waited = (blockers.run_queue() - waited) / CALLS  # on average: reading a file between two calls is a pause
    truth.calls = [(name, began, ended, waited) for name, began, ended, _ in truth.calls]
    return truth


async def _queued(call: Callable[[], object]) -> Truth:
    """Send requests to a real server all at once; they wait in its socket while it handles the first one."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    truth = Truth()

    async def endpoint(_request: object) -> PlainTextResponse:
        began = time.time()
        call()
        truth.add(call.__name__, began)
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/", endpoint)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        connection.getresponse().read()
        connection.close()

    await asyncio.sleep(0.5)  # its start is no block of the series
    truth.calls.clear()
    askers = [threading.Thread(target=ask) for _ in range(CALLS)]
    for each in askers:
        each.start()
    while len(truth.calls) < CALLS:
        await asyncio.sleep(0.05)
    for each in askers:
        await asyncio.to_thread(each.join)
    server.should_exit = True
    await serving
    return truth


async def run(tool: Any, settle: float) -> list[Record]:
    """Run all series under ``tool``; return what was called and what was found, a record a series."""
    records = []
    for name, gap, play in _series():
        await asyncio.sleep(settle)
        tool.drain()
        truth = await play()
        await asyncio.sleep(settle)
        findings = [{"start": each.start, "duration": each.duration, **each.details} for each in tool.drain()]
        records.append({"kind": "series", "name": name, "gap": gap, "calls": truth.calls, "findings": findings})
    return records


def _series() -> Iterator[tuple[str, float | None, Callable[[], Any]]]:
    same, different = [_match_names()], _different()
    for gap in GAPS:
        yield "the same call", gap, lambda gap=gap: _one_after_the_other(same, gap)
        yield "four functions in turn", gap, lambda gap=gap: _one_after_the_other(different, gap)
    yield "requests queued at uvicorn", None, lambda: _queued(same[0])


# -- judging -----------------------------------------------------------------------------------------------------------


@dataclass
class Judged:
    """One call of a series, judged.

    Attributes:
        found: whether a finding is mostly its own.
        culprit, cause, duration: whether each of them is right; of a call that was missed, none is.
        uncertainty: as a share of the duration.
    """

    found: bool
    culprit: bool = False
    cause: bool = False
    duration: bool = False
    uncertainty: float = 0.0


CAUSES = {
    "match_names": {"native_gil"}, "read_document": {"native_gil"}, "hash_password": {"native"},
    "add_up": {"python"}, "wait_for_it": {"sleep"},
}  # fmt: skip


def judge(record: Record, threshold: float) -> list[Judged]:
    """Compare each call with the finding that overlaps it most and belongs to no other call more."""
    final = [each for each in record["findings"] if not each["ongoing"]]
    calls = [call for call in record["calls"] if call[2] - call[1] >= threshold]
    if record["gap"] is None:
        calls = _in_passes(calls, final)
    judged = []
    for call in calls:
        own = [each for each in final if max(calls, key=lambda other: _overlap(each, other)) is call]
        own = [each for each in own if _overlap(each, call) > 0.5 * (call[2] - call[1])]
        best = max(own, key=lambda each: _overlap(each, call), default=None)
        judged.append(Judged(found=False) if best is None else _judged(best, call, threshold))
    return judged


def _in_passes(calls: list[Call], findings: list[Record]) -> list[Call]:
    """Join the calls that one finding covers: they were made in one pass."""
    joined: list[Call] = []
    for call in calls:
        if joined and any(_covers(each, joined[-1]) and _covers(each, call) for each in findings):
            name, began, _, waited = joined[-1]
            joined[-1] = (name, began, call[2], waited + call[3])
        else:
            joined.append(call)
    return joined


def _covers(finding: Record, call: Call) -> bool:
    return _overlap(finding, call) > 0.5 * (call[2] - call[1])


def _overlap(finding: Record, call: Call) -> float:
    return min(finding["start"] + finding["duration"], call[2]) - max(finding["start"], call[1])


def _judged(finding: Record, call: Call, threshold: float) -> Judged:
    name, began, ended, waited = call
    length, uncertainty = ended - began, finding["uncertainty"]
    named = (finding["culprit"] or {"function": ""})["function"].rpartition(".")[2]
    error = abs(finding["duration"] - length)
    is_starved = finding["cause"] == "starved" and length - waited < threshold
    return Judged(
        found=True,
        culprit=named == name or is_starved,
        cause=finding["cause"] in CAUSES[name] or is_starved,
        duration=error <= max(CLOSE, SHARE * length, uncertainty),
        uncertainty=uncertainty / finding["duration"] if finding["duration"] else 0.0,
    )


def table(records: list[tuple[str, Record]], threshold: float) -> list[str]:
    """Return the Markdown table: one line a series, of records with the loop that they are of."""
    lines = [
        "| loop, series | pause | blocks | found | culprit | cause | duration | median uncertainty | above half |",
        "| --- " * 9 + "|",
    ]
    for loop, record in records:
        rows = judge(record, threshold)
        found = [row for row in rows if row.found]
        cells = [
            f"{loop}, {record['name']}",
            "-" if record["gap"] is None else f"{1000 * record['gap']:g} ms",
            str(len(rows)),
            *(str(sum(getattr(row, name) for row in rows)) for name in ("found", "culprit", "cause", "duration")),
            f"{100 * statistics.median([row.uncertainty for row in found] or [0.0]):.0f} %",
            str(sum(row.uncertainty > LARGEST for row in found)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines

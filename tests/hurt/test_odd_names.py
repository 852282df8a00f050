"""Names of any content and length reach every sink in a clean form, and no stall is lost."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._internal import _encode_attributes
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector as Registered

from loopwatch.core.text import MAX_LINE, MAX_NAME, MAX_PATH
from loopwatch.diagnosis.diagnose import diagnose
from loopwatch.diagnosis.flagging import Flagging
from loopwatch.diagnosis.site import Site
from loopwatch.events import AgentStats, Cause, Evidence, FlaggedFunction, Snapshot, Stall
from loopwatch.report.export import to_collapsed, to_json
from loopwatch.report.html import render
from loopwatch.report.reader import read_journals
from loopwatch.report.tables import Report
from loopwatch.report.text import to_text
from loopwatch.sinks.hang_file import hang_header, hang_threads
from loopwatch.sinks.journal import JournalWriter
from loopwatch.sinks.log import LogSink
from loopwatch.telemetry.metrics import attributes
from loopwatch.telemetry.metrics.collect import Collector
from loopwatch.telemetry.metrics.records import Inputs
from loopwatch.telemetry.prometheus.exposition import families
from loopwatch.watch import task_info
from loopwatch.watch.observation import Observation, Sample
from loopwatch.watch.stacks import RawFrame, RawStack, call_at

pytestmark = pytest.mark.measures

MIB = 1 << 20
HERE = Site.here()
NASTY = (
    "a\nloop 'main' blocked 9 s", "\r\x1b[2K", "\u202eevil\u2066", "\x00", "\ud800", "caf\udce9", "\u2028", "\x85",
    "名前", "",
    "x" * 10_000_000, "\n" * 1_000_000, "</script><!--", "%s%n", "{0}", "a;b", '"', "\\", "__proto__",
)  # fmt: skip
names = st.sampled_from(NASTY) | st.text(st.characters(), max_size=40)


class Task:
    """A task of a foreign class."""

    def __init__(self, name: object, coroutine: object) -> None:
        self._name = name
        vars(self)["__qualname__"] = coroutine

    def get_name(self) -> Any:
        return self._name

    def get_coro(self) -> Any:
        return self


def blocker(function: str, file: str, module: str) -> RawFrame:
    """Return a frame in the middle of a call, with odd names."""
    found: dict[str, Any] = {}
    exec(compile("def f(g):\n    g()\n", "<made>", "exec"), found)
    code = found["f"].__code__.replace(co_name=function, co_qualname=function, co_filename=file)
    return RawFrame(code, 2, 4, module)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """A block with odd names everywhere."""
    frame = blocker(draw(names), draw(names), draw(names))
    odd = names | st.integers() | st.none() | st.binary(max_size=3)
    task, coroutine = task_info.names_of(Task(draw(odd), draw(odd)))
    samples = [Sample(1.0 + at / 10, 0.0, RawStack((frame,), {}), 1, "clock_nanosleep") for at in range(3)]
    evidence = Evidence(wall=0.5, cpu=0.0, samples=3, syscall="clock_nanosleep", syscall_share=1.0)
    context = {"http.route": draw(names), draw(names): draw(names)}
    return Observation(
        "7f", draw(names), draw(names), 1e9, 1.0, 1.5, evidence, samples=samples, task=task, coroutine=coroutine,
        context=context, pid=7,
    )  # fmt: skip


def texts(value: object) -> Iterator[str]:
    """Yield every string in a JSON-compatible record, including the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


class _Page(Registered):
    def __init__(self, stall: Stall) -> None:
        readings = Collector()
        readings.saw(stall)
        snapshot = Snapshot(1.0, 7, (), AgentStats("watching"))
        self._reading = readings.read(Inputs(snapshot))

    def collect(self) -> Iterator[Any]:
        return families(self._reading)


def flagged_by(stall: Stall) -> FlaggedFunction | None:
    return Flagging(1, 60.0, 10).add(stall)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60)
@given(seen=observations())
def test_every_sink_gets_clean_names(
    seen: Observation, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """With any names the log has one short line, the journal can be read, and attributes and pages can be encoded."""
    stall = diagnose(seen, HERE, 0.1, lambda stack: call_at(stack.frames[0], stack.globals))
    assert stall is not None
    assert stall.cause is Cause.SLEEP
    assert stall.culprit is not None
    assert stall.remedy
    for text in texts(stall.to_dict()):
        assert text.isprintable()
        assert len(text) <= MAX_LINE
    assert max(map(len, (stall.loop, stall.thread, stall.culprit.function, stall.culprit.module))) <= MAX_NAME
    assert len(stall.culprit.file) <= MAX_PATH
    flagged = flagged_by(stall)
    assert flagged is not None

    caplog.clear()
    sink = LogSink(logging.WARNING, 60.0, 20)
    sink(stall)
    sink.flagged(flagged)
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) <= MAX_LINE

    path = tmp_path_factory.mktemp("odd") / "j.7.jsonl"
    writer = JournalWriter(path, MIB)
    assert writer.write(stall)
    assert writer.write_flagged(flagged)
    writer.close()
    contents = read_journals(str(path))
    assert contents.stalls == (stall,)
    text = to_text(Report.of(contents))
    assert all(line.isprintable() for line in text.splitlines())
    assert json.loads(to_json(Report.of(contents)))["stalls"][0]["id"] == "7f"
    assert len(to_collapsed(contents).splitlines()) == 1
    assert "</script><!--" not in render(Report.of(contents))

    assert hang_threads(hang_header(7, {1: stall.loop})) == (7, {"0x0000000000000001": stall.loop})
    for found in (attributes.of_stall(stall), attributes.of_flagged(flagged)):
        encoded = _encode_attributes(found)
        assert encoded is not None
        assert len(encoded) == len(found)
        assert all(each.SerializeToString() for each in encoded)
    page = generate_latest(_Page(stall)).decode()
    assert "asyncio_eventloop_stalls_total{" in page
    assert all(line.isprintable() for line in page.splitlines())
    assert json.dumps(Snapshot(1.0, 7, (), AgentStats("watching"), flagged=(flagged,)).to_dict(), allow_nan=False)


@given(file=names)
def test_any_file_name_is_accepted_in_the_search_for_a_call(file: str) -> None:
    """A call has no name if its source is not available, and nothing is raised."""
    assert call_at(blocker("f", file, "m"), {}) is None


PROGRAM = r"""
    import loopwatch
    from loopwatch.core.text import printable
    names = ["\ud800.py", "a\nb.py", "\x00.py", "\x1b[31m.py", "\u202e.py", "x" * 10_000_000 + ".py"]
    agent = loopwatch.install(threshold=0.05, log_interval=0.0, journal=sys.argv[1])

    async def main():
        await asyncio.sleep(0.2)
        for name in names:
            made = {"__name__": name}
            exec(compile("import time\ndef f(): time.sleep(0.15)", name.replace("\x00", ""), "exec"), made)
            f = made["f"]
            f.__code__ = f.__code__.replace(co_name=name, co_qualname=name, co_filename=name)
            asyncio.current_task().set_name(name)
            f()
            await asyncio.sleep(0.05)
        nap(0.15)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    agent.flush()
    found = [stall for stall in agent.stalls() if stall.duration > 0.12 and not stall.ongoing]
    json.dumps(agent.snapshot().to_dict())
    loopwatch.uninstall()
    say(expected=[printable(name) for name in [*names, "nap"]], found=len(found), last=found[-1].culprit.function,
        names=[stall.culprit.function for stall in found if stall.culprit], faults=agent.snapshot().agent.faults)
"""


def test_stalls_with_odd_names_are_reported(tmp_path: Path) -> None:
    """In a real program each block is a stall and a bounded, printable line, later stalls too, and no part fails."""
    from hostproc import program

    ended = program(PROGRAM, tmp_path)
    assert ended.code == 0, ended.err[-2000:]
    assert ended.last["found"] == 7
    assert ended.last["faults"] == {}
    assert set(ended.last["names"]) <= set(ended.last["expected"])
    lines = ended.err.splitlines()
    assert all(line.startswith(("loop ", "loopwatch: ")) for line in lines)
    assert all(line.isprintable() and len(line) <= MAX_LINE for line in lines)
    assert len(read_journals(str(tmp_path)).stalls) >= 7


def test_reading_a_hostile_journal_is_bounded(tmp_path: Path) -> None:
    """The report of a hostile journal has no control characters and no line of ten megabytes."""
    path, began = tmp_path / "j.7.jsonl", time.time()
    record = {
        "id": "1",
        "loop": "\x1b[2J",
        "started_at": began,
        "duration": 1.0,
        "cause": "io",
        "evidence": {"wall": 1.0},
    }
    frame = {"function": "x" * 10_000_000, "module": "\n", "file": "\u202e" * 100_000, "line": 1}
    header = {
        "type": "header",
        "schema": "loopwatch.journal/1",
        "pid": 7,
        "started_at": began - 1,
        "argv0": "\x1b]0;a\x07",
    }
    path.write_text(
        "".join(json.dumps(each) + "\n" for each in (header, {"type": "stall", **record, "culprit": frame}))
    )
    contents = read_journals(str(path))
    text = to_text(Report.of(contents))
    assert all(line.isprintable() and len(line) <= MAX_LINE for line in text.splitlines())
    assert len(render(Report.of(contents))) < MIB
    assert len(to_collapsed(contents)) <= MAX_LINE * 2

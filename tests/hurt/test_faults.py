"""A part that fails is counted, logged and, if it keeps failing, switched off; the program is not affected."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Run
from hostproc import program, succeeded

import loopwatch
import loopwatch.agent
import loopwatch.sinks.pipeline
import loopwatch.system.threads
import loopwatch.watch.stacks
import loopwatch.watch.watched_loop
from loopwatch.agent import Agent
from loopwatch.diagnosis.flagging import Flagging
from loopwatch.testing import RecordingSink
from loopwatch.watch.probes.asyncio import AsyncioProbe

pytestmark = pytest.mark.measures

LONG = 0.15


class Lines(logging.Handler):
    """A handler that keeps the agent's log lines about itself and the names of the logging threads."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.threads: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.add(threading.current_thread().name)
        if record.getMessage().startswith("loopwatch: "):
            self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The agent's log lines about itself."""
    handler, logger = Lines(), logging.getLogger("loopwatch")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def unraisable() -> Iterator[list[Any]]:
    """Exceptions that reached ``threading.excepthook`` or ``sys.unraisablehook``."""
    import sys

    seen: list[Any] = []
    thread_hook, hook = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = seen.append
    yield seen
    threading.excepthook, sys.unraisablehook = thread_hook, hook


def sleeper() -> None:
    time.sleep(LONG)


async def blocks(times: int) -> str:
    """Block the loop a few times; return the program's result."""
    for _ in range(times):
        await asyncio.sleep(0.07)
        sleeper()
    await asyncio.sleep(0.07)
    return "the program's result"


async def blocks_until_off(agent: Agent, part: str) -> int:
    """Block the loop until ``part`` is switched off; return how often, which is more than three if sinks run late."""
    for times in range(1, 30):
        await blocks(1)
        await asyncio.to_thread(agent.flush)
        if part in agent.snapshot().agent.switched_off:
            return times
    raise AssertionError(f"{part} is not switched off: {agent.snapshot().agent}")


def raising(exc: BaseException) -> Callable[..., Any]:
    """Return a function that always fails."""

    def fail(*_args: object, **_kwargs: object) -> Any:
        raise exc

    return fail


def long(stalls: list[loopwatch.Stall]) -> list[loopwatch.Stall]:
    return [stall for stall in stalls if stall.duration >= LONG * 0.9 and not stall.ongoing]


def faults(agent: Agent) -> dict[str, int]:
    return dict(agent.snapshot().agent.faults)


def failures(lines: Lines) -> list[str]:
    return [line for line in lines.lines if " failed" in line or "is removed" in line]


def off_lines(lines: Lines) -> list[str]:
    return [line for line in lines.lines if "is switched off" in line]


@pytest.mark.parametrize("exc", [RuntimeError("broken"), SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()])
def test_callback(run: Run, sink: RecordingSink, lines: Lines, unraisable: list[Any], exc: BaseException) -> None:
    """An on_stall callback that raises, even SystemExit, is removed; other callbacks get every stall."""
    agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    calls: list[loopwatch.Stall] = []

    def bad(stall: loopwatch.Stall) -> None:
        calls.append(stall)
        raise exc

    agent.on_stall(bad)
    assert run(blocks(3)) == "the program's result"
    agent.flush()
    assert len(long(sink.stalls)) == 3
    assert len(calls) == 1
    assert faults(agent) == {"callback": 1}
    assert len(failures(lines)) == 1
    assert unraisable == []


@pytest.mark.parametrize("exc", [RuntimeError("injected"), SystemExit(3), asyncio.CancelledError()])
def test_context_callable(
    agent: Agent, run: Run, sink: RecordingSink, lines: Lines, *, unraisable: list[Any], exc: BaseException
) -> None:
    """A context callable that keeps raising is switched off; stalls still have their culprit and other labels."""
    calls: list[int] = []

    def bad() -> dict[str, str]:
        calls.append(1)
        raise exc

    agent.add_context(bad)
    agent.add_context(lambda: {"other": "label"})
    times = run(blocks_until_off(agent, "context"))
    run(blocks(1))
    agent.flush()
    found = long(sink.stalls)
    assert [stall.culprit.function for stall in found if stall.culprit] == ["sleeper"] * (times + 1)
    assert [stall.context for stall in found] == [{"other": "label"}] * (times + 1)
    assert faults(agent) == {"context": len(calls)}
    assert len(failures(lines)) == 2
    assert len(off_lines(lines)) == 1
    assert unraisable == []


@pytest.mark.parametrize("exc", [ValueError("broken handler"), OSError(28, "No space left on device")])
def test_log_handler(run: Run, sink: RecordingSink, unraisable: list[Any], exc: Exception) -> None:
    """Logging is switched off if a handler keeps raising, after two lines about it; other sinks get every stall."""
    agent = loopwatch.install(threshold=0.1, log_interval=0, on_stall=sink, cpu_budget=1.0)
    calls: list[str] = []

    class Bad(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            calls.append(record.getMessage())
            raise exc

    handler = Bad()
    logging.getLogger("loopwatch").addHandler(handler)
    try:
        times = run(blocks_until_off(agent, "log"))
        asked = len(calls)
        run(blocks(1))
        agent.flush()
    finally:
        logging.getLogger("loopwatch").removeHandler(handler)
    assert len(long(sink.stalls)) == times + 1
    assert faults(agent) == {"log": asked - 2}
    assert len(calls) == asked
    assert unraisable == []


def test_log_handler_that_raises_into_install() -> None:
    """The exception of a log handler does not propagate out of install()."""

    class Bad(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("broken handler")

    handler, logger = Bad(), logging.getLogger("loopwatch")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel("DEBUG")
    try:
        loopwatch.install(threshold=0.2)
        agent = loopwatch.install(threshold=0.3)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert agent.config.threshold == 0.3
    assert faults(agent) == {"log": 1}


def test_journal(tmp_path: Any, run: Run, sink: RecordingSink, lines: Lines) -> None:
    """A journal that cannot be written (here: a link in its place) is switched off; other sinks get every stall."""
    import os

    from loopwatch.sinks.files import journal_path

    path = journal_path(str(tmp_path), os.getpid())
    path.symlink_to("/dev/full")
    agent = loopwatch.install(threshold=0.1, journal=tmp_path, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    times = run(blocks_until_off(agent, "journal"))
    run(blocks(1))
    agent.flush()
    assert len(long(sink.stalls)) == times + 1
    assert set(faults(agent)) == {"journal"}
    assert len(failures(lines)) == 2
    assert "it is a symbolic link; remove it, or set journal to a directory" in failures(lines)[0]
    assert str(path) in failures(lines)[0]


def test_diagnosis(agent: Agent, run: Run, sink: RecordingSink, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall whose diagnosis fails is reported with an unknown cause and counted in the stats of its loop."""
    monkeypatch.setattr(loopwatch.sinks.pipeline, "diagnose", raising(RuntimeError("injected")))
    seen = []

    async def main() -> int:
        times = await blocks_until_off(agent, "diagnosis")
        await blocks(1)
        await asyncio.to_thread(agent.flush)
        seen.extend(agent.snapshot().loops)
        return times + 1

    times = run(main())
    found = long(sink.stalls)
    assert [(stall.cause, stall.culprit, stall.loop) for stall in found] == [("unknown", None, "main")] * times
    assert all(stall.evidence.wall >= LONG * 0.9 for stall in found)
    assert set(faults(agent)) == {"diagnosis"}
    assert len(failures(lines)) == 2
    assert seen[0].stalls >= times
    assert seen[0].blocked >= times * LONG * 0.9


def test_flagging(agent: Agent, run: Run, sink: RecordingSink, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flagging that keeps failing flags no function and is switched off; every stall is still reported."""
    monkeypatch.setattr(Flagging, "add", raising(RuntimeError("injected")))
    times = run(blocks_until_off(agent, "flagging"))
    assert len(long(sink.stalls)) == times
    assert set(faults(agent)) == {"flagging"}
    assert len(failures(lines)) == 2
    assert agent.flagged() == agent.snapshot().flagged == ()


def test_flagged_functions_that_cannot_be_read(agent: Agent, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """If reading the flagged functions fails it is counted, and neither flagged() nor snapshot() raises."""
    monkeypatch.setattr(Flagging, "flagged", raising(RuntimeError("injected")))
    assert agent.flagged() == agent.snapshot().flagged == ()
    assert faults(agent)["flagging"] >= 2
    assert len(failures(lines)) >= 1


def test_probe_that_cannot_be_attached(run: Run, loop_kind: str, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop whose probe cannot be attached is watched by the heartbeat, and its blocks are found."""
    if loop_kind == "uvloop":
        from loopwatch.watch.probes import uvloop

        monkeypatch.setattr(uvloop.UvloopProbe, "__init__", raising(OSError("injected")))
    else:
        monkeypatch.setattr(AsyncioProbe, "__init__", raising(AttributeError("injected")))
    sink = RecordingSink()
    agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    assert run(blocks(2)) == "the program's result"
    agent.flush()
    assert len([stall for stall in sink.stalls if stall.duration >= LONG / 2]) == 2
    assert faults(agent) == {"probe": 1}
    assert len(failures(lines)) == 1


def test_discovery(run: Run, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery that keeps failing is switched off: no loop is watched, and the program's loops run as usual."""
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)
    monkeypatch.setattr(agent._watch, "_attach", raising(RuntimeError("injected")))
    for _ in range(30):
        assert run(blocks(1)) == "the program's result"
        if agent.snapshot().agent.switched_off:
            break
    assert set(faults(agent)) == set(agent.snapshot().agent.switched_off) == {"discovery"}
    agent.flush()
    assert len(failures(lines)) == 2
    assert agent.snapshot().loops == ()


def test_search_for_running_loops(run: Run, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed search for running loops does not raise out of install(), and later loops are found."""
    monkeypatch.setattr("loopwatch.watch.discovery._loop_of", raising(AttributeError("injected")))
    sink = RecordingSink()
    agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    assert run(blocks(2)) == "the program's result"
    agent.flush()
    assert len(long(sink.stalls)) == 2
    assert faults(agent) == {"search": 1}
    assert len(failures(lines)) == 1


def test_hang_timer(tmp_path: Any) -> None:
    """A hang file that cannot be written (here: a directory in its place) turns off only the hang timer."""
    source = """
        import logging, loopwatch
        from loopwatch.sinks.hang_timer import hang_path
        logging.basicConfig(stream=sys.stdout, format='{"line": "%(message)s"}')
        os.mkdir(hang_path(sys.argv[1], os.getpid()))
        agent = loopwatch.install(threshold=0.1, hang_after=0.2, journal=sys.argv[1], log_level="DEBUG")
        asyncio.run(blocked(0.3))
        asyncio.run(blocked(0.3))
        agent.flush()
        found = [stall for stall in agent.stalls() if stall.duration > 0.25 and not stall.ongoing]
        say(faults=[*agent.snapshot().agent.faults], found=len(found), culprit=found[0].culprit.function)
    """
    ended = program(source, tmp_path)
    assert (ended.code, ended.last) == (0, {"faults": ["hang"], "found": 2, "culprit": "nap"})
    assert len([line for line in ended.out if "its hang failed (" in line.get("line", "")]) == 1


def test_hang_timer_that_fails_later_is_disarmed(tmp_path: Any) -> None:
    """A hang timer that is no longer renewed, because watcher or timer failed, does not dump a healthy program."""
    source = """
        import loopwatch
        quiet()
        part = sys.argv[2]

        def fail(*_):
            raise RuntimeError("injected")

        async def main():
            agent = loopwatch.install(threshold=0.1, hang_after=0.3, journal=sys.argv[1])
            while not agent._parts.sinks.local.hang._armed:
                await asyncio.sleep(0.02)
            hang = agent._parts.sinks.local.hang
            if part == "hang":
                hang._keep_dump = fail
            else:
                agent._watch.watcher._tick = fail
            while part not in agent.snapshot().agent.faults:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.7)
            written = hang.path.read_text() if hang.path.exists() else ""
            say(armed=hang._armed, dumped="Timeout" in written, faults=[*agent.snapshot().agent.faults])

        asyncio.run(main())
    """
    for part in ("hang", "watcher"):
        assert succeeded(source, tmp_path, part) == {"armed": False, "dumped": False, "faults": [part]}


@pytest.mark.parametrize("seam", ["probe", "stacks", "evidence"])
def test_failures_in_the_watcher(
    seam: str, agent: Agent, run: Run, lines: Lines, *, unraisable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of a probe, of stack sampling or of reading evidence is counted and logged twice at most."""
    if seam == "probe":
        from loopwatch.watch.probes import uvloop

        monkeypatch.setattr(uvloop.UvloopProbe, "busy_since", raising(RuntimeError("injected")))
        monkeypatch.setattr(AsyncioProbe, "busy_since", raising(RuntimeError("injected")))
    elif seam == "stacks":
        monkeypatch.setattr(loopwatch.watch.stacks, "take", raising(RuntimeError("injected")))
    else:
        monkeypatch.setattr(loopwatch.system.threads.ThreadFacts, "waiting_in", raising(RuntimeError("injected")))
    assert run(blocks(2)) == "the program's result"
    assert run(blocks(1)) == "the program's result"
    agent.flush()
    assert sum(faults(agent).values()) >= 1
    assert len(faults(agent)) == 1
    assert 1 <= len(failures(lines)) <= 2
    assert unraisable == []
    stats = agent.snapshot().agent
    assert stats.state in ("watching", "waiting") or (stats.state, stats.reason) == ("off", "its watcher failed")


def test_a_failed_probe_affects_only_its_own_loop(agent: Agent, sink: RecordingSink, lines: Lines) -> None:
    """If one of two loops cannot be read the other one is still watched."""
    ready, done = threading.Event(), threading.Event()

    async def broken() -> None:
        ready.set()
        while not done.is_set():
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(broken()), name="broken")
    thread.start()
    assert ready.wait(10)
    try:
        found = next(loop for loop in agent._watch.watcher.loops if loop.name == "broken")
        found.probe.busy_since = raising(RuntimeError("injected"))  # type: ignore[method-assign]
        asyncio.run(blocks(2))
        agent.flush()
    finally:
        done.set()
        thread.join()
    assert faults(agent) == {"probe": 1}
    assert len(long(sink.stalls)) == 2


def test_failed_sampling_loses_only_the_stacks(
    agent: Agent, run: Run, sink: RecordingSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without stacks blocks are still found and measured."""
    monkeypatch.setattr(loopwatch.watch.stacks, "take", raising(RuntimeError("injected")))
    run(blocks(2))
    agent.flush()
    assert len(long(sink.stalls)) == 2


def test_gc_callback(agent: Agent, lines: Lines, unraisable: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing gc callback is logged once and removed, and nothing reaches stderr."""
    import gc

    monkeypatch.setattr(agent._watch.watcher.gc, "_spans", None)
    for _ in range(3):
        gc.collect()
    assert unraisable == []
    assert len(failures(lines)) == 1


@pytest.mark.parametrize("slow", ["callback", "handler"])
def test_slow_sinks(slow: str, run: Run) -> None:
    """A callback or log handler that blocks for a second neither delays the loop nor loses later stalls.

    Sinks run in a thread of their own, never in the loop's or the watcher's.
    """
    threads: list[str] = []
    times = 4

    def block(*_: object) -> None:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            time.sleep(1.0 + times * LONG)

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            block()

    handler = Slow()
    if slow == "handler":
        logging.getLogger("loopwatch").addHandler(handler)
    try:
        agent = loopwatch.install(
            threshold=0.1, on_stall=block if slow == "callback" else None, log_interval=0, cpu_budget=1.0
        )
        assert run(blocks(times)) == "the program's result"
        assert agent.flush(10)
    finally:
        logging.getLogger("loopwatch").removeHandler(handler)
    found = long(list(agent.stalls()))
    assert len(found) == times
    assert [stall.culprit.function for stall in found if stall.culprit] == ["sleeper"] * times
    assert set(threads) == {"loopwatch-teller"}
    assert faults(agent) == {}


def test_faults_are_not_logged_on_a_running_loop(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a loop runs the agent's lines about itself are logged by the sinks' thread, not on the loop."""
    monkeypatch.setattr(AsyncioProbe, "__init__", raising(AttributeError("injected")))

    async def main() -> None:
        agent = loopwatch.install(threshold=0.1)
        agent.configure(threshold=0.2)
        await asyncio.sleep(0.05)
        agent.flush()

    logging.getLogger("loopwatch").setLevel("INFO")
    try:
        asyncio.run(main())
    finally:
        logging.getLogger("loopwatch").setLevel("NOTSET")
    assert len(lines.lines) == 2
    assert lines.threads == {"loopwatch-teller"}


def test_a_switched_off_part_is_tried_again(run: Run, lines: Lines, tmp_path: Any) -> None:
    """A journal that was switched off is written again after a pause, as log and snapshot show."""
    import os

    from loopwatch.sinks.files import journal_path

    path = journal_path(str(tmp_path), os.getpid())
    path.mkdir()
    agent = loopwatch.install(threshold=0.1, journal=tmp_path, log_level="DEBUG", cpu_budget=1.0)
    run(blocks_until_off(agent, "journal"))
    path.rmdir()
    agent._faults._off["journal"] -= 3600  # an hour passes
    run(blocks(1))
    agent.flush()
    assert path.read_bytes().count(b'"type":"stall"') >= 1
    assert agent.snapshot().agent.switched_off == {}
    assert "is switched off for 10 s, and tried again then" in lines.lines[-2]
    assert lines.lines[-1].startswith("loopwatch: its journal works again, after ")


def test_a_failed_watcher_is_tried_again(agent: Agent, run: Run, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher's thread survives its faults, and stalls are found once it is tried again."""
    tick = agent._watch.watcher._tick
    broken = threading.Event()
    broken.set()

    def flaky(planned: float) -> float:
        if broken.is_set():
            raise RuntimeError("injected")
        return tick(planned)

    monkeypatch.setattr(agent._watch.watcher, "_tick", flaky)

    async def main() -> None:
        while "watcher" not in agent.snapshot().agent.switched_off:
            await asyncio.sleep(0.05)
        stats = agent.snapshot().agent
        assert (stats.state, stats.reason) == ("off", "its watcher failed")
        broken.clear()
        agent._faults._off["watcher"] -= 3600  # an hour passes
        while not long(list(agent.stalls())):
            await asyncio.sleep(0.3)
            sleeper()
        assert agent.snapshot().agent.state == "watching"

    run(asyncio.wait_for(main(), 60))
    agent.flush()
    assert len(failures(lines)) == 2
    assert "loopwatch: its watcher works again, after 3 faults in all" in lines.lines


def test_a_configured_callback_that_raises_can_be_set_again() -> None:
    """A callback that raised is removed from the settings, stays off when others change, and can be set again."""
    calls: list[str] = []

    def raises(_stall: loopwatch.Stall) -> None:
        calls.append("called")
        raise RuntimeError("no database")

    agent = loopwatch.install(threshold=0.05, on_stall=raises, log_level="CRITICAL")

    def block() -> None:
        asyncio.run(_blocked())
        assert agent.flush(10)

    async def _blocked() -> None:
        await asyncio.sleep(0.01)
        time.sleep(0.1)
        await asyncio.sleep(0.01)

    block()
    assert (calls, agent.config.on_stall) == (["called"], None)
    agent.configure(log_interval=5.0)
    block()
    assert calls == ["called"]
    assert agent.configure(on_stall=raises) == {"on_stall": (None, raises)}
    block()
    assert calls == ["called"] * 2
    agent.on_stall(raises)
    block()
    assert calls == ["called"] * 3
    loopwatch.uninstall()

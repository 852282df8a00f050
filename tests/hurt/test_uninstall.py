"""Everything that is installed can be removed, in any order and any number of times."""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.events
import asyncio.runners
import asyncio.selector_events
import asyncio.tasks
import functools
import gc
import importlib.util
import logging
import os
import random
import selectors
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from conftest import Run
from hostproc import succeeded

import loopwatch
from loopwatch import ConfigError
from loopwatch.agent import Agent
from loopwatch.core.stand_in import StandIn
from loopwatch.testing import RecordingSink

pytestmark = pytest.mark.measures

NEEDS_UVLOOP = pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")


def attributes() -> dict[str, int]:
    """Return the identity of every attribute of the modules and classes that an agent for asyncio may patch."""
    owners: list[Any] = [
        asyncio,
        asyncio.base_events,
        asyncio.base_events.BaseEventLoop,
        asyncio.events,
        asyncio.events.Handle,
        asyncio.events.TimerHandle,
        asyncio.runners,
        asyncio.runners.Runner,
        asyncio.selector_events,
        asyncio.SelectorEventLoop,
        asyncio.tasks,
        os,
        selectors,
        selectors.DefaultSelector,
        signal,
        sys,
        threading,
        threading.Thread,
    ]
    uvloop = sys.modules.get("uvloop")
    if uvloop is not None:
        owners += [uvloop, uvloop.Loop]
    found = {}
    for owner in owners:
        name = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
        found |= {f"{name}.{key}": id(value) for key, value in vars(owner).items()}
    found |= {f"gc.callbacks[{index}]": id(item) for index, item in enumerate(gc.callbacks)}
    found |= {f"sys.meta_path[{index}]": id(item) for index, item in enumerate(sys.meta_path)}
    volatile = ("sys.last_", "threading._", "sys.modules", "asyncio.tasks._current_tasks", "._counter", "_cached")
    return {key: value for key, value in found.items() if not any(word in key for word in volatile)}


def test_every_attribute_is_the_same_object(run: Run, sink: RecordingSink) -> None:
    """After uninstall() each of some thousand attributes is the same object as before, even on a running loop."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        owners = [owner for owner in (loop, getattr(loop, "_selector", None)) if hasattr(owner, "__dict__")]
        inside = [{key: id(value) for key, value in vars(owner).items()} for owner in owners]
        agent = loopwatch.install(threshold=0.05, on_stall=sink, log_level="DEBUG")
        await asyncio.sleep(0.01)
        assert [stats.running for stats in agent.snapshot().loops] == [True]
        loopwatch.uninstall()
        assert [set(vars(owner)) for owner in owners] == [set(names) for names in inside]
        # Only names for attributes that the loop itself changes: its time, its counters.
        kept = ("select", "call_soon", "call_later", "_run_once", "run_forever", "close")
        assert [{key: id(value) for key, value in vars(owner).items() if key in kept} for owner in owners] == [
            {key: value for key, value in names.items() if key in kept} for names in inside
        ]

    run(asyncio.sleep(0))
    before = attributes()
    assert len(before) > 1000
    run(main())
    loopwatch.install(threshold=0.05, on_stall=sink, log_level="DEBUG")
    run(asyncio.sleep(0))
    loopwatch.uninstall()
    assert attributes() == before


def test_faulthandler_is_left_as_it_was(tmp_path: Any) -> None:
    """The functions of faulthandler, wrapped while a journal is configured, are the original objects afterwards."""
    source = """
        import faulthandler, loopwatch
        names = ("dump_traceback_later", "cancel_dump_traceback_later")
        before = [getattr(faulthandler, name) for name in names]
        loopwatch.install(journal=sys.argv[1])
        wrapped = [getattr(faulthandler, name) is not was for name, was in zip(names, before)]
        asyncio.run(asyncio.sleep(0.05))
        loopwatch.uninstall()
        say(wrapped=wrapped, same=[getattr(faulthandler, name) is was for name, was in zip(names, before)],
            files=os.listdir(sys.argv[1]))
    """
    assert succeeded(source, tmp_path) == {"wrapped": [True, True], "same": [True, True], "files": []}


# ------------------------------------------------------------------------------------- beside other patchers


class Foreign:
    """Another tool that wraps an attribute, and saves and restores it without checks."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.calls = 0
        self.saved: list[Any] = []

    def on(self) -> None:
        original = getattr(self.owner, self.name)
        self.saved.append(original)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return original(*args, **kwargs)

        setattr(self.owner, self.name, wrapper)

    def off(self) -> None:
        setattr(self.owner, self.name, self.saved.pop())


def layers(function: Any) -> int:
    """Count the agent's wrappers around the original of ``function``."""
    count = 0
    while function is not None:
        count += issubclass(type(function), StandIn)
        function = getattr(function, "__wrapped__", None)
    return count


@pytest.fixture
def running_loop_setter() -> Iterator[Any]:
    """The attribute by which loops are found; it is always restored."""
    real = asyncio.events._set_running_loop
    yield real
    loopwatch.uninstall()
    asyncio.events._set_running_loop = real


def test_a_wrapped_patch_is_transparent_and_reused(
    running_loop_setter: Any, run: Run, loop_kind: str, sink: RecordingSink
) -> None:
    """A patch that another tool has wrapped stays without effect and is used again: one layer after 50 installs."""
    foreign = Foreign(asyncio.events, "_set_running_loop")
    loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    foreign.on()
    wrapper = asyncio.events._set_running_loop
    for _ in range(50):
        loopwatch.uninstall()
        assert asyncio.events._set_running_loop is wrapper
        assert layers(wrapper) == 1
        run(asyncio.sleep(0))
        agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
        assert layers(asyncio.events._set_running_loop) == 1
    calls = foreign.calls
    run(asyncio.sleep(0))
    # uvloop keeps its own reference to the original and bypasses the wrapper.
    assert loop_kind == "uvloop" or foreign.calls > calls
    assert agent.snapshot().agent.faults == {}
    foreign.off()
    loopwatch.uninstall()
    assert asyncio.events._set_running_loop is running_loop_setter


@pytest.mark.parametrize("seed", range(20))
def test_any_order_with_another_patcher(running_loop_setter: Any, seed: int) -> None:
    """Forty steps of both in random order leave at most one layer of the agent, and every loop runs."""
    chance = random.Random(seed)
    foreign = Foreign(asyncio.events, "_set_running_loop")
    for _ in range(40):
        step = chance.choice(("install", "uninstall", "on", "off"))
        if step == "install":
            loopwatch.install(log_level="DEBUG")
        elif step == "uninstall":
            loopwatch.uninstall()
        elif step == "on" and len(foreign.saved) < 3:
            foreign.on()
        elif step == "off" and foreign.saved:
            foreign.off()
        assert layers(asyncio.events._set_running_loop) <= 1
        assert asyncio.run(asyncio.sleep(0, "ran")) == "ran"
    loopwatch.uninstall()
    while foreign.saved:
        foreign.off()
    # The other tool may have restored the agent's patch, without effect; nothing else can be left.
    left = asyncio.events._set_running_loop
    assert left is running_loop_setter or left.__wrapped__ is running_loop_setter


def selects(loop: Any) -> int:
    """Count the agent's functions around the original ``select`` of the loop's selector."""
    function, count = loop._selector.select, 0
    while hasattr(function, "__code__"):
        count += "asyncio_probe" in function.__code__.co_filename
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        function = cells["original"].cell_contents if "original" in cells else None
    return count


def test_select_wrapped_by_another_tool(run: Run, loop_kind: str, sink: RecordingSink) -> None:
    """``select`` of a running loop also gets one layer under another tool's wrapper, and blocks are found."""
    if loop_kind == "uvloop":
        pytest.skip("nothing is replaced on a loop of uvloop")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        foreign, once = Foreign(loop._selector, "select"), 0
        for _ in range(20):
            agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
            if not foreign.saved:
                once = selects(loop)
                foreign.on()
            await asyncio.sleep(0)
            loopwatch.uninstall()
        agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
        await asyncio.sleep(0.15)
        threading.Event().wait(0.2)
        await asyncio.sleep(0.05)
        agent.flush()
        assert selects(loop) == once
        assert foreign.calls > 20

    run(main())
    assert len([stall for stall in sink.stalls if stall.duration >= 0.2]) == 1


THOUSAND = """
    import gc, logging, tracemalloc, loopwatch
    logging.getLogger('loopwatch').setLevel('CRITICAL')  # on a busy machine the loop may be starved
    kind, cycles = sys.argv[1], 500
    run = runner(kind)

    def counts():
        gc.collect()
        return dict(threads=threading.active_count(), descriptors=len(os.listdir("/proc/self/fd")),
                    finders=len(sys.meta_path), callbacks=len(gc.callbacks))

    def measured():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    def around_loops(times):
        for _ in range(times):
            loopwatch.install(threshold=0.05)
            run(asyncio.sleep(0))
            loopwatch.uninstall()

    async def inside_a_loop(times):
        for _ in range(times):
            loopwatch.install(threshold=0.05)
            await asyncio.sleep(0)
            loopwatch.uninstall()
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)  # lets pending heartbeat timers expire

    async def nothing(times):
        for _ in range(times):
            await asyncio.sleep(0)

    def plain_loops(times):
        for _ in range(times):
            run(asyncio.sleep(0))

    def grown(around, inside):
        start = measured()
        around(cycles)
        run(inside(cycles))
        return measured() - start

    around_loops(50)
    run(inside_a_loop(50))
    before = counts()
    tracemalloc.start()
    plain = grown(plain_loops, nothing)  # what the interpreter itself keeps
    # A table of the interpreter may double once; a leak shows in both halves.
    cycles = 250
    watched = 2 * min(grown(around_loops, inside_a_loop), grown(around_loops, inside_a_loop))
    say(before=before, after=counts(), plain=plain, watched=watched)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["asyncio", pytest.param("uvloop", marks=NEEDS_UVLOOP)])
def test_a_thousand_times_leaks_nothing(kind: str) -> None:
    """A thousand installs, half of them on a running loop, leak no thread, descriptor or hook; under 100 bytes each."""
    found = succeeded(THOUSAND, kind)
    assert found["after"] == found["before"]
    assert found["watched"] - max(found["plain"], 0) < 100 * 1000, found


# ------------------------------------------------------------------------------------------------ switches


def test_pause_and_resume(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """Blocks during a pause are not reported, and the same agent reports again after resume()."""

    async def main() -> None:
        await asyncio.sleep(0.12)
        agent.pause()
        assert agent.snapshot().agent.state == "paused"
        threading.Event().wait(0.25)
        await asyncio.sleep(0.12)
        agent.resume()
        assert agent.snapshot().agent.state == "watching"
        await asyncio.sleep(0.12)
        threading.Event().wait(0.25)
        await asyncio.sleep(0.12)

    run(main())
    agent.flush()
    assert len([stall for stall in sink.stalls if stall.duration > 0.2]) == 1


def test_reconfigured_at_run_time(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """A new threshold takes effect at once on a running loop."""

    async def main() -> None:
        for threshold in (0.1, 5.0, 0.1):
            agent.configure(threshold=threshold)
            await asyncio.sleep(0.12)
            threading.Event().wait(0.25)
            await asyncio.sleep(0.12)

    run(main())
    agent.flush()
    assert len([stall for stall in sink.stalls if stall.duration > 0.2]) == 2


def test_a_second_install_reconfigures_and_logs_changes(caplog: pytest.LogCaptureFixture) -> None:
    """install() with explicit settings returns the same agent, changes only these and logs old and new values."""
    first = loopwatch.install(threshold=0.2, heartbeat=0.04)
    with caplog.at_level(logging.INFO, "loopwatch"):
        second = loopwatch.install(threshold=0.3)
        third = loopwatch.install()
    assert first is second is third is loopwatch.current_agent()
    assert (first.config.threshold, first.config.heartbeat) == (0.3, 0.04)
    assert [record.getMessage() for record in caplog.records] == ["loopwatch: reconfigured: threshold: 0.2 -> 0.3"]


@pytest.mark.parametrize(
    "bad", [{"threshold": 0}, {"threshold": 0.5, "heartbeat": -1}, {"treshold": 1}, {"journal": "/no/such/folder/x"}]
)
def test_a_bad_reconfiguration_changes_nothing(bad: dict[str, Any], sink: RecordingSink) -> None:
    """An invalid setting changes neither the configuration nor the files and threads of the running agent."""
    agent = loopwatch.install(threshold=0.2, on_stall=sink)
    before, parts = agent.config, dict(vars(agent))
    for change in (agent.configure, loopwatch.install):
        with pytest.raises(ConfigError, match=next(iter(bad)) if len(bad) == 1 else "heartbeat"):
            change(**bad)
    assert agent.config is before
    assert vars(agent) == parts


@pytest.mark.parametrize("switch", ["environment", "argument"])
def test_kill_switch(switch: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LOOPWATCH_ENABLED=0 or enabled=False there is no patch, thread or stall, and the agent gives the reason."""
    monkeypatch.setenv("LOOPWATCH_ENABLED", "0" if switch == "environment" else "1")
    before, threads = attributes(), threading.active_count()
    settings: dict[str, Any] = {} if switch == "environment" else {"enabled": False}
    agent = loopwatch.install(threshold=0.01, **settings)

    async def main() -> None:
        threading.Event().wait(0.05)
        assert threading.active_count() == threads

    run(main())
    assert attributes() == before
    assert agent.stalls() == ()
    assert agent.snapshot().agent.state == "off"
    assert "enabled=False" in agent.snapshot().agent.reason
    agent.configure(enabled=True)
    assert agent.snapshot().agent.state == "waiting"


def test_switched_off_and_on_inside_a_loop(sink: RecordingSink, run: Run) -> None:
    """enabled=False stops the agent in a running process, and enabled=True watches the running loop again."""
    agent = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)

    async def main() -> None:
        for enabled in (False, True):
            agent.configure(enabled=enabled)
            await asyncio.sleep(0.12)
            threading.Event().wait(0.25)
            await asyncio.sleep(0.12)

    run(main())
    agent.flush()
    assert len([stall for stall in sink.stalls if stall.duration > 0.2]) == 1


def test_uninstall_from_a_callback(run: Run) -> None:
    """uninstall() called by an on_stall callback ends the agent, even though it runs in a thread of the agent."""
    done = threading.Event()

    def last_word(stall: loopwatch.Stall) -> None:
        loopwatch.uninstall()
        done.set()

    loopwatch.install(threshold=0.1, on_stall=last_word, log_level="DEBUG", cpu_budget=1.0)

    async def main() -> None:
        await asyncio.sleep(0.12)
        threading.Event().wait(0.2)
        while not done.is_set():
            await asyncio.sleep(0.01)

    run(main())
    assert loopwatch.current_agent() is None

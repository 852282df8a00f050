"""Fixtures for every test: the kinds of loop, and the check that nothing is left behind."""

from __future__ import annotations

import asyncio
import asyncio.events
import contextlib
import faulthandler
import gc
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

import loopwatch
from loopwatch.agent import Agent
from loopwatch.system.cgroup import usable_cpus
from loopwatch.testing import RecordingSink

pytest_plugins = ["repeat"]
TESTS = Path(__file__).parent

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end on a fresh loop, as ``asyncio.run`` does."""

# No test depends on a fast machine: neither one example nor the generation of examples is timed.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_xdist_auto_num_workers() -> int:
    """Return the processes that ``-n auto`` starts: as many as there are processors for this one, not in the host.

    And one more: most tests wait most of their time.
    """
    return max(round(usable_cpus().usable), 1) + 1


EAGER_COUNTS = ("watch", "offloading", "integrations")
"""Folders whose tests run with eager tasks by default: there it matters where the first step of a task runs."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the runs with eager tasks to the long tests where they are the same as those on asyncio."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("loop_kind") == "eager" and item.path.relative_to(TESTS).parts[0] not in EAGER_COUNTS:
            item.add_marker("long")


def raised(exc: BaseException) -> None:
    """Receives failures of loopwatch in a test that allows none."""
    raise exc


LOOPS = ["asyncio", "uvloop"] + (["eager"] if sys.version_info >= (3, 12) else [])


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


def runner(kind: str) -> Run:
    """Return a function that runs a coroutine on a loop of ``kind``."""
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        return lambda coroutine: _run(uvloop.new_event_loop, coroutine)
    return lambda coroutine: _run(_eager_loop if kind == "eager" else asyncio.new_event_loop, coroutine)


def _run(factory: Callable[[], asyncio.AbstractEventLoop], coroutine: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=factory) as made:
        return made.run(coroutine)


RELIED_ON = {"SIGINT": signal.default_int_handler} | dict.fromkeys(("SIGQUIT", "SIGTERM", "SIGCHLD"), signal.SIG_DFL)
"""Signals that tests send or await, and what they do in a program that was started from a terminal."""


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> Iterator[None]:
    """Signals do what they usually do, here and in child processes.

    A shell ignores some of them for the jobs that it starts in the background, and children inherit that.
    """
    before = {
        number: signal.signal(number, usual)
        for name, usual in RELIED_ON.items()
        if (number := getattr(signal, name, None)) is not None
    }
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, before) if hasattr(signal, "pthread_sigmask") else set()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    if blocked:
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)


@pytest.fixture(scope="session", autouse=True)
def warmed_up(usual_signals: None) -> None:
    """Some descriptors are opened once in a process, by the first loop of a kind.

    What the suite itself consists of is left out of later collections, which could block a loop for 0.2 seconds.
    """
    gc.collect()
    gc.freeze()
    for kind in LOOPS:
        if kind != "uvloop" or importlib.util.find_spec("uvloop") is not None:
            runner(kind)(asyncio.sleep(0))


@pytest.fixture(params=LOOPS)
def loop_kind(request: pytest.FixtureRequest) -> str:
    """The kind of loop: asyncio, uvloop, and asyncio with eager tasks where the interpreter has them."""
    kind: str = request.param
    if kind == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed (pip install loopwatch[uvloop])")
    return kind


@pytest.fixture
def run(loop_kind: str) -> Run:
    """Run a coroutine on each kind of loop."""
    return runner(loop_kind)


@pytest.fixture
def sink() -> RecordingSink:
    """A sink that records stalls."""
    return RecordingSink()


@pytest.fixture
def agent(sink: RecordingSink) -> Iterator[Agent]:
    """The installed agent: threshold 0.1 seconds, every stall goes to ``sink``."""
    installed = loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)
    yield installed
    loopwatch.uninstall()


def _patchable() -> dict[str, object]:
    """The attributes that loopwatch may replace, as they are now."""
    found: dict[str, object] = {
        "asyncio.events._set_running_loop": asyncio.events._set_running_loop,
        "gc.callbacks": [item for item in gc.callbacks if "loopwatch" in repr(item)],
        "sys.meta_path": [repr(item) for item in sys.meta_path if type(item).__module__.startswith("loopwatch")],
        "faulthandler": (faulthandler.dump_traceback_later, faulthandler.cancel_dump_traceback_later),
    }
    uvloop = sys.modules.get("uvloop")
    if uvloop is not None and hasattr(uvloop, "Loop"):
        found["uvloop.Loop"] = {name: vars(uvloop.Loop).get(name) for name in ("run_forever", "close")}
    return found


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208


def _children() -> list[str]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(f"{process.pid} {process.status()}: {' '.join(process.cmdline())}")
    return found


def _until(happened: Callable[[], bool], seconds: float = 5.0) -> bool:
    if happened():
        return True
    gc.collect()  # only now: it takes longer than most tests
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    return happened()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test ends with the patches, threads, child processes and descriptors it began with."""
    uvloop_was_there = "uvloop" in sys.modules
    before, threads, descriptors = _patchable(), set(threading.enumerate()), _descriptors()
    yield
    loopwatch.uninstall()
    after = _patchable()
    if not uvloop_was_there and "uvloop.Loop" in after:
        before["uvloop.Loop"] = {"run_forever": None, "close": None}
    assert after == before, "a patch was left behind"
    assert _until(lambda: not set(threading.enumerate()) - threads), set(threading.enumerate()) - threads
    assert _until(lambda: not _children()), _children()
    assert _until(lambda: _descriptors() <= descriptors), f"{_descriptors()} descriptors, {descriptors} before"

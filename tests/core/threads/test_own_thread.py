"""A thread of the agent that ends for a fork and is restarted: bounded, counted, never twice."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from pathlib import Path

import pytest

from loopwatch.core.threads.own_thread import LOCK_PATIENCE, OwnThread, until_gone

SOON = 10.0


class Service:
    """A service with a thread of its own that counts its turns."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.turns = self.runs = 0
        self.wanted = True
        self.stuck: threading.Event | None = None
        self.at_it = threading.Event()
        self.thread = OwnThread("tried", self.run, self.woken.set, needed=lambda: self.wanted)

    def run(self) -> None:
        self.runs += 1
        while self.thread.stays():
            self.turns += 1
            self.at_it.set()
            if self.stuck is not None:
                self.stuck.wait(SOON)
            self.woken.wait(SOON)
            self.woken.clear()


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loopwatch-tried"]


@pytest.fixture
def service() -> Service:
    made = Service()
    made.thread.start()
    assert made.at_it.wait(SOON)
    yield made  # type: ignore[misc]
    if made.stuck is not None:
        made.stuck.set()
    assert made.thread.end(SOON)
    assert ours() == []


def held(service: Service) -> None:
    thread = service.thread.hold()
    if thread is not None:
        until_gone([thread], SOON)


def test_stopped_and_restarted(service: Service) -> None:
    """A held thread exists neither for Python nor for the system; it can be started meanwhile, and then goes on."""
    native = ours()[0].native_id
    held(service)
    assert ours() == [] and service.thread.exists
    if sys.platform == "linux":
        assert not Path(f"/proc/self/task/{native}").exists()
    service.thread.start()
    assert ours() == []
    service.at_it.clear()
    service.thread.release()
    assert service.at_it.wait(SOON) and len(ours()) == 1 and service.runs == 2


def test_two_forks_at_once(service: Service) -> None:
    """The thread is back when the last holder releases it."""
    held(service)
    held(service)
    service.thread.release()
    assert ours() == []
    service.thread.release()
    assert len(ours()) == 1


def test_restarted_only_if_needed(service: Service) -> None:
    """A thread with nothing to do stays away until it is started."""
    held(service)
    service.wanted = False
    service.thread.release()
    assert ours() == [] and not service.thread.exists
    service.thread.start()
    assert len(ours()) == 1


def test_busy_thread_is_not_waited_for_long(service: Service) -> None:
    """A busy thread stays, and goes on after the fork unaffected."""
    service.stuck = threading.Event()
    service.at_it.clear()
    service.woken.set()
    assert service.at_it.wait(SOON)
    thread = service.thread.hold()
    assert thread is not None
    began = time.monotonic()
    until_gone([thread], 0.02)
    assert time.monotonic() - began < LOCK_PATIENCE / 2
    assert thread.is_alive()
    service.thread.release()
    stuck, service.stuck = service.stuck, None
    stuck.set()
    service.at_it.clear()
    service.woken.set()
    assert service.at_it.wait(SOON) and ours() == [thread] and service.runs == 1


def test_thread_that_ends_late_is_restarted(service: Service) -> None:
    """A thread too busy to end before the fork, which ends during it, is restarted after it."""
    service.stuck = threading.Event()
    service.at_it.clear()
    service.woken.set()
    assert service.at_it.wait(SOON)
    thread = service.thread.hold()
    assert thread is not None
    until_gone([thread], 0.01)
    stuck, service.stuck = service.stuck, None
    stuck.set()
    thread.join(SOON)
    service.at_it.clear()
    service.thread.release()
    assert service.at_it.wait(SOON) and len(ours()) == 1 and ours() != [thread] and service.runs == 2


def test_fork_by_the_thread_itself(service: Service) -> None:
    """A fork by the thread itself, in a callback of the program, waits for nothing."""
    found = []

    def fork() -> None:
        found.append(service.thread.hold())
        service.thread.release()

    service.stuck = type("Forks", (), {"wait": staticmethod(lambda _s: fork()), "set": staticmethod(fork)})()  # type: ignore[assignment]
    service.at_it.clear()
    service.woken.set()
    assert service.at_it.wait(SOON)
    deadline = time.monotonic() + SOON
    while not found and time.monotonic() < deadline:
        time.sleep(0.001)
    service.stuck = None
    assert found[0] is None and len(ours()) == 1


def test_cpu_time_counts_all_runs(service: Service) -> None:
    """The thread's processor time includes all of its runs."""
    before = service.thread.cpu
    for _ in range(5):
        held(service)
        service.thread.release()
    assert service.thread.cpu > before


def test_importing_thread_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that imports is waited for: a module half imported at a fork could never be imported in the child."""
    (tmp_path / "module_that_takes_long.py").write_text("import time\ntime.sleep(0.3)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    begun = threading.Event()

    def run() -> None:
        begun.set()
        importlib.import_module("module_that_takes_long")

    thread = OwnThread("tried", run, lambda: None)
    thread.start()
    assert begun.wait(SOON)
    while "module_that_takes_long" not in sys.modules:
        time.sleep(0.001)
    left = thread.hold()
    assert left is not None
    until_gone([left], 0.01)
    assert not left.is_alive()
    thread.release()
    assert ours() == []
    del sys.modules["module_that_takes_long"]


def test_logging_thread_is_waited_for() -> None:
    """A thread that logs is waited for: a locked stream of the program's log handler would stay locked in the child."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            begun.set()
            go_on.wait(SOON)

    logger = logging.getLogger("tried")
    logger.addHandler(handler := Slow())
    thread = OwnThread("tried", lambda: logger.warning("a line"), lambda: None)
    thread.start()
    assert begun.wait(SOON)
    left = thread.hold()
    assert left is not None
    later = threading.Timer(0.2, go_on.set)
    later.start()
    until_gone([left], 0.01)
    assert not left.is_alive()
    thread.release()
    later.join()
    logger.removeHandler(handler)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system allows no thread, starting raises, and can be tried again."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    service = Service()
    with monkeypatch.context() as patched:
        patched.setattr("loopwatch.core.threads.untraced._start", refuse)
        with pytest.raises(RuntimeError):
            service.thread.start()
        assert not service.thread.exists
    service.thread.start()
    assert service.at_it.wait(SOON) and service.thread.end(SOON)


def test_patched_thread_start_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that refuses or counts new threads, or wraps ``start``, does not see the agent's threads."""
    asked: list[object] = []

    def refuse(*args: object, **_named: object) -> None:
        asked.append(args)
        raise RuntimeError("can't create new thread at interpreter shutdown")

    for name in ("_start_joinable_thread", "_start_new_thread"):
        monkeypatch.setattr(threading, name, refuse, raising=False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    ran = threading.Event()
    thread = OwnThread("test", ran.set, lambda: None)
    thread.start()
    assert ran.wait(20)
    assert thread.end(20)
    assert asked == []

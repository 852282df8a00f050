"""Facts of the kernel and the interpreter about threads whose state the test knows."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loopwatch.system import threads
from loopwatch.system.threads import ThreadFacts, scheduled, thread_clocks, thread_cpu, throttled, traced

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def thread_of(function: Callable[[], object], let_go: Callable[[], object]) -> Iterator[ThreadFacts]:
    """Run ``function`` in a thread until ``let_go`` is called."""
    facts: list[ThreadFacts] = []
    known = threading.Event()

    def run() -> None:
        facts.append(ThreadFacts.here())
        known.set()
        function()

    thread = threading.Thread(target=run, name="observed")
    thread.start()
    assert known.wait(10)
    try:
        yield facts[0]
    finally:
        let_go()
        thread.join()


def becomes(facts: ThreadFacts, syscall: str, seconds: float = 5.0) -> tuple[str | None, str | None]:
    """Return the thread's system call as soon as it is ``syscall``, else its last one."""
    deadline = time.monotonic() + seconds
    found = facts.waiting_in()
    while found[0] != syscall and time.monotonic() < deadline:
        os.sched_yield()
        found = facts.waiting_in()
    return found


@linux
def test_sleeping_thread() -> None:
    """A thread in time.sleep is in clock_nanosleep and uses no processor."""
    with thread_of(lambda: time.sleep(0.3), lambda: None) as facts:
        assert becomes(facts, "clock_nanosleep")[0] == "clock_nanosleep"
        before = facts.cpu()
        assert facts.waiting_in()[0] == "clock_nanosleep"
        after = facts.cpu()
    assert before is not None
    assert before == after


@linux
def test_thread_that_waits_for_a_lock() -> None:
    """A thread in lock.acquire is in futex."""
    lock = threading.Lock()
    lock.acquire()
    with thread_of(lock.acquire, lock.release) as facts:
        call, channel = becomes(facts, "futex")
        assert call == "futex"
        assert channel is None or "futex" in channel


@linux
def test_thread_that_waits_for_a_socket() -> None:
    """A thread in recv is in recvfrom, with the kernel's own name for it."""
    ours, theirs = socket.socketpair()
    with thread_of(lambda: ours.recv(1), lambda: theirs.send(b"x")) as facts:
        assert becomes(facts, "recvfrom")[0] == "recvfrom"
    ours.close()
    theirs.close()


@linux
def test_thread_that_runs() -> None:
    """A thread that reads its own facts is running, in no kernel function, and its clock advances."""
    facts = ThreadFacts.here()
    assert facts.waiting_in()[0] in ("running", "read")
    before = facts.cpu()
    assert before is not None
    deadline = time.thread_time() + 0.02
    while time.thread_time() < deadline:
        pass
    after = facts.cpu()
    assert after is not None
    assert 0.02 <= after - before < 0.2
    assert after == pytest.approx(time.thread_time(), abs=0.01)


@linux
def test_scheduler_agrees_with_the_clock() -> None:
    """schedstat's run time is the thread's clock, in seconds, and the run queue never runs backwards."""
    first = scheduled(threading.get_native_id())
    deadline = time.thread_time() + 0.03
    while time.thread_time() < deadline:
        pass
    second = scheduled(threading.get_native_id())
    if first is None or second is None:
        pytest.skip("this kernel keeps no schedstat")
    assert second.cpu - first.cpu == pytest.approx(0.03, abs=0.02)
    assert second.run_queue >= first.run_queue


def finished_thread() -> ThreadFacts:
    with thread_of(lambda: None, lambda: None) as facts:
        pass
    return facts


@linux
def test_finished_thread() -> None:
    """The facts of a thread that has ended are None, without a crash."""
    for _ in range(20):
        facts = finished_thread()
        deadline = time.monotonic() + 5
        # join() returns a moment before the kernel has forgotten the thread.
        while facts.cpu() is not None and time.monotonic() < deadline:
            os.sched_yield()
        assert facts.cpu() is None
        assert facts.scheduled() is None
        assert facts.waiting_in() == (None, None)


@linux
def test_numbers_of_no_thread() -> None:
    """Numbers that belong to no thread of this process give None."""
    for number in (2**22 - 1, 999_999):
        assert thread_cpu(number) is None
        assert scheduled(number) is None


def test_clocks_of_all_threads() -> None:
    """Every Python thread's clock is read; that of this thread is right."""
    go_on = threading.Event()
    with thread_of(go_on.wait, go_on.set) as facts:
        clocks = thread_clocks()
    if sys.platform == "linux":
        own = (threading.get_ident(), threading.get_native_id())
        assert {own, (facts.ident, facts.native_id)} <= set(clocks)
        assert clocks[own] == pytest.approx(time.thread_time(), abs=0.01)


def test_clocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand threads 256 are read."""

    class Thread:
        native_id = threading.get_native_id()

        def __init__(self, ident: int) -> None:
            self.ident = ident

    monkeypatch.setattr(threading, "enumerate", lambda: [Thread(number) for number in range(1000)])
    assert len(thread_clocks()) in (0, 256)


def test_names_of_system_calls_fit_this_machine() -> None:
    """On a machine with a table, the system calls that matter most have the kernel's names."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the table of this machine is not the one checked here")
    names = threads._NAMES
    assert {number: names[number] for number in (0, 45, 61, 202, 230, 232, 281)} == {
        0: "read", 45: "recvfrom", 61: "wait4", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait",
        281: "epoll_pwait",
    }  # fmt: skip
    for table in threads._SYSCALLS.values():
        assert len(set(table.values())) == len(table), "two numbers of one call"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("running\n", "running"),
        ("230 0x0 0x0\n", "clock_nanosleep"),
        ("9999 0x0\n", "syscall 9999"),
        ("-1 0x7f 0x7f\n", "syscall -1"),
        ("", None),
        ("garbage 1\n", None),
    ],
)
def test_formats_of_proc_syscall(monkeypatch: pytest.MonkeyPatch, text: str, name: str | None) -> None:
    """Each format of /proc/.../syscall is understood, and any other gives None."""
    monkeypatch.setattr(threads, "_NAMES", {230: "clock_nanosleep"})
    monkeypatch.setattr(threads, "_read_keeping", lambda path: text if path.endswith("syscall") else "0")
    assert ThreadFacts(1, 1, "x").waiting_in() == (name, None)


@pytest.mark.parametrize(
    ("cgroup", "files", "seconds"),
    [
        ("0::/app\n", {"/sys/fs/cgroup/app/cpu.stat": "usage_usec 5\nthrottled_usec 1500000\n"}, 1.5),
        ("0::/\n", {"/sys/fs/cgroup//cpu.stat": "throttled_usec 250000\n"}, 0.25),
        (
            "4:cpu,cpuacct:/docker/abc\n0::/\n",
            {"/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.stat": "nr_periods 3\nthrottled_time 2000000000\n"},
            2.0,
        ),
        ("4:cpu:/docker/abc\n", {"/sys/fs/cgroup/cpu/cpu.stat": "throttled_time 3000000000\n"}, 3.0),
        ("0::/host/path\n", {"/sys/fs/cgroup/cpu.stat": "throttled_usec 10\n"}, 1e-05),
        ("0::/app\n", {"/sys/fs/cgroup/app/cpu.stat": "usage_usec 5\n"}, None),
        (  # the quota of a group above: that of this one has cost nothing, or there is none
            "0::/pod/app\n",
            {
                "/sys/fs/cgroup/pod/app/cpu.stat": "throttled_usec 0\n",
                "/sys/fs/cgroup/pod/cpu.stat": "throttled_usec 1500000\n",
            },
            1.5,
        ),
        (
            "0::/a/b/c\n",
            {"/sys/fs/cgroup/a/b/c/cpu.stat": "usage_usec 5\n", "/sys/fs/cgroup/a/cpu.stat": "throttled_usec 20\n"},
            2e-05,
        ),
        (
            "4:cpu:/a/b\n",
            {
                "/sys/fs/cgroup/cpu/a/b/cpu.stat": "throttled_time 1000000000\n",
                "/sys/fs/cgroup/cpu/a/cpu.stat": "throttled_time 500000000\n",
            },
            1.5,
        ),
        ("1:name=systemd:/\n0::/app\n", {"/sys/fs/cgroup/unified/app/cpu.stat": "throttled_usec 10\n"}, 1e-05),
        ("3:memory:/app\n", {}, None),
        ("", {}, None),
    ],
)
def test_throttling_of_both_kinds_of_cgroup(
    monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], seconds: float | None
) -> None:
    """The quota's file is found under version 1 and 2, on the host and in a container, and read in its own unit."""
    monkeypatch.setattr(threads, "read_kernel", {"/proc/self/cgroup": cgroup, **files}.get)
    assert throttled() == seconds


def test_throttling_of_this_process() -> None:
    """On this machine throttling is either unknown or some seconds."""
    found = throttled()
    assert found is None or found >= 0


@linux
def test_no_debugger_is_attached() -> None:
    """This process is not traced, and the check leaves no descriptor open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        assert not traced()
        ThreadFacts.here().waiting_in()
    assert len(list(Path("/proc/self/fd").iterdir())) == before

"""Child processes outside pools are found however they were started, and no exit status is taken from the program."""

from __future__ import annotations

import asyncio
import asyncio.base_subprocess
import concurrent.futures
import contextlib
import gc
import inspect
import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_of_pools import held_for_fork, until

import loopwatch
from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.events import PoolStats, WorkerState
from loopwatch.health.children.watched import KIND, NOTED_WITHIN, child_pids, has_children
from loopwatch.health.monitor import Monitor

pytestmark = pytest.mark.measures

PATCHED = {
    os: (
        "fork", "forkpty", "posix_spawn", "posix_spawnp", "kill", "killpg",
        "waitpid", "wait", "wait3", "wait4", "waitid",
    ),
    subprocess.Popen: ("_execute_child", "_handle_exitstatus"),
    multiprocessing.Process.__base__: ("start",),
    asyncio.base_subprocess.BaseSubprocessTransport: ("_process_exited",),
    asyncio.subprocess.Process: ("send_signal", "terminate", "kill"),
    asyncio.subprocess.SubprocessStreamProtocol: ("process_exited",),
}  # fmt: skip
SPAWN = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def watching() -> Iterator[Monitor]:
    """A monitor of its own, checked to have no faults and to restore all that it patched."""
    before = {(owner, name): vars(owner).get(name) for owner, names in PATCHED.items() for name in names}
    patches, faults, config = PatchSet(), Faults(), Config(log_level="CRITICAL")
    monitor = Monitor(lambda: config, patches, faults)
    monitor.start()
    yield monitor
    monitor.stop()
    patches.undo_all()
    assert faults.counts == {}
    assert {(owner, name): vars(owner).get(name) for owner, name in before} == before


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """A monitor for the whole test."""
    with watching() as monitor:
        yield monitor


def children(monitor: Monitor) -> PoolStats:
    monitor.poll_now()
    found = [reading.stats for reading in monitor.readings() if reading.stats.kind == KIND]
    return found[0] if found else PoolStats(KIND, kind=KIND)


def exits(code: int) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", f"import os; os._exit({code})"


def dies(number: int) -> tuple[str, ...]:
    return "/bin/sh", "-c", f"kill -{number} $$"


def sleeps() -> tuple[str, ...]:
    return "/bin/sleep", "60"


def test_subprocesses_of_asyncio(monitor: Monitor, run: Callable[[Any], Any]) -> None:
    """Exit codes and signals count as crashes; exit code 0 and an end that the program requested do not."""

    async def main() -> list[int | None]:
        codes = []
        for command in (exits(0), exits(3), dies(signal.SIGSEGV), dies(signal.SIGKILL)):
            child = await asyncio.create_subprocess_exec(*command)
            codes.append(await child.wait())
        for end in ("terminate", "kill", "send_signal"):
            child = await asyncio.create_subprocess_exec(*sleeps())
            getattr(child, end)(*([signal.SIGINT] if end == "send_signal" else []))
            codes.append(await child.wait())
        shell = await asyncio.create_subprocess_shell("exit 4")
        return [*codes, await shell.wait()]

    assert run(main()) == [0, 3, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGINT, 4]
    until(lambda: not has_children())
    stats = children(monitor)
    assert stats.crashes == {"exit 3": 1, "SIGSEGV": 1, "SIGKILL": 1, "exit 4": 1}
    assert (stats.started, stats.workers) == (8, ())


def test_where_a_subprocess_of_asyncio_was_made(monitor: Monitor, run: Callable[[Any], Any]) -> None:
    """A running subprocess is listed with its program, state and place, and no longer once it has ended."""

    async def main() -> PoolStats:
        child = await asyncio.create_subprocess_exec(*sleeps())
        stats = await asyncio.to_thread(children, monitor)
        child.kill()
        await child.wait()
        return stats

    (worker,) = run(main()).workers
    assert worker.state == WorkerState.UNKNOWN and worker.task == "sleep"
    assert f"made at {__file__}" in worker.reason and "in test_where_a_subprocess_of_asyncio_was_made" in worker.reason
    assert worker.memory > 0 and worker.age < 60
    assert children(monitor).workers == ()


def test_subprocess_popen(monitor: Monitor) -> None:
    """Popen, run, a shell, and a subclass that calls ``Popen.__init__`` unbound are all counted."""

    class Own(subprocess.Popen[bytes]):
        def __init__(self, *args: Any) -> None:
            subprocess.Popen.__init__(self, *args)

    assert Own(exits(5)).wait() == 5
    assert subprocess.run(exits(6), check=False).returncode == 6
    assert subprocess.run("exit 7", shell=True, check=False).returncode == 7
    with pytest.raises(FileNotFoundError):
        subprocess.Popen(["/does/not/exist"])
    with subprocess.Popen(sleeps()) as child:
        child.terminate()
    stats = children(monitor)
    assert stats.crashes == {"exit 5": 1, "exit 6": 1, "exit 7": 1}
    assert stats.started == 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing(monitor: Monitor, method: str) -> None:
    """Exit code and signal are known under each start method, even where the fork server is the parent and reaps."""
    context: Any = multiprocessing.get_context(method)
    processes = [
        context.Process(target=os._exit, args=(3,)),
        context.Process(target=signal.raise_signal, args=(signal.SIGUSR1,)),
        context.Process(target=os.getpid),
        context.Process(target=time.sleep, args=(60,)),
    ]
    for process in processes:
        process.start()
    running = children(monitor)
    assert processes[3].pid in {worker.pid for worker in running.workers}
    processes[3].terminate()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [3, -signal.SIGUSR1, 0, -signal.SIGTERM]
    stats = children(monitor)
    assert stats.crashes == {"exit 3": 1, "SIGUSR1": 1}
    assert (stats.started, stats.workers) == (4, ())
    _end_helpers()


def _end_helpers() -> None:
    from multiprocessing import forkserver, resource_tracker

    gc.collect()  # semaphores of pools are unlinked by then
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def test_forks_and_spawns(monitor: Monitor) -> None:
    """Children of ``os.fork`` and ``os.posix_spawn`` count, reaped by ``waitpid``, ``wait`` or ``waitid``."""
    pid = os.fork()
    if pid == 0:
        os._exit(2)
    assert os.waitpid(pid, 0) == (pid, 2 << 8)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 8"], {})
    assert os.wait() == (pid, 8 << 8)
    pid = os.posix_spawnp("sh", ["sh", "-c", "kill -ABRT $$"], dict(os.environ))
    ended = os.waitid(os.P_PID, pid, os.WEXITED)
    assert ended is not None and ended.si_status == signal.SIGABRT
    stats = children(monitor)
    assert stats.crashes == {"exit 2": 1, "exit 8": 1, "SIGABRT": 1}
    assert stats.started == 3


def test_zombies(monitor: Monitor) -> None:
    """An exited child that is not reaped is listed with exit code, age and place until the program waits for it."""
    child = subprocess.Popen(exits(3))
    until(lambda: children(monitor).workers[0].state == WorkerState.ZOMBIE)
    (worker,) = children(monitor).workers
    assert worker.exitcode == 3
    assert "it has exited (exit 3)" in worker.reason and "ago and nobody has waited for it" in worker.reason
    assert f"made at {__file__}" in worker.reason
    assert children(monitor).crashes == {}
    assert child.wait() == 3
    stats = children(monitor)
    assert (stats.workers, stats.crashes, stats.started) == ((), {"exit 3": 1}, 1)


def test_a_child_stays_a_zombie_until_it_is_reaped(monitor: Monitor) -> None:
    """Reading an exit status with ``WNOWAIT``, as the agent does too, leaves the child a zombie."""
    pid = os.posix_spawn(sys.executable, exits(3), os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        assert has_children()
    birth = monitor.process_hooks.known[pid]
    assert (birth.exitcode, birth.ended_at) == (None, None)
    (worker,) = children(monitor).workers
    assert (worker.state, worker.exitcode) == (WorkerState.ZOMBIE, 3)
    os.waitpid(pid, 0)
    assert birth.exitcode == 3
    assert children(monitor).crashes == {"exit 3": 1}


def test_a_child_started_by_c_code(monitor: Monitor) -> None:
    """A child that no hook recorded is found by polling, which begins without a thread of the agent."""
    with Path(os.devnull).open() as null:
        pid = multiprocessing.util.spawnv_passfds(b"/bin/sleep", ["sleep", "60"], [null.fileno()])  # type: ignore[attr-defined]
    try:
        assert not monitor.thread.exists
        monitor.tick(time.monotonic() + 10)
        assert monitor.thread.exists
        (worker,) = children(monitor).workers
        assert (worker.pid, worker.task, "made at" in worker.reason) == (pid, "sleep", False)
        assert children(monitor).started == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert children(monitor).workers == ()


def crash(*pids: int | None) -> None:
    """Kill with the unpatched ``os.kill``, as another process would: the hooks do not see it."""
    original = inspect.unwrap(os.kill)
    for pid in pids:
        assert pid is not None
        original(pid, signal.SIGUSR2)


def test_children_that_existed_before(run: Callable[[Any], Any]) -> None:
    """Children started in four ways before the monitor are counted once, and only those killed by others as crashes."""

    async def main() -> PoolStats:
        made = subprocess.Popen(sleeps())
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
        forked = os.fork()
        if forked == 0:
            time.sleep(60)
            os._exit(0)
        child = await asyncio.create_subprocess_exec(*sleeps())
        asked, quiet = subprocess.Popen(sleeps()), subprocess.Popen(("/bin/sh", "-c", "read line; exit 3"), stdin=-1)
        pids = {made.pid, process.pid, forked, child.pid, asked.pid, quiet.pid}
        with watching() as monitor:
            process_hooks = monitor.process_hooks.known
            assert process_hooks.keys() == pids
            assert {pid: process_hooks[pid].executes for pid in process_hooks} == {
                pid: pid not in (process.pid, forked) for pid in pids
            }
            now = time.monotonic()
            assert all(-1.0 < now - birth.at < 60.0 and birth.adopted for birth in process_hooks.values())
            crash(made.pid, process.pid, forked, child.pid)
            assert made.wait() == -signal.SIGUSR2
            process.join()
            assert os.waitpid(forked, 0) == (forked, signal.SIGUSR2)
            assert await child.wait() == -signal.SIGUSR2
            asked.terminate()
            assert asked.wait() == -signal.SIGTERM
            quiet.communicate()
            stats = await asyncio.to_thread(children, monitor)
            ends = {end.pid: (end.reason, end.is_accident) for end in monitor._children.ends}
            assert ends == {
                **dict.fromkeys((made.pid, process.pid, forked, child.pid), ("SIGUSR2", True)),
                asked.pid: (None, False),
                quiet.pid: ("exit 3", False),
            }
            assert monitor.process_hooks.known == {}
        return stats

    stats = run(main())
    assert (stats.crashes, stats.started, stats.workers) == ({"SIGUSR2": 4, "exit 3": 1}, 6, ())


def test_workers_of_pools_that_existed_before() -> None:
    """Pools are found after children are adopted and then claim their workers, so none is counted twice."""
    with subprocess.Popen(sleeps()) as worker, watching() as monitor:
        assert worker.pid in monitor.process_hooks.known
        monitor._children.look([worker.pid])
        assert monitor.process_hooks.known == {}
        crash(worker.pid)
        assert worker.wait() == -signal.SIGUSR2
        stats = children(monitor)
        assert (stats.crashes, stats.started, stats.workers) == ({}, 0, ())


def test_crashes_of_children_started_by_c_code(monitor: Monitor) -> None:
    """A child no hook recorded is adopted after a while; if it ends before that, its reaped exit status counts."""

    def start() -> int:
        with Path(os.devnull).open() as null:
            return multiprocessing.util.spawnv_passfds(b"/bin/sleep", ["sleep", "60"], [null.fileno()])  # type: ignore[attr-defined,no-any-return]

    now = [time.monotonic()]
    monitor._children._clock = lambda: now[0]
    seen, adopted, killed = start(), start(), start()
    assert len(children(monitor).workers) == 3
    assert monitor.process_hooks.known == {}
    crash(seen)
    os.waitpid(seen, 0)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert children(monitor).crashes == {"SIGUSR2": 1}
    now[0] += NOTED_WITHIN
    assert len(children(monitor).workers) == 1
    birth = monitor.process_hooks.known[adopted]
    assert (birth.adopted, birth.executes, birth.place) == (True, True, "")
    crash(adopted)
    os.waitpid(adopted, 0)
    assert birth.exitcode == -signal.SIGUSR2
    stats = children(monitor)
    assert (stats.crashes, stats.started, stats.workers) == ({"SIGUSR2": 2}, 3, ())
    assert monitor.process_hooks.known == {}


def test_a_child_that_is_adopted_before_it_is_recorded(monitor: Monitor) -> None:
    """A child adopted while it is being started is not counted twice, and gets the record of the hook."""
    process_hooks = monitor.process_hooks
    with subprocess.Popen(sleeps()) as child:
        recorded = process_hooks.known.pop(child.pid)
        adopted = process_hooks.adopt(child.pid)
        assert adopted.adopted and process_hooks.adopt(child.pid) is adopted
        children(monitor)
        process_hooks._add(recorded)
        assert process_hooks.known[child.pid] is adopted
        assert (adopted.adopted, adopted.place, adopted.name) == (False, recorded.place, "sleep")
        stats = children(monitor)
        assert (len(stats.workers), stats.started) == (1, 1)
        child.kill()


def test_crashes_of_workers_that_existed_before_are_counted() -> None:
    """A supervisor that installs the agent after its forks gets their crashes counted, also when installed again."""
    program = """
import os, signal, time, loopwatch
def fork():
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    return pid
for _ in range(2):
    pids = [fork() for _ in range(2)]
    agent = loopwatch.install()
    for pid in pids:
        os.system(f"kill -SEGV {pid}")
        os.waitpid(pid, 0)
    for _ in range(600):  # a snapshot takes 5 ms at most: on a busy machine it may have seen one of them only
        (pool,) = agent.snapshot().pools
        if not pool.workers:
            break
        time.sleep(0.05)
    print(pool.crashes, pool.started - len(pool.workers))
    loopwatch.uninstall()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("{'SIGSEGV': 2} 2\n" * 2, 0), done.stderr


def test_no_exit_status_is_taken_from_the_program(monitor: Monitor) -> None:
    """Under constant polling the program still reaps each of 60 children with its own exit code."""
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            monitor.poll_now()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        forked = []
        for code in range(40):
            pid = os.fork()
            if pid == 0:
                os._exit(code)
            forked.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in forked] == list(range(40))
        started = [subprocess.Popen(["/bin/sh", "-c", f"exit {code}"]) for code in range(20)]
        assert [child.wait() for child in started] == list(range(20))
    finally:
        over.set()
        thread.join()
    stats = children(monitor)
    assert stats.started == 60
    assert sum(stats.crashes.values()) == 58
    assert stats.crashes["exit 7"] == 2


def test_workers_and_helpers_of_pools_are_not_counted(monitor: Monitor) -> None:
    """Workers of executors, multiprocessing and loopwatch, fork servers and the resource tracker are no children."""

    async def loopwatch_pools() -> None:
        for method in ("spawn", "forkserver"):
            async with loopwatch.WorkerPool(workers=1, start_method=method) as pool:
                assert await pool.run(abs, -1) == 1
                assert children(monitor).workers == ()

    def standard_pools() -> None:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=SPAWN) as executor:
            assert executor.submit(abs, -1).result() == 1
            assert len(child_pids()) >= 1
            assert children(monitor).workers == ()
        with SPAWN.Pool(1) as pool:
            assert pool.apply(abs, (-1,)) == 1
            assert children(monitor).workers == ()
        pool.join()

    asyncio.run(loopwatch_pools())
    standard_pools()
    _end_helpers()
    stats = children(monitor)
    assert (stats.started, stats.crashes, monitor.readings()) == (0, {}, ())


def test_a_kill_after_a_crash_does_not_hide_the_crash(monitor: Monitor) -> None:
    """A child that died by itself counts as a crash even if its supervisor kills it afterwards."""
    child = subprocess.Popen(dies(signal.SIGKILL))
    until(lambda: os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert children(monitor).crashes == {"SIGKILL": 1}


def test_an_aborted_worker_has_crashed(monitor: Monitor) -> None:
    """A worker that gets SIGABRT and then SIGKILL, as gunicorn does with one that hangs, counts as a crash."""
    deaf = subprocess.Popen(("/bin/sh", "-c", "trap '' ABRT; echo; read line"), stdin=-1, stdout=-1)
    assert deaf.stdout is not None and deaf.stdin is not None
    deaf.stdout.readline()
    os.kill(deaf.pid, signal.SIGABRT)
    os.kill(deaf.pid, signal.SIGKILL)
    with deaf:
        assert deaf.wait() == -signal.SIGKILL
    assert children(monitor).crashes == {"SIGKILL": 1}


def test_killpg_is_a_request_to_end(monitor: Monitor) -> None:
    """``killpg`` asks only the members of its group to end, and signal 0 asks no process to end."""
    group = subprocess.Popen(sleeps(), start_new_session=True)
    other = subprocess.Popen(("/bin/sh", "-c", "kill -TERM $$; sleep 60"))
    os.kill(other.pid, 0)
    os.killpg(group.pid, signal.SIGTERM)
    assert (group.wait(), other.wait()) == (-signal.SIGTERM, -signal.SIGTERM)
    assert children(monitor).crashes == {"SIGTERM": 1}


def test_a_forked_child_does_not_list_its_siblings(monitor: Monitor) -> None:
    """A forked process forgets its parent's children and records its own."""
    with subprocess.Popen(sleeps()) as sibling:
        assert len(children(monitor).workers) == 1
        read, write = os.pipe()
        release = held_for_fork(monitor)
        assert not [thread for thread in threading.enumerate() if thread.name == "loopwatch-health"]
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                monitor.after_fork_in_child()
                first = len(children(monitor).workers)
                own = subprocess.Popen(exits(3))
                own.wait()
                stats = children(monitor)
                os.write(write, f"{first} {stats.started} {stats.crashes}".encode())
            os._exit(0)
        release()
        os.close(write)
        with os.fdopen(read) as output:
            assert output.read() == "0 1 {'exit 3': 1}"
        assert os.waitpid(pid, 0) == (pid, 0)
        assert len(children(monitor).workers) == 1
        sibling.kill()


def test_patches_are_undone_in_any_order(monitor: Monitor) -> None:
    """A wrapper around the hook keeps working after the monitor stops, and the hook then records nothing."""
    seen = []
    hook = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(args)
        hook(self, *args, **kwargs)

    subprocess.Popen._execute_child = wrapped  # type: ignore[attr-defined]
    try:
        monitor.stop()
        monitor._patches.undo_all()
        assert subprocess.Popen(exits(3)).wait() == 3
        assert len(seen) == 1 and monitor.process_hooks.known == {}
    finally:
        subprocess.Popen._execute_child = hook.__wrapped__  # type: ignore[attr-defined]


def test_a_child_that_is_recorded_twice_counts_once(monitor: Monitor) -> None:
    """A child recorded by ``os.fork`` and by its caller is one child, and the request to end it is known."""
    process_hooks = monitor.process_hooks
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    recorded = process_hooks._note
    looked: list[int] = []

    def look(pid: int, **known: Any) -> None:
        if known:  # between the two
            monitor.poll_now()
            looked.append(pid)
        recorded(pid, **known)

    process_hooks._note = look  # type: ignore[method-assign]
    process.start()
    process.kill()
    process.join()
    assert looked == [process.pid]
    until(lambda: not children(monitor).workers)
    assert (children(monitor).crashes, children(monitor).started) == ({}, 1)

"""A forked child gets a working agent of its own, or none; the parent's goes on, and no process hangs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hostproc import journals, succeeded

from loopwatch.report.reader import read_journals

pytestmark = [pytest.mark.measures, pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")]

LOOPS = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") is not None else [])

FORKS = """
    import logging, warnings, loopwatch
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork() in a process with threads, since 3.12

    class Slow(logging.Handler):
        def emit(self, record):
            time.sleep(0.002)

    logging.getLogger("loopwatch").addHandler(Slow())
    logging.getLogger("loopwatch").propagate = False

    def install(follow=True):
        return loopwatch.install(threshold=0.01, hang_after=0.2, cpu_budget=1.0, journal=sys.argv[1], log_interval=0,
                                 on_stall=lambda stall: time.sleep(0.002), follow_fork=follow)

    def heat(agent, stop):
        while not stop.wait(0.0005):
            agent._watch.watcher.wake()

    def child(work):
        # In a child: run ``work`` and exit at once, as multiprocessing does.
        code = 1
        try:
            code = work()
        except BaseException as exc:
            print(repr(exc), file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def ended(pids, seconds=20.0):
        # Return exit codes; a child that still runs at the deadline has dead-locked.
        codes = {}
        deadline = time.monotonic() + seconds
        while pids and time.monotonic() < deadline:
            for pid in list(pids):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    pids.remove(pid)
            time.sleep(0.002)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return list(codes.values()) + ["dead-locked"] * len(pids)

    async def short():
        await asyncio.sleep(0.02)
        nap(0.04)
        await asyncio.sleep(0.02)

    def watched(run):
        # The work of a child: check that its agent is its own and finds its block.
        agent = loopwatch.current_agent()
        if agent.stalls() or agent.flagged() or agent.snapshot().agent.state not in ("waiting", "watching"):
            return 2
        for _ in range(5):  # with five busy processes on two cores a short block may pass without a sample
            run(short())
            if not agent.flush(10):
                return 3
            if {stall.pid for stall in agent.stalls()} - {os.getpid()}:
                return 4
            if any(stall.culprit and stall.culprit.function == "nap" for stall in agent.stalls()):
                return 0
        return 5
"""

INSIDE = (
    FORKS
    + """
    kind, times = sys.argv[2], int(sys.argv[3])
    agent, run, codes, stop = install(), runner(sys.argv[2]), [], threading.Event()
    threading.Thread(target=heat, args=(agent, stop)).start()

    async def main():
        pids = []
        for _ in range(times):
            nap(0.015)
            pid = os.fork()
            if not pid:
                # In the child of a running loop a loop can run only in another thread.
                thread_codes = []
                def work():
                    thread = threading.Thread(target=lambda: thread_codes.append(watched(run)))
                    thread.start()
                    thread.join()
                    return thread_codes[0]
                child(work)
            pids.append(pid)
            await asyncio.sleep(0.001)
            if len(pids) == 4:
                codes.extend(ended(pids))
        codes.extend(ended(pids))

    run(main())
    stop.set()
    agent.flush(10)
    say(codes={str(code): codes.count(code) for code in set(codes)}, pid=os.getpid(), stalls=len(agent.stalls()),
        faults=dict(agent.snapshot().agent.faults), dropped=agent.snapshot().agent.dropped)
"""
)


@pytest.mark.long
@pytest.mark.parametrize("kind", LOOPS)
def test_a_hundred_forks_inside_a_running_loop(kind: str, tmp_path: Path) -> None:
    """Each of 100 children forked on a running loop finds its own block and none hangs, with busy watcher and sinks."""
    times = 100
    found = succeeded(INSIDE, tmp_path, kind, times)
    assert found["codes"] == {"0": times}
    assert found["faults"] == {}
    # The parent's agent kept working: its own blocks, one for each child, were all found.
    assert found["stalls"] >= times * 0.95
    files = journals(tmp_path)
    assert len(files) == times + 1
    for pid, path in files.items():
        assert {stall.pid for stall in read_journals(str(path)).stalls} == {pid}


OUTSIDE = (
    FORKS
    + """
    kind, times = sys.argv[2], int(sys.argv[3])
    agent, run, codes, stop = install(), runner(sys.argv[2]), [], threading.Event()

    async def busy():
        while not stop.is_set():
            nap(0.012)
            await asyncio.sleep(0.003)

    threads = [threading.Thread(target=heat, args=(agent, stop)), threading.Thread(target=lambda: run(busy()))]
    for thread in threads:
        thread.start()
    until(lambda: agent._parts.sinks.local.hang._armed)
    hang = agent._parts.sinks.local.hang.path
    before = (hang.read_bytes(), hang.stat().st_ino)
    pids, same = [], []
    for number in range(times):
        pid = os.fork()
        if not pid:
            stop.set()
            if number % 2:
                code = watched(run)
                sys.exit(code)   # through the interpreter's full finalization, with atexit handlers
            child(lambda: watched(run))
        pids.append(pid)
        if len(pids) == 4:
            codes.extend(ended(pids))
            same.append((hang.read_bytes(), hang.stat().st_ino) == before)
    codes.extend(ended(pids))
    armed = until(lambda: agent._parts.sinks.local.hang._armed)
    seen = len(agent.stalls())
    on = until(lambda: len(agent.stalls()) > seen or len(agent.stalls()) == 512)
    stop.set()
    for thread in threads:
        thread.join()
    say(codes={str(code): codes.count(code) for code in set(codes)}, same=all(same), armed=armed, on=on,
        faults=dict(agent.snapshot().agent.faults))
"""
)


@pytest.mark.long
@pytest.mark.parametrize("kind", LOOPS)
def test_a_hundred_forks_beside_a_running_loop(kind: str, tmp_path: Path) -> None:
    """None of 100 children forked by another thread hangs, half of which end through sys.exit().

    The parent's hang file is unchanged, its timer is armed again, and its agent keeps working.
    """
    times = 100
    found = succeeded(OUTSIDE, tmp_path, kind, times)
    assert found == {"codes": {"0": times}, "same": True, "armed": True, "on": True, "faults": {}}


NOT_FOLLOWED = (
    FORKS
    + """
    import asyncio.events
    real = asyncio.events._set_running_loop
    agent = install(follow=False)
    patched = asyncio.events._set_running_loop is not real
    pid = os.fork()
    if not pid:
        def work():
            asyncio.run(short())
            state = agent.snapshot().agent
            good = (asyncio.events._set_running_loop is real and threading.active_count() == 1
                    and agent.stalls() == () and state.state == "off" and "follow_fork=False" in state.reason)
            return 0 if good else 5
        child(work)
    codes = ended([pid])
    asyncio.run(short())
    agent.flush(10)
    say(codes=codes, patched=patched, found=any(s.culprit and s.culprit.function == "nap" for s in agent.stalls()))
"""
)


def test_follow_fork_off(tmp_path: Path) -> None:
    """With follow_fork=False a child has no agent, patches, thread or journal, and the parent's agent keeps working."""
    assert succeeded(NOT_FOLLOWED, tmp_path) == {"codes": [0], "patched": True, "found": True}
    assert len(journals(tmp_path)) == 1


MULTIPROCESSING = (
    FORKS
    + """
    import multiprocessing
    agent = install()
    asyncio.run(short())
    agent.flush(10)
    context = multiprocessing.get_context("fork")

    def target(codes):
        codes.put(watched(runner("asyncio")))

    codes = context.SimpleQueue()
    children = [context.Process(target=target, args=(codes,)) for _ in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join(20)
    say(codes=[codes.get() for _ in children], exits=[process.exitcode for process in children])
"""
)


def test_multiprocessing(tmp_path: Path) -> None:
    """Processes of multiprocessing's fork context are watched and end as they do without the agent."""
    assert succeeded(MULTIPROCESSING, tmp_path) == {"codes": [0, 0, 0], "exits": [0, 0, 0]}
    assert len(journals(tmp_path)) == 4


PREFORK = (
    FORKS
    + """
    agent = install()   # as gunicorn's preload_app: no loop runs in the master

    def worker():
        done = []
        async def serve():
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            await short()
            os.write(ready, b"x")
            await stopped.wait()
        runner(sys.argv[2])(serve())
        own = loopwatch.current_agent()
        own.flush(10)
        sys.exit(0 if any(s.culprit and s.culprit.function == "nap" for s in own.stalls()) else 6)

    reader, ready = os.pipe()
    threads = threading.active_count()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            worker()
        pids.append(pid)
    served = b""
    while len(served) < 3:
        served += os.read(reader, 3)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    say(threads=threads, codes=ended(pids), stalls=len(agent.stalls()), state=agent.snapshot().agent.state)
"""
)


@pytest.mark.parametrize("kind", LOOPS)
def test_prefork(kind: str, tmp_path: Path) -> None:
    """Each of three workers forked by a master with the agent has its own agent and journal, and exits with 0."""
    found = succeeded(PREFORK, tmp_path, kind)
    assert found == {"threads": 1, "codes": [0, 0, 0], "stalls": 0, "state": "waiting"}
    assert len(journals(tmp_path)) == 3
    assert journals(tmp_path, ".hang") == {}


def test_a_child_of_a_child(tmp_path: Path) -> None:
    """Each generation of forks has an agent of its own."""
    source = (
        FORKS
        + """
    agent = install()

    def generation(left):
        code = watched(runner("asyncio"))
        if code or not left:
            return code
        pid = os.fork()
        if not pid:
            child(lambda: generation(left - 1))
        return max(ended([pid]))

    say(code=generation(3))
    """
    )
    assert succeeded(source, tmp_path) == {"code": 0}
    assert len(journals(tmp_path)) == 4


def test_subprocesses_are_not_followed(tmp_path: Path) -> None:
    """A subprocess started from a watched loop, even with preexec_fn, runs as it does without the agent."""
    source = (
        FORKS
        + """
    import subprocess
    agent = install()

    async def main():
        await short()
        first = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(3)")
        second = subprocess.run([sys.executable, "-c", "raise SystemExit(4)"], preexec_fn=lambda: None)
        return [await first.wait(), second.returncode]

    say(codes=asyncio.run(main()), faults=dict(agent.snapshot().agent.faults))
    """
    )
    assert succeeded(source, tmp_path) == {"codes": [3, 4], "faults": {}}
    assert len(journals(tmp_path)) == 1

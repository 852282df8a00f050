"""A fork sees no thread of the agent and no import by it, and the agent's threads run again afterwards."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hostproc import succeeded

pytestmark = [pytest.mark.measures, pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")]

LOOPS = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") is not None else [])

EVERYTHING = """
    import functools, tempfile, warnings
    import loopwatch, loopwatch.agent, loopwatch.sinks.hang_timer
    quiet()
    if "--patient" in sys.argv:  # on a busy machine threads may take longer to leave than a fork waits
        pause = loopwatch.core.threads.fork_pause
        pause.until_gone = functools.partial(pause.until_gone, patience=20.0)
        loopwatch.sinks.hang_timer.until_one_less = functools.partial(
            loopwatch.sinks.hang_timer.until_one_less, patience=20.0
        )
    agent = loopwatch.install(
        threshold=0.05, journal=tempfile.mkdtemp(dir=sys.argv[1]), hang_after=0.3, prometheus_port=0,
        otlp_endpoint="http://127.0.0.1:9", log_level="WARNING", log_interval=0, cpu_budget=1.0,
    )

    def agent_threads():
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("loopwatch-"))

    def in_child(work=lambda: 0):
        # The exit code is the number of additional threads, plus ten times the result of ``work``.
        os._exit((threading.active_count() - 1) + 10 * work())

    def ended(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

ALONE = (
    EVERYTHING
    + """
    import multiprocessing, pty, subprocess

    async def main():
        await blocked(0.1)
        await asyncio.to_thread(agent.flush, 10)
        await asyncio.get_running_loop().shutdown_default_executor()
        natives = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("asyncio_")]
        before, codes = agent_threads(), []
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for fork in (os.fork, os.fork, lambda: os.forkpty()[0], lambda: pty.fork()[0]):
                pid = fork()
                if not pid:
                    in_child()
                codes.append(ended(pid))
            process = multiprocessing.get_context("fork").Process(target=in_child)
            process.start()
            await asyncio.sleep(0.01)
            process.join()
            codes.append(process.exitcode)
            codes.append(subprocess.run(["true"], preexec_fn=lambda: in_child()).returncode)
        await blocked(0.1)
        return before, codes, [str(each.message) for each in warned]

    before, codes, warned = runner(sys.argv[2])(main())
    agent.flush(10)
    say(before=before, same=until(lambda: set(before) <= set(agent_threads())), codes=codes, warned=warned,
        twice=[name for name in agent_threads() if agent_threads().count(name) > 1], stalls=len(agent.stalls()),
        faults=dict(agent.snapshot().agent.faults), url=agent.snapshot().agent.prometheus)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread that ends is counted for a while")
@pytest.mark.parametrize("kind", LOOPS)
def test_a_fork_of_a_program_without_threads(kind: str, tmp_path: Path) -> None:
    """With everything on no fork warns, no child has a second thread, and each thread of the agent is back once."""
    found = succeeded(ALONE, tmp_path, kind, "--patient")
    assert found["warned"] == [] and found["codes"] == [0] * 6
    assert {"loopwatch-watcher", "loopwatch-export", "loopwatch-scrape"} <= set(found["before"])
    assert found["same"] and found["twice"] == [] and found["faults"] == {}
    assert found["stalls"] >= 2, "blocks before and after were found"


REFUSED = """
    import resource
    import loopwatch
    quiet()
    os.register_at_fork(after_in_parent=lambda: resource.setrlimit(resource.RLIMIT_NPROC, limits))
    agent = loopwatch.install(threshold=0.05, cpu_budget=1.0)

    async def main():
        await blocked(0.1)
        agent._parts.sinks.flush(10)
        before = sorted(thread.name for thread in threading.enumerate())
        resource.setrlimit(resource.RLIMIT_NPROC, (0, limits[1]))
        try:
            pid = os.fork()
        except BlockingIOError:
            pid = -1
        if not pid:
            os._exit(0)
        await blocked(0.1)
        return pid, before

    limits = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.getuid() == 0:
        os.setuid(65534)  # the user nobody: the limit does not apply to root
    pid, before = asyncio.run(main())
    agent.flush(10)
    after = sorted(thread.name for thread in threading.enumerate())
    say(pid=pid, before=before, back=set(before) <= set(after), stalls=len(agent.stalls()),
        faults=dict(agent.snapshot().agent.faults))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of processes that forks obey")
def test_a_fork_that_fails(tmp_path: Path) -> None:
    """``os.fork`` raises as it does without the agent, and the agent keeps working."""
    found = succeeded(REFUSED, tmp_path)
    assert found["pid"] == -1 and "loopwatch-watcher" in found["before"]
    assert found["back"] and found["stalls"] >= 2 and found["faults"] == {}


BUSY = (
    EVERYTHING
    + """
    called, resume = threading.Event(), threading.Event()
    agent.on_stall(lambda stall: (called.set(), resume.wait(30)))

    async def main():
        await blocked(0.1)
        while not called.is_set():
            await asyncio.sleep(0.01)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            began = time.perf_counter()
            line = sys._getframe().f_lineno; pid = os.fork()
            if not pid:
                in_child()
            took = time.perf_counter() - began
        code = ended(pid)
        resume.set()
        await blocked(0.1)
        return code, took, [[each.filename, each.lineno] for each in warned], line

    code, took, warned, line = asyncio.run(main())
    flushed = agent.flush(20)
    say(code=code, took=took, warned=warned, line=line, flushed=flushed, stalls=len(agent.stalls()),
        faults=dict(agent.snapshot().agent.faults))
"""
)


def test_a_slow_sink_does_not_delay_a_fork(tmp_path: Path) -> None:
    """A callback that does not return delays no fork; its thread stays, and the warning names the fork's line."""
    found = succeeded(BUSY, tmp_path)
    assert found["code"] == 0 and found["took"] < 5
    assert found["warned"] == ([["<string>", found["line"]]] if sys.version_info >= (3, 12) else [])
    assert found["flushed"] and found["stalls"] >= 2 and found["faults"] == {}


SLOW_FORK = """
    os.register_at_fork(before=lambda: nap(0.4))  # runs after the agent's hook
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)

    def forks():
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    async def long():
        await asyncio.sleep(0.2)
        forks()
        await asyncio.sleep(0.2)

    async def amid():
        await asyncio.sleep(0.2)
        nap(0.2), forks(), nap(0.2)
        await asyncio.sleep(0.2)

    for each in (long, amid):
        runner(sys.argv[2])(each())
    agent.flush(10)
    stalls = [[stall.duration, str(stall.culprit), str(stall.leaf), stall.cause.value] for stall in agent.stalls()]
    say(stalls=stalls, faults=dict(agent.snapshot().agent.faults))
"""


@pytest.mark.parametrize("kind", LOOPS)
def test_a_block_during_a_fork_is_found(kind: str, tmp_path: Path) -> None:
    """A slow fork on the loop's thread is found with its culprit, although the watcher is stopped during it."""
    found = succeeded(SLOW_FORK, tmp_path, kind)
    assert len(found["stalls"]) == 2 and found["faults"] == {}
    (long, culprit, leaf, cause), (amid, *_) = found["stalls"]
    assert 0.4 <= long < 5 and 0.8 <= amid < 10
    assert culprit == leaf and culprit.startswith("forks ")
    assert cause != "lock", "the lock waited for at the end is of the agent's own thread"


IMPORTS = (
    EVERYTHING
    + """
    import concurrent.futures
    warnings.simplefilter("ignore", DeprecationWarning)  # of the thread of the program's own pool

    watching, seen = [False], []
    WATCHED = {"import", "open", "_thread.start_new_thread", "_thread.start_joinable_thread", "socket.bind", "exec"}

    def audit(event, args):
        if watching[0] and event in WATCHED:
            frame, stack = sys._getframe(1), []
            while frame is not None:
                stack.append(frame.f_code.co_filename)
                frame = frame.f_back
            # What other threads do meanwhile does not matter.
            if threading.get_ident() == main_thread:
                seen.append([os.getpid(), event, str(args)[:80], stack[:8]])

    main_thread = threading.get_ident()
    sys.addaudithook(audit)

    async def main():
        await blocked(0.1)
        await asyncio.sleep(0.3)
        reader, writer = os.pipe()
        for _ in range(3):
            watching[0] = True
            pid = original() if sys.argv[2] == "original" else os.fork()
            if not pid:
                watching[0] = False
                own = [each for each in seen if each[0] == os.getpid()]
                os.write(writer, json.dumps(own).encode() + b"\\n")
                os._exit(0)
            watching[0] = False
            ended(pid)
            await asyncio.sleep(0.05)
        return [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]

    original = os.fork.__wrapped__
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(len, "abc").result()
        children = asyncio.run(main())
    say(children=children, parent=[each for each in seen if not each[1].startswith("_thread.")],
        faults=dict(agent.snapshot().agent.faults))
"""
)


@pytest.mark.parametrize("how", ["patched", "original"])
def test_nothing_is_imported_around_a_fork(how: str, tmp_path: Path) -> None:
    """With everything on nothing is imported, opened or bound around ``os.fork``, neither in parent nor in child.

    In the child no thread is started either, by the agent or by the OpenTelemetry packages that it uses.
    """
    found = succeeded(IMPORTS, tmp_path, how, "--patient")
    assert found == {"children": [[], [], []], "parent": [], "faults": {}}


HOT = (
    EVERYTHING
    + """
    import pathlib, shutil
    warnings.simplefilter("ignore", DeprecationWarning)
    folder = pathlib.Path(sys.argv[1], "modules")
    folder.mkdir()
    for number in range(40):
        (folder / f"of_the_test_{number}.py").write_text("import time; time.sleep(0.002)", encoding="utf-8")
    sys.path.insert(0, str(folder))
    stop = threading.Event()

    def imports(names):
        import importlib
        while not stop.is_set():
            for name in names:
                sys.modules.pop(name, None)
                importlib.import_module(name)
                if stop.is_set():
                    return

    # Modules of the program, and modules that parts of the agent may import.
    own = [f"of_the_test_{number}" for number in range(40)]
    groups = [own[:20], own[20:], ["colorsys"], ["_pyio", "json.tool"]]
    threads = [threading.Thread(target=imports, args=(names,)) for names in groups]

    async def main():
        await blocked(0.1)
        for thread in threads:
            thread.start()
        pids, codes = [], []
        for number in range(int(sys.argv[2])):
            pid = os.fork()
            if not pid:
                in_child()
            pids.append(pid)
            await asyncio.sleep(0.002)
        deadline = time.monotonic() + 20
        while pids and time.monotonic() < deadline:
            for pid in list(pids):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes.append(os.waitstatus_to_exitcode(status))
                    pids.remove(pid)
            await asyncio.sleep(0.002)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            codes.append("hung")
        return codes

    codes = asyncio.run(main())
    stop.set()
    for thread in threads:
        thread.join()
    say(codes={str(code): codes.count(code) for code in set(codes)}, faults=dict(agent.snapshot().agent.faults))
"""
)


def test_forks_while_threads_import(tmp_path: Path) -> None:
    """Children forked while other threads import all end at once, as the agent imports nothing in them."""
    times = 60
    assert succeeded(HOT, tmp_path, times, "--patient") == {"codes": {"0": times}, "faults": {}}


NO_LOOP = (
    EVERYTHING
    + """
    pid = os.fork()
    if not pid:
        agent = loopwatch.current_agent()
        quiet_child = (agent_threads(), agent.snapshot().agent.state, agent.snapshot().agent.prometheus)
        asyncio.run(blocked(0.1))
        good = quiet_child == ([], "waiting", "") and "loopwatch-watcher" in agent_threads()
        os._exit(0 if good and agent.flush(10) and agent.stalls() else 1)
    code = ended(pid)
    say(code=code, faults=dict(agent.snapshot().agent.faults))
"""
)


def test_a_child_starts_its_agent_with_its_first_loop(tmp_path: Path) -> None:
    """A child has no thread, file or port of the agent until it runs a loop; then it has an agent of its own."""
    assert succeeded(NO_LOOP, tmp_path, "--patient") == {"code": 0, "faults": {}}

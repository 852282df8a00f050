"""A process ends as it would without the agent, and a hang in which it is killed leaves its stack on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import time
from pathlib import Path

import pytest
from hostproc import finish, journals, program, start, succeeded

from loopwatch import Stall
from loopwatch.core.patches import PatchSet
from loopwatch.report.reader import read_journals
from loopwatch.sinks.files import hang_path, journal_path
from loopwatch.sinks.hang_file import hang_header
from loopwatch.sinks.hang_timer import HangTimer, leftover_hangs

pytestmark = pytest.mark.measures

LOOPS = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") is not None else [])

WITH_OR_WITHOUT = """
    import atexit
    quiet()
    run = runner(sys.argv[2])
    if sys.argv[1] == "on":
        import loopwatch
        loopwatch.install(threshold=0.05, hang_after=0.1, journal=sys.argv[3], cpu_budget=1.0)

    def later(action, *args):
        thread = threading.Timer(0.15, action, args)
        thread.daemon = True
        thread.start()

    async def stall_with(action, *args):
        await asyncio.sleep(0.06)
        later(action, *args)
        nap(0.4)
"""

ENDS = {
    "after_a_stall": "run(blocked(0.1))",
    "in_a_stall": """
    async def main():
        await asyncio.sleep(0.06)
        nap(0.1)
    run(main())
    sys.exit(3)
    """,
    "sys_exit_in_a_callback": """
    async def main():
        def leave():
            nap(0.1)
            sys.exit(4)
        asyncio.get_running_loop().call_later(0.06, leave)
        await asyncio.sleep(5)
    run(main())
    """,
    "sys_exit_in_a_task": """
    async def main():
        await asyncio.sleep(0.06)
        nap(0.1)
        sys.exit(5)
    run(main())
    """,
    "exception": """
    async def main():
        await blocked(0.1)
        raise ValueError("the program's own")
    run(main())
    """,
    "os_exit_in_a_stall": "run(stall_with(os._exit, 6))",
    "sigterm_in_a_stall": "run(stall_with(os.kill, os.getpid(), signal.SIGTERM))",
    "sigkill_in_a_stall": "run(stall_with(os.kill, os.getpid(), signal.SIGKILL))",
    "sigterm_turned_into_sys_exit": """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    run(stall_with(os.kill, os.getpid(), signal.SIGTERM))
    """,
    "keyboard_interrupt": "run(stall_with(os.kill, os.getpid(), signal.SIGINT))",
    "keyboard_interrupt_with_an_executor": """
    async def main():
        await asyncio.to_thread(os.getpid)
        await stall_with(os.kill, os.getpid(), signal.SIGINT)
    run(main())
    """,
    "keyboard_interrupt_without_a_stall": """
    async def main():
        await asyncio.to_thread(os.getpid)
        later(os.kill, os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)
    run(main())
    """,
    "keyboard_interrupt_that_is_caught": """
    async def main():
        later(os.kill, os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)
    try:
        run(main())
    except KeyboardInterrupt:
        sys.exit(9)
    """,
    "daemon_thread_with_a_loop": """
    threading.Thread(target=lambda: run(blocked(30)), daemon=True).start()
    time.sleep(0.4)
    sys.exit(8)
    """,
    "daemon_thread_with_a_busy_loop": """
    async def busy():
        while True:
            nap(0.06)
            await asyncio.sleep(0)
    threading.Thread(target=lambda: run(busy()), daemon=True).start()
    time.sleep(0.4)
    """,
    "loop_in_an_atexit_handler": """
    atexit.register(lambda: run(blocked(0.1)))
    """,
    "loop_in_an_atexit_handler_after_another": """
    atexit.register(lambda: run(blocked(0.1)))
    run(blocked(0.1))
    """,
    "loop_left_open": """
    import warnings
    warnings.simplefilter("ignore", ResourceWarning)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(blocked(0.1))
    """,
}


def without_addresses(text: str) -> str:
    """Return a traceback without addresses and line numbers, which differ from run to run."""
    return re.sub(r"0x[0-9a-f]+|line \d+", "", text)


ON_UVLOOP = ("in_a_stall", "sys_exit_in_a_callback", "sigterm_in_a_stall", "keyboard_interrupt", "loop_left_open")


@pytest.mark.parametrize(
    ("end", "kind"), [(end, kind) for end in ENDS for kind in LOOPS if kind == "asyncio" or end in ON_UVLOOP]
)
def test_ends_as_without_the_agent(end: str, kind: str, tmp_path: Path) -> None:
    """Exit code and standard error are the same with and without the agent, a journal and a hang timer."""
    source = WITH_OR_WITHOUT + ENDS[end]
    both = [start(source, switch, kind, tmp_path) for switch in ("off", "on")]
    off, on = (finish(process, 20) for process in both)
    assert on.code == off.code
    assert without_addresses(on.err) == without_addresses(off.err)
    assert "loopwatch" not in on.err


@pytest.mark.parametrize(("where", "seconds"), [("callback", 3600), ("handler", 1.5)])
def test_a_slow_sink_does_not_keep_the_process_alive(where: str, seconds: float) -> None:
    """Neither an on_stall callback that never returns nor a slow log handler keeps the process from ending.

    A handler that never returns cannot be helped: logging.shutdown() itself waits for its lock.
    """
    source = """
        import logging, loopwatch
        entered = threading.Event()

        def block(*_):
            entered.set()
            time.sleep(float(sys.argv[2]))

        class Handler(logging.Handler):
            emit = block

        quiet()
        if sys.argv[1] == "handler":
            logging.getLogger("loopwatch").addHandler(Handler())
        loopwatch.install(threshold=0.05, on_stall=block if sys.argv[1] == "callback" else None)
        asyncio.run(blocked(0.1))
        say(entered=entered.wait(10))
        sys.exit(9)
    """
    ended = program(source, where, seconds, deadline=20)
    assert (ended.code, ended.err, ended.last) == (9, "", {"entered": True})


# --------------------------------------------------------------------------------------------------- hangs

STUCK = """
    import loopwatch
    loopwatch.install(threshold=0.1, hang_after=1.0, journal=sys.argv[1])

    def catastrophic():
        re.match(r"(a+)+$", "a" * 40 + "b")

    async def main():
        await asyncio.sleep(0.3)
        say(ready=True)
        catastrophic()

    runner(sys.argv[2])(main())
"""


@pytest.mark.parametrize("kind", LOOPS)
def test_a_killed_hang_is_reported_at_the_next_start(kind: str, tmp_path: Path) -> None:
    """The frames of a hang are on disk while it lasts, survive kill -9, and are reported at the next start.

    The hang file has mode 0600. Its content is in the journal and log of the next process once.
    """
    process = start(STUCK, tmp_path, kind)
    path = hang_path(str(tmp_path), process.pid)
    deadline = time.monotonic() + 20
    while not (path.exists() and "catastrophic" in path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "it has to hang until it is killed"
    process.kill()
    finish(process)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (dump,) = read_journals(str(tmp_path)).hangs
    assert (dump.loop, dump.pid) == ("main", process.pid)
    assert "catastrophic" in [frame.function for frame in dump.frames]

    source = """
        import logging, loopwatch
        logging.basicConfig(stream=sys.stdout, format='{"line": "%(message)s"}')
        loopwatch.install(journal=sys.argv[1], hang_after=1.0)
        loopwatch.uninstall()
    """
    lines = [program(source, tmp_path).out for _ in range(2)]
    assert len(lines[0]) == 1
    assert lines[1] == []
    assert f"process {process.pid} ended while its loop" in lines[0][0]["line"]
    assert not path.exists()
    contents = read_journals(str(tmp_path))
    reported = [stall for stall in contents.stalls if stall.pid == process.pid]
    assert contents.hangs == ()
    assert len(reported) == 1
    assert reported[0].ongoing
    assert "catastrophic" in [frame.function for frame in reported[0].stack]


@pytest.mark.long
@pytest.mark.parametrize("kind", LOOPS)
def test_a_hang_that_ends(kind: str, tmp_path: Path) -> None:
    """After a hang in C code that has ended, the hang file has only its header, and the stall has its culprit.

    The block is an operator: a sample taken after it shows only the loop's internals, but the dump shows the line.
    """
    source = """
        import loopwatch
        quiet()

        def searching(haystack, needle):
            return needle in haystack

        haystack, needle = [1.0] * 10_000_000, 2.0
        began = time.monotonic()
        searching(haystack, needle)
        haystack *= int(1.6 / max(time.monotonic() - began, 0.01)) + 1
        agent = loopwatch.install(threshold=0.1, hang_after=0.4, journal=sys.argv[1])

        async def search():
            searching(haystack, needle)

        async def main():
            await asyncio.sleep(0.4)
            await asyncio.create_task(search())
            await asyncio.sleep(0.3)

        runner(sys.argv[2])(main())
        agent.flush(10)
        stall = max(agent.stalls(), key=lambda stall: stall.duration)
        hang = agent._parts.sinks.local.hang.path.read_text().splitlines()
        say(lines=len(hang), header=hang[0], armed=agent._parts.sinks.local.hang._armed, ongoing=stall.ongoing,
            culprit=stall.culprit and stall.culprit.function, duration=stall.duration)
    """
    found = succeeded(source, tmp_path, kind)
    assert found["duration"] > 0.5
    assert found["culprit"] == "searching"
    assert found["lines"] == 1
    assert json.loads(found["header"])["schema"] == "loopwatch.hang/1"
    assert journals(tmp_path, ".hang") == {}


@pytest.mark.parametrize("first", ["program", "agent"])
def test_the_timer_of_the_program_is_respected(first: str, tmp_path: Path) -> None:
    """Once the program uses faulthandler's timer the agent leaves it alone, and it fires into the program's file."""
    source = """
        import faulthandler, loopwatch
        quiet()
        own = open(sys.argv[1] + "/own", "w+")

        async def main():
            agent = loopwatch.install(threshold=0.1, hang_after=0.2, journal=sys.argv[1])
            if sys.argv[2] == "agent":
                while not agent._parts.sinks.local.hang._armed:
                    await asyncio.sleep(0.02)
            faulthandler.dump_traceback_later(1.0, file=own)
            await asyncio.sleep(1.5)
            hang = agent._parts.sinks.local.hang
            say(size=os.fstat(own.fileno()).st_size, armed=hang._armed, yielded=hang._yielded)
            faulthandler.dump_traceback_later(1.0, file=own)
            size = os.fstat(own.fileno()).st_size
            loopwatch.uninstall()
            await asyncio.sleep(1.3)
            say(later=os.fstat(own.fileno()).st_size - size)

        asyncio.run(main())
    """
    ended = program(source, tmp_path, first)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out[0]["size"] > 0
    assert ended.out[0]["yielded"]
    assert ended.out[1]["later"] > 0


def leave_a_hang(setting: str, pid: int) -> Path:
    """Write the file that a process killed in a hang leaves behind."""
    path = hang_path(setting, pid)
    dump = (
        'Timeout (0:00:02)!\nThread 0x00000000000000ff (most recent call first):\n  File "/srv/app.py", line 3 in f\n'
    )
    path.write_text(hang_header(pid, {255: "main"}) + dump)
    return path


def dead_pid() -> int:
    """Return the pid of a process that has ended."""
    process = start("")
    finish(process)
    return process.pid


@pytest.mark.parametrize("name", ["app", "app.0.x", "v[1].0.2", "a*b"])
def test_leftovers_are_found_under_every_name(name: str, tmp_path: Path) -> None:
    """Leftover hang files are found even if the journal's name has pattern characters or looks like a process id."""
    setting, pid = str(tmp_path / f"{name}.jsonl"), dead_pid()
    path = leave_a_hang(setting, pid)
    other = leave_a_hang(str(tmp_path / "someone_else.jsonl"), pid)
    found = leftover_hangs(setting, 2.0)
    assert [(stall.pid, stall.leaf.function if stall.leaf else None) for stall in found] == [(pid, "f")]
    assert not path.exists()
    assert other.exists()
    assert leftover_hangs(setting, 2.0) == []


def test_leftovers_of_living_processes_are_left_alone(tmp_path: Path) -> None:
    """The hang file of a living process is neither reported nor removed."""
    path = leave_a_hang(str(tmp_path), os.getppid())
    assert leftover_hangs(str(tmp_path), 2.0) == []
    assert path.exists()


def test_leftovers_follow_no_symbolic_link(tmp_path: Path) -> None:
    """A symbolic link in place of a leftover is neither read nor followed nor removed."""
    pid = dead_pid()
    target = tmp_path / "target"
    leave_a_hang(str(tmp_path), pid).rename(target)
    connection = hang_path(str(tmp_path), pid)
    connection.symlink_to(target)
    assert leftover_hangs(str(tmp_path), 2.0) == []
    assert connection.is_symlink()
    assert target.read_text()


def test_the_hang_file_follows_no_symbolic_link(tmp_path: Path) -> None:
    """A symbolic link in place of the hang file turns the hang timer off; its target is untouched, the rest works."""
    source = """
        import logging, loopwatch
        from loopwatch.sinks.hang_timer import hang_path
        logging.basicConfig(stream=sys.stdout, format='{"line": "%(message)s"}')
        target = sys.argv[1] + "/target"
        with open(target, "w") as file:
            file.write("precious")
        os.symlink(target, hang_path(sys.argv[1], os.getpid()))
        agent = loopwatch.install(threshold=0.05, hang_after=0.2, journal=sys.argv[1], log_level="DEBUG")
        asyncio.run(blocked(0.3))
        agent.flush()
        say(target=open(target).read(), faults=[*agent.snapshot().agent.faults],
            found=max(agent.stalls(), key=lambda stall: stall.duration).culprit.function)
    """
    ended = program(source, tmp_path)
    assert ended.last == {"target": "precious", "faults": ["hang"], "found": "nap"}
    assert len([line for line in ended.out if "its hang failed (" in line.get("line", "")]) == 1


def test_the_hang_file_is_no_hard_link(tmp_path: Path) -> None:
    """A hard link in place of the hang file is rejected, and leftovers are not read through hard links."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    timer = HangTimer(str(tmp_path), 2.0, PatchSet())
    timer.path.hardlink_to(precious)
    with pytest.raises(PermissionError, match="hard link to a file that has 2 names"):
        timer._begin({1: "main"})  # pytest uses the timer itself
    timer.close()
    assert precious.read_text() == "precious"
    assert timer.path.exists()
    pid = dead_pid()
    (tmp_path / "second").hardlink_to(leave_a_hang(str(tmp_path), pid))
    assert leftover_hangs(str(tmp_path), 2.0) == []
    assert hang_path(str(tmp_path), pid).exists()


def test_eight_workers_that_start_together_report_a_leftover_once(tmp_path: Path) -> None:
    """Of several processes that find the same leftover at once, one reports it and none fails."""
    pid = dead_pid()
    leave_a_hang(str(tmp_path), pid)
    source = """
        import loopwatch
        quiet()
        while not os.path.exists(sys.argv[1] + "/go"):
            time.sleep(0.001)
        agent = loopwatch.install(journal=sys.argv[1])
        say(faults=dict(agent.snapshot().agent.faults))
    """
    workers = [start(source, tmp_path) for _ in range(8)]
    (tmp_path / "go").touch()
    ended = [finish(worker) for worker in workers]
    assert [worker.last for worker in ended] == [{"faults": {}}] * 8
    reported: list[Stall] = []
    for worker in workers:
        path = journal_path(str(tmp_path), worker.pid)
        reported += read_journals(str(path)).stalls if path.exists() else ()
    assert [stall.pid for stall in reported] == [pid]


def test_signals_reach_the_program(tmp_path: Path) -> None:
    """The agent changes no signal handler, wake-up descriptor or interval timer."""
    source = """
        import loopwatch
        quiet()
        numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
        before = [signal.getsignal(number) for number in numbers]
        loopwatch.install(threshold=0.05, journal=sys.argv[1])
        asyncio.run(blocked(0.1))
        say(same=[signal.getsignal(number) for number in numbers] == before,
            wakeup=signal.set_wakeup_fd(-1), timer=signal.getitimer(signal.ITIMER_REAL))
    """
    assert succeeded(source, tmp_path) == {"same": True, "wakeup": -1, "timer": [0.0, 0.0]}

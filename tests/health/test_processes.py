"""Facts about real processes, and which of them the kernel's out-of-memory killer ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests_of_pools import until

from loopwatch.health.children.hooks import peek
from loopwatch.health.children.processes import STILL, Processes
from loopwatch.system import cgroup
from loopwatch.system.cgroup import Oom

NOTHING = "import sys; sys.stdin.read()"
SPIN = "while True: pass"
READ = "import os\nwhile True: os.read(0, 1)"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that are killed and reaped at the end of the test."""
    with contextlib.ExitStack() as stack:

        def popen(code: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE)

            def end() -> None:
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()

            stack.callback(end)
            return process

        yield popen


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def settled(polled: Processes, pid: int, clock: Clock) -> None:
    """Poll until a process blocks in a read."""

    def is_at_rest() -> bool:
        before = polled.facts[pid].cpu if pid in polled.facts else None
        clock.now += 1
        polled.poll([pid])
        clock.now += 1
        polled.poll([pid])
        facts = polled.facts[pid]
        return facts.cpu == before and facts.state == "S" and facts.moved_at != clock.now

    until(is_at_rest)


def test_a_living_process(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Memory, unique memory, processor time, name and start time of a process are plausible."""
    began = time.time()
    process = start(NOTHING)
    polled = Processes()
    polled.poll([process.pid])
    facts = polled.facts[process.pid]
    assert facts.alive and not facts.zombie and facts.exitcode is None
    until(lambda: polled.poll([process.pid]) and (polled.facts[process.pid].memory or 0) > 1 << 20)
    facts = polled.facts[process.pid]
    assert facts.memory is not None and 1 << 20 < facts.memory < 1 << 28
    assert facts.unique is not None and facts.unique >= 0
    assert facts.cpu is not None and 0 <= facts.cpu < 10
    assert facts.name.startswith("python")
    assert facts.started_at is not None and abs(facts.started_at - began) < 60


def test_a_waiting_process_makes_no_progress(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``moved_at`` of a waiting process stays the same, and after a while the function it waits in is known."""
    clock, process = Clock(), start(NOTHING)
    polled = Processes(clock=clock)
    settled(polled, process.pid, clock)
    moved_at = polled.facts[process.pid].moved_at
    clock.now += STILL + 1
    polled.poll([process.pid])
    facts = polled.facts[process.pid]
    assert facts.moved_at == moved_at and moved_at is not None
    assert facts.at - moved_at >= STILL
    if Path(f"/proc/{process.pid}/wchan").exists():
        assert facts.waits_in is None or facts.waits_in.isidentifier()


def test_computing_is_progress(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``moved_at`` advances with a process's processor time."""
    clock, process = Clock(), start(SPIN)
    polled = Processes(clock=clock)
    polled.poll([process.pid])

    def has_moved() -> bool:
        clock.now += 1
        polled.poll([process.pid])
        return polled.facts[process.pid].moved_at == clock.now

    for _ in range(3):
        until(has_moved)


@pytest.mark.skipif(sys.platform != "linux", reason="I/O of other processes is counted on Linux")
def test_io_is_progress(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``moved_at`` advances when a process reads, although its processor time hardly does."""
    clock, process = Clock(), start(READ)
    assert process.stdin is not None
    polled = Processes(clock=clock)
    settled(polled, process.pid, clock)
    cpu, io = polled.facts[process.pid].cpu, Path(f"/proc/{process.pid}/io")
    before = io.read_text()
    process.stdin.write(b"x")
    process.stdin.flush()
    until(lambda: io.read_text() != before)
    clock.now += 1
    polled.poll([process.pid])
    facts = polled.facts[process.pid]
    assert facts.moved_at == clock.now
    assert facts.cpu is not None and cpu is not None and facts.cpu - cpu < 0.05


def test_a_zombie_can_still_be_waited_for(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A zombie's exit code is known and still available to the program's own wait."""
    process = start("import os; os._exit(7)")
    polled = Processes()
    until(lambda: polled.poll([process.pid]) and polled.facts[process.pid].zombie)
    facts = polled.facts[process.pid]
    assert (facts.alive, facts.exitcode, facts.state, facts.oom_killed) == (False, 7, "Z", False)
    polled.poll([process.pid])
    assert polled.facts[process.pid].oom_killed is False
    assert process.wait() == 7


def test_a_zombie_that_the_system_does_not_show(
    start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie that cannot be read, as on macOS, keeps the facts known before."""
    process = start(NOTHING)
    polled = Processes()
    polled.poll([process.pid])
    name = polled.facts[process.pid].name

    def refuse(self: psutil.Process) -> str:
        raise psutil.ZombieProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "status", refuse)
    polled.poll([process.pid])
    facts = polled.facts[process.pid]
    assert (facts.alive, facts.zombie, facts.state, facts.name) == (False, True, "Z", name)


def test_a_process_that_is_gone(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A reaped process keeps its last facts, with the exit code that the program got."""
    process = start(NOTHING)
    polled = Processes(exit_of=lambda pid: process.returncode)
    polled.poll([process.pid])
    process.send_signal(signal.SIGSEGV)
    process.wait()
    polled.poll([process.pid])
    facts = polled.facts[process.pid]
    assert (facts.alive, facts.zombie, facts.exitcode, facts.oom_killed) == (False, False, -signal.SIGSEGV, False)
    polled.poll([])
    assert polled.facts == {}


def test_a_reused_pid(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A process with the pid of an ended one is distinguished from it by its start time."""
    process = start(NOTHING)
    polled = Processes()
    polled.poll([process.pid])
    polled._known[process.pid]._create_time -= 100  # as if it had been another one
    polled._known[process.pid]._ident = (process.pid, polled._known[process.pid]._create_time)
    polled.poll([process.pid])
    assert not polled.facts[process.pid].alive
    polled.forget([process.pid])
    polled.poll([process.pid])
    assert polled.facts[process.pid].alive


def test_a_poll_ends_at_its_deadline(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Processes that a poll did not reach keep their last facts."""
    clock, processes = Clock(), [start(NOTHING) for _ in range(2)]
    polled = Processes(clock=clock)
    pids = [process.pid for process in processes]
    polled.poll(pids)
    clock.now += 1
    assert not polled.poll(pids, until=clock.now - 0.5)
    assert [polled.facts[pid].at for pid in pids] == [1000.0, 1000.0]


def test_unique_memory_is_read_rarely(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Unique memory is read for one process a poll, and once a minute at most, as the kernel walks all pages."""
    clock, processes = Clock(), [start(NOTHING) for _ in range(3)]
    polled = Processes(clock=clock)
    pids = [process.pid for process in processes]
    known = []
    for _ in range(3):
        polled.poll(pids)
        known.append(sum(polled.facts[pid].unique is not None for pid in pids))
        clock.now += 10
    assert known == [1, 2, 3]
    read = dict(polled._unique_at)
    polled.poll(pids)
    assert polled._unique_at == read


def test_peek_does_not_reap() -> None:
    """An exit status can be read repeatedly before the child is reaped, and not afterwards."""
    pid = os.fork()
    if pid == 0:
        os._exit(9)
    until(lambda: peek(pid) is not None)
    assert (peek(pid), peek(pid)) == (9, 9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert peek(pid) is None


# -- out of memory --------------------------------------------------------------------------------------------------


def tree(root: Path, version: int, kills: int, members: list[int]) -> None:
    """Write the files that the kernel would show for this process's control group."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    if version == 2:
        group, counts = root / "sys/fs/cgroup/app", f"low 0\nhigh 0\nmax 3\noom {kills}\noom_kill {kills}\n"
        (root / "proc/self/cgroup").write_text("0::/app\n")
        name = "memory.events"
    else:
        group, counts = root / "sys/fs/cgroup/memory/app", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
        (root / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/app\n0::/\n")
        name = "memory.oom_control"
    group.mkdir(parents=True, exist_ok=True)
    (group / name).write_text(counts)
    (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in members))


@pytest.mark.parametrize("version", [1, 2])
def test_kills_by_the_kernel(tmp_path: Path, version: int) -> None:
    """A process was killed if the group's counter grew by as many as are gone; if by fewer, that is unknown."""
    tree(tmp_path, version, 1, [10, 11, 12, 13])
    oom = Oom(tmp_path)
    assert oom.killed(frozenset({11})) is False
    tree(tmp_path, version, 2, [10, 12, 13])
    assert oom.killed(frozenset({11})) is True
    tree(tmp_path, version, 2, [10, 12])  # 13 is gone as well, and is not a child of this process
    assert oom.killed(frozenset({11})) is None
    tree(tmp_path, version, 3, [10, 12])  # both were killed
    assert oom.killed(frozenset({11})) is True
    oom.begin(oom.look())
    assert oom.killed(frozenset({12})) is False


def test_kills_without_a_counter(tmp_path: Path) -> None:
    """Without a counter of the kernel it is unknown whether a process was killed."""
    assert Oom(tmp_path).killed(frozenset({11})) is None
    assert cgroup.counts_kills(tmp_path) is None


V1 = "sys/fs/cgroup/cpu/app"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/app/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/app/cpu.max": "max 100000\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({f"{V1}/cpu.cfs_quota_us": "25000", f"{V1}/cpu.cfs_period_us": "100000"}, 0.25),
        ({f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_usable_cpus(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """The usable processors are the affinity, or the quota of the group or a parent group if that is less."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/app\n0::/app\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    affinity = float(len(os.sched_getaffinity(0)))
    usable = affinity if quota is None else min(quota, affinity)
    assert cgroup.usable_cpus(tmp_path) == (usable, affinity)


HOG = "x = bytearray(400 << 20); x[::4096] = b'x' * len(x[::4096])"


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A real control group with 50 MB; the test is skipped where none can be made."""
    memory = Path("/sys/fs/cgroup/memory")
    group = memory / f"loopwatch-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(50 << 20))
        (group / "memory.oom_control").read_text()
    except OSError as exc:
        pytest.skip(f"no control group of version 1 can be made here: {exc}")
    try:
        with contextlib.suppress(OSError):
            (group / "memory.memsw.limit_in_bytes").write_text(str(50 << 20))
        yield group
    finally:
        until(lambda: not cgroup.members(group))
        group.rmdir()


def test_a_real_out_of_memory_kill(small_group: Path) -> None:
    """A child that allocates 400 MB in a group of 50 MB was killed by the kernel; a plain kill is distinguished."""
    program = f"""
import os, subprocess, sys
from pathlib import Path
Path({str(small_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
from loopwatch.health.children.processes import Processes
polled = Processes()
for code in ("import time; time.sleep(60)", {HOG!r}):
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
    polled.poll([child.pid])
    if "sleep" in code:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    polled.poll([child.pid])
    print(polled.facts[child.pid].exitcode, polled.facts[child.pid].oom_killed)
    child.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["-9 False", "-9 True"], done.stderr


def test_an_out_of_memory_kill_is_counted_as_oom(small_group: Path) -> None:
    """A child killed by the kernel between two polls is counted as ``oom``, and one killed otherwise is not."""
    program = f"""
import os, subprocess, sys
from pathlib import Path
Path({str(small_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.config import Config
from loopwatch.health.monitor import Monitor
monitor = Monitor(lambda: Config(log_level="CRITICAL"), PatchSet(), Faults())
monitor.start()
monitor.poll_now()
for command in ((sys.executable, "-I", "-S", "-c", {HOG!r}), ("sh", "-c", "kill -KILL $$")):
    subprocess.Popen(command).wait()
    monitor.poll_now()
    print(monitor.readings()[0].stats.crashes)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["{'oom': 1}", "{'oom': 1, 'SIGKILL': 1}"], done.stderr


@pytest.mark.parametrize(
    "error",
    [psutil.AccessDenied(1), psutil.TimeoutExpired(1), OSError(24, "Too many open files"), ValueError("half a file")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("what", ["status", "cpu_times", "memory_info"])
def test_a_process_that_cannot_be_read_for_a_while(
    what: str, error: Exception, start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that cannot be read for a while keeps its facts and is read again later, and nothing is raised."""
    pid, polled = start(NOTHING).pid, Processes()
    polled.poll([pid])
    known = polled.facts[pid]
    assert known.memory

    def fails(_process: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(psutil._psplatform.Process, what, fails)
        polled.poll([pid])
        assert polled.facts[pid] is known
        fresh = Processes()
        fresh.poll([pid])
        assert (fresh.facts[pid].alive, fresh.facts[pid].memory) == (True, None)
    polled.poll([pid])
    assert polled.facts[pid] is not known
    assert polled.facts[pid].alive

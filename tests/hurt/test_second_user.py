"""Another user of the machine can neither read nor reach resources of the agent and the worker pools."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import psutil
import pytest
from hostproc import DEADLINE, finish, start

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs a second user, which only root can become"
)

NOBODY = 65534

VICTIM = """
    import loopwatch, operator
    from concurrent.futures import ProcessPoolExecutor
    quiet()
    os.umask(0)
    place, method = sys.argv[1:3]
    async def main():
        loopwatch.install(journal=place + "/journal.jsonl", threshold=0.05, hang_after=0.1, prometheus_port=0)
        shared = loopwatch.SharedBuffer(4096)
        shared[:6] = b"secret"
        async with loopwatch.WorkerPool(1, start_method=method) as pool:
            assert await pool.run(operator.getitem, shared, slice(0, 6)) == b"secret"
            with ProcessPoolExecutor(1) as executor:
                executor.submit(len, "ab").result()
                time.sleep(0.3)
                await asyncio.sleep(0.1)
                url = loopwatch.current_agent().snapshot().agent.prometheus
                say(port=int(url.rpartition(":")[2].partition("/")[0]))
                await asyncio.sleep(600)
    asyncio.run(main())
"""


def attack(pids: list[int], folder: Path) -> dict[str, Any]:
    """Try all ways that the system offers; return what was possible."""
    libc = ctypes.CDLL(None)
    possible: dict[str, Any] = {"opened": [], "taken": [], "traced": [], "killed": [], "connected": [], "read": []}
    for pid in pids:
        for what in ["environ", "mem", "maps", *(f"fd/{number}" for number in range(64))]:
            try:
                os.close(os.open(f"/proc/{pid}/{what}", os.O_RDONLY))
                possible["opened"].append((pid, what))
            except OSError:
                continue
        pidfd = os.pidfd_open(pid)
        for number in range(64):
            if libc.syscall(438, pidfd, number, 0) >= 0:  # pidfd_getfd(2)
                possible["taken"].append((pid, number))
        os.close(pidfd)
        if libc.ptrace(16, pid, None, None) == 0:  # PTRACE_ATTACH
            possible["traced"].append(pid)
        try:
            os.kill(pid, 0)
            possible["killed"].append(pid)
        except PermissionError:
            continue
    for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]:
        name = line.split(None, 7)[7:]
        if name and "loopwatch" in name[0]:
            for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
                with socket.socket(socket.AF_UNIX, kind) as client:
                    try:
                        client.connect(name[0].replace("@", "\0", 1))
                        possible["connected"].append(name[0])
                    except OSError:
                        continue
    for path in folder.iterdir():
        for flags in (os.O_RDONLY, os.O_WRONLY):
            try:
                os.close(os.open(path, flags))
                possible["read"].append(path.name)
            except OSError:
                continue
    return possible


def as_nobody(pids: list[int], folder: Path) -> dict[str, Any]:
    """Attack as another user, in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, json.dumps(attack(pids, folder)).encode())
        except BaseException:  # no code of pytest may run in this child
            os.write(writing, json.dumps({"failed": traceback.format_exc()}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_another_user_reaches_nothing(method: str) -> None:
    """Sockets, task boards, shared memory, journals and hang files of a program cannot be used by another user;
    only the port for Prometheus can be connected to."""
    with tempfile.TemporaryDirectory() as place:
        files = Path(place)
        files.chmod(0o755)  # only the modes of the files keep others out
        process = start(VICTIM, files, method)
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], DEADLINE)[0]
            port = json.loads(process.stdout.readline())["port"]
            victim = psutil.Process(process.pid)
            family = [victim, *victim.children(recursive=True)]
            assert len(family) >= 3
            assert {path.suffix for path in files.iterdir()} == {".jsonl", ".hang"}
            found = as_nobody([each.pid for each in family], files)
            assert {what: tries for what, tries in found.items() if tries} == {}
            listening = {
                each.laddr.port
                for one in family
                for each in one.net_connections("inet")
                if each.status == psutil.CONN_LISTEN
            }
            assert listening == {port}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            finish(process)

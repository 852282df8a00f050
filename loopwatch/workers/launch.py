"""Starts worker processes, by fork server or by spawning; never by forking the program itself. Blocking: use a thread.

Each worker gets three descriptors: its socket, the read end of its lifeline, and the memory in which it says which
call it has begun. All are close-on-exec in the parent, so that no other child of the program keeps them open.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loopwatch.errors import OffloadError
from loopwatch.workers.worker import SHARED_SIZE, STATUS

START_METHODS = ("forkserver", "spawn")

_HOME = str(Path(__file__).parent.parent.parent)
_SCRIPT = "import sys; sys.path.append({home!r}); from loopwatch.workers import worker; worker.{call}"


class Launched(NamedTuple):
    """A worker process that was started: its pid, our end of its socket, its lifeline, the shared memory."""

    pid: int
    channel: socket.socket
    lifeline: int
    shared: mmap.mmap


class Descriptors:
    """Both ends of what connects parent and worker; the worker's are closed once it has them."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        for end in (ours, self._theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        ours.setblocking(False)
        self._ours = ours
        self._read, self._lifeline = os.pipe()
        self._shared = _anonymous_file()
        os.ftruncate(self._shared, SHARED_SIZE)

    @property
    def theirs(self) -> list[int]:
        """The worker's descriptors, in the order in which ``worker.run`` takes them."""
        return [self._theirs.fileno(), self._read, self._shared]

    def launched(self, pid: int) -> Launched:
        """Keep our ends, for the worker that was started with the others."""
        memory = mmap.mmap(self._shared, SHARED_SIZE)
        self._close_theirs()
        return Launched(pid, self._ours, self._lifeline, memory)

    def close(self) -> None:
        """Close everything: no worker was started."""
        self._close_theirs()
        self._ours.close()
        os.close(self._lifeline)

    def _close_theirs(self) -> None:
        self._theirs.close()
        os.close(self._read)
        os.close(self._shared)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("loopwatch-worker")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _spawn(call: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = _SCRIPT.format(home=_HOME, call=call)
    return subprocess.Popen(
        [sys.executable, *flags, "-c", code], stdin=subprocess.DEVNULL, pass_fds=descriptors, close_fds=True
    )


class Spawner:
    """Starts each worker as a fresh interpreter: a child of this process."""

    def __init__(self, preload: Sequence[str] = ()) -> None:  # noqa: ARG002 - nothing to preload into
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.statuses: int | None = None

    def start(self) -> Launched:
        """Start a worker."""
        ends = Descriptors()
        try:
            process = _spawn(f"run({', '.join(map(str, ends.theirs))})", ends.theirs)
        except BaseException:
            ends.close()
            raise
        self._children[process.pid] = process
        return ends.launched(process.pid)

    def exit_code(self, pid: int) -> int | None:
        """Return how a worker ended (negative: by a signal), None while it has not; waits for nothing."""
        process = self._children.get(pid)
        code = process.poll() if process is not None else None
        if code is not None:
            del self._children[pid]
        return code

    def close(self) -> None:
        """Nothing: workers end by themselves."""


class ForkServer:
    """Starts workers as forks of a small process that has imported next to nothing, or what it was told to.

    Args:
        preload: names of modules that it imports before it forks, so that each worker has them at once.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = list(preload)
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._codes: dict[int, int] = {}
        self.statuses: int | None = None
        """Descriptor that is readable when a worker, or the server, has ended; None before the first start."""

    def _ensure(self) -> socket.socket:
        control = self._control
        if control is not None and self._server is not None and self._server.poll() is None:
            return control
        self.close()
        control, theirs = socket.socketpair()
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            call = f"serve_forks({theirs.fileno()}, {write}, {sys.path!r}, {self._preload!r})"
            self._server = _spawn(call, (theirs.fileno(), write))
        except BaseException:
            control.close()
            os.close(read)
            raise
        finally:
            theirs.close()
            os.close(write)
        self._control, self.statuses = control, read
        return control

    def start(self) -> Launched:
        """Start a worker, and the server first if it does not run."""
        control = self._ensure()
        ends = Descriptors()
        try:
            socket.send_fds(control, [b"f"], ends.theirs)
            answer = control.recv(4)
            if len(answer) < 4:
                raise OffloadError("the fork server ended before it had started a worker")
        except BaseException:
            ends.close()
            raise
        return ends.launched(struct.unpack("<i", answer)[0])

    def exit_code(self, pid: int) -> int | None:
        """Return how a worker ended (negative: by a signal), None if the server did not tell (yet)."""
        if self.statuses is not None:
            try:
                while told := os.read(self.statuses, STATUS.size * 64):
                    for ended, status in STATUS.iter_unpack(told):
                        self._codes[ended] = os.waitstatus_to_exitcode(status)
            except BlockingIOError:
                pass
        return self._codes.pop(pid, None)

    def close(self) -> None:
        """End the server; its workers end with it."""
        if self._control is not None:
            self._control.close()
        if self.statuses is not None:
            os.close(self.statuses)
        if self._server is not None:
            try:
                self._server.wait(1)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._control = self.statuses = self._server = None


def launcher(method: str, preload: Sequence[str]) -> Spawner | ForkServer:
    """Return what starts workers by ``method``."""
    return ForkServer(preload) if method == "forkserver" else Spawner(preload)


def main_data() -> dict[str, object]:
    """Return what a worker needs to import the program's ``__main__`` and what stands on its path."""
    from multiprocessing import spawn

    data: dict[str, object] = spawn.get_preparation_data("loopwatch-worker")
    for name in ("authkey", "log_to_stderr", "log_level", "start_method"):
        data.pop(name, None)
    return data


def main_is_importable() -> bool:
    """Whether a worker can import the program's ``__main__``; not so in notebooks, at a prompt, or after ``-c``."""
    main = sys.modules.get("__main__")
    return main is not None and (getattr(main, "__spec__", None) is not None or hasattr(main, "__file__"))


Launcher = Spawner | ForkServer

"""Starts worker processes, by fork server or by spawning; never by forking the program itself. Blocking: use a thread.

Each worker gets three descriptors: its socket, the read end of its lifeline, and the shared memory in which it records
which call it has begun. All are close-on-exec in the parent, and closed in its forked children, so that no other
process keeps them open.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loopwatch.core import memfd
from loopwatch.core.process_state import living
from loopwatch.errors import OffloadError
from loopwatch.workers.worker import SHARED_SIZE, STATUS

START_METHODS = ("forkserver", "spawn")
PATIENCE = 60.0
"""Seconds that the fork server may take to start a worker; it may have to import its ``preload`` modules first."""
ENDS_WITHIN = 1.0
"""Seconds in which a process ends after it was asked to, else it is killed."""

_HOME = str(Path(__file__).parent.parent.parent)
_SCRIPT = "import sys; sys.path[:] = {path!r}; from loopwatch.workers import worker; worker.{call}"
"""Sets the parent's ``sys.path``: ``-c`` alone would import a ``loopwatch`` in the current directory first."""


class Launched:
    """A worker process and the parent's ends of its socket, its lifeline, the shared memory and its pidfd.

    They are closed by :meth:`close`, or with the last reference; the kernel kills the worker then.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd: int | None = None
        with ExitStack() as stack:
            self.channel, self._theirs = (stack.enter_context(end) for end in socket.socketpair())
            for end in (self.channel, self._theirs):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
            self.channel.setblocking(False)
            self._read, lifeline = os.pipe()
            stack.callback(os.close, lifeline)
            self._their_ends = stack.enter_context(ExitStack())
            self._their_ends.callback(os.close, self._read)
            self._file = _anonymous_file(SHARED_SIZE)
            self._their_ends.callback(os.close, self._file)
            self.shared = stack.enter_context(mmap.mmap(self._file, SHARED_SIZE))
            self._their_ends.enter_context(self._theirs)
            self._ends = stack.pop_all()
        # Closes the ends when this object is collected; at interpreter exit the finalizer does nothing.
        weakref.finalize(self, self._ends.close).atexit = False
        living(Launched).add(self)

    def close(self) -> None:
        """Close the parent's ends; a second call does nothing."""
        self._ends.close()

    @property
    def theirs(self) -> list[int]:
        """The worker's descriptors, in the order in which ``worker.run`` takes them."""
        return [self._theirs.fileno(), self._read, self._file]

    def kill(self) -> None:
        """Kill the process; where the system has pidfds, never another process that has reused its pid."""
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def runs_as(self, pid: int) -> Launched:
        """Record the pid of the process, and close the parent's copies of the worker's ends."""
        self.pid = pid
        self._their_ends.close()
        if hasattr(os, "pidfd_open"):
            self.pidfd = os.pidfd_open(pid)
            self._ends.callback(os.close, self.pidfd)
        return self


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        return memfd.sealed("loopwatch-worker", size)
    import tempfile

    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())


def _spawn(call: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    path = list(map(str, sys.path))
    code = _SCRIPT.format(path=path if _HOME in path else [*path, _HOME], call=call)
    # Ctrl-C goes to every process of the terminal: the child inherits the mask until it ignores the signal itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, *flags, "-c", code], stdin=subprocess.DEVNULL, pass_fds=descriptors, close_fds=True
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Spawner:
    """Starts each worker as a fresh interpreter, a child of this process."""

    def __init__(self, preload: Sequence[str] = ()) -> None:  # noqa: ARG002 - nothing to preload into
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._closed = False
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._children).atexit = False
        living(type(self)).add(self)

    def start(self) -> Launched:
        """Start a worker."""
        launched = Launched()
        try:
            with self._lock:
                if self._closed:
                    raise OffloadError("no worker can be started: the pool was closed")
                process = _spawn(f"run({', '.join(map(str, launched.theirs))})", launched.theirs)
                self._children[process.pid] = process
            return launched.runs_as(process.pid)
        except BaseException:
            launched.close()
            raise

    def exit_code(self, pid: int) -> int | None:
        """Return a worker's exit code (negative: a signal), None while it runs; does not block."""
        process = self._children.get(pid)
        code = process.poll() if process is not None else None
        if code is not None:
            del self._children[pid]
        return code

    def has_exit_codes(self) -> bool:
        """Whether exit codes are still available."""
        return True

    def pids(self) -> list[int]:
        """Return the pids of the children that it has started."""
        return list(self._children)

    def close(self) -> None:
        """Kill the workers that are left."""
        with self._lock:
            self._closed = True
            _end(self._children)

    def forget(self) -> None:
        """Drop the workers after a fork: they are not children of this process."""
        self._closed, self._lock = True, threading.Lock()
        for process in self._children.values():
            process.returncode = 0
        self._children.clear()


def _end(children: dict[int, subprocess.Popen[bytes]]) -> None:
    while children:
        process = children.popitem()[1]
        process.kill()
        process.wait()


class _Server:
    """The fork server's process, the socket for requests, and the one on which it reports how workers ended."""

    def __init__(self, preload: list[str]) -> None:
        self.is_gone = False
        with ExitStack() as stack:
            self.control, theirs = (stack.enter_context(end) for end in socket.socketpair())
            self.statuses, reports = (stack.enter_context(end) for end in socket.socketpair())
            self.control.settimeout(PATIENCE)
            self.statuses.setblocking(False)
            call = f"serve_forks({theirs.fileno()}, {reports.fileno()}, {preload!r})"
            self.process = _spawn(call, (theirs.fileno(), reports.fileno()))
            stack.pop_all()
        theirs.close()
        reports.close()
        self._finalizer = weakref.finalize(self, _end_server, self.process, self.control, self.statuses)
        self._finalizer.atexit = False

    def end(self) -> None:
        """End the server process."""
        self._finalizer.detach()
        _end_server(self.process, self.control, self.statuses)

    def forget(self) -> None:
        """Close the sockets after a fork: the server is not a child of this process."""
        self._finalizer.detach()
        self.process.returncode = 0
        self.control.close()
        self.statuses.close()

    def fork(self, descriptors: list[int]) -> int | None:
        """Request the fork of a worker; return its pid, None if the server is gone."""
        try:
            socket.send_fds(self.control, [b"f"], descriptors)
            answer = self.control.recv(4)
        except (BrokenPipeError, ConnectionError):
            return None
        if len(answer) < 4:
            return None
        pid = int(struct.unpack("<i", answer)[0])
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid


def _end_server(process: subprocess.Popen[bytes], control: socket.socket, statuses: socket.socket) -> None:
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for a reply; close(2) does not
    try:
        process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    control.close()
    statuses.close()


class ForkServer:
    """Starts workers as forks of a small process that has imported next to nothing but its ``preload`` modules.

    Args:
        preload: names of modules that it imports before it forks, so that each worker has them at once.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = list(preload)
        self._server: _Server | None = None
        self._codes: dict[int, int] = {}
        self._closed = False
        self._lock = threading.Lock()
        living(type(self)).add(self)

    def start(self) -> Launched:
        """Start a worker, and the server first if it does not run."""
        launched = Launched()
        try:
            with self._lock:
                return launched.runs_as(self._fork(launched.theirs))
        except BaseException:
            launched.close()
            raise

    def _fork(self, descriptors: list[int]) -> int:
        for _ in range(2):  # the server may have died since it was last used
            if self._server is None:
                self._server = _Server(self._preload)
            if self._closed:
                self._discard()
                raise OffloadError("no worker can be started: the pool was closed")
            try:
                pid = self._server.fork(descriptors)
            except TimeoutError:  # its reply would be taken for that to the next request
                self._discard()
                raise OffloadError(f"the fork server has not started a worker within {PATIENCE:g} s") from None
            if pid is not None:
                return pid
            self._discard()
        raise OffloadError("the fork server ended before it had started a worker")

    def exit_code(self, pid: int) -> int | None:
        """Return a worker's exit code (negative: a signal), None if the server has not reported it (yet)."""
        server = self._server
        if server is not None:
            try:
                while statuses := server.statuses.recv(STATUS.size * 64):
                    for ended, status in STATUS.iter_unpack(statuses):
                        self._codes[ended] = os.waitstatus_to_exitcode(status)
                server.is_gone = True
            except OSError:  # nothing more, or another thread has just closed it
                pass
        return self._codes.pop(pid, None)

    def has_exit_codes(self) -> bool:
        """Whether exit codes are still available: not if the server has ended, too."""
        return self._server is not None and not self._server.is_gone

    def pids(self) -> list[int]:
        """Return the pid of the server, if it runs."""
        server = self._server
        return [] if server is None else [server.process.pid]

    def close(self) -> None:
        """End the server for good; its workers end with it."""
        self._closed = True
        self._discard()

    def _discard(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.end()

    def forget(self) -> None:
        """Drop the server after a fork: it is not a child of this process, which must not keep it alive."""
        self._closed, self._lock = True, threading.Lock()
        server, self._server = self._server, None
        if server is not None:
            server.forget()


Launcher = Spawner | ForkServer


def launcher(method: str, preload: Sequence[str]) -> Launcher:
    """Return a launcher that starts workers by ``method``."""
    return ForkServer(preload) if method == "forkserver" else Spawner(preload)


def _launchers() -> list[Launcher]:
    return [*living(Spawner), *living(ForkServer)]


def helpers() -> list[int]:
    """Return the pids of the processes started here for pools: fork servers, and spawned workers."""
    found = []
    for each in _launchers():
        found += each.pids()
    return found


def _forget_all() -> None:
    """Close the lifelines in a forked child: open, they would keep the workers alive after the parent has died."""
    for launched in list(living(Launched)):
        launched.close()
    for each in _launchers():
        each.forget()


def _close_all() -> None:
    """Close everything at exit: a thread may be starting a worker for a pool that is gone."""
    for launched in list(living(Launched)):
        launched.close()
    for each in _launchers():
        each.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def main_data() -> dict[str, object]:
    """Return the data from which a worker imports the program's ``__main__``, with the program's ``sys.path``."""
    from multiprocessing import spawn

    data: dict[str, object] = spawn.get_preparation_data("loopwatch-worker")
    unwanted = ["authkey", "log_to_stderr", "log_level", "start_method"]
    if not main_is_importable():
        unwanted += ["init_main_from_name", "init_main_from_path"]
    for name in unwanted:
        data.pop(name, None)
    return data


def main_is_importable() -> bool:
    """Whether a worker can import the program's ``__main__``: not in notebooks, at a prompt, or after ``-c``.

    Nor can it import the ``__main__`` of a package or archive: multiprocessing leaves it out
    (``_fixup_main_from_name``).
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).rpartition(".")[2] != "__main__"
    return not str(getattr(main, "__file__", None) or "<").startswith("<")  # "<stdin>"

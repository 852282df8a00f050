"""Hooks the calls that start, signal and wait for child processes, to record where each started and how it ended.

Nothing is reaped here: exit statuses are read from the program's own calls. Children started by C code without Python,
or before the agent, are found by polling (:mod:`loopwatch.health.children.watched`) and adopted.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass  # not loopwatch.core's: nothing is compiled around a fork
from types import ModuleType
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.originals import time
from loopwatch.core.patches import Beside, ListItem, Patch, PatchSet, when_imported
from loopwatch.core.text import printable
from loopwatch.health.isolation import Isolation
from loopwatch.health.naming import origin
from loopwatch.system.threads import read_kernel

MOST = 4096
"""Most children remembered; beyond that the oldest is forgotten."""
EARLY, MOST_EARLY = 1.0, 64
"""Seconds by which an exit may be recorded before the start (by a faster thread); most such exits remembered."""
PART = "children"
"""Name of these hooks among the parts whose faults are counted."""
ENDING = frozenset(
    getattr(signal, name) for name in ("SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGHUP") if hasattr(signal, name)
)
"""Signals that request the end of a process."""


@dataclass(slots=True)
class Birth:
    """The record of a child process.

    Attributes:
        pid: process id.
        at: its start, ``time.monotonic`` seconds.
        place: where it was started, ``file:line in function``.
        pool: module of the pool that manages it, None if the program does.
        name: what it runs, without arguments; empty if unknown.
        executes: whether it executes another program, whose exit code is a result; else it is a copy of this process.
        remote: whether another process is its parent, such as a fork server.
        asked: whether the program requested its end.
        aborted: whether the program sent it SIGABRT, as supervisors do to an unresponsive process.
        exitcode: negative for the number of a signal; None until it is reaped.
        ended_at: when it was reaped.
        adopted: whether it was found by polling, and its start was not seen.
    """

    pid: int
    at: float
    place: str = ""
    pool: str | None = None
    name: str = ""
    executes: bool = False
    remote: bool = False
    asked: bool = False
    aborted: bool = False
    exitcode: int | None = None
    ended_at: float | None = None
    adopted: bool = False


class ProcessHooks:
    """Records child processes by process id.

    Args:
        patches: registry of replaced attributes.
        faults: counter of failures; hooks skip objects on which they failed.
        born: called after the start of a child, on any thread; must neither raise nor block.
    """

    def __init__(self, patches: PatchSet, faults: Faults, born: Callable[[], object]) -> None:
        self.known: dict[int, Birth] = {}
        self.changes = 0
        """Incremented with each child that is started or reaped."""
        self._patches, self._faults, self._born = patches, faults, born
        self._isolation = Isolation(faults, "child")
        self._early: dict[int, tuple[int, float]] = {}
        self._local = threading.local()
        self._hooks: list[ListItem] = []

    def start(self) -> None:
        """Install the hooks."""
        for name in ("fork", "forkpty"):
            if hasattr(os, name):
                self._patches.beside(os, name, Beside(self._forking, self._fork_over, self._forked))
        for names, around in (
            (("posix_spawn", "posix_spawnp"), self._spawned),
            (("kill", "killpg"), self._killed),
            (("waitpid", "wait", "wait3", "wait4"), self._waited),
            (("waitid",), self._waited_by_id),
        ):
            for name in names:
                if hasattr(os, name):
                    self._patches.around(os, name, around)
        self._when_imported("subprocess", self._patch_subprocess)
        self._when_imported("asyncio.base_subprocess", self._patch_asyncio)
        self._when_imported("multiprocessing.process", self._patch_multiprocessing)
        self._when_imported("multiprocessing.popen_forkserver", self._patch_forkserver)
        self._when_imported("uvloop", self._patch_uvloop)

    def stop(self) -> None:
        """Remove the import hooks; the owner of the patches undoes them."""
        for hook in self._hooks:
            hook.undo()
        self._hooks.clear()

    def exit_of(self, pid: int) -> int | None:
        """Return the exit code of ``pid``, None if it is not reaped yet."""
        birth = self.known.get(pid)
        return self._early.get(pid, (None, 0.0))[0] if birth is None else birth.exitcode

    def adopt(self, pid: int) -> Birth:
        """Record an unrecorded child, so that its exit is recorded too; return its record."""
        birth = self.known.get(pid)
        if birth is None:
            self._make_room()
            found = Birth(pid, _started_at(pid), executes=not _is_copy(pid), adopted=True)
            birth = self.known.setdefault(pid, found)
            ended = self._early.pop(pid, None)
            if ended is not None and birth.exitcode is None and ended[1] >= birth.at:  # else of an earlier process
                birth.exitcode, birth.ended_at = ended
        return birth

    def forget(self, pids: Iterable[int]) -> None:
        """Forget ``pids``, which have ended and were counted, or belong to a pool."""
        for pid in pids:
            self.known.pop(pid, None)
            self._early.pop(pid, None)

    def after_fork_in_child(self) -> None:
        """Forget all in a forked child: they are not its children."""
        self.known, self._early = {}, {}
        self._local = threading.local()

    # -- hooks ----------------------------------------------------------------------------------------------------

    def _note(self, pid: Any, **known: Any) -> None:
        if isinstance(pid, int) and pid > 0:  # a mock has none
            made = origin()
            self._add(Birth(int(pid), time.monotonic(), made.place, made.pool, **known))

    def _add(self, birth: Birth) -> None:
        before = self.known.pop(birth.pid, None)  # to move it to the end
        # Found by polling before it was recorded, or recorded twice: by os.fork() and by its caller.
        is_same = before is not None and (before.adopted or birth.at - before.at < EARLY)
        if before is not None and is_same and before.exitcode is None:
            before.place, before.pool, before.name = birth.place, birth.pool, birth.name
            before.executes, before.remote, before.adopted = birth.executes, birth.remote, False
            birth = before
        ended = self._early.pop(birth.pid, None)
        if ended is not None and birth.at - ended[1] < EARLY:
            birth.exitcode, birth.ended_at = ended
        self._make_room()
        self.known[birth.pid] = birth
        self.changes += 1
        self._born()

    def _make_room(self) -> None:
        if len(self.known) >= MOST:
            self.known.pop(next(iter(self.known)), None)

    def _ended(self, pid: Any, exitcode: Any) -> None:
        if not isinstance(pid, int) or not isinstance(exitcode, int):
            return  # unusable, such as from a mock
        birth, now = self.known.get(pid), time.monotonic()
        if birth is not None:
            birth.exitcode, birth.ended_at = exitcode, now
            self.changes += 1
            return
        self._early[pid] = exitcode, now
        if len(self._early) > MOST_EARLY:
            self._early.pop(next(iter(self._early)), None)

    def when_forked(self, action: Callable[[], object]) -> None:
        """Run ``action`` when the calling thread has left ``os.fork``; at once if it is not in it.

        In 3.13 ``os.fork`` counts threads after all fork handlers have run, and warns if there are others
        (``os_fork_impl`` in CPython's Modules/posixmodule.c).
        """
        if getattr(self._local, "is_forking", False):
            self._local.action = action
        else:
            action()

    def _forking(self) -> None:
        self._local.is_forking = True

    def _fork_over(self) -> None:
        self._local.is_forking = False
        action = self._local.__dict__.pop("action", None)
        if action is not None:
            with self._faults.guard(PART):
                action()

    def _forked(self, result: Any) -> None:
        pid = result[0] if isinstance(result, tuple) else result  # forkpty() returns a descriptor, too
        if pid and not self._faults.is_off(PART):
            with self._faults.guard(PART):
                self._note(pid)

    def _spawned(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pid = original(*args, **kwargs)
        if not self._faults.is_off(PART):
            with self._faults.guard(PART):
                self._note(pid, executes=True, name=_base(args[0] if args else ""))
        return pid

    def _killed(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Before it is sent: afterwards the child may already be dead and reaped.
        if len(args) == 2 and (args[1] in ENDING or args[1] == signal.SIGABRT):
            with self._faults.guard(PART):
                if args[1] == signal.SIGABRT:
                    self._aborted(args[0])
                else:
                    self._asked_to_end(args[0], group=original.__name__ == "killpg")
        return original(*args, **kwargs)

    def _aborted(self, pid: int) -> None:
        birth = self._child(pid)
        if birth is not None:
            birth.aborted = True

    def _asked_to_end(self, target: Any, *, group: bool) -> None:
        if target > 0 and not group:
            self._told(target)
            return
        wanted = abs(target) or os.getpgrp()
        for pid in list(self.known):
            if (target == -1 and not group) or _group_of(pid) == wanted:
                self._told(pid)

    def _told(self, pid: int) -> None:
        birth = self._child(pid)
        if birth is not None and peek(pid) is None:  # supervisors also kill children that have just died
            birth.asked = True

    def _child(self, pid: int) -> Birth | None:
        """Return the record of a process that gets a signal, None if it is no child of this process."""
        return self.adopt(pid) if pid not in self.known and _is_child(pid) else self.known.get(pid)

    def _waited(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        pid, status = result[0], result[1]
        if pid and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            self._ended(pid, os.waitstatus_to_exitcode(status))
        return result

    def _waited_by_id(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        if len(args) > 2 and args[2] & os.WNOWAIT:  # it stays waitable; loopwatch polls this way itself
            return result
        if result is not None and result.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            self._ended(result.si_pid, code)
        return result

    # -- modules --------------------------------------------------------------------------------------------------

    def _when_imported(self, name: str, callback: Callable[[Any], object]) -> None:
        def guarded(module: ModuleType) -> None:
            with self._faults.guard(PART):
                callback(module)

        self._hooks += when_imported(name, guarded)

    def _after(self, owner: Any, name: str, note: Callable[[Any, Any, tuple[Any, ...]], object]) -> None:
        """Call ``note(instance, result, args)`` after each call of a method.

        The replacement is a plain function, as subclasses call ``Base.__init__(self)`` unbound.
        """

        def make(original: Any, patch: Patch) -> Any:
            @functools.wraps(original)
            def method(instance: Any, *args: Any, **kwargs: Any) -> Any:
                result = original(instance, *args, **kwargs)
                if patch.active:
                    patch.state(instance, result, args)
                return result

            return method

        def guarded(instance: Any, result: Any, args: tuple[Any, ...]) -> None:
            self._isolated(instance, note, instance, result, args)

        self._patches.replace(owner, name, make).state = guarded

    def _isolated(self, thing: Any, note: Callable[..., object], *args: Any) -> None:
        """Call ``note``; if it raises, exclude ``thing`` from now on: an odd subclass affects no other child."""
        if self._isolation.has(thing) or self._faults.is_off(PART):
            return
        try:
            note(*args)
        except Exception as exc:  # noqa: BLE001 - the boundary between the program and its hooks
            self._isolation.add(thing, exc)

    def _patch_subprocess(self, subprocess: Any) -> None:
        # Not around ``__init__``: its warning (``_text_encoding``) attributes itself to a caller by stack depth.
        parameters = list(inspect.signature(subprocess.Popen._execute_child).parameters)
        shell = parameters.index("shell") - 1 if "shell" in parameters else len(parameters)

        def started(popen: Any, _result: Any, args: tuple[Any, ...]) -> None:
            in_shell = bool(args[shell]) if shell < len(args) else False
            self._note(popen.pid, executes=True, name=_program(popen.args, in_shell))

        def exited(popen: Any, _result: Any, _args: tuple[Any, ...]) -> None:
            # It kept a reference to the original os.waitpid.
            if popen.returncode is not None:
                self._ended(popen.pid, popen.returncode)

        self._after(subprocess.Popen, "_execute_child", started)
        if hasattr(subprocess.Popen, "_handle_exitstatus"):
            self._after(subprocess.Popen, "_handle_exitstatus", exited)

    def _patch_asyncio(self, base_subprocess: Any) -> None:
        def exited(transport: Any, _result: Any, _args: tuple[Any, ...]) -> None:
            # A thread of the child watcher may have called waitpid before it was hooked.
            pid, code = transport.get_pid(), transport.get_returncode()
            birth = self.known.get(pid)
            if birth is not None and birth.exitcode is None and code is not None:
                self._ended(pid, code)

        self._after(base_subprocess.BaseSubprocessTransport, "_process_exited", exited)

    def _patch_multiprocessing(self, process: Any) -> None:
        def started(made: Any, _result: Any, _args: tuple[Any, ...]) -> None:
            remote = getattr(made._popen, "method", "") == "forkserver"
            self._note(made.pid, name=str(made.name), remote=remote)

        self._after(process.BaseProcess, "start", started)

    def _patch_forkserver(self, popen_forkserver: Any) -> None:
        def polled(popen: Any, result: Any, _args: tuple[Any, ...]) -> None:
            if result is not None:
                self._ended(popen.pid, result)

        self._after(popen_forkserver.Popen, "poll", polled)

    def _patch_uvloop(self, uvloop: Any) -> None:
        """Hook uvloop, which starts, signals and reaps processes in C."""
        from asyncio import subprocess

        async def started(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            made = origin()
            transport, protocol = await original(*args, **kwargs)

            def note() -> None:
                pid = transport.get_pid()
                name = _program(args[1] if len(args) > 1 else "", original.__name__ == "subprocess_shell")
                self._add(Birth(pid, time.monotonic(), made.place, made.pool, name, executes=True))

            self._isolated(transport, note)
            return transport, protocol

        def exiting(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            protocol: Any = getattr(original, "__self__", None)

            def note() -> None:
                transport: Any = getattr(protocol, "_transport", None)
                code = None if transport is None else transport.get_returncode()
                if code is not None:
                    self._ended(transport.get_pid(), code)

            self._isolated(protocol, note)
            return original(*args, **kwargs)

        def asking(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            process: Any = getattr(original, "__self__", None)

            def note() -> None:
                if original.__name__ != "send_signal" or (args and args[0] in ENDING):
                    self._told(process.pid)

            self._isolated(process, note)
            return original(*args, **kwargs)

        for name in ("subprocess_exec", "subprocess_shell"):
            self._patches.around(uvloop.Loop, name, started)
        self._patches.around(subprocess.SubprocessStreamProtocol, "process_exited", exiting)
        for name in ("send_signal", "terminate", "kill"):
            self._patches.around(subprocess.Process, name, asking)


def peek(pid: int) -> int | None:
    """Return the exit code of a child that is a zombie, else None; does not reap it.

    Example:
        >>> import subprocess, time
        >>> child = subprocess.Popen(["sh", "-c", "exit 3"])
        >>> while (code := peek(child.pid)) is None: time.sleep(0.01)
        >>> code, child.wait()
        (3, 3)
    """
    if not hasattr(os, "waitid"):
        return None
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:  # not a child of this process, or reaped in the meantime
        return None
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _is_child(pid: int) -> bool:
    """Whether a process is an unreaped child of this one; does not reap it."""
    if pid <= 0 or not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:  # ECHILD
        return False
    return True


STARTED, STACK = 19, 25
"""Indexes in ``/proc/PID/stat``, after the name, of the start time in ticks and of the start of the stack (proc(5))."""


def _stat(pid: int | str) -> list[int]:
    """Return the fields of ``/proc/PID/stat`` after the name, the state as 0; empty where they cannot be read."""
    text = read_kernel(f"/proc/{pid}/stat")
    try:
        return [] if text is None else [0, *map(int, text.rpartition(")")[2].split()[1:])]
    except ValueError:
        return []


def _started_at(pid: int) -> float:
    """Return the start of a process, ``time.monotonic`` seconds; now, where the system does not report it."""
    now, fields = time.monotonic(), _stat(pid)
    if len(fields) <= STARTED or not hasattr(time, "CLOCK_BOOTTIME"):
        return now
    lived = time.clock_gettime(time.CLOCK_BOOTTIME) - fields[STARTED] / os.sysconf("SC_CLK_TCK")
    return now - max(lived, 0.0)


def _is_copy(pid: int) -> bool:
    """Whether a process is a fork of this one that has executed no other program.

    A fork shares its parent's stack address, which is random for each executed program; where that is unreadable, the
    command lines are compared. A process spawned by multiprocessing counts as a copy.
    """
    own, other = _stat("self"), _stat(pid)
    command = _command_line(pid)
    if "--multiprocessing-fork" in command:
        return True
    if len(own) > STACK and len(other) > STACK and own[STACK] and other[STACK]:
        return own[STACK] == other[STACK]
    return bool(command) and command == _command_line("self")


def _command_line(pid: int | str) -> list[str]:
    text = read_kernel(f"/proc/{pid}/cmdline", whole=True)
    return [] if text is None else text.split("\0")


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:  # it has ended
        return None


def _program(args: Any, shell: bool) -> str:
    """Return the name of a program, never its arguments."""
    if shell:
        return "sh"
    first = args if isinstance(args, str | bytes | os.PathLike) else next(iter(args), "")
    return _base(first)


def _base(path: Any) -> str:
    try:
        return printable(os.path.basename(os.fsdecode(path)))  # noqa: PTH119 - may be bytes
    except TypeError:  # an open descriptor
        return ""

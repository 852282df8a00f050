"""A daemon thread of the agent, which is away while the process forks.

A child that is forked beside other threads inherits their locks, and modules that they were importing, as they stood;
since 3.12 the interpreter warns of it. The agent's own threads are few and have nothing that would not wait.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable

from loopwatch.core.frames import current_frames
from loopwatch.core.originals import release_gil, time
from loopwatch.core.untraced import UntracedThread

OWN_THREADS = "loopwatch-"
"""How the names of the agent's threads begin."""
PATIENCE = 0.02
"""s that a fork waits at most for threads that are in the midst of something, such as a slow sink."""
LOCK_PATIENCE = 2.0
"""s that it waits for one that has a lock which the child would inherit locked for ever.

That of a module that is being imported, or of the stream that a log handler of the program writes to: a child that
flushes ``sys.stderr`` would hang (its lock is not renewed in a child, CPython's Modules/_io/bufferedio.c)."""
_SHORTEST_NAP, _LONGEST_NAP = 0.00002, 0.0005
_LOCKING = ("<frozen importlib._bootstrap>", f"logging{os.sep}__init__.py")
"""Files, by the ends of their names, whose functions are on the stack of a thread that has such a lock."""
_stat = os.stat  # programs replace it by one that raises on a loop's thread


class OwnThread:
    """One of the agent's threads.

    Args:
        name: what it is called, after ``loopwatch-``.
        run: its work. It asks :meth:`stays` before each piece of it and returns where that says no; it is run again
            after the fork.
        wake: has ``run`` ask soon; from any thread.
        needed: whether there is work for it after a fork; else it is started when there is.
        failed: takes what leaves ``run``, such as MemoryError; the next :meth:`start` begins another thread.

    Attributes:
        cpu: processor s that it has used, as of the last :meth:`stays`.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], object],
        wake: Callable[[], object],
        needed: Callable[[], object] = lambda: True,
        failed: Callable[[BaseException], object] | None = None,
    ) -> None:
        self.cpu = 0.0
        self._name, self._run, self._wake, self._needed = name, run, wake, needed
        self._failed = failed
        self._lock = threading.RLock()  # a finalizer or signal handler of the program may come in between
        self._thread: threading.Thread | None = None
        self._is_wanted = self._has_ended = False
        self._holds = 0

    def start(self) -> None:
        """Start it unless it runs; during a fork, after that.

        Raises:
            RuntimeError: there can be no more threads.
        """
        if self._thread is not None and self._is_wanted:
            return
        with self._lock:
            if not self._has_ended:
                self._is_wanted = True
                self._begin()

    def _begin(self) -> None:
        if self._thread is not None or self._holds:
            return
        thread = self._thread = UntracedThread(self._main, OWN_THREADS + self._name)
        try:
            thread.start()
        except RuntimeError:
            self._thread, self._is_wanted = None, False
            raise

    def _main(self) -> None:
        me, self._before = self._thread, self.cpu
        release_gil(_SHORTEST_NAP)  # who starts it, a loop's thread perhaps, goes on first
        try:
            self._run()
        except BaseException as exc:
            self._has_left(me)
            if self._failed is None:
                raise
            self._failed(exc)
        self._has_left(me)

    def _has_left(self, me: threading.Thread | None) -> None:
        with self._lock:
            if self._thread is me:  # it has nothing more to do
                self._thread, self._is_wanted = None, False

    def stays(self) -> bool:
        """Whether it is to go on; asked by itself."""
        self.cpu = self._before + time.thread_time()
        if not self.is_asked:
            return True
        with self._lock:
            if self._has_ended:
                return False
            if self._holds:  # else the fork is over
                self._thread = None
            return not self._holds

    def leave(self) -> None:
        """Have the next :meth:`start` begin another one; called by itself, where it finds nothing more to do."""
        with self._lock:
            self._thread, self._is_wanted = None, False

    @property
    def is_asked(self) -> bool:
        """Whether it is to leave."""
        return self._holds > 0 or self._has_ended

    @property
    def exists(self) -> bool:
        """Whether it is there, or will be after the fork."""
        return self._thread is not None or self._is_wanted

    @property
    def ident(self) -> int | None:
        """Its ident, None where it is away."""
        thread = self._thread
        return None if thread is None else thread.ident

    def hold(self) -> threading.Thread | None:
        """Have it go away until :meth:`release`; return what is to be waited for, None if nothing is."""
        with self._lock:
            self._holds += 1
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return None
        self._wake()
        return thread

    def release(self) -> None:
        """Have it back, if it is needed.

        Raises:
            RuntimeError: there can be no more threads.
        """
        with self._lock:
            self._holds -= 1
            if self._is_wanted and self._thread is None and not self._has_ended:
                self._is_wanted = bool(self._needed())
                if self._is_wanted:
                    self._begin()

    def end(self, timeout: float) -> bool:
        """End it for good; wait at most ``timeout`` s; return whether it is gone."""
        with self._lock:
            self._has_ended, self._is_wanted = True, False
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        self._wake()
        with contextlib.suppress(RuntimeError):  # a signal handler has interrupted its start: it ends at once
            thread.join(timeout)
        return not thread.is_alive()


def until_gone(threads: Iterable[threading.Thread], patience: float = PATIENCE) -> None:
    """Wait until the system does not know ``threads`` any more, all together at most ``patience`` s.

    The interpreter takes a thread for ended a little before; it counts those of the system (``os_fork_impl`` in
    CPython's Modules/posixmodule.c).
    """
    began = now = time.monotonic()
    ends, nap = began + patience, _SHORTEST_NAP
    for thread in threads:
        while _is_there(thread):
            if now >= ends:
                if now - began >= LOCK_PATIENCE or not _has_lock(thread):
                    return
                ends = now + patience  # it leaves soon after that
            release_gil(nap)
            nap = min(2 * nap, _LONGEST_NAP)
            now = time.monotonic()


def until_one_less(end: Callable[[], object], patience: float = PATIENCE) -> None:
    """Have ``end`` end a thread that is none of Python's, and wait at most ``patience`` s until there is one less."""
    before, began = _count(), time.monotonic()
    end()
    while before and _count() >= before and time.monotonic() - began < patience:
        release_gil(_SHORTEST_NAP)


def _count() -> int:
    """Return how many threads this process has, 0 where that cannot be told: each is a folder (proc(5))."""
    try:
        return _stat("/proc/self/task").st_nlink - 2
    except OSError:
        return 0


def _is_there(thread: threading.Thread) -> bool:
    if sys.platform != "linux":
        return thread.is_alive()
    try:
        _stat(f"/proc/self/task/{thread.native_id}")
    except FileNotFoundError:
        return False
    except OSError:  # no /proc here
        return thread.is_alive()
    return True


def _has_lock(thread: threading.Thread) -> bool:
    """Whether ``thread`` is in the midst of an import, or of a log line."""
    frame = current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_LOCKING):
            return True
        frame = frame.f_back
    return False

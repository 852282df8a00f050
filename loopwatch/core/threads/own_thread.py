"""Daemon threads of the agent that end while the process forks and are restarted afterwards.

A child that is forked while other threads run inherits their locks and half-done imports as they are; since 3.12 the
interpreter warns about it. The agent has few threads, and all their work can wait.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable

from loopwatch.core.frames import current_frames
from loopwatch.core.originals import release_gil, time
from loopwatch.core.threads.untraced import UntracedThread

OWN_THREADS = "loopwatch-"
"""Prefix of the names of the agent's threads."""
PATIENCE = 0.02
"""Maximum seconds that a fork waits for busy threads, such as one inside a slow sink."""
LOCK_PATIENCE = 2.0
"""Maximum seconds that a fork waits for a thread with a lock that the child would inherit locked for ever.

That is the lock of a module that is being imported, or of the stream that a log handler of the program writes to: a
child that flushes ``sys.stderr`` would hang (its lock is not renewed in a child, CPython's
Modules/_io/bufferedio.c)."""
_SHORTEST_NAP, _LONGEST_NAP = 0.00002, 0.0005
_LOCKING = ("<frozen importlib._bootstrap>", f"logging{os.sep}__init__.py")
"""Ends of file names: functions of these files are on the stack of a thread with such a lock."""
_stat = os.stat  # programs replace it with one that raises on a loop's thread


class OwnThread:
    """One of the agent's threads.

    Args:
        name: thread name, after ``loopwatch-``.
        run: its work. It calls :meth:`stays` before each piece of work and returns if that is False; it is called again
            after the fork.
        wake: makes ``run`` call :meth:`stays` soon; safe in any thread.
        needed: whether there is work for it after a fork; otherwise it is started when there is.
        failed: called with an exception that leaves ``run``, such as MemoryError; the next :meth:`start` makes a new
            thread.

    Attributes:
        cpu: processor seconds that it has used, as of the last :meth:`stays`.
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
        self._lock = threading.RLock()  # reentrant: a finalizer or signal handler of the program may interrupt
        self._thread: UntracedThread | None = None
        self._is_wanted = self._has_ended = False
        self._holds = 0

    def start(self) -> None:
        """Start the thread unless it runs; during a fork, once the fork is over.

        Raises:
            RuntimeError: no further thread can be started.
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
        release_gil(_SHORTEST_NAP)  # let the starting thread, perhaps a loop's, go on first
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
        """Whether to go on; called by the thread itself."""
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
        """Let the next :meth:`start` make a new thread; called by the thread itself, when it has no more work."""
        with self._lock:
            self._thread, self._is_wanted = None, False

    @property
    def is_asked(self) -> bool:
        """Whether the thread should leave ``run``."""
        return self._holds > 0 or self._has_ended

    @property
    def exists(self) -> bool:
        """Whether the thread runs, or will after the fork."""
        return self._thread is not None or self._is_wanted

    @property
    def ident(self) -> int | None:
        """Ident of the thread, None while there is none."""
        thread = self._thread
        return None if thread is None else thread.ident

    def hold(self) -> threading.Thread | None:
        """Stop the thread until :meth:`release`; return the thread to wait for, None if there is none."""
        with self._lock:
            self._holds += 1
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return None
        self._wake()
        return thread

    def release(self) -> None:
        """Restart the thread if it is needed; ends one :meth:`hold`.

        Raises:
            RuntimeError: no further thread can be started.
        """
        with self._lock:
            self._holds -= 1
            if self._is_wanted and self._thread is None and not self._has_ended:
                self._is_wanted = bool(self._needed())
                if self._is_wanted:
                    self._begin()

    def end(self, timeout: float) -> bool:
        """End the thread for good; wait at most ``timeout`` seconds; return whether it is gone."""
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
    """Wait until ``threads`` have ended for the system too, at most ``patience`` seconds in total.

    The interpreter considers a thread ended slightly earlier, but at a fork it counts those of the system
    (``os_fork_impl`` in CPython's Modules/posixmodule.c). A thread with a lock is waited for longer: at most
    :data:`LOCK_PATIENCE` seconds.
    """
    began = now = time.monotonic()
    ends, nap = began + patience, _SHORTEST_NAP
    for thread in threads:
        while _is_there(thread):
            if now >= ends:
                if now - began >= LOCK_PATIENCE or not _has_lock(thread):
                    return
                ends = now + patience  # it ends soon after releasing the lock
            release_gil(nap)
            nap = min(2 * nap, _LONGEST_NAP)
            now = time.monotonic()


def until_one_less(end: Callable[[], object], patience: float = PATIENCE) -> None:
    """Call ``end``, which ends a thread not made by Python, and wait at most ``patience`` seconds until it is gone."""
    before, began = _count(), time.monotonic()
    end()
    while before and _count() >= before and time.monotonic() - began < patience:
        release_gil(_SHORTEST_NAP)


def _count() -> int:
    """Return the number of threads of this process, 0 where it is unknown: each is a directory (proc(5))."""
    try:
        return _stat("/proc/self/task").st_nlink - 2
    except OSError:
        return 0


def _is_there(thread: threading.Thread) -> bool:
    if sys.platform != "linux" or thread.native_id is None:  # the latter has not had the GIL yet
        return thread.is_alive()
    try:
        _stat(f"/proc/self/task/{thread.native_id}")
    except FileNotFoundError:
        return False
    except OSError:  # no /proc here
        return thread.is_alive()
    return True


def _has_lock(thread: threading.Thread) -> bool:
    """Whether ``thread`` is inside an import, or writing a log line."""
    frame = current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_LOCKING):
            return True
        frame = frame.f_back
    return False

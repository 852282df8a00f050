"""Wake-up event for one thread, built on a bare ``_thread`` lock: other primitives may be replaced or traced."""

from __future__ import annotations

from _thread import allocate_lock


class Alarm:
    """Wake-up event for one thread; a :meth:`wake` is kept until the next :meth:`wait`.

    Example:
        >>> alarm = Alarm()
        >>> alarm.wake()
        >>> alarm.wait(60)  # at once
        True
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Wake the thread, now or at its next :meth:`wait`. Safe in any thread and signal handler; never blocks."""
        try:
            self._lock.release()
        except RuntimeError:  # already woken
            pass

    def wait(self, seconds: float = -1) -> bool:
        """Sleep until :meth:`wake`, at most ``seconds`` (-1: no limit); return whether it was woken."""
        return self._lock.acquire(True, seconds)

"""What a thread sleeps on until it is woken, or for a time: a bare lock, as others may be replaced or traced."""

from __future__ import annotations

from _thread import allocate_lock


class Alarm:
    """Wakes one thread.

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
        """Have the thread go on, now or where it waits next; from any thread and signal handler, never blocks."""
        try:
            self._lock.release()
        except RuntimeError:  # it is on its way already
            pass

    def wait(self, seconds: float = -1) -> bool:
        """Sleep until :meth:`wake`, at most ``seconds``, without end if that is -1; return whether it was woken."""
        return self._lock.acquire(True, seconds)

"""Exception hierarchy of loopwatch.

.. code-block:: text

    LoopwatchError
    ├── ConfigError        (also a ValueError)    a field, variable or argument that cannot be used
    └── OffloadError                              an offloaded call was not run, or not to its end
        ├── WorkerCrashed                         its worker died: pid, exitcode, signal, oom_killed
        ├── TaskTimeout    (also a TimeoutError)  it ran longer than allowed
        ├── QueueFull                             the queue has reached its limit
        ├── PoolClosed                            the pool accepts no further calls
        └── NotPicklable   (also a TypeError)     an argument or a result cannot be sent to another process
"""

from __future__ import annotations


class LoopwatchError(Exception):
    """Base class of all errors that loopwatch raises on purpose."""


class ConfigError(LoopwatchError, ValueError):
    """A setting that cannot be used; the message names it, its value and what is allowed.

    Example:
        >>> import loopwatch
        >>> loopwatch.Config(threshold=0)
        Traceback (most recent call last):
        loopwatch.errors.ConfigError: threshold=0: must be a number of seconds above 0, such as 0.1
    """


class OffloadError(LoopwatchError):
    """An offloaded call ended with neither a result nor an exception of its own."""


class WorkerCrashed(OffloadError):  # noqa: N818 - the public name
    """The worker died while it ran the call; the call may have had effects.

    Args:
        message: what happened, in one line.
        pid: of the worker that died.
        exitcode: as in ``subprocess``, negative for a signal; None if unknown.
        oom_killed: whether the kernel killed it for lack of memory, as far as that is known.
    """

    def __init__(
        self, message: str = "", pid: int | None = None, exitcode: int | None = None, *, oom_killed: bool = False
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.oom_killed = oom_killed

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.pid, self.exitcode), {"oom_killed": self.oom_killed}

    @property
    def signal(self) -> int | None:
        """The signal that ended the worker, None if it exited by itself."""
        return -self.exitcode if self.exitcode is not None and self.exitcode < 0 else None


class TaskTimeout(OffloadError, TimeoutError):  # noqa: N818 - the public name
    """The call ran longer than its ``timeout`` allows; time in the queue does not count."""


class QueueFull(OffloadError):  # noqa: N818 - the public name
    """The queue is full: ``max_queue`` calls wait for a worker."""


class PoolClosed(OffloadError):  # noqa: N818 - the public name
    """The pool or its loop was closed: it accepts no further calls."""


class NotPicklable(OffloadError, TypeError):  # noqa: N818 - the public name
    """An argument or a result cannot be sent to another process; the message names it and its type."""

"""The exception tree of loopwatch.

.. code-block:: text

    LoopwatchError
    ├── ConfigError        (also a ValueError)    a field, variable or argument that cannot be used
    └── OffloadError                              a call was not, or not to its end, run where it was sent
        ├── WorkerCrashed                         its worker died: pid, exitcode, signal, oom_killed
        ├── TaskTimeout    (also a TimeoutError)  it ran longer than allowed
        ├── QueueFull                             as many calls wait as may
        ├── PoolClosed                            the pool takes no calls any more
        └── NotPicklable   (also a TypeError)     an argument or a result cannot be sent to another process
"""

from __future__ import annotations


class LoopwatchError(Exception):
    """Base of every error that loopwatch raises on purpose."""


class ConfigError(LoopwatchError, ValueError):
    """A setting that cannot be used; the message names it, its value and what is allowed.

    Example:
        >>> import loopwatch
        >>> loopwatch.Config(threshold=0)
        Traceback (most recent call last):
        loopwatch.errors.ConfigError: threshold=0: must be a number of seconds above 0, such as 0.1
    """


class OffloadError(LoopwatchError):
    """A call that was sent away did not come back with a result or an exception of its own."""


class WorkerCrashed(OffloadError):  # noqa: N818 - the public name
    """The worker died while it ran the call; the call may have had effects.

    Args:
        message: what happened, in one line.
        pid: of the worker that died.
        exitcode: as ``subprocess`` has it, negative for a signal; None if unknown.
        oom_killed: whether the kernel killed it for memory, as far as can be told.
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
    """As many calls wait for a worker as ``max_queue`` allows."""


class PoolClosed(OffloadError):  # noqa: N818 - the public name
    """The pool was closed, or its loop was: it takes no further calls."""


class NotPicklable(OffloadError, TypeError):  # noqa: N818 - the public name
    """An argument or a result cannot be sent to another process; the message names it and its type."""

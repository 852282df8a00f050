"""Stops the agent's threads while the process forks, and starts them again afterwards.

The child is to be as it would be without us: no thread is there whose locks it would inherit locked, or that was
importing a module; and its parent is not warned of threads that are not its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

from loopwatch.core.faults import Faults
from loopwatch.core.own_thread import OwnThread, until_gone

PART = "fork"
"""Name under which faults around a fork are counted."""

Finish = Callable[[Callable[[], object]], object]
"""Calls what it is given once the fork of the calling thread is over."""


class ForkPause:
    """The forks of one agent's process.

    Args:
        faults: of the agent.

    Attributes:
        running: forks under way: nothing is logged meanwhile, as a handler may block or import.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._returning: deque[OwnThread] = deque()
        self.running = 0

    def begin(
        self, first: OwnThread, others: Sequence[OwnThread], held: contextlib.AbstractContextManager[None], then: Finish
    ) -> Callable[[], None]:
        """Stop the threads before a fork; return what starts them again after it, in the parent.

        Args:
            first: the watcher's thread, which starts the others again: who forks waits for the start of only one.
            others: the other threads.
            held: entered for as long as the fork takes.
            then: has the threads started again.
        """
        self.running += 1
        threads, leaving, hold = (first, *others), list[threading.Thread | None](), contextlib.ExitStack()
        for thread in threads:
            with self._faults.guard(PART):
                leaving.append(thread.hold())
        with self._faults.guard(PART):
            until_gone([thread for thread in leaving if thread is not None])
            hold.enter_context(held)

        def finish() -> None:
            with self._faults.guard(PART):
                hold.close()
            then(lambda: self._release(first, others))

        return finish

    def _release(self, first: OwnThread, others: Sequence[OwnThread]) -> None:
        self.running -= 1
        self._returning.extend(others)
        with self._faults.guard(PART):
            first.release()
        if not first.exists:
            self.bring_back()

    def bring_back(self) -> None:
        """Start the other threads again; once a tick in the watcher's thread, where there is one."""
        while self._returning:
            with self._faults.guard(PART):
                self._returning.popleft().release()

    def begin_child(self) -> None:
        """Begin anew in a forked child, where none of the threads exists; :meth:`end_child` ends it."""
        self.running = 1
        self._returning.clear()

    def end_child(self) -> None:
        """Everything has begun anew."""
        self.running = 0

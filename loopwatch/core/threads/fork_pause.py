"""Stops the agent's threads while the process forks, and restarts them afterwards.

The child must be as it would be without the agent: it inherits no lock and no half-done import of an agent thread, and
Python does not warn the parent about threads that it did not start itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

from loopwatch.core.faults import Faults
from loopwatch.core.threads.own_thread import OwnThread, until_gone

PART = "fork"
"""Name under which faults around a fork are counted."""

Finish = Callable[[Callable[[], object]], object]
"""Runs the given action once the fork of the calling thread is over."""


class ForkPause:
    """Fork handling of one agent.

    Args:
        faults: of the agent.

    Attributes:
        running: number of forks in progress; nothing is logged meanwhile, as a handler may block or import.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._returning: deque[OwnThread] = deque()
        self.running = 0

    def begin(
        self,
        first: OwnThread,
        others: Sequence[OwnThread],
        held: contextlib.AbstractContextManager[None],
        then: Finish,
        over: Callable[[], object],
    ) -> Callable[[], None]:
        """Stop the threads before a fork; return the function that restarts them in the parent.

        Args:
            first: the watcher's thread, which restarts the others: the forking thread starts only one.
            others: the other threads.
            held: context that is entered for the duration of the fork.
            then: runs the restart of the threads.
            over: called in the forking thread when the watcher's may run again; must not wait.
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
            then(lambda: self._release(first, others, over))

        return finish

    def _release(self, first: OwnThread, others: Sequence[OwnThread], over: Callable[[], object]) -> None:
        self.running -= 1
        self._returning.extend(others)
        with self._faults.guard(PART):
            first.release()
            over()
        if not first.exists:
            self.bring_back()

    def bring_back(self) -> None:
        """Restart the other threads; called once a tick by the watcher's thread, if there is one."""
        while self._returning:
            with self._faults.guard(PART):
                self._returning.popleft().release()

    def begin_child(self) -> None:
        """Reset in a forked child, where none of the threads exists; :meth:`end_child` completes it."""
        self.running = 1
        self._returning.clear()

    def end_child(self) -> None:
        """Complete the reset in a forked child."""
        self.running = 0

"""Whether the kernel killed a process for want of memory, from a counter that is read before and after."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from loopwatch.system import cgroup


class Look(NamedTuple):
    """How many processes of a group the kernel has killed, None where that cannot be read; who is in the group."""

    kills: int | None
    members: frozenset[int]


class Oom:
    """Tells whether the kernel killed processes for want of memory.

    Args:
        root: of the file system, for tests.
    """

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._group = cgroup.counts_kills(root)
        self._before = self.look()

    def look(self) -> Look:
        """Return how things are now; to be taken before processes are looked at."""
        if self._group is None:
            return Look(None, frozenset())
        return Look(cgroup.oom_kills(self._group), cgroup.members(self._group))

    def begin(self, look: Look) -> None:
        """What is asked next is about what has happened since ``look``: all who had ended by then are dealt with.

        A kill between the look and the end of a process that was noticed after it counts twice, but so does the
        process: the answer is that it cannot be told rather than a wrong one.
        """
        self._before = look

    def killed(self, pids: frozenset[int]) -> bool | None:
        """Return whether ``pids``, which SIGKILL has ended since the last look, were killed for want of memory.

        None where that cannot be told: the counter cannot be read, or it has grown by less than there are processes
        that have gone since, so that another one may have been the victim.
        """
        now, before = self.look(), self._before
        if now.kills is None or before.kills is None:
            return None
        kills = now.kills - before.kills
        if kills <= 0:
            return False
        gone = (before.members - now.members) | pids
        return True if kills >= len(gone) else None

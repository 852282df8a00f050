"""Control groups of this process (Linux only): quotas, memory, and which processes the kernel has killed for it.

Both versions are read, and their mixture. Inside a container the path of a group is often that of the host while the
group itself is mounted at the top: both places are looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from loopwatch.system.threads import read_kernel

ROOT = Path("/")


def groups(controller: str, root: Path = ROOT) -> list[Path]:
    """Return the directories that may be this process's group for ``controller``, the most likely one first.

    Args:
        controller: such as ``memory`` or ``cpu``.
        root: of the file system, for tests.
    """
    mounted = root / "sys/fs/cgroup"
    found: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        inside = path.strip().lstrip("/")
        if controller in names.split(","):  # version 1, by itself or beside version 2
            found = [mounted / controller / inside, mounted / names / inside, mounted / controller, *found]
        elif not names:
            found += [mounted / inside, mounted / "unified" / inside, mounted]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def usable_cpus(root: Path = ROOT) -> float:
    """Return how many processors this process may use: its affinity, and the quota of its groups if that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in groups("cpu", root) for quota in _quotas(group, root / "sys/fs/cgroup")]
    return min([float(affinity), *quotas])


def _quotas(group: Path, top: Path) -> list[float]:
    """Return the quotas of a group and of those above it, in processors."""
    found = []
    for each in (group, *group.parents):
        if not each.is_relative_to(top):
            break
        words = _text(each / "cpu.max").split()
        if len(words) != 2:
            words = [_text(each / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        quota, period = (int(word) if word.isdigit() else 0 for word in words)  # "max" and -1: none
        if quota > 0 and period > 0:
            found.append(quota / period)
    return found


def counts_kills(root: Path = ROOT) -> Path | None:
    """Return the group of this process that counts how many processes the kernel has killed in it for memory."""
    return next((group for group in groups("memory", root) if oom_kills(group) is not None), None)


def oom_kills(group: Path) -> int | None:
    """Return how many processes of a group the kernel has killed for memory, None where it does not tell.

    The kernel counts before it sends the signal (``__oom_kill_process`` in mm/oom_kill.c), so that whoever sees the
    death finds it counted.
    """
    for name in ("memory.events", "memory.oom_control"):
        for line in _text(group / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def members(group: Path) -> frozenset[int]:
    """Return the processes of a group."""
    return frozenset(int(word) for word in _text(group / "cgroup.procs").split())


def _text(path: Path) -> str:
    return read_kernel(str(path), whole=True) or ""


class Look(NamedTuple):
    """How many processes of a group the kernel has killed, None where that cannot be read; who is in the group."""

    kills: int | None
    members: frozenset[int]


class Oom:
    """Tells whether the kernel killed processes for want of memory.

    Args:
        root: of the file system, for tests.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._group = counts_kills(root)
        self._before = self.look()

    def look(self) -> Look:
        """Return how things are now; to be taken before processes are looked at."""
        if self._group is None:
            return Look(None, frozenset())
        return Look(oom_kills(self._group), members(self._group))

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

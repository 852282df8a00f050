"""Control groups of this process (Linux only): quotas, members, and out-of-memory kills.

Versions 1 and 2 are read, and hybrids of both. Inside a container the path of a group is often that of the host while
the group itself is mounted at the top: both locations are read.
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
        if controller in names.split(","):  # version 1, alone or beside version 2
            found = [mounted / controller / inside, mounted / names / inside, mounted / controller, *found]
        elif not names:
            found += [mounted / inside, mounted / "unified" / inside, mounted]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


class Cpus(NamedTuple):
    """Processors of this process.

    Attributes:
        usable: as many as it may use: its affinity, or the quota of its groups if that is lower.
        affinity: as many as it may run on.
    """

    usable: float
    affinity: float


def usable_cpus(root: Path = ROOT) -> Cpus:
    """Return how many processors this process may use, and may run on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in groups("cpu", root) for quota in _quotas(group, root / "sys/fs/cgroup")]
    return Cpus(min([float(affinity), *quotas]), float(affinity))


def _quotas(group: Path, top: Path) -> list[float]:
    """Return the quotas of a group and its ancestors, in processors."""
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
    """Return the group of this process in which the kernel counts out-of-memory kills, None without one."""
    return next((group for group in groups("memory", root) if oom_kills(group) is not None), None)


def oom_kills(group: Path) -> int | None:
    """Return how many processes of a group the kernel has killed for lack of memory, None where it is not known.

    The kernel counts before it sends the signal (``__oom_kill_process`` in mm/oom_kill.c): a death that is observed has
    been counted.
    """
    for name in ("memory.events", "memory.oom_control"):
        for line in _text(group / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def members(group: Path) -> frozenset[int]:
    """Return the ids of the processes in a group."""
    return frozenset(int(word) for word in _text(group / "cgroup.procs").split())


def _text(path: Path) -> str:
    return read_kernel(str(path), whole=True) or ""


class Look(NamedTuple):
    """Out-of-memory kills in a group, None where they cannot be read, and the ids of its processes."""

    kills: int | None
    members: frozenset[int]


class Oom:
    """Detects whether the kernel killed processes for lack of memory.

    Args:
        root: of the file system, for tests.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._group = counts_kills(root)
        self._before = self.look()

    def look(self) -> Look:
        """Return the present counts; to be taken before processes are checked."""
        if self._group is None:
            return Look(None, frozenset())
        return Look(oom_kills(self._group), members(self._group))

    def begin(self, look: Look) -> None:
        """Make :meth:`killed` count from ``look`` on: processes that had ended by then are dealt with.

        A kill between ``look`` and the end of a process that was noticed after it counts twice, but so does the
        process: the result is then unknown rather than wrong.
        """
        self._before = look

    def killed(self, pids: frozenset[int]) -> bool | None:
        """Return whether ``pids``, ended by SIGKILL since the last :meth:`begin`, were killed for lack of memory.

        None where it is unknown: the counter cannot be read, or it has grown by less than the number of processes that
        have gone since, so that a different process may have been killed.
        """
        now, before = self.look(), self._before
        if now.kills is None or before.kills is None:
            return None
        kills = now.kills - before.kills
        if kills <= 0:
            return False
        gone = (before.members - now.members) | pids
        return True if kills >= len(gone) else None

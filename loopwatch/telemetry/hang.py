"""The stack of a hang during which no Python can run, written by faulthandler's own C thread.

The timer is armed again and again by the watcher; only when the watcher has been kept from running for long does it
expire and write into a private file beside the journal, which survives ``kill -9``. There is one such timer in a
process: it is left alone if somebody else uses it.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loopwatch._patches import Patch, PatchSet, loaded
from loopwatch.events import Cause, Evidence, Frame, Stall
from loopwatch.telemetry.journal import hang_header, hang_path, parse_hang


class HangTimer:
    """Keeps faulthandler's timer armed for the loops of this process.

    Args:
        setting: ``Config.journal``.
        hang_after: s; the timer expires between half of it and all of it after the interpreter stopped.
        patches: used to notice that somebody else uses the timer.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, setting: str, hang_after: float, patches: PatchSet) -> None:
        self.path = hang_path(setting, os.getpid())
        self._hang_after = hang_after
        self._patches = patches
        self._file: int | None = None
        self._armed_at = 0.0
        self._threads: dict[int, str] = {}
        self._written = 0
        self._dumps: dict[str, tuple[Frame, ...]] = {}
        self._arming = False
        # pytest arms the timer around each test, if it is so configured.
        self._yielded = loaded("_pytest.faulthandler") is not None
        self._watching: list[Patch] = []
        if not self._yielded:
            for name in ("dump_traceback_later", "cancel_dump_traceback_later"):
                self._watching.append(patches.around(faulthandler, name, self._noticed))

    def tick(self, now: float, threads: Mapping[int, str]) -> None:
        """Arm the timer again if it is time; in the watcher's thread.

        Args:
            now: ``time.monotonic`` seconds.
            threads: ident of each loop's thread, and the loop's name.
        """
        if self._yielded or now - self._armed_at < self._hang_after / 2:
            return
        if not threads and self._file is None:
            return
        self._keep_dump()
        if dict(threads) != self._threads or self._file is None:
            self._begin(dict(threads))
        self._armed_at = now
        self._arm(bool(threads))

    def dump_of(self, loop: str) -> tuple[Frame, ...]:
        """Return and forget the stack that was written during the latest hang of ``loop``; () if none was."""
        return self._dumps.pop(loop, ())

    def close(self) -> None:
        """Disarm the timer and remove the file."""
        if not self._yielded and self._file is not None:
            self._arm(False)
        for patch in self._watching:
            self._patches.undo(patch)
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self.path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Drop the file in a forked child: it is the parent's, and so was the timer."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for patch in self._watching:
            self._patches.undo(patch)

    def _arm(self, on: bool) -> None:
        self._arming = True
        try:
            if on and self._file is not None:
                faulthandler.dump_traceback_later(self._hang_after, file=self._file)
            else:
                faulthandler.cancel_dump_traceback_later()
        finally:
            self._arming = False

    def _begin(self, threads: dict[int, str]) -> None:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._threads = threads
        os.ftruncate(self._file, 0)
        self._written = os.write(self._file, hang_header(os.getpid(), threads).encode())

    def _keep_dump(self) -> None:
        """The watcher runs, so a hang that was written down is over: keep its stacks for the stall, clear the file."""
        if self._file is None or os.fstat(self._file).st_size <= self._written:
            return
        text = self.path.read_text(errors="replace")
        self._dumps = {dump.loop: dump.frames for dump in parse_hang(text)}
        self._begin(self._threads)

    def _noticed(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._arming:
            self._yielded = True
        return original(*args, **kwargs)


def leftover_hangs(setting: str, hang_after: float) -> list[Stall]:
    """Return the hangs in which earlier processes of this journal ended, and remove their files.

    Args:
        setting: ``Config.journal``.
        hang_after: s, the least that such a hang had lasted.
    """
    pattern = hang_path(setting, 0).name.replace(".0.", ".*.")
    found = []
    for path in hang_path(setting, 0).parent.glob(pattern):
        pid = path.name.split(".")[-2]
        if not pid.isdecimal() or _alive(int(pid)):
            continue
        found += [
            _stall(path, int(pid), dump.loop, dump.frames, hang_after)
            for dump in parse_hang(path.read_text(errors="replace"))
        ]
        path.unlink(missing_ok=True)
    return found


def _stall(path: Path, pid: int, loop: str, frames: tuple[Frame, ...], hang_after: float) -> Stall:
    return Stall(
        id=f"{pid:x}-hang",
        loop=loop,
        pid=pid,
        started_at=path.stat().st_mtime - hang_after,
        duration=hang_after,
        uncertainty=hang_after / 2,
        ongoing=True,
        cause=Cause.UNKNOWN,
        evidence=Evidence(wall=hang_after),
        leaf=frames[-1] if frames else None,
        stack=frames,
        remedy=f"it was last seen in {frames[-1]}." if frames else "",
    )


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

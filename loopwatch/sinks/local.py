"""The local sinks: opens, feeds and closes the log, the journal and the timer of the hang file.

Each fails, and is switched off, independently of the others.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.originals import time
from loopwatch.core.patches import PatchSet
from loopwatch.events import ExpectedBlocks, Frame, Stall
from loopwatch.sinks.log import LogSink
from loopwatch.sinks.pipeline import StallSink
from loopwatch.watch.observation import LoopReading, Observation

if TYPE_CHECKING:
    from loopwatch.sinks.hang_timer import HangTimer
    from loopwatch.sinks.journal import JournalWriter
    from loopwatch.sinks.lag_log import LagLog

_OF_FILES = frozenset({"journal", "journal_max_bytes", "hang_after"})


class LocalSinks:
    """The log, the journal and the hang file of one agent.

    Args:
        config: settings.
        patches: records attributes that the hang timer replaces.
        faults: of the agent.

    Attributes:
        hang: the hang timer, None without a journal.
    """

    def __init__(self, config: Config, patches: PatchSet, faults: Faults) -> None:
        self._config, self._patches, self._faults = config, patches, faults
        self._log = LogSink(config.log_level, config.log_interval, config.max_culprits)
        self._journal: JournalWriter | None = None
        self._lag: LagLog | None = None
        self._lag_lock = threading.RLock()  # a signal handler or finalizer may run in between
        self.hang: HangTimer | None = None

    def configure(self, config: Config, *, is_open: bool) -> None:
        """Apply changed settings; open files are reopened if their settings changed."""
        changes = config.changes_from(self._config)
        self._config = config
        self._log = LogSink(config.log_level, config.log_interval, config.max_culprits)
        if is_open and _OF_FILES & set(changes):
            self.close()
            self.open()

    def open(self, *, leftovers: bool = True) -> None:
        """Open the files, if a journal is configured.

        Args:
            leftovers: whether to report hangs in which earlier processes ended.
        """
        setting = self._config.journal
        if setting is None:
            return
        with self._faults.guard("journal"):  # imported only with a journal
            from loopwatch.sinks.files import journal_path
            from loopwatch.sinks.journal import JournalWriter
            from loopwatch.sinks.lag_log import LagLog

            self._lag = self._lag or LagLog(time.monotonic())
            self._journal = JournalWriter(journal_path(str(setting), os.getpid()), self._config.journal_max_bytes)
        with self._faults.guard("hang"):
            from loopwatch.sinks.hang_timer import HangTimer, leftover_hangs

            for stall in leftover_hangs(str(setting), self._config.hang_after) if leftovers else ():
                self._report_leftover(stall)
            self.hang = HangTimer(str(setting), max(self._config.hang_after, self._config.threshold), self._patches)

    def close(self) -> None:
        """Close the files."""
        for part, file in (("journal", self._journal), ("hang", self.hang)):
            if file is not None:
                with self._faults.guard(part):
                    file.close()
        self._journal = self.hang = None

    def abandon(self) -> None:
        """Close the parent's files in a forked child."""
        for file in (self._journal, self.hang):
            if file is not None:
                file.abandon()
        self._journal = self.hang = None

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that keeps the timer disarmed during a fork."""
        return contextlib.nullcontext() if self.hang is None else self.hang.held()

    def in_use(self) -> list[tuple[str, StallSink]]:
        """Return the sinks in use, each with its part's name."""
        journal = self._journal
        return [("log", self._log), *([] if journal is None else [("journal", journal)])]

    def record_expected(self, stall: Stall) -> None:
        """Journal an expected block, which is not logged as a stall."""
        self._write(stall)

    def is_lag_due(self, now: float) -> bool:
        """Whether it is time to journal the lag of the loops; ``now`` is ``time.monotonic`` seconds."""
        return self._journal is not None and self._lag is not None and now >= self._lag.due

    def add_lag(self, readings: Iterable[LoopReading], *, is_last: bool = False) -> None:
        """Add the lag of loops, to be journaled later; ``is_last``: they are no longer watched. In any thread."""
        if self._journal is None or (lag := self._lag) is None:
            return
        with self._lag_lock:
            self._faults.run("journal", functools.partial(lag.add, readings, is_last=is_last))

    def write_lag(self, *, is_last: bool = False) -> None:
        """Journal the lag that was added; ``is_last``: unless that is next to nothing, in a process without a stall."""
        journal, lag = self._journal, self._lag
        if journal is None or lag is None or (is_last and not (journal.is_begun or lag.is_worth_a_file)):
            return
        with self._lag_lock:
            records = lag.take(time.monotonic(), time.time(), os.getpid(), self._config.threshold)
        for record in records:
            self._faults.run("journal", journal.write_lag, record)

    def log_expected(self, blocks: ExpectedBlocks, note: str = "") -> None:
        """Log expected blocks in one line."""
        self._faults.run("log", self._log.expected, blocks, note)

    def dump_of(self, seen: Observation) -> tuple[Frame, ...]:
        """Return the stack that the hang timer wrote during a block, empty if there is none."""
        if (hang := self.hang) is None:
            return ()
        ended_at = seen.started_at + seen.end - seen.start
        return self._faults.attempt("hang", lambda: hang.dump_of(seen.loop, seen.started_at, ended_at), ())

    def tick(self, now: float, threads: Mapping[int, str], longest_sleep: float) -> None:
        """Re-arm the hang timer; in the watcher's thread.

        Args:
            now: ``time.monotonic`` seconds.
            threads: name of each running loop by ident of its thread.
            longest_sleep: seconds until the next tick at most.
        """
        if (hang := self.hang) is not None:
            self._faults.run("hang", hang.tick, now, dict(threads), longest_sleep)

    def disarm(self) -> None:
        """Disarm the hang timer while it is not re-armed: it would take a healthy program for a hang."""
        if self.hang is not None:
            with self._faults.guard("hang"):
                self.hang.disarm()

    def _report_leftover(self, stall: Stall) -> None:
        self._faults.say(
            logging.WARNING, "loopwatch: process %d ended while its loop %r was blocked: %s", stall.pid, stall.loop,
            stall.remedy,
        )  # fmt: skip
        self._write(stall)

    def _write(self, stall: Stall) -> None:
        if (journal := self._journal) is not None:
            self._faults.run("journal", journal.write, stall)

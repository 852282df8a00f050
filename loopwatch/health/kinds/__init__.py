"""The kinds of executors, one module each: hooks and statistics."""

from __future__ import annotations

from loopwatch.health.kinds.base import ExecutorKind
from loopwatch.health.kinds.multiprocessing import MultiprocessingKind
from loopwatch.health.kinds.other import OtherKind
from loopwatch.health.kinds.processes import LokyKind, ProcessPoolKind
from loopwatch.health.kinds.threads import ThreadPoolKind

KINDS: tuple[ExecutorKind, ...] = (ThreadPoolKind(), ProcessPoolKind(), LokyKind(), MultiprocessingKind())
"""Kinds found by discovery. A new one is a module of this folder and an entry here."""
OTHER = OtherKind()
"""Kind of any other executor, watched only if the program registers it."""

"""The kinds of executors, one module each: how it is hooked, and how its statistics are read."""

from __future__ import annotations

from loopwatch.health.kinds.base import ExecutorKind
from loopwatch.health.kinds.multiprocessing import MultiprocessingKind
from loopwatch.health.kinds.other import OtherKind
from loopwatch.health.kinds.processes import LokyKind, ProcessPoolKind
from loopwatch.health.kinds.threads import ThreadPoolKind

KINDS: tuple[ExecutorKind, ...] = (ThreadPoolKind(), ProcessPoolKind(), LokyKind(), MultiprocessingKind())
"""Those that are found by themselves. A new one is a module of this folder and a name here."""
OTHER = OtherKind()
"""What any other executor is taken for, where the program asks for it to be watched."""

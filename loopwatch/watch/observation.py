"""What was read of loops, before anybody judged it: one block as the watcher saw it, and the figures of a loop."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Any

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import Evidence, LoopStats
from loopwatch.system.threads import Clocks
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.stacks import RawStack


@dataclass(slots=True)
class Sample:
    """The loop's thread at one moment inside the block.

    Attributes:
        at: ``time.monotonic`` seconds.
        late: s the watcher wanted to run before it could.
        stack: the thread's stack.
        callback: identity of the running callback; equal for samples of the same callback.
        syscall, wait_channel: where in the kernel the thread was.
        task, coroutine: names of what was running.
        context: its context, dropped as soon as its labels are read.
        waiting: ready callbacks behind the running one, None if unknown.
        clocks: of the loop's thread and of the process.
        typed: it shows code of a prompt, and that is expected to hold the loop.
    """

    at: float
    late: float
    stack: RawStack
    callback: object = None
    syscall: str | None = None
    wait_channel: str | None = None
    task: str | None = None
    coroutine: str | None = None
    context: contextvars.Context | None = None
    waiting: int | None = None
    clocks: Clocks | None = None
    typed: bool = False


@dataclass(slots=True)
class Observation:
    """One block with everything that was seen of it.

    Attributes:
        id: of the stall this becomes.
        loop, thread: names.
        started_at: s since the epoch.
        start, end: ``time.monotonic`` seconds; ``end`` is now for an ongoing block.
        uncertainty, shared, asleep, victims: as in :class:`loopwatch.watch.probes.base.Block`.
        evidence: the measured part; what follows from the samples is added by the diagnosis.
        samples: in order of time.
        hog: stack of the other thread that used most processor time meanwhile.
        task, coroutine, context: of the callback.
        span: context of the span of OpenTelemetry that is current in it.
        expectation: what the block was expected by, None for a stall.
    """

    id: str
    loop: str
    thread: str
    started_at: float
    start: float
    end: float
    evidence: Evidence
    uncertainty: float = 0.0
    shared: bool = False
    asleep: bool = False
    ongoing: bool = False
    victims: int | None = None
    samples: list[Sample] = field(default_factory=list)
    hog: RawStack | None = None
    task: str | None = None
    coroutine: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    span: Any = None
    pid: int = 0
    expectation: Expectation | None = None


@dataclass(frozen=True, slots=True)
class LoopReading:
    """One loop at one moment.

    Attributes:
        key: unique among the loops of the process.
        stats: what is told to people.
        lags: how late its heartbeat was since it is watched.
        callbacks: callbacks that it has run since then, None where they are not counted.
        victims: what waited when its stalls ended.
    """

    key: int
    stats: LoopStats
    lags: Histogram
    callbacks: int | None = None
    victims: int = 0

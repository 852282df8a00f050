"""Raw records of the watcher, before diagnosis: samples, a block as it was observed, the statistics of a loop."""

from __future__ import annotations

import contextvars
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import Evidence, LoopStats, Stall
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
        key: stands for the loop, unlike its name unique for all time.
        stats: what is told to people.
        lags: how late its heartbeat was since it is watched.
        callbacks: callbacks that it has run since then, None where they are not counted.
        victims: what waited when its stalls ended.
    """

    key: Hashable
    stats: LoopStats
    lags: Histogram
    callbacks: int | None = None
    victims: int = 0


@dataclass(slots=True)
class Baseline:
    """Clocks of a loop's thread at one moment before a block, and the idle time of the loop then, s.

    The run queue costs a file: ``run_queue_at`` says when it was read last.
    """

    clocks: Clocks
    run_queue_at: float
    idle: float


@dataclass(slots=True)
class Caller:
    """Who a callback is: task, coroutine, labels of its context, and the context of its span."""

    task: str | None
    coroutine: str | None
    context: dict[str, str] = field(default_factory=dict)
    span: Any = None


@dataclass(slots=True)
class Case:
    """One block as the traces of those who wait for it are told of it.

    Attributes:
        key: of the block.
        id: of the stall.
        span: context of the span that is current in the blocking callback, None if there is none.
        told: who was told: (id of the span, whether in advance).
        foreseen: what the stall looked like while it lasted.
        judged: samples that there were then.
        prepared, told_in_advance: whether those were seen to who will run before the loop can tell.
        reached: when a callback of ours ran that was scheduled during the block (``time.monotonic``), None if none did.
    """

    key: float
    id: str
    span: Any = None
    told: set[tuple[int, bool]] = field(default_factory=set)
    foreseen: Stall | None = None
    judged: int = 0
    prepared: bool = False
    told_in_advance: bool = False
    reached: float | None = None


@dataclass(slots=True)
class Episode:
    """What the watcher has collected of a block that may become a stall.

    Attributes:
        id: of the stall it may become.
        samples: stack samples, bounded by thinning out.
        announced: whether the hang was announced.
        ended: when the loop was first found doing something else, None while it was not.
        callers: who the callbacks are that were seen, by ``Sample.callback``.
    """

    id: str
    samples: list[Sample] = field(default_factory=list)
    announced: bool = False
    ended: float | None = None
    callers: dict[object, Caller] = field(default_factory=dict)


Variable = contextvars.ContextVar[Any]


class Notice(NamedTuple):
    """Somebody has waited for a block.

    Attributes:
        case: the block.
        loop: name of the loop.
        started_at: s since the epoch.
        duration: s that they waited.
        ongoing: whether it still goes on.
        contexts: theirs, as OpenTelemetry keeps them.
    """

    case: Case
    loop: str
    started_at: float
    duration: float
    ongoing: bool
    contexts: tuple[Any, ...]

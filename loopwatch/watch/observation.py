"""Raw records of the watcher, before diagnosis: samples, observed blocks, statistics of a loop."""

from __future__ import annotations

import contextvars
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from loopwatch.core.dataclasses import dataclass, field
from loopwatch.core.histogram import Histogram
from loopwatch.events import Evidence, Frame, LoopStats, Stall
from loopwatch.system.threads import Clocks
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.routes.finder import Request
from loopwatch.watch.stacks import RawStack


@dataclass(slots=True)
class Sample:
    """The state of a loop's thread at one moment inside a block.

    Attributes:
        at: ``time.monotonic`` seconds.
        late: seconds by which the watcher was late.
        gil_wait: seconds of it in which the watcher waited for the GIL, None where its wait for a processor hides that.
        stack: the thread's stack.
        callback: identity of the running callback; equal for samples of the same callback.
        syscall, wait_channel: where in the kernel the thread was.
        task, coroutine: names of the running task and of its coroutine.
        context: context of the callback, dropped as soon as its labels are read.
        waiting: ready callbacks behind the running one, None if unknown.
        clocks: of the loop's thread and of the process.
        expected: why a block by its code is expected, None if it is not.
        is_known: whether the context of its code was found, which says whether a block is expected.
        requests: being served, innermost framework first; dropped with ``context``.
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
    expected: str | None = None
    is_known: bool = False
    gil_wait: float | None = 0.0
    requests: Sequence[Request] = ()


@dataclass(slots=True)
class Observation:
    """One block with its samples and measurements: the input of the diagnosis.

    Attributes:
        id: of the stall this becomes.
        loop, thread: names.
        started_at: seconds since the epoch.
        start, end: ``time.monotonic`` seconds; ``end`` is now for an ongoing block.
        uncertainty, shared, asleep, victims: as in :class:`loopwatch.watch.probes.base.Block`.
        evidence: the measured part; the diagnosis adds what follows from the samples.
        samples: in order of time.
        hog: stack of the other thread that used most processor time meanwhile.
        collector: stack of another thread that began to collect garbage, for longer than any other meanwhile.
        task, coroutine, context: names and labels of the blocking callback.
        span: OpenTelemetry span context current in the callback.
        endpoint: the program's function that the request was routed to, at its first line; None outside a request.
        expectation: the expectation that covers the block, None for a stall.
        limit: seconds; the threshold in force for it, None for that of the settings.
        is_below: whether it is below that threshold, so that it is no stall.
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
    collector: RawStack | None = None
    task: str | None = None
    coroutine: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    span: Any = None
    pid: int = 0
    endpoint: Frame | None = None
    expectation: Expectation | None = None
    limit: float | None = None
    is_below: bool = False


@dataclass(frozen=True, slots=True)
class LoopReading:
    """The statistics of one loop at one moment, from which metrics are computed.

    Attributes:
        key: identifies the loop; unlike its name, never reused.
        stats: the public statistics.
        lags: histogram of its heartbeat's lag since the loop was first watched.
        callbacks: callbacks run since then, None where they are not counted.
        victims: waiters counted at the ends of its stalls.
        watched_for: seconds since it was first watched.
    """

    key: Hashable
    stats: LoopStats
    lags: Histogram
    callbacks: int | None = None
    victims: int = 0
    watched_for: float = 0.0


@dataclass(slots=True)
class Baseline:
    """Clocks of a loop's thread at one moment outside a block, and the loop's idle seconds by then.

    Reading the run queue costs a file: ``run_queue_at`` is when it was last read, and ``run_queue_idle`` the idle
    seconds by then.
    """

    clocks: Clocks
    run_queue_at: float
    idle: float
    run_queue_idle: float


@dataclass(slots=True)
class Caller:
    """Identity of a callback: task, coroutine, labels of its context, its span context, endpoint of its request."""

    task: str | None
    coroutine: str | None
    context: dict[str, str] = field(default_factory=dict)
    span: Any = None
    endpoint: Frame | None = None


@dataclass(slots=True)
class Case:
    """State of one block in the traces of its waiters, whose spans are annotated with the stall.

    Attributes:
        key: of the block.
        id: of the stall.
        span: span context current in the blocking callback, None if there is none.
        annotated: the annotated spans: (id of the span, whether in advance).
        foreseen: the early diagnosis, made while the block lasted.
        judged: number of samples at the early diagnosis.
        prepared, annotated_in_advance: whether the end of the block was prepared for, and whether the spans of
            callbacks that run before it is detected were annotated; each is done once.
        limit: seconds below which it is no stall.
        is_expected: whether it is expected, so that it is no stall either.
        reached: when the agent's callback scheduled during the block ran (``time.monotonic``), None if it did not.
    """

    key: float
    id: str
    span: Any = None
    annotated: set[tuple[int, bool]] = field(default_factory=set)
    foreseen: Stall | None = None
    judged: int = 0
    prepared: bool = False
    annotated_in_advance: bool = False
    limit: float = 0.0
    is_expected: bool = False
    reached: float | None = None


@dataclass(slots=True)
class Episode:
    """The samples collected of a block that may become a stall.

    Attributes:
        id: of the stall it may become.
        samples: stack samples, bounded by thinning out.
        announced: whether the hang was reported.
        ended: when the loop was first found doing something else, None until then.
        callers: identities of the sampled callbacks, by ``Sample.callback``.
    """

    id: str
    samples: list[Sample] = field(default_factory=list)
    announced: bool = False
    ended: float | None = None
    callers: dict[object, Caller] = field(default_factory=dict)


Variable = contextvars.ContextVar[Any]


class Notice(NamedTuple):
    """OpenTelemetry contexts of callbacks that waited for a block, whose spans are to be annotated.

    Attributes:
        case: the block.
        loop: name of the loop.
        started_at: start of the block, seconds since the epoch.
        duration: seconds that they waited.
        ongoing: whether the block still goes on.
        contexts: of the waiting callbacks.
    """

    case: Case
    loop: str
    started_at: float
    duration: float
    ongoing: bool
    contexts: tuple[Any, ...]

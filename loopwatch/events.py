"""The records that loopwatch produces: frozen, plain data, convertible to JSON and back.

Times are SI seconds. A point in time is seconds since the epoch, unless a name says ``monotonic``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from loopwatch.core.dataclasses import asdict, dataclass, field, field_names


class Cause(StrEnum):
    """Why the loop's thread made no progress: the verdict of :mod:`loopwatch.diagnosis.cause`."""

    PYTHON = "python"
    """It ran Python bytecode."""
    NATIVE_GIL = "native_gil"
    """It was inside C code that keeps the GIL (json, re, sort, pickle)."""
    NATIVE = "native"
    """It was inside C code that releases the GIL (hashlib, zlib, sqlite, numpy)."""
    IO = "io"
    """It waited in a system call (recv, read, fsync, wait4, connect)."""
    SLEEP = "sleep"
    """It slept."""
    LOCK = "lock"
    """It waited for a lock."""
    GIL = "gil"
    """It wanted the GIL, which another thread held."""
    GC = "gc"
    """The garbage collector ran."""
    STARVED = "starved"
    """It was runnable but got no processor."""
    SUSPENDED = "suspended"
    """The whole process was stopped (SIGSTOP, a paused virtual machine)."""
    OVERLOAD = "overload"
    """No single callback: too many small ones in one pass."""
    UNKNOWN = "unknown"
    """None of these with confidence."""


class Severity(StrEnum):
    """How bad a stall is, by its length in thresholds."""

    WARNING = "warning"
    """It reached the threshold in force."""
    ERROR = "error"
    """It reached :data:`ERROR_AFTER` times that threshold, or is a hang: it has not ended yet."""


ERROR_AFTER = 10.0
"""Thresholds from which on a stall is an error."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stack: a function and the line it was at.

    Attributes:
        function: qualified name, ``Images.resize`` or ``handler.<locals>.<lambda>``.
        module: importable name of its module, ``""`` where there is none.
        file: path as the code object has it, ``<string>`` and the like for generated code.
        line: 1-based line that was running.
    """

    function: str
    module: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Facts observed while the loop was blocked; the verdict is made from them.

    All times in seconds over ``wall``, the observed span (the block, and up to 10 ms before it). A field is None where
    this system or this kind of loop does not provide it.

    Attributes:
        wall: length of the observed span.
        cpu: processor time of the loop's thread.
        process_cpu: processor time of the whole process.
        run_queue: time the loop's thread was runnable but waited for a processor.
        runs: how many times the loop's thread was given a processor.
        throttled: time the process's cgroup was held back by its processor quota.
        gc: time inside the garbage collector, in any thread.
        watcher_late: time the watcher's own thread was ready to run and could not, where that was notable (15 ms).
        watcher_starved: part of it in which that thread waited for a processor, not for the GIL.
        watcher_runs: how many times that thread was given a processor meanwhile: once each switch interval while it
            waits for the GIL, hardly ever while the process is stopped.
        gil_wait: median time the watcher waited for the GIL, per sample, less the time in which it or the loop's thread
            had no processor; near the interpreter's switch interval (5 ms) when a thread holds the GIL, near 0 when
            none does; None also where the watcher's wait for a processor hides it.
        samples: number of stack samples taken.
        moving: share of adjacent samples whose innermost position differs, 0 to 1.
        syscall: system call the thread was most often found in, ``running`` if it was on a processor.
        syscall_share: share of samples found in it or in calls of its kind (sleep, lock, I/O), 0 to 1.
        wait_channel: kernel function it most often slept in (``/proc/PID/wchan``).
        callbacks: number of distinct callbacks seen in the samples.
        handles: number of handles in the pass, None if not seen.
        uneven: most by which the share of the pass that was done at a sample differed from the share of its time that
            was over, 0 to 1; None without a sample from its middle.
        longest_callback: upper bound of the time one callback alone held the loop.
        dominant_callback: lower bound of the same.
        in_call: share of samples that found the thread inside one call of C code that keeps the GIL (before 3.12 the
            garbage collector, and with it its callbacks, runs inside such a call).
        lock_wait: whether the innermost Python frame is a known wait for a lock, queue or future.
        call: dotted name of what the innermost frame was calling, ``.acquire`` for a method.
        threshold: the limit in force, in seconds: that of its route or task, if ``Config.thresholds`` has one.
        hog: share of ``wall`` in which the busiest other thread used a processor.
        asleep: True when the loop was not inside a callback but could not wake up in time.
        switch_interval: the interpreter's GIL switch interval.
        traced: True if a debugger was attached to the process when the block was over.
    """

    wall: float
    cpu: float | None = None
    process_cpu: float | None = None
    run_queue: float | None = None
    runs: int | None = None
    throttled: float | None = None
    gc: float = 0.0
    watcher_late: float = 0.0
    watcher_starved: float = 0.0
    watcher_runs: int | None = None
    gil_wait: float | None = None
    samples: int = 0
    moving: float | None = None
    syscall: str | None = None
    syscall_share: float = 0.0
    wait_channel: str | None = None
    callbacks: int = 0
    handles: int | None = None
    uneven: float | None = None
    longest_callback: float | None = None
    dominant_callback: float | None = None
    in_call: float = 0.0
    lock_wait: bool = False
    call: str | None = None
    threshold: float | None = None
    hog: float | None = None
    asleep: bool = False
    switch_interval: float = 0.005
    traced: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`; fields of a later version are ignored."""
        return cls(**_known(cls, data))


@dataclass(frozen=True, slots=True)
class StackCount:
    """A distinct stack (outermost frame first) and the number of samples that showed it."""

    stack: tuple[Frame, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Stall:
    """One block of the loop that was longer than the threshold.

    Attributes:
        id: short unique id, the same in log line, journal and report.
        loop: name of the loop.
        started_at: seconds since the epoch.
        duration: seconds the loop was held.
        uncertainty: seconds by which one callback's share may be shorter than ``duration`` (asyncio: callbacks before
            and after it in the same pass), or the block may be shorter or longer than it (other loops: time between two
            readings). 0 where the duration is exact.
        ongoing: True for the early report of a block that has not ended yet.
        cause: why.
        culprit: the user's code that is responsible; for ``gil`` the frame of the thread that held it; None for
            ``starved``, ``suspended`` and where it is unknown.
        leaf: innermost frame, None if no sample was taken in time.
        stack: frames, outermost first, bounded; without those of the loop itself.
        samples: (number of samples that agree with the culprit, number of samples taken).
        task: name of the task, None outside one.
        coroutine: qualified name of the task's coroutine.
        context: labels from the callback's own context: ``http.route``, ``trace_id``, ``span_id``, ...
        victims: number of ready callbacks, due timers and I/O events that waited when it ended; None if unknown.
        evidence: the facts behind ``cause``.
        remedy: one sentence: what to do.
        profile: distinct stacks and the number of samples of each, most frequent first, bounded; empty if only
            ``stack``.
        thread: name of the loop's thread.
        pid: process id.
        expected: why this block was expected, such as ``start-up of uvicorn``: it is counted and journaled, and not
            reported; None for a stall.
        starved: seconds of ``duration`` in which the loop's thread was runnable and had no processor; 0.0 where
            unknown.
        throttled: part of ``starved`` that the processor quota of the container took; the rest went to neighbours.
        was_in: the user's code that was running in a ``starved`` or ``suspended`` block, which is not to blame; None if
            it is not known.
        offloadable: whether ``culprit`` may be decorated with ``@loopwatch.offload``: a function of the user's modules,
            called by the user's code, whose calls last, and of a cause that it cures.
    """

    id: str
    loop: str
    started_at: float
    duration: float
    cause: Cause
    evidence: Evidence
    uncertainty: float = 0.0
    ongoing: bool = False
    culprit: Frame | None = None
    leaf: Frame | None = None
    stack: tuple[Frame, ...] = ()
    samples: tuple[int, int] = (0, 0)
    task: str | None = None
    coroutine: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    victims: int | None = None
    remedy: str = ""
    profile: tuple[StackCount, ...] = ()
    thread: str = ""
    pid: int = 0
    expected: str | None = None
    starved: float = 0.0
    throttled: float = 0.0
    was_in: Frame | None = None
    offloadable: bool = False

    @property
    def severity(self) -> Severity:
        """``error`` from ten times the threshold in force on, and while it is ongoing; ``warning`` below.

        Example:
            >>> stall = Stall("7f", "main", 0.0, 0.9, Cause.SLEEP, Evidence(0.9, threshold=0.1))
            >>> stall.severity
            <Severity.WARNING: 'warning'>
        """
        threshold = self.evidence.threshold
        is_long = threshold is not None and self.duration >= ERROR_AFTER * threshold
        return Severity.ERROR if is_long or self.ongoing else Severity.WARNING

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and ``severity``, as a JSON-compatible mapping; see :meth:`from_dict`."""
        return {**asdict(self), "severity": self.severity.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict` or its JSON; fields of a later version are ignored.

        Raises:
            KeyError, TypeError, ValueError: ``data`` is not a stall.
        """
        known = _known(cls, data)
        for name in ("culprit", "leaf", "was_in"):
            known[name] = _frame(known.get(name))
        known["stack"] = _stack(known.get("stack", ()))
        known["profile"] = tuple(StackCount(_stack(item["stack"]), item["count"]) for item in known.get("profile", ()))
        agreed, taken = known.get("samples", (0, 0))
        known["samples"] = (agreed, taken)
        known["evidence"] = Evidence.from_dict(known["evidence"])
        known["cause"] = Cause(known["cause"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class FlaggedFunction:
    """A function that keeps blocking: culprit of several stalls within a window, of causes that offloading it cures.

    Attributes:
        name: ``module:qualname``.
        culprit: the function, at the line of its latest stall.
        stalls: number of stalls it caused in the window.
        window: length of the window in seconds.
        blocked: seconds blocked by them.
        blocked_per_minute: the same in seconds per minute.
        victims: number of ready callbacks, due timers and I/O events that waited at their ends; unknown ones count as
            0.
        cause: the one with the most blocked time.
        causes: (cause, number of stalls), most frequent first.
        loops: names of the loops it blocked, at most 8.
        first_at: seconds since the epoch, start of the first stall in the window.
        last_at: seconds since the epoch, end of the latest.
        remedy: one sentence: what to do, from its latest stall of ``cause``.
        offloadable: whether running it off the loop cures ``cause`` and its latest stall showed that it can be.
    """

    name: str
    culprit: Frame
    stalls: int
    window: float
    blocked: float
    blocked_per_minute: float
    victims: int
    cause: Cause
    causes: tuple[tuple[Cause, int], ...]
    loops: tuple[str, ...]
    first_at: float
    last_at: float
    remedy: str = ""
    offloadable: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping; see :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict` or its JSON; fields of a later version are ignored.

        Raises:
            KeyError, TypeError, ValueError: ``data`` is not a flagged function.
        """
        known = _known(cls, data)
        known["culprit"] = Frame(**_known(Frame, known["culprit"]))
        known["cause"] = Cause(known["cause"])
        known["causes"] = tuple((Cause(cause), count) for cause, count in known["causes"])
        known["loops"] = tuple(known["loops"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class LagStats:
    """Lateness of the heartbeat over one interval, in seconds: what a newly arriving request would wait.

    Attributes:
        count: heartbeats in the interval.
        min, mean, p50, p90, p99, max: lateness; quantiles are accurate to 5 percent.
        stddev: standard deviation.
    """

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    stddev: float = 0.0


@dataclass(frozen=True, slots=True)
class LagRecord:
    """The lag of a loop over a span of time, as the journal holds it: how late heartbeats came, in seconds.

    Attributes:
        loop: name of the loop.
        pid: process id.
        started_at: begin of the span, seconds since the epoch.
        seconds: length of the span.
        threshold: the setting at its end, in seconds.
        lags: (lateness, number of heartbeats that were about as late), shortest first; accurate to 5 percent.
    """

    loop: str
    pid: int
    started_at: float
    seconds: float
    threshold: float
    lags: tuple[tuple[float, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping; see :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict` or its JSON; fields of a later version are ignored.

        Raises:
            KeyError, TypeError, ValueError: ``data`` is not a lag record.
        """
        known = _known(cls, data)
        known["lags"] = tuple((float(late), int(count)) for late, count in known["lags"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class ExpectedBlocks:
    """Blocks of a loop that were expected for one reason: counted, not reported as stalls.

    Attributes:
        reason: such as ``start-up of uvicorn``.
        loop: name of the loop.
        blocks: number of blocks.
        blocked: seconds blocked by them.
        longest: seconds of the longest.
        culprit, cause: of the longest.
    """

    reason: str
    loop: str
    blocks: int = 0
    blocked: float = 0.0
    longest: float = 0.0
    culprit: Frame | None = None
    cause: Cause = Cause.UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LoopStats:
    """Statistics of one loop over the agent's last complete window.

    Attributes:
        name: name of the loop.
        kind: ``asyncio``, ``uvloop`` or ``heartbeat`` (how it is read).
        running: whether it runs now.
        window: length of the window in seconds; 0 before the first one is complete.
        utilization: busy / (busy + idle) in the window, 0 to 1; None where it cannot be measured.
        busy, idle: seconds since the loop has been watched; differences of two readings give the utilization between
            them, see :meth:`utilization_since`.
        passes: passes of the loop since it has been watched; None where they cannot be counted.
        passes_per_s: passes per second in the window.
        callbacks_per_s: callbacks (libuv: I/O events) per second in the window, None where not counted.
        lag: lateness of the heartbeat in the window, None before the first window is complete.
        stalls: stalls since the loop has been watched.
        blocked: seconds blocked by them.
        blocked_for: seconds for which the loop has been blocked now, 0 if it is not, or if that is expected.
        expected: blocks that were expected, such as those while its server started; not among ``stalls``.
    """

    name: str
    kind: str
    running: bool
    window: float = 0.0
    utilization: float | None = None
    busy: float | None = None
    idle: float | None = None
    passes: int | None = None
    passes_per_s: float | None = None
    callbacks_per_s: float | None = None
    lag: LagStats | None = None
    stalls: int = 0
    blocked: float = 0.0
    blocked_for: float = 0.0
    expected: tuple[ExpectedBlocks, ...] = ()

    def utilization_since(self, earlier: LoopStats) -> float | None:
        """Return busy / (busy + idle) between ``earlier`` and this reading, None if it is unknown."""
        if self.busy is None or self.idle is None or earlier.busy is None or earlier.idle is None:
            return None
        busy, idle = self.busy - earlier.busy, self.idle - earlier.idle
        return busy / (busy + idle) if busy + idle > 0 else None


@dataclass(frozen=True, slots=True)
class AgentStats:
    """State and cost of the agent itself.

    Attributes:
        state: ``watching``, ``waiting`` (no loop yet), ``paused`` or ``off``.
        reason: why it is off, empty otherwise.
        cpu: processor time of the agent's own threads in seconds.
        cpu_share: the same as a share of one core over the last window.
        stretch: factor by which the governor has lengthened the agent's intervals; 1 within budget.
        faults: faults of the agent itself since it was installed, by part.
        switched_off: parts that are switched off after repeated failures, with the seconds until each is tried again;
            None: never.
        dropped: stalls that were not emitted because the agent's queue was full.
        prometheus: URL where Prometheus can scrape this process, empty where it cannot.
    """

    state: str
    reason: str = ""
    cpu: float = 0.0
    cpu_share: float = 0.0
    stretch: float = 1.0
    faults: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    prometheus: str = ""
    switched_off: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a function runs, and why.

    Attributes:
        to: ``inline``, ``thread`` or ``process``.
        reason: one sentence with the values that decided it.
    """

    to: str
    reason: str


DESTINATIONS = ("inline", "thread", "process", "backend")
"""Where an offloadable call can run; anything that is neither a thread nor a process of this machine is a backend."""


@dataclass(frozen=True, slots=True)
class OffloadStats:
    """Statistics of a function that is offloaded, or may be.

    Attributes:
        name: ``module:qualname``.
        way: how that was requested: ``offload`` (decorated), ``auto_offload`` or ``transparent_offload`` (named in the
            configuration).
        to: where its next call runs: ``inline``, ``thread``, ``process`` or the name of a backend.
        reason: why.
        calls: calls since it was decorated, or since the agent found it to block.
        inline, thread, process, backend: calls by where they ran.
        failed: calls that raised.
        run: median seconds of the latest measured calls, None if none were measured.
        left: reasons why calls that could have been offloaded ran inline, with the number of calls.
        changes: the latest decisions that changed its destination, oldest first.
    """

    name: str
    way: str
    to: str
    reason: str
    calls: int = 0
    inline: int = 0
    thread: int = 0
    process: int = 0
    backend: int = 0
    failed: int = 0
    run: float | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[Decision, ...] = ()

    def explain(self) -> str:
        """Return a sentence: where it runs, and why.

        Example:
            >>> OffloadStats("app:resize", "offload", "process", "as configured").explain()
            'app:resize runs in a worker process: as configured'
        """
        places = {"inline": "inline, on the loop", "thread": "in a thread", "process": "in a worker process"}
        words = f"{self.name} runs {places.get(self.to, f'on {self.to}')}: {self.reason}"
        left = "; ".join(f"{count} calls ran inline as {why}" for why, count in self.left.items())
        return f"{words} ({left})" if left else words

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PlaceStats:
    """Totals of the offloadable calls of this process at one destination since it started, in seconds.

    Includes calls of offloaded functions, and calls given to a pool directly.

    Attributes:
        place: destination: ``inline``, ``thread``, ``process``, or ``backend`` for engines that are neither.
        calls: calls given to a :class:`loopwatch.WorkerPool` directly; functions count their own.
        run: run time of the calls; for a coroutine it includes its waits, except inline. ``backend``: the time the
            caller waited, as nothing else is known.
        trip: overhead on top: pickling, queue, transfer both ways, unpickling.
        held: part of it in which pickling and unpickling held a loop.
        saved: time for which the calls would have held loops, less ``held``; never decreases.
    """

    place: str
    calls: int = 0
    run: float = 0.0
    trip: float = 0.0
    held: float = 0.0
    saved: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)


class WorkerState(StrEnum):
    """State of a worker: the verdict of :mod:`loopwatch.health.states`, or as its own pool reports it."""

    STARTING = "starting"
    """It was started and has not reported yet that it is ready."""
    IDLE = "idle"
    """It waits for work."""
    BUSY = "busy"
    """It has a task and makes progress."""
    HUNG = "hung"
    """It has a task, and has used neither processor nor I/O for ``Config.hung_after`` seconds."""
    ZOMBIE = "zombie"
    """It has exited, and its parent has not waited for it."""
    ORPHAN = "orphan"
    """It is alive although its executor is shut down, broken or gone."""
    STOPPING = "stopping"
    """It was asked to end."""
    DEAD = "dead"
    """It has ended."""
    UNKNOWN = "unknown"
    """It is not known whether it has a task."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker of a pool: a process, or a thread.

    Attributes:
        pid: process id; of a thread its native id.
        state: one of :class:`WorkerState`.
        calls: calls that were sent to it and not answered.
        done: calls it has answered.
        age: seconds since it was started.
        memory: resident bytes, 0 where that cannot be read, and for threads.
        reason: why it is in that state, in words; empty where the state is self-explanatory.
        unique: bytes that its end would free (USS), None where that is not read.
        cpu: processor time in seconds, None where that cannot be read.
        starved: seconds for which it was runnable and got no processor; None where that cannot be read.
        task: name of the function that it runs, None if it runs none or that is unknown; of a child process that
            belongs to no pool, what it is.
        running_for: seconds for which it has run it.
        exitcode: how it ended, negative for the number of a signal; None while it lives or where that is unknown.
        oom_killed: whether the kernel killed it for lack of memory; None where that is unknown.
    """

    pid: int
    state: str
    calls: int
    done: int
    age: float
    memory: int
    reason: str = ""
    unique: int | None = None
    cpu: float | None = None
    task: str | None = None
    running_for: float | None = None
    exitcode: int | None = None
    oom_killed: bool | None = None
    starved: float | None = None


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """An event in a pool.

    Attributes:
        kind: ``started``, ``ready``, ``busy``, ``recycled``, ``crashed``, ``killed``, ``stopped`` (of a worker),
            ``failed`` (a worker that could not start), ``queue_full``, ``drained``.
        pool: its name.
        pid: of the worker, None where no worker is concerned.
        detail: why, in words; empty where the kind is self-explanatory.
        at: seconds since the epoch.
    """

    kind: str
    pool: str
    pid: int | None
    detail: str
    at: float


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Statistics of a pool since it was made.

    Attributes:
        name: of the pool.
        workers: one entry for each live worker.
        queued: calls that wait for a worker.
        running: calls that were sent to one.
        submitted, completed, failed: calls accepted; that returned; that raised, timed out or were lost.
        cancelled, timed_out: calls that the caller gave up; that ran too long.
        crashed, retried: calls whose worker died; that were run again then.
        started, recycled: workers started; replaced for their age or memory.
        wait, run: seconds that calls waited, and ran; None before the first.
        longest_encode, longest_decode: maximum seconds for which pickling or unpickling one call held the loop.
        utilization: share of the workers' time since the pool was made in which they ran calls.
        kind: ``loopwatch``, ``process`` (ProcessPoolExecutor), ``thread`` (ThreadPoolExecutor), ``default`` (a loop's
            default executor), ``multiprocessing`` (multiprocessing.Pool), ``loky``, ``children`` (processes that belong
            to no pool), ``other``.
        max_workers: maximum number of workers, None where there is no limit or it is unknown.
        failures: failed calls by type of the exception.
        crashes: workers that ended without being asked to, by reason: ``SIGSEGV``, ``exit 3``, ``oom``.
        created_at: where it was made, ``file:line in function``; empty where that is unknown.
        closed: whether it accepts no more calls.
        task_cpu: processor seconds that calls used, None where that is unknown; compared with ``run`` it shows whether
            they compute or wait.
        cpu: processor seconds of all its workers since it was made.
        encoding, decoding: total seconds for pickling calls and unpickling results in this process; of executors that
            are not loopwatch's ``decoding`` is what calls and results cost their workers; None where that is unknown.
        neglected: failed calls whose error was not retrieved and no longer can be; None where that is unknown.
    """

    name: str
    workers: tuple[WorkerStats, ...] = ()
    queued: int = 0
    running: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    crashed: int = 0
    retried: int = 0
    started: int = 0
    recycled: int = 0
    wait: LagStats | None = None
    run: LagStats | None = None
    longest_encode: float = 0.0
    longest_decode: float = 0.0
    utilization: float = 0.0
    kind: str = "loopwatch"
    max_workers: int | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    crashes: Mapping[str, int] = field(default_factory=dict)
    created_at: str = ""
    closed: bool = False
    task_cpu: float | None = None
    cpu: float = 0.0
    encoding: float | None = None
    decoding: float | None = None
    neglected: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """Advice about a pool or a process, with the values that it rests on.

    Attributes:
        kind: short name of the rule, such as ``cpu-bound-threads``; of low cardinality, usable as a metric attribute.
        subject: name of the pool, or what the process is.
        text: one sentence: what was found, with the values.
        remedy: one sentence: what to do.
        evidence: the values by name, in SI units.
        at: seconds since the epoch when it was first found.
    """

    kind: str
    subject: str
    text: str
    remedy: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    at: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the agent knows at one moment.

    Attributes:
        at: seconds since the epoch.
        pid: process id.
        loops: one entry for each watched loop.
        agent: the agent's own state and cost.
        tasks: tasks of this process that are alive or not yet collected; None where counting would not be O(1).
        flagged: functions that keep blocking, most blocked time first.
        pools: worker pools of this process that are in use, loopwatch's and others, and its child processes.
        offload: functions that are offloaded, or may be.
        findings: advice about pools and processes.
        places: totals of offloadable calls by destination.
    """

    at: float
    pid: int
    loops: tuple[LoopStats, ...]
    agent: AgentStats
    tasks: int | None = None
    flagged: tuple[FlaggedFunction, ...] = ()
    pools: tuple[PoolStats, ...] = ()
    offload: tuple[OffloadStats, ...] = ()
    findings: tuple[Finding, ...] = ()
    places: tuple[PlaceStats, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible mapping."""
        return asdict(self)


def culprit_key(stall: Stall) -> str:
    """Return the key under which ``stall`` is counted for its culprit."""
    if stall.culprit is None:
        return f"[{stall.cause}]"
    return f"{stall.culprit.module}:{stall.culprit.function}"


def _known(cls: type[Any], data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"a {cls.__name__} is made of a mapping, not of {type(data).__name__}")
    names = set(field_names(cls))
    return {name: value for name, value in data.items() if name in names}


def _frame(data: Mapping[str, Any] | None) -> Frame | None:
    return None if data is None else Frame(**_known(Frame, data))


def _stack(data: Any) -> tuple[Frame, ...]:
    return tuple(Frame(**_known(Frame, item)) for item in data)

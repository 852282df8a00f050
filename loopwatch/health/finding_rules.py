"""The finding rules: each detects one misuse of pools, and yields its statistics and a remedy. One class a rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from loopwatch.core.median import median
from loopwatch.events import Finding, PoolStats
from loopwatch.health.history import (
    BUSY,
    CRASH_WINDOW,
    CRASHES,
    MIB,
    PROCESSES,
    THREADS,
    WINDOW,
    History,
    Memory,
    Scene,
)
from loopwatch.health.records import End, Waiter

GIL_WAIT = 0.002
"""Seconds of waiting for the GIL that show Python code computing in another thread: it yields only every 5 ms."""


class Kinds:
    """Names of the rules in metrics and alerts."""

    OVERSUBSCRIBED = "oversubscribed"
    """More workers compute than there are processors, or than the CPU limit of the container feeds."""
    IO_BOUND = "io-bound-processes"
    """Worker processes wait more than they compute."""
    CPU_BOUND = "cpu-bound-threads"
    """Threads compute in Python."""
    STARVED = "starved-executor"
    """A loop's default executor has no thread left for DNS and files."""
    PER_CALL = "pool-per-call"
    """A pool or a process is created for a call or two."""
    PAYLOADS = "costly-payloads"
    """Pickling takes longer than the work."""
    MEMORY = "memory-growth"
    """A worker's memory grows without bound."""
    ERRORS = "neglected-errors"
    """Calls fail and their errors are never retrieved."""
    CRASHES = "crash-loop"
    """Workers die again and again."""
    QUEUE = "queue-growth"
    """Calls arrive faster than workers complete them."""
    ZOMBIES = "zombies"
    """Child processes have exited and are never reaped."""
    EXIT = "unfinished-exit"
    """The program does not end: its last steps wait for a job or a thread."""


class Rule:
    """One kind of finding: its condition, its text and its remedy.

    Attributes:
        kind: its name in metrics and alerts.
        hold: seconds for which it has to hold before it is a finding.
    """

    kind: str
    hold: float

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield the findings that hold now. Pure; what is uncertain is no finding."""
        raise NotImplementedError


MORE, A_SECOND = 1.0, 1.5
"""Busy workers beyond the processors that are too many; and how many are too many in any case: one worker cannot be,
however small the CPU limit of the container is."""


class Oversubscribed(Rule):
    """More busy workers than processors, all of which are in use: the workers only slow each other down."""

    kind, hold = Kinds.OVERSUBSCRIBED, 4.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for the busiest pool if all process pools together want more processors than there are."""
        changes = [(each, change) for each in _of(scene, PROCESSES) if (change := each.change()) is not None]
        if not changes:
            return
        busy, cores = sum(change.busy for _, change in changes), sum(change.cores or 0.0 for _, change in changes)
        starved = sum(change.starved for _, change in changes)
        wanted = cores + starved
        # Where time on the run queue is unknown: the workers use (nearly) all processors.
        if busy >= max(scene.cpus + MORE, A_SECOND) and (wanted >= scene.cpus + 0.5 or cores >= 0.8 * scene.cpus):
            worst = max(changes, key=lambda pair: pair[1].busy)[0].stats
            allowed = f"the CPU limit of the container allows {scene.cpus:g}" if scene.is_limited else f"{scene.cpus:g}"
            lacking = f"; each lacks one for {min(starved / busy, 1.0):.0%} of its time" if starved >= 0.1 else ""
            yield Finding(
                self.kind,
                worst.name,
                f"{busy:.1f} busy worker processes want {wanted:.1f} processors at a time"
                f"{'; ' if scene.is_limited else ', of '}{allowed}{lacking}{_made(worst)}",
                _fewer_workers(scene, wanted if starved > 0 else busy, several=len(changes) > 1),
                {
                    "busy": busy,
                    "cpus": scene.cpus,
                    "affinity": scene.affinity,
                    "cores": cores,
                    "starved": starved,
                    "wanted": wanted,
                    "max_workers": float(worst.max_workers or 0),
                },
            )


def _fewer_workers(scene: Scene, wanted: float, *, several: bool) -> str:
    """Return what to do about workers that want ``wanted`` processors."""
    fitting = max(round(scene.cpus) if scene.is_limited else int(scene.cpus), 1)
    together = "one worker" if fitting == 1 else f"{fitting} workers"
    fewer = f"the pools {together} together" if several else f"the pool max_workers={fitting}"
    if not scene.is_limited:
        return (
            f"Give {fewer}: more workers finish no more work, take more memory and take the processor away from the "
            "event loop."
        )
    raised = min(ceil(wanted), int(scene.affinity))
    return (
        f"Raise the CPU limit of the container to {raised}, or give {fewer}: once its processes together have used up "
        "the limit, all of them stand still until the next period (100 ms), the event loop too."
    )


WAITING = 0.15
"""Share of run time on the CPU below which calls count as waiting."""


class IoBoundProcesses(Rule):
    """Processes that wait: a thread or the loop itself could do that with a hundredth of the memory."""

    kind, hold = Kinds.IO_BOUND, 4.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each process pool whose calls mostly wait."""
        for each in _of(scene, PROCESSES):
            change = each.change()
            share = None if change is None else change.cpu_share
            if change is None or share is None or share > WAITING or change.finished < 5 or change.busy < 0.5:
                continue
            stats = each.stats
            memory = sum(worker.memory for worker in stats.workers)
            yield Finding(
                self.kind,
                stats.name,
                f"the calls of {stats.name} compute for {share:.0%} of their time and wait for the rest, in "
                f"{len(stats.workers)} processes of {memory / MIB:.0f} MiB together{_made(stats)}",
                "Run them in threads (asyncio.to_thread, ThreadPoolExecutor), or use an asyncio library for what they "
                "wait for: processes are for work that computes.",
                {"cpu_share": share, "busy": change.busy, "finished": float(change.finished), "memory": float(memory)},
            )


class CpuBoundThreads(Rule):
    """Threads that compute while they hold the GIL, for which the loop has to wait."""

    kind, hold = Kinds.CPU_BOUND, 4.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each thread pool that computes in Python and delays others at the GIL."""
        for each in _of(scene, THREADS):
            change = each.change()
            share = None if change is None else change.cpu_share
            if change is None or (change.cores or 0.0) < 0.5:
                continue
            if share is None or (share < 0.1 and (change.cores or 0.0) < 0.8):
                continue  # many threads that compute a little each
            if scene.gil_wait is None or scene.gil_wait < GIL_WAIT:
                continue  # C code that releases the GIL, such as zlib or numpy, belongs in a thread
            stats = each.stats
            what = "the loop's default executor" if stats.kind == "default" else f"the thread pool {stats.name}"
            yield Finding(
                self.kind,
                stats.name,
                f"{what} computes in Python: its calls use the processor for {share:.0%} of their time "
                f"({change.cores or 0.0:.1f} processors), and a thread that needs the GIL waits "
                f"{scene.gil_wait * 1000:.0f} ms for it"
                f"{_made(stats)}",
                "Move them to processes (@loopwatch.offload, ProcessPoolExecutor): threads share one GIL with "
                "the event loop, so they make it late and get no faster themselves.",
                {"cpu_share": share, "cores": change.cores or 0.0, "gil_wait": scene.gil_wait, "busy": change.busy},
            )


class StarvedExecutor(Rule):
    """A full default executor: getaddrinfo and every asyncio.to_thread queue behind its tasks."""

    kind, hold = Kinds.STARVED, 3.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each default executor whose threads are all busy while calls wait."""
        for each in _of(scene, ("default",)):
            stats = each.stats
            busy = sum(worker.state in BUSY for worker in stats.workers)
            if stats.max_workers and busy >= stats.max_workers and stats.queued > 0:
                running = [worker.running_for for worker in stats.workers if worker.running_for is not None]
                tasks = sorted({worker.task for worker in stats.workers if worker.task})[:3]
                yield Finding(
                    self.kind,
                    stats.name,
                    f"all {stats.max_workers} threads of the default executor are busy"
                    + (f" with {', '.join(tasks)}" if tasks else "")
                    + f" and {stats.queued} calls wait, among them every DNS look-up of the loop",
                    "Give long calls an executor of their own (loop.run_in_executor(own_pool, ...)), or a larger "
                    "default "
                    "one (loop.set_default_executor): asyncio needs it for getaddrinfo, and frameworks for files.",
                    {
                        "busy": float(busy),
                        "max_workers": float(stats.max_workers),
                        "queued": float(stats.queued),
                        "longest": max(running, default=0.0),
                    },
                )


POOLS_PER_CALL, PROCESSES_PER_CALL, PER_CALL_WINDOW = 5, 10, 60.0
"""Pools, and processes, created at one place within this many seconds: more than a start-up."""


WORTH_THREADS, WORTH_PROCESSES = 0.01, 0.5
"""Seconds of work that justify a thread pool, or a process: at least ten times what starting it takes."""


class PoolPerCall(Rule):
    """Pools created for a call or two: starting them costs more than the call."""

    kind, hold = Kinds.PER_CALL, 0.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each place that keeps creating short-lived pools."""
        places: dict[tuple[str, str], list[History]] = defaultdict(list)
        for each in (*scene.histories, *scene.gone):
            is_one = bool(each.stats.created_at) and each.stats.kind in PROCESSES | {"thread"}
            if is_one and scene.now - each.first_seen <= PER_CALL_WINDOW:
                places[each.stats.kind, each.stats.created_at].append(each)
        for (kind, place), made in places.items():
            if _is_wasted(made) and not (kind == "thread" and _is_of_a_library(place)):
                calls = sum(each.stats.submitted for each in made) / len(made)
                yield Finding(
                    self.kind,
                    place,
                    f"{len(made)} pools ({kind}) were made at {place} within {PER_CALL_WINDOW:.0f} s, for "
                    f"{calls:.1f} calls each",
                    "Make one pool when the program starts and keep it: starting workers takes longer than most calls.",
                    {"pools": float(len(made)), "calls_each": calls, "window": PER_CALL_WINDOW},
                )


class ProcessPerCall(Rule):
    """Processes created for a call or two: starting an interpreter costs more than the call."""

    kind, hold = Kinds.PER_CALL, 0.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each place that keeps creating short-lived processes."""
        by_place: dict[str, list[End]] = defaultdict(list)
        for end in scene.ends:
            copy = not end.executes or end.name.startswith("python")
            if end.reason is None and end.place and copy and scene.now - end.at <= PER_CALL_WINDOW:
                by_place[end.place].append(end)
        for place, ends in by_place.items():
            lived = median(end.lived for end in ends)
            if len(ends) >= PROCESSES_PER_CALL and lived < WORTH_PROCESSES:
                yield Finding(
                    self.kind,
                    place,
                    f"{len(ends)} processes were made at {place} within {PER_CALL_WINDOW:.0f} s, and lived "
                    f"{lived:.2f} s",
                    "Keep a pool of workers (loopwatch.WorkerPool, ProcessPoolExecutor) and send it the calls: "
                    "starting an interpreter for each takes tens of milliseconds.",
                    {"processes": float(len(ends)), "lived": lived, "window": PER_CALL_WINDOW},
                )


def _is_wasted(made: Sequence[History]) -> bool:
    """Whether most pools created at one place got a call or two each, too short to be worth a pool."""
    few = [each for each in made if each.stats.submitted <= max(2 * (each.stats.max_workers or 1), 2)]
    over = [each for each in few if each.stats.closed]
    worth = WORTH_PROCESSES if made[0].stats.kind in PROCESSES else WORTH_THREADS
    is_short = sum(each.run for each in made) / len(made) < worth
    return is_short and len(over) >= POOLS_PER_CALL and len(few) >= 0.8 * len(made)


def _is_of_a_library(place: str) -> bool:
    """Whether ``place`` is in an installed package.

    asgiref creates a thread for each call by design, which its users cannot change. A process for each call costs so
    much that it is reported even of a package.
    """
    file = place.replace("\\", "/")
    return "/site-packages/" in file or "/dist-packages/" in file


class CostlyPayloads(Rule):
    """Calls whose arguments and results take longer to pickle than the call to run."""

    kind, hold = Kinds.PAYLOADS, 4.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each process pool that pickles for longer than its calls run."""
        for each in _of(scene, PROCESSES):
            change = each.change()
            if (
                change is None
                or change.pickling is None
                or change.finished < 10
                or change.pickling < 0.02 * change.span
            ):
                continue
            cost = change.pickling / change.finished
            if change.pickling > change.run and cost > 0.001:
                yield Finding(
                    self.kind,
                    each.stats.name,
                    f"pickling takes {cost * 1000:.1f} ms a call in {each.stats.name}, its work "
                    f"{change.run / change.finished * 1000:.1f} ms{_made(each.stats)}",
                    "Send less: a path or a key instead of the data, memory that both sides see "
                    "(loopwatch.SharedBuffer), or leave the call where its data is.",
                    {
                        "pickling": cost,
                        "run": change.run / change.finished,
                        "finished": float(change.finished),
                        "share_of_a_processor": change.pickling / change.span,
                    },
                )


MEMORY_POINTS, MEMORY_SPAN, MEMORY_GROWTH, MEMORY_SHARE = 12, 180.0, 32 * MIB, 0.2
"""Thresholds after the warm-up: points, seconds, growth in bytes, growth as a share."""


class MemoryGrowth(Rule):
    """A worker whose memory keeps growing long after its warm-up."""

    kind, hold = Kinds.MEMORY, 0.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each pool with a worker whose memory grows steadily."""
        for each in scene.histories:
            found = [(pid, growth) for pid, kept in each.memory.items() if (growth := _growth(kept)) is not None]
            if not found:
                continue
            pid, growth = max(found, key=lambda pair: pair[1].slope)
            per_call = growth.bytes / growth.done if growth.done > 0 else 0.0
            each_call = f", {per_call / 1024:.0f} KiB a call" if per_call else ""
            limit = "max_tasks_per_worker and max_memory_per_worker" if each.stats.kind == "loopwatch" else (
                "maxtasksperchild" if each.stats.kind == "multiprocessing" else "max_tasks_per_child"
            )  # fmt: skip
            yield Finding(
                self.kind,
                each.stats.name,
                f"worker {pid} of {each.stats.name} has grown by {growth.bytes / MIB:.0f} MiB in {growth.span:.0f} s"
                f"{each_call}, and does not stop{_made(each.stats)}",
                "Look for a cache or a list that only grows in what it runs; until then have workers replaced "
                f"({limit}).",
                {
                    "pid": float(pid),
                    "growth": float(growth.bytes),
                    "slope": growth.slope,
                    "calls": float(growth.done),
                    "span": growth.span,
                    "workers": float(len(found)),
                },
            )


class Growth(NamedTuple):
    """Growth of a worker's memory: bytes, seconds and calls it took, and bytes/s."""

    bytes: int
    span: float
    done: int
    slope: float


def _growth(kept: Sequence[Memory]) -> Growth | None:
    """Return the growth of memory, None unless it is steady: a warm-up levels off, a cache reaches its size."""
    points = list(kept)[len(kept) // 4 :]  # the first quarter is warm-up
    if len(points) < MEMORY_POINTS or points[-1].at - points[0].at < MEMORY_SPAN:
        return None
    first, last, middle = points[0], points[-1], points[len(points) // 2]
    grown = last.bytes - first.bytes
    if grown < max(MEMORY_GROWTH, MEMORY_SHARE * first.bytes):
        return None
    steps = [other.bytes - one.bytes for one, other in pairwise(points)]
    risen = sum(step > 0 for step in steps)
    fallen = -sum(step for step in steps if step < 0)
    early = (middle.bytes - first.bytes) / (middle.at - first.at)
    late = (last.bytes - middle.bytes) / (last.at - middle.at)
    if risen < 0.6 * len(steps) or fallen > 0.1 * grown or late < 0.5 * early:
        return None
    return Growth(grown, last.at - first.at, last.done - first.done, grown / (last.at - first.at))


NEGLECT_WINDOW = 300.0
"""Seconds for which a lost error is reported."""


class LostErrors(Rule):
    """Errors of failed calls that are never retrieved.

    Failures alone are no sign of it: programs poll, and handle the errors they get. The loop retrieves the errors of
    ``run_in_executor`` calls, and logs those that its users do not retrieve.
    """

    kind, hold = Kinds.ERRORS, 0.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each pool that lost errors lately."""
        for each in scene.histories:
            stats = each.stats
            if stats.neglected and scene.now - each.neglected_at <= NEGLECT_WINDOW:
                by_type = each.neglected
                kinds = sorted(by_type, key=lambda name: -by_type[name])[:3]
                yield Finding(
                    self.kind,
                    stats.name,
                    f"{stats.neglected} calls of {stats.name} failed and nobody asked for their result"
                    + (f" ({', '.join(kinds)})" if kinds else "")
                    + _made(stats),
                    "Keep what submit() returns and await it, or look at its exception() in a done callback: an error "
                    "that nobody asks for is lost without a trace.",
                    {"neglected": float(stats.neglected), "failed": float(stats.failed)},
                )


class CrashLoop(Rule):
    """Workers that die, are replaced, and die again."""

    kind, hold = Kinds.CRASHES, 0.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each place where workers have crashed repeatedly."""
        died: dict[str, list[str]] = defaultdict(list)
        names: dict[str, str] = {}
        for each in (*scene.histories, *scene.gone):
            if each.stats.kind != "children" and each.stats.crashes:
                place = each.stats.created_at or each.stats.name  # a broken executor is replaced by a new one
                names[place] = family(each.stats.name)
                for reason, at in each.crashed:
                    if scene.now - at <= CRASH_WINDOW:
                        died[place].append(reason)
        for end in scene.ends:
            if end.reason is not None and end.is_accident and scene.now - end.at <= CRASH_WINDOW:
                place = end.place or end.name or "children"
                names.setdefault(place, end.name or place)
                died[place].append(end.reason)
        for place, reasons in died.items():
            if len(reasons) >= CRASHES:
                most = max(set(reasons), key=reasons.count)
                yield Finding(
                    self.kind,
                    names[place],
                    f"{len(reasons)} workers of {names[place]} died within {CRASH_WINDOW / 60:.0f} minutes, most of "
                    f"them by {most} ({place})",
                    _CURES.get(
                        most, "Read what they wrote to standard error before they ended, and run the call alone."
                    ),
                    {"crashes": float(len(reasons)), most: float(reasons.count(most)), "window": CRASH_WINDOW},
                )


_CURES = {
    "oom": "They need more memory than there is: fewer workers, smaller calls, or a higher limit of the container.",
    "SIGKILL": "Somebody kills them: the kernel for memory, an operator, or a supervisor whose time-out is too short.",
    "SIGSEGV": "C code crashes: run with PYTHONFAULTHANDLER=1 to see in which call, and update that library.",
    "SIGABRT": "C code, or a supervisor's time-out, aborts them: run with PYTHONFAULTHANDLER=1 to see where.",
}


class QueueGrowth(Rule):
    """Calls that keep arriving faster than they are completed."""

    kind, hold = Kinds.QUEUE, 4.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each pool whose queue grows steadily."""
        for each in scene.histories:
            points = list(each.points)
            if each.span < 0.6 * WINDOW or len(points) < 5:
                continue
            first, last = points[0], points[-1]
            steps = [other.queued - one.queued for one, other in pairwise(points)]
            risen, kept = sum(step > 0 for step in steps), sum(step >= 0 for step in steps)
            steady = kept >= 0.8 * len(steps) and risen >= 0.5 * len(steps)
            if steady and last.queued - first.queued >= 20 and last.queued >= 2 * first.queued:
                rate = (last.queued - first.queued) / each.span
                done = (last.finished - first.finished) / each.span
                wait = last.queued / done if done > 0 else 0.0
                yield Finding(
                    self.kind,
                    each.stats.name,
                    f"the queue of {each.stats.name} grows by {rate:.1f} calls a second and holds {last.queued}"
                    + (f"; who comes now waits {wait:.0f} s" if wait else "; none of them gets done")
                    + _made(each.stats),
                    "Bound the queue (a semaphore around submit, WorkerPool(max_queue=...)) and refuse what is too "
                    "much; more workers help only while there are processors for them.",
                    {"queued": float(last.queued), "growth": rate, "done": done, "wait": wait},
                )


ZOMBIES = 3
"""Unreaped children from which on there is a finding."""


class Zombies(Rule):
    """Exited children that still occupy the process table, which is finite."""

    kind, hold = Kinds.ZOMBIES, 5.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each source with too many unreaped children."""
        for each in scene.histories:
            found = each.zombies
            if len(found) >= ZOMBIES:
                places = sorted(
                    {worker.reason.rpartition("made at ")[2] for worker in found if "made at " in worker.reason}
                )
                where = (
                    f", made at {places[0]}" + (f" and {len(places) - 1} other places" if places[1:] else "")
                    if places
                    else ""
                )
                yield Finding(
                    self.kind,
                    each.stats.name,
                    f"{len(found)} child processes have exited and nobody has waited for them, while others were "
                    f"started{where}",
                    "Wait for each child: process.wait() or communicate(), await asyncio's process.wait(), "
                    "Process.join(), os.waitpid(); or run what needs no answer with subprocess.run().",
                    {"zombies": float(len(found))},
                )


MOST_AWAITED = 3
"""Jobs and threads that are named in the text of a finding."""


class UnfinishedExit(Rule):
    """A program that is about to end, and waits for jobs of executors or for threads."""

    kind, hold = Kinds.EXIT, 0.0

    def check(self, scene: Scene) -> Iterator[Finding]:
        """Yield a finding for each wait; they are given only once they have lasted for ``Config.hang_after``."""
        for each in scene.exits:
            names = [str(job) for job in each.jobs[:MOST_AWAITED]]
            more = f" and {len(each.jobs) - MOST_AWAITED} more" if each.jobs[MOST_AWAITED:] else ""
            waits, remedy = _EXITS[each.waiter]
            yield Finding(
                self.kind,
                each.subject,
                waits.format(subject=each.subject, seconds=each.seconds) + ", ".join(names) + more,
                remedy,
                {"waited": each.seconds, "jobs": float(len(each.jobs))},
            )


_EXITS = {
    Waiter.RUN: (
        "asyncio.run() does not end: for {seconds:.1f} s it has waited for the {subject} to finish ",
        "A thread cannot be cancelled: give the job a time-out, or a threading.Event that it looks at and main() sets; "
        "what may be abandoned belongs in a thread with daemon=True.",
    ),
    Waiter.LOOP: (
        "the event loop stands still: for {seconds:.1f} s its thread has waited for the end of {subject}, which runs ",
        "Keep one executor for the life of the program, or end it off the loop "
        "(await asyncio.to_thread(pool.shutdown)): shutdown(wait=True), as the end of a with block, waits for all its "
        "calls.",
    ),
    Waiter.INTERPRETER: (
        "the program does not exit: for {seconds:.1f} s {subject} has waited for ",
        "Have the thread or job end first: a time-out, a threading.Event that it looks at, a last item in its queue; "
        "what may be abandoned belongs in a thread with daemon=True.",
    ),
}


def family(name: str) -> str:
    """Return the name shared by pools that are created at one place one after the other.

    Example:
        >>> family("ProcessPoolExecutor at app.py:12 #3")
        'ProcessPoolExecutor at app.py:12'
    """
    head, mark, number = name.rpartition(" #")
    return head if mark and number.isdigit() else name


def _of(scene: Scene, kinds: Iterable[str]) -> list[History]:
    return [each for each in scene.histories if each.stats.kind in kinds]


def _made(stats: PoolStats) -> str:
    return f" (made at {stats.created_at})" if stats.created_at else ""


RULES: tuple[Rule, ...] = (
    Oversubscribed(),
    IoBoundProcesses(),
    CpuBoundThreads(),
    StarvedExecutor(),
    PoolPerCall(),
    ProcessPerCall(),
    CostlyPayloads(),
    MemoryGrowth(),
    LostErrors(),
    CrashLoop(),
    QueueGrowth(),
    Zombies(),
    UnfinishedExit(),
)
"""All rules; a kind may have several."""

"""Pools and child processes: are workers alive, busy, leaking, dead; do tasks wait; what crashes and fails."""

from __future__ import annotations

from loopwatch.health.finding_rules import Kinds
from loopwatch.telemetry.metrics import catalog

from .board import Board, Row
from .panels import BUSY, NONE_IS_GOOD, Column, Query, Steps, bars, dashboard_link, series, table, tile, words
from .parts import ILL_WORKERS, LOOP, WHOLE_POOL, WORKERS, crash_marks, restart_marks, stall_marks
from .promql import INSTANCE, JOB, RANGE, Scope, label, legend

_THIS = (INSTANCE, catalog.POOL)
_QUEUE: Steps = ((None, "green"), (10, "yellow"), (100, "red"))
_WAIT: Steps = ((None, "green"), (0.1, "yellow"), (1, "red"))

_TO_DO = {
    Kinds.OVERSUBSCRIBED: "more workers compute than there are processors: fewer workers, they only take turns",
    Kinds.IO_BOUND: "worker processes wait more than they compute: threads or `async` do that for less memory",
    Kinds.CPU_BOUND: "threads compute under one GIL: a process pool, or `@loopwatch.offload`",
    Kinds.STARVED: "name look-ups and files wait for a thread: give slow work an executor of its own",
    Kinds.PER_CALL: "a pool or process per call: make one at start and keep it",
    Kinds.PAYLOADS: "pickling costs more than the work: send less, use `SharedBuffer`, or larger tasks",
    Kinds.MEMORY: "a worker grows without bound: recycle workers after N tasks, then find the leak",
    Kinds.ERRORS: "calls fail and nobody asks: await results, or look at `future.exception()`",
    Kinds.CRASHES: "workers die again and again: find the task by *Crashes by reason*, and stop sending it",
    Kinds.QUEUE: "more calls come than workers can do: more workers, or refuse some",
    Kinds.ZOMBIES: "children have exited and nobody waits: await or `wait()` each; an init that reaps as PID 1",
    Kinds.EXIT: "the program waits for a job at its end: give it a time-out, cancel it, or make its thread a daemon",
}
"""What to do about each finding."""
_ELSEWHERE = "\n\nWhich pool, with its figures: the log, `agent.snapshot().findings`."


def workers() -> Board:
    """Make the dashboard."""
    scope = Scope((JOB, INSTANCE, catalog.POOL))
    return Board(
        uid=WORKERS,
        title="loopwatch / Workers",
        about="Are the workers around the loop alive, busy, leaking, dead? All pools of a process, of loopwatch and of "
        "others, and its child processes. Work that waits too long for a worker is as late as work on a blocked loop. "
        "Pool children: child processes of no pool, which have states, crashes, memory and processor time, but no "
        "queue and no tasks. Pool other: all pools beyond the eight that are told apart; counts are their sum, shares "
        "(such as the utilization) those of the worst of them.",
        variables=(JOB, INSTANCE, catalog.POOL),
        rows=(_now(scope), _states(scope), _queue(scope), _outcome(scope), _resources(scope), _findings(scope)),
        marks=(crash_marks(scope), restart_marks(scope), stall_marks(scope, shown=False)),
    )


def _state(scope: Scope, state: str) -> str:
    return scope.now("loopwatch.pool.workers", how="sum", matchers=[f'{label(catalog.WORKER_STATE)}="{state}"'])


def _now(scope: Scope) -> Row:
    first = (
        tile(
            "Workers",
            "Workers in any state, child processes of no pool among them. 0 while tasks wait: the pool cannot start "
            "any, see its log.",
            Query(scope.now("loopwatch.pool.workers", how="sum")),
            width=3,
        ),
        tile(
            "Hung",
            "Workers that have a task and have used neither processor nor I/O for a minute (hung_after). Find what "
            "they wait for: py-spy dump --pid; then give the task a timeout.",
            Query(_state(scope, "hung"), rare=True),
            steps=NONE_IS_GOOD,
            width=3,
        ),
        tile(
            "Zombies",
            "Processes that have exited and were never waited for. Await or wait() each child; under a container's "
            "PID 1 use an init that reaps.",
            Query(_state(scope, "zombie"), rare=True),
            steps=NONE_IS_GOOD,
            width=3,
        ),
        tile(
            "Orphans",
            "Workers that live although their executor is shut down, broken or gone: they hold memory for nobody. End "
            "them, and shut executors down with their tasks done.",
            Query(_state(scope, "orphan"), rare=True),
            steps=NONE_IS_GOOD,
            width=3,
        ),
        tile(
            "Tasks waiting",
            "Tasks for which no worker is free. A number that grows: more workers, or fewer tasks.",
            Query(scope.now("loopwatch.pool.queue.depth", how="sum")),
            steps=_QUEUE,
            width=3,
        ),
        tile(
            "Busiest pool",
            "Share of its workers' time in which a pool ran tasks. Near 1 tasks begin to wait.",
            Query(scope.now("loopwatch.pool.utilization")),
            unit="percentunit",
            steps=BUSY,
            width=3,
        ),
        tile(
            "Crashes",
            "Workers that died without being told to, in the time shown. The row Outcome has the reasons.",
            Query(scope.grown("loopwatch.pool.crashes", window=RANGE), instant=True),
            steps=NONE_IS_GOOD,
            width=3,
        ),
        tile(
            "Failed tasks",
            "Tasks that raised, timed out or were lost, in the time shown, also those whose error nobody looked at.",
            Query(scope.grown("loopwatch.pool.failed", window=RANGE), instant=True),
            steps=((None, "green"), (1, "yellow")),
            width=3,
        ),
    )
    return Row("Now", [first])


def _states(scope: Scope) -> Row:
    by_state = (JOB, INSTANCE, catalog.POOL, catalog.POOL_KIND, catalog.WORKER_STATE)
    return Row(
        "Workers",
        [
            [
                series(
                    "Workers by state",
                    "All busy and tasks waiting: more workers. All idle: fewer. Any hung, zombie, orphan or dead that "
                    "stays: see the tiles above for what to do.",
                    Query(
                        scope.now("loopwatch.pool.workers", catalog.WORKER_STATE, how="sum"),
                        legend(catalog.WORKER_STATE),
                    ),
                    stacked=True,
                ),
                table(
                    "Workers in trouble, by pool",
                    "Pools that have workers which hang, are zombies, orphans or dead right now. Empty is good.",
                    {
                        label(catalog.POOL): "Pool",
                        label(catalog.POOL_KIND): "Kind",
                        label(catalog.WORKER_STATE): "State",
                        INSTANCE: "Process",
                        JOB: "Service",
                    },
                    [
                        Column(
                            "Workers",
                            Query(
                                scope.now("loopwatch.pool.workers", *by_state, how="sum", matchers=[ILL_WORKERS])
                                + " > 0",
                                instant=True,
                                form="table",
                            ),
                            "short",
                            NONE_IS_GOOD,
                        )
                    ],
                    links={
                        "Process": ("Loops of this process", dashboard_link(LOOP, job="Service", instance="Process"))
                    },
                    width=12,
                    height=8,
                ),
            ],
            [
                series(
                    "Workers started, a minute",
                    "Starts that never end while the number of workers stays: they crash, are recycled, or a pool is "
                    "made per call.",
                    Query(scope.pace("loopwatch.pool.started", *WHOLE_POOL, seconds=60), legend(*_THIS)),
                ),
                series(
                    "Workers, of those allowed",
                    "Workers that take tasks, as a share of max_workers. At 1 a pool cannot grow any more.",
                    Query(
                        f"sum by ({', '.join(map(label, WHOLE_POOL))}) "
                        f"({scope.of('loopwatch.pool.workers', label(catalog.WORKER_STATE) + '=~' + _ALIVE)}) / "
                        f"{scope.now('loopwatch.pool.max_workers', *WHOLE_POOL)}",
                        legend(*_THIS),
                    ),
                    unit="percentunit",
                ),
            ],
        ],
    )


_ALIVE = '"starting|idle|busy|hung|unknown"'


def _queue(scope: Scope) -> Row:
    quantiles = {
        title: [
            Query(scope.quantile(q, name, catalog.POOL), f"p{round(q * 100)} {legend(catalog.POOL)}")
            for q in (0.5, 0.99)
        ]
        for title, name in (("wait", "loopwatch.pool.task.wait"), ("run", "loopwatch.pool.task.run"))
    }
    return Row(
        "Queue and time",
        [
            [
                series(
                    "Tasks waiting",
                    "Queue depth. The default executor (kind default) also does name look-ups and files: if it waits, "
                    "so does every connection; give slow work a pool of its own.",
                    Query(scope.now("loopwatch.pool.queue.depth", *WHOLE_POOL), legend(*_THIS)),
                    steps=_QUEUE,
                    width=8,
                ),
                series(
                    "Tasks in flight",
                    "Tasks that workers have. At the number of workers a pool is full. Of other, the sum of its pools.",
                    Query(scope.now("loopwatch.pool.in_flight", *WHOLE_POOL), legend(*_THIS)),
                    width=8,
                ),
                series(
                    "Utilization",
                    "Share of the workers' time in which they ran tasks. Above 90 %: more workers; below 10 %: fewer. "
                    "Of other, the busiest pool in it. Child processes of no pool have no tasks, and no line here.",
                    Query(scope.now("loopwatch.pool.utilization", *WHOLE_POOL), legend(*_THIS)),
                    unit="percentunit",
                    steps=BUSY,
                    highest=1,
                    width=8,
                ),
            ],
            [
                series(
                    "Wait for a worker",
                    "From the histogram. Waiting longer than running: more workers, or shorter tasks first (priority).",
                    *quantiles["wait"],
                    unit="s",
                    steps=_WAIT,
                ),
                series(
                    "Run time",
                    "From the histogram. Tasks of a millisecond are not worth a trip; tasks of a minute should be jobs "
                    "of their own.",
                    *quantiles["run"],
                    unit="s",
                ),
            ],
        ],
    )


def _outcome(scope: Scope) -> Row:
    return Row(
        "Outcome",
        [
            [
                series(
                    "Tasks done per second",
                    "Tasks that returned. Child processes of no pool are no tasks.",
                    Query(scope.pace("loopwatch.pool.completed", *WHOLE_POOL), legend(*_THIS)),
                    width=8,
                ),
                series(
                    "Failures by type",
                    "Tasks that raised, in each interval shown, by type of the exception. These are counted where they "
                    "happen: nobody may have looked at the result.",
                    Query(
                        scope.grown("loopwatch.pool.failed", catalog.POOL, catalog.ERROR_TYPE),
                        legend(catalog.ERROR_TYPE, catalog.POOL),
                    ),
                    stacked=True,
                    width=8,
                ),
                series(
                    "Crashes by reason",
                    "oom or SIGKILL: less memory per task, fewer workers, or a higher limit. SIGSEGV, SIGABRT: a "
                    "library in C; run one task alone under faulthandler. An exit code: somebody calls sys.exit in a "
                    "task.",
                    Query(
                        scope.grown("loopwatch.pool.crashes", catalog.POOL, catalog.CRASH),
                        legend(catalog.CRASH, catalog.POOL),
                    ),
                    stacked=True,
                    width=8,
                ),
            ]
        ],
    )


def _resources(scope: Scope) -> Row:
    return Row(
        "Memory and processor",
        [
            [
                series(
                    "Memory",
                    "Resident memory of worker processes; pages that they share are counted in each. A line that only "
                    "rises: a leak; recycle workers meanwhile.",
                    Query(scope.now("loopwatch.pool.memory", *WHOLE_POOL, how="sum"), legend(*_THIS)),
                    unit="bytes",
                ),
                series(
                    "Processor",
                    "Cores that workers use. Far below the number of busy workers: they wait, threads would do. At the "
                    "number of processors: the machine is full.",
                    Query(scope.pace("loopwatch.pool.cpu.time", *WHOLE_POOL), legend(*_THIS)),
                ),
            ]
        ],
    )


def _findings(scope: Scope) -> Row:
    return Row(
        "Findings",
        [
            [
                bars(
                    "Findings now",
                    "Advice that holds now, by kind and process. What to do is beside it.",
                    Query(
                        scope.now("loopwatch.findings", INSTANCE, catalog.FINDING, how="sum") + " > 0",
                        legend(catalog.FINDING, INSTANCE),
                        instant=True,
                    ),
                    width=12,
                    height=11,
                ),
                words("What to do", "What each finding means for you.", _listed(), width=12, height=11),
            ]
        ],
    )


def _listed() -> str:
    return "".join(f"- **{kind}**: {what}\n" for kind, what in _TO_DO.items()) + _ELSEWHERE

"""The fleet: which services and processes are worst, and where to look next."""

from __future__ import annotations

from loopwatch.telemetry.metrics import catalog

from .board import Board, Row
from .panels import (
    BLOCKED,
    BUSY,
    COST,
    HELD,
    LAG,
    NONE_IS_GOOD,
    Column,
    Query,
    bars,
    dashboard_link,
    heat,
    series,
    table,
    tile,
)
from .parts import (
    CULPRIT_TRACES,
    ILL_WORKERS,
    LOOP,
    OFF,
    OVERVIEW,
    STARVED,
    STARVED_TITLE,
    WHOLE_LOOP,
    WORKERS,
    crash_marks,
    hang_marks,
    restart_marks,
    stall_marks,
)
from .promql import INSTANCE, JOB, RANGE, Scope, by, label, legend

WORST = 25
"""Rows of a table of processes."""


def overview() -> Board:
    """Make the dashboard."""
    scope = Scope((JOB, INSTANCE))
    return Board(
        uid=OVERVIEW,
        title="loopwatch / Overview",
        about="Are event loops blocked anywhere, how badly, and where is it worst? Read the tiles first: if one is not "
        "green, the tables below say which service and process, and lead to its own dashboard.",
        variables=(JOB, INSTANCE),
        rows=(_now(scope), _alerts(scope), _worst(scope), _lag(scope), _stalls(scope), _workers(scope)),
        marks=(stall_marks(scope, shown=False), hang_marks(scope), crash_marks(scope), restart_marks(scope)),
        since="3h",
    )


def _now(scope: Scope) -> Row:
    held = scope.now("asyncio.eventloop.blocked_for", *WHOLE_LOOP)
    ill = scope.now("loopwatch.pool.workers", how="sum", matchers=[ILL_WORKERS])
    first = (
        tile(
            "Processes watched",
            "Processes whose agent is heard of. If it is fewer than you run: look at the targets of Prometheus, or at "
            "the collector, and at the log of the missing ones for a line of loopwatch.",
            Query(f"count({scope.now('loopwatch.agent.start_time', JOB, INSTANCE)})"),
            width=3,
        ),
        tile(
            "Loops that hang now",
            "Event loops that one callback has held for more than 2 s and holds still: these processes serve nobody. "
            "The table of processes says which; its dashboard shows what blocks. A hang that does not end needs a "
            "restart, and the stack is in the journal and in the log.",
            Query(f"sum({held} > bool 2)"),
            steps=NONE_IS_GOOD,
            width=3,
        ),
        tile(
            "Worst lag (p99)",
            "What one call in a hundred waits before its code runs, in the process where that is longest. Above 50 ms "
            "people notice. Find the process in the table below.",
            Query(scope.now("asyncio.eventloop.lag.p99")),
            unit="s",
            steps=LAG,
            width=3,
        ),
        tile(
            "Busiest loop",
            "Utilization of the loop with the least idle time. Above 70 % waiting times grow fast, above 90 % without "
            "bound: start more processes, or move work off the loop (dashboard Offload).",
            Query(scope.now("asyncio.eventloop.utilization")),
            unit="percentunit",
            steps=BUSY,
            width=3,
        ),
        tile(
            "Most blocked",
            "Share of the time for which stalls held the loop of the process where that is most. Above 1 % look for "
            "the culprit below; above 10 % users see it.",
            Query(f"max({scope.share('asyncio.eventloop.stall.duration', JOB, INSTANCE)})"),
            unit="percentunit",
            steps=BLOCKED,
            width=3,
        ),
        tile(
            "Stalls",
            "Times that a loop was held for longer than the threshold (0.1 s unless configured) in the time shown.",
            Query(scope.grown("asyncio.eventloop.stalls", window=RANGE), instant=True),
            steps=((None, "green"), (1, "yellow"), (100, "red")),
            width=3,
        ),
        tile(
            "Workers in trouble",
            "Workers of pools that hang, are zombies, orphans or dead. The dashboard Workers says which and why.",
            Query(ill),
            steps=NONE_IS_GOOD,
            width=3,
        ),
        tile(
            "Agents off",
            "Processes in which loopwatch watches nothing: paused, or switched off after a fault of its own. The log "
            "of the process has one line that says why.",
            Query(scope.now("loopwatch.agent.state", how="sum", matchers=[OFF]), rare=True),
            steps=((None, "green"), (1, "yellow")),
            width=3,
        ),
    )
    return Row("Now", [first])


def _alerts(scope: Scope) -> Row:
    firing = table(
        "Alerts that fire",
        "Alerts of loopwatch's rules for these services; the runbook has a section for each. Empty is good, where "
        "Prometheus has the rules.",
        {"alertname": "Alert", "severity": "For", JOB: "Service", INSTANCE: "Process"},
        [Column("Fires", Query(scope.alerts(), instant=True, form="table", rare=True))],
        links={"Process": ("Loops of this process", dashboard_link(LOOP, job="Service", instance="Process"))},
        height=5,
    )
    return Row("Alerts", [[firing]])


def _worst(scope: Scope) -> Row:
    lag = f"max by ({JOB}, {INSTANCE}) (max_over_time({scope.of('asyncio.eventloop.lag.p99')}[{RANGE}]))"
    worst = f"topk({WORST}, {lag})"

    def of_worst(expr: str) -> Query:
        return Query(f"{expr} and on ({JOB}, {INSTANCE}) {worst}", instant=True, form="table")

    def of_service(expr: str) -> Query:
        return Query(expr, instant=True, form="table")

    services = table(
        "Services",
        "One row a service; lag is over all of its processes together, from the histogram. Click a name to see only "
        "it.",
        {JOB: "Service"},
        [
            Column(
                "Lag p99",
                of_service(scope.quantile(0.99, "asyncio.eventloop.lag", JOB, window=RANGE)),
                "s",
                LAG,
            ),
            Column(
                "Busy (mean)",
                of_service(scope.now("asyncio.eventloop.utilization", JOB, how="avg")),
                "percentunit",
                BUSY,
            ),
            Column("Blocked", of_service(scope.grown("asyncio.eventloop.stall.duration", JOB, window=RANGE)), "s"),
            Column("Stalls", of_service(scope.grown("asyncio.eventloop.stalls", JOB, window=RANGE))),
            Column("Victims", of_service(scope.grown("asyncio.eventloop.stall.victims", JOB, window=RANGE))),
            Column(
                "Workers in trouble",
                of_service(scope.now("loopwatch.pool.workers", JOB, how="sum", matchers=[ILL_WORKERS])),
                "short",
                NONE_IS_GOOD,
            ),
            Column(
                "Processes", of_service(f"count by ({JOB}) ({scope.now('loopwatch.agent.start_time', JOB, INSTANCE)})")
            ),
        ],
        links={"Service": ("Only this service", dashboard_link(OVERVIEW, job="Service"))},
    )
    processes = table(
        f"Worst processes (top {WORST})",
        "Those with the highest lag within the time shown. Click a process for its loops, the number of workers in "
        "trouble for its pools. One bad process of many: restart it, then find out why; all of them: it is the code or "
        "the load.",
        {JOB: "Service", INSTANCE: "Process"},
        [
            Column("Lag p99 (highest)", Query(worst, instant=True, form="table"), "s", LAG),
            Column("Held now", of_worst(scope.now("asyncio.eventloop.blocked_for", JOB, INSTANCE)), "s", HELD),
            Column("Busy", of_worst(scope.now("asyncio.eventloop.utilization", JOB, INSTANCE)), "percentunit", BUSY),
            Column(
                "Blocked", of_worst(scope.grown("asyncio.eventloop.stall.duration", JOB, INSTANCE, window=RANGE)), "s"
            ),
            Column("Stalls", of_worst(scope.grown("asyncio.eventloop.stalls", JOB, INSTANCE, window=RANGE))),
            Column(
                "Workers in trouble",
                of_worst(scope.now("loopwatch.pool.workers", JOB, INSTANCE, how="sum", matchers=[ILL_WORKERS])),
                "short",
                NONE_IS_GOOD,
            ),
        ],
        links={
            "Process": ("Loops of this process", dashboard_link(LOOP, job="Service", instance="Process")),
            "Workers in trouble": ("Pools of this process", dashboard_link(WORKERS, job="Service", instance="Process")),
        },
        height=10,
    )
    return Row("Where it is worst", [[services], [processes]])


def _lag(scope: Scope) -> Row:
    name = "asyncio.eventloop.lag"
    return Row(
        "Lag and load",
        [
            [
                heat(
                    "Lag of all loops",
                    "How late timers fire, which is what newly arriving work waits. Each column is one moment, darker "
                    "is more often. A band that rises is load; single dark cells far up are stalls. Blue dots are "
                    "examples with a trace: click one.",
                    Query(scope.buckets(name, way="increase"), "{{le}}", form="heatmap", exemplars=True),
                ),
                series(
                    "Lag quantiles of all loops",
                    "From the histogram over all processes. p50 that rises with p99 means load: add processes. Only "
                    "p99 rises: some callbacks block, look at the culprits below.",
                    Query(scope.quantile(0.5, name), "p50"),
                    Query(scope.quantile(0.9, name), "p90"),
                    Query(scope.quantile(0.99, name), "p99"),
                    unit="s",
                    steps=LAG,
                    height=9,
                ),
            ],
            [
                series(
                    "Busiest loops (top 10)",
                    "Share of the time in which a loop was not waiting. Uneven ones behind one balancer: connections "
                    "stick to processes. All near 1: there are too few processes, or work that belongs off the loop.",
                    Query(
                        f"topk(10, {scope.now('asyncio.eventloop.utilization', *WHOLE_LOOP)})",
                        legend(INSTANCE, catalog.LOOP),
                    ),
                    unit="percentunit",
                    steps=BUSY,
                    highest=1,
                ),
                series(
                    "Longest lag by service",
                    "The longest lag of the last window in any process of a service.",
                    Query(scope.now("asyncio.eventloop.lag.max", JOB), legend(JOB)),
                    unit="s",
                    steps=LAG,
                ),
            ],
        ],
    )


def _stalls(scope: Scope) -> Row:
    held = "asyncio.eventloop.stall.duration"
    culprits = scope.grown(held, JOB, catalog.CAUSE, catalog.CULPRIT, window=RANGE)
    counts = scope.grown("asyncio.eventloop.stalls", JOB, catalog.CAUSE, catalog.CULPRIT, window=RANGE)
    return Row(
        "What blocks",
        [
            [
                series(
                    "Blocked time by cause",
                    "Seconds for which stalls held loops, per second, over all processes. python, native_gil: move the "
                    "work to a worker process. native, io, sleep, lock: use an asynchronous call or a thread. gil: "
                    "another thread computes. gc: fewer objects, or gc.freeze() at start. starved: the machine or its "
                    "quota is too small. suspended: the machine stopped it. overload: too many small callbacks.",
                    Query(scope.share(held, catalog.CAUSE), legend(catalog.CAUSE)),
                    width=8,
                    stacked=True,
                ),
                series(
                    STARVED_TITLE,
                    "Share of the time, on average over the processes, in which stalls held a loop whose thread was "
                    "ready to run and had no processor; part of the blocked time of any cause. quota: raise the CPU "
                    "limit of the container, or run fewer workers in it. neighbours: fewer busy processes on the "
                    "machine. A roll-back does not help; above 1 % there is an alert.",
                    Query(
                        f"avg{by(catalog.STARVED_BY)} ({scope.rate(STARVED, JOB, INSTANCE, catalog.STARVED_BY)})",
                        legend(catalog.STARVED_BY),
                    ),
                    unit="percentunit",
                    width=8,
                    stacked=True,
                ),
                series(
                    "Stalls by service",
                    "Times that loops were held, in each interval shown. A step up right after a release is the "
                    "release.",
                    Query(scope.grown("asyncio.eventloop.stalls", JOB), legend(JOB)),
                    width=8,
                    stacked=True,
                ),
            ],
            [
                table(
                    "Culprits in the time shown (top 25)",
                    "Whose code held loops, most blocked time first. Click a culprit for the traces of its stalls; the "
                    "span has stack and remedy. 'other' is everything beyond the bound of a process.",
                    {
                        JOB: "Service",
                        label(catalog.CULPRIT): "Culprit",
                        label(catalog.CAUSE): "Cause",
                    },
                    [
                        Column("Blocked", Query(f"topk(25, {culprits} > 0)", instant=True, form="table"), "s"),
                        Column(
                            "Stalls",
                            Query(
                                f"{counts} and on ({JOB}, {label(catalog.CAUSE)}, {label(catalog.CULPRIT)}) "
                                f"topk(25, {culprits} > 0)",
                                instant=True,
                                form="table",
                            ),
                        ),
                    ],
                    links={"Culprit": CULPRIT_TRACES},
                    width=16,
                ),
                bars(
                    "Findings",
                    "Advice about pools and processes that holds now, by kind: processes to which it applies. The "
                    "dashboard Workers has what to do about each.",
                    Query(
                        scope.now("loopwatch.findings", catalog.FINDING, how="sum"),
                        legend(catalog.FINDING),
                        instant=True,
                    ),
                    height=9,
                ),
            ],
        ],
    )


def _workers(scope: Scope) -> Row:
    return Row(
        "Workers and agents",
        [
            [
                series(
                    "Workers in trouble",
                    "Workers by state. hung: a task without progress; zombie: exited and not waited for; orphan: alive "
                    "without its executor; dead: gone. See the dashboard Workers for pool and reason.",
                    Query(
                        scope.now("loopwatch.pool.workers", catalog.WORKER_STATE, how="sum", matchers=[ILL_WORKERS]),
                        legend(catalog.WORKER_STATE),
                    ),
                    width=8,
                    stacked=True,
                ),
                series(
                    "Worker crashes by reason",
                    "Workers that died without being told to, in each interval shown. SIGKILL or oom: memory; SIGSEGV: "
                    "an extension; exit codes: the code itself.",
                    Query(scope.grown("loopwatch.pool.crashes", catalog.CRASH), legend(catalog.CRASH)),
                    width=8,
                    stacked=True,
                ),
                series(
                    "What the agent costs (top 10)",
                    "Cores that loopwatch's own threads use in a process. It keeps to its budget by looking less "
                    "often; if it stays above, raise cpu_budget or report it.",
                    Query(f"topk(10, {scope.rate('loopwatch.agent.cpu.time', JOB, INSTANCE)})", legend(INSTANCE)),
                    width=8,
                    steps=COST,
                ),
            ]
        ],
    )

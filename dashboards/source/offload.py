"""Does moving work off the loop help, which functions should be moved, and what does the agent itself cost."""

from __future__ import annotations

from loopwatch.telemetry.metrics import catalog

from .board import Board, Row
from .panels import COST, NONE_IS_GOOD, Column, Query, bars, dashboard_link, series, table, tile
from .parts import CULPRIT_TRACES, LOOP, OFF, OFFLOAD, crash_marks, restart_marks, stall_marks
from .promql import INSTANCE, JOB, RANGE, Scope, by, label, legend

_AWAY = f'{label(catalog.PLACE)}!="inline"'


def offload() -> Board:
    """Make the dashboard."""
    scope = Scope((JOB, INSTANCE))
    return Board(
        uid=OFFLOAD,
        title="loopwatch / Offload",
        about="Is moving work off the loop worth it, which functions should be moved next, and what does loopwatch "
        "itself cost?",
        variables=(JOB, INSTANCE),
        rows=(_now(scope), _flagged(scope), _decisions(scope), _cost(scope), _agent(scope)),
        marks=(stall_marks(scope, shown=False), crash_marks(scope), restart_marks(scope)),
        since="3h",
    )


def _trip_per_run(scope: Scope) -> str:
    run = scope.rate("loopwatch.offload.run.time", matchers=[_AWAY])
    return f"{scope.rate('loopwatch.offload.trip.time')} / ({run} > 0)"


def _now(scope: Scope) -> Row:
    first = (
        tile(
            "Loop time saved",
            "Seconds per second for which loops would have been held by calls that ran elsewhere, less what their "
            "trips held them. 0: nothing is moved.",
            Query(scope.rate("loopwatch.offload.saved")),
            unit="percentunit",
            width=4,
        ),
        tile(
            "Trip for a second of work",
            "What calls that ran elsewhere took on top of their run: pickling, queue, way. Above 1 the way costs more "
            "than the work: move larger calls, send less, or add workers if they queue.",
            Query(_trip_per_run(scope)),
            unit="s",
            steps=((None, "green"), (0.25, "yellow"), (1, "red")),
            width=4,
        ),
        tile(
            "Functions to move",
            "Functions that keep blocking loops (3 stalls within a minute unless configured). The table has the "
            "remedy.",
            Query(f"count(max{by(catalog.FUNCTION)} ({scope.of('loopwatch.flagged')}) > 0)"),
            steps=NONE_IS_GOOD,
            width=4,
        ),
        tile(
            "Agent's processor (highest)",
            "Cores that loopwatch's own threads use in the process where that is most; budget 0.01 unless configured.",
            Query(f"max({scope.rate('loopwatch.agent.cpu.time', JOB, INSTANCE)})"),
            steps=COST,
            width=4,
        ),
        tile(
            "Agent's faults",
            "Parts of loopwatch that failed and were switched off, in the time shown. The program is not affected. The "
            "log has one line for each: report it.",
            Query(scope.grown("loopwatch.agent.faults", window=RANGE), instant=True, rare=True),
            steps=((None, "green"), (1, "yellow")),
            width=4,
        ),
        tile(
            "Agents off",
            "Processes in which loopwatch watches nothing. The log of the process says why.",
            Query(scope.now("loopwatch.agent.state", how="sum", matchers=[OFF]), rare=True),
            steps=((None, "green"), (1, "yellow")),
            width=4,
        ),
    )
    return Row("Now", [first])


def _flagged(scope: Scope) -> Row:
    rows = (JOB, catalog.FUNCTION, catalog.CAUSE, catalog.REMEDY)
    return Row(
        "What to move",
        [
            [
                table(
                    "Flagged functions",
                    "Functions that keep blocking, with what to do about each. Do the first one first. To have it "
                    "moved without a change: auto_offload or transparent_offload, after reading what moving means.",
                    {
                        label(catalog.FUNCTION): "Function",
                        label(catalog.CAUSE): "Cause",
                        label(catalog.REMEDY): "What to do",
                        JOB: "Service",
                    },
                    [
                        Column(
                            "Blocked in the window",
                            Query(
                                scope.now("loopwatch.flagged", *rows, how="sum") + " > 0", instant=True, form="table"
                            ),
                            "s",
                            ((None, "yellow"), (1, "red")),
                        )
                    ],
                    links={
                        "Function": CULPRIT_TRACES,
                        "Service": ("Loops of this service", dashboard_link(LOOP, job="Service")),
                    },
                )
            ]
        ],
    )


def _decisions(scope: Scope) -> Row:
    calls = "loopwatch.offload.calls"
    return Row(
        "Decisions",
        [
            [
                series(
                    "Calls by place",
                    "Calls per second of functions that may run elsewhere, by where they ran. Only inline: they are "
                    "cheap, or something keeps them there; fn.explain() says what.",
                    Query(scope.rate(calls, catalog.PLACE), legend(catalog.PLACE)),
                    stacked=True,
                    width=8,
                    height=9,
                ),
                table(
                    "Calls by function and place, in the time shown",
                    "Where each function ran. A function that is flagged above and runs inline here is the one to "
                    "mend.",
                    {label(catalog.FUNCTION): "Function", label(catalog.PLACE): "Ran", JOB: "Service"},
                    [
                        Column(
                            "Calls",
                            Query(
                                scope.grown(calls, JOB, catalog.FUNCTION, catalog.PLACE, window=RANGE) + " > 0",
                                instant=True,
                                form="table",
                            ),
                        )
                    ],
                    width=16,
                ),
            ]
        ],
    )


def _cost(scope: Scope) -> Row:
    per_call = [
        Query(
            f"{scope.rate(f'loopwatch.offload.{which}.time', catalog.PLACE)} / "
            f"({scope.rate('loopwatch.offload.calls', catalog.PLACE)} > 0)",
            f"{which} {legend(catalog.PLACE)}",
        )
        for which in ("run", "trip")
    ]
    return Row(
        "Is it worth it",
        [
            [
                series(
                    "Run and trip of a call (mean)",
                    "A trip should be a small part of its run. If it grows with the load, calls wait for workers.",
                    *per_call,
                    unit="s",
                    width=8,
                ),
                series(
                    "Run and trip time",
                    "Seconds per second. Work that was taken off the loop, and what its way cost.",
                    Query(scope.rate("loopwatch.offload.run.time", catalog.PLACE), f"run {legend(catalog.PLACE)}"),
                    Query(scope.rate("loopwatch.offload.trip.time", catalog.PLACE), f"trip {legend(catalog.PLACE)}"),
                    width=8,
                ),
                series(
                    "Loop time saved by service",
                    "Seconds per second that loops were free for something else.",
                    Query(scope.rate("loopwatch.offload.saved", JOB), legend(JOB)),
                    unit="percentunit",
                    width=8,
                ),
            ]
        ],
    )


def _agent(scope: Scope) -> Row:
    return Row(
        "What loopwatch costs",
        [
            [
                series(
                    "Processor",
                    "Cores that its threads use (10 highest). Above its budget it looks less often by itself.",
                    Query(f"topk(10, {scope.rate('loopwatch.agent.cpu.time', JOB, INSTANCE)})", legend(INSTANCE)),
                    steps=COST,
                    width=8,
                ),
                series(
                    "Lag it can have caused",
                    "Seconds per second that its threads ran while a loop was busy (10 highest). An upper bound.",
                    Query(f"topk(10, {scope.rate('loopwatch.agent.lag', JOB, INSTANCE)})", legend(INSTANCE)),
                    steps=COST,
                    width=8,
                ),
                series(
                    "Stretch",
                    "Factor by which it looks less often, to keep its budget; 1 is as configured. If it stays high, "
                    "short stalls are dated less exactly: raise cpu_budget or the threshold.",
                    Query(f"topk(10, {scope.now('loopwatch.agent.stretch', JOB, INSTANCE)})", legend(INSTANCE)),
                    steps=((None, "green"), (2, "yellow"), (8, "red")),
                    width=8,
                ),
            ],
            [
                series(
                    "Not told, by signal",
                    "What it dropped, in each interval shown: a queue was full, stalls came in a storm, an export "
                    "failed. Metrics, spans: look at the collector. Stalls: counts stay right, records of single ones "
                    "miss.",
                    Query(scope.grown("loopwatch.agent.dropped", catalog.SIGNAL), legend(catalog.SIGNAL), rare=True),
                    stacked=True,
                    width=8,
                ),
                series(
                    "Faults by part",
                    "Faults of its parts, in each interval shown, and how many parts are left out now. Report the line "
                    "in the log.",
                    Query(scope.grown("loopwatch.agent.faults", catalog.PART), legend(catalog.PART), rare=True),
                    Query(scope.now("loopwatch.agent.parts_off", how="sum"), "parts off now", rare=True),
                    stacked=True,
                    width=8,
                ),
                bars(
                    "Agents by state",
                    "watching: all is well. waiting: no loop runs yet. paused: by the program. off: see the log.",
                    Query(
                        scope.now("loopwatch.agent.state", catalog.STATE, how="sum"),
                        legend(catalog.STATE),
                        instant=True,
                    ),
                    width=8,
                ),
            ],
        ],
    )

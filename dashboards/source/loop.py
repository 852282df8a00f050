"""The loops of one process: is one blocked now, by what, whom does it hurt; and how was it before."""

from __future__ import annotations

from loopwatch.telemetry.metrics import catalog

from .board import Board, Row
from .panels import BLOCKED, BUSY, HELD, LAG, Column, Query, found_traces, heat, series, table, tile
from .parts import (
    CULPRIT_TRACES,
    LOOP,
    STARVED,
    STARVED_TITLE,
    WHOLE_LOOP,
    crash_marks,
    hang_marks,
    restart_marks,
    stall_marks,
)
from .promql import INSTANCE, JOB, RANGE, RECENT, Scope, label, legend

_THIS = (INSTANCE, catalog.LOOP)
_HELD = "asyncio.eventloop.stall.duration"


def loop() -> Board:
    """Make the dashboard."""
    scope = Scope((JOB, INSTANCE, catalog.LOOP))
    return Board(
        uid=LOOP,
        title="loopwatch / Loop",
        about="One process (choose it above): is its event loop blocked right now, by what, why, and whom does it "
        "hurt? Where several are chosen, each has a line of its own and tiles show the worst.",
        variables=(JOB, INSTANCE, catalog.LOOP),
        rows=(_now(scope), _lag(scope), _blockers(scope), _work(scope), _gc(scope), _traces()),
        marks=(stall_marks(scope, shown=True), hang_marks(scope), crash_marks(scope), restart_marks(scope)),
    )


def _now(scope: Scope) -> Row:
    recent = scope.grown(_HELD, catalog.CULPRIT, catalog.CAUSE, window=RECENT)
    said = f"{legend(catalog.CULPRIT)} ({legend(catalog.CAUSE)})"
    tiles = (
        tile(
            "Held now for",
            "For how long one callback has held the loop by now; 0 while it gets on. Above 2 s it is announced as a "
            "hang with its stack in log and journal, before it ends.",
            Query(scope.now("asyncio.eventloop.blocked_for")),
            unit="s",
            steps=HELD,
        ),
        tile(
            "By what (last 5 minutes)",
            "The code that blocked most in the last 5 minutes, and why. A block that has not ended is not in it yet: "
            "it is in the log. Below is how much, and what to do is in the dashboard Offload.",
            Query(f"topk(1, {recent} > 0)", said, instant=True),
            steps=((None, "blue"),),
            width=8,
            empty="nobody",
            name=True,
        ),
        tile(
            "Whom (a minute)",
            "Callbacks, timers and events that waited at the end of stalls, per minute. Each is a request, or a part "
            "of one, that was late.",
            Query(f"{scope.rate('asyncio.eventloop.stall.victims')} * 60"),
            steps=((None, "green"), (1, "yellow"), (600, "red")),
        ),
        tile(
            "Lag p99",
            "What one call in a hundred waits before its code runs, in the last window.",
            Query(scope.now("asyncio.eventloop.lag.p99")),
            unit="s",
            steps=LAG,
        ),
        tile(
            "Utilization",
            "Share of the time in which the loop was busy. Above 90 % it cannot catch up: more processes, or work "
            "moved off the loop.",
            Query(scope.now("asyncio.eventloop.utilization")),
            unit="percentunit",
            steps=BUSY,
        ),
    )
    held = series(
        "Held right now",
        "For how long the loop was held at each moment that was looked at. A slope of 1 s per second that does not end "
        "is a hang: find its stack in the log, and restart the process.",
        Query(scope.now("asyncio.eventloop.blocked_for", *WHOLE_LOOP), legend(*_THIS)),
        unit="s",
        steps=HELD,
        width=12,
        height=6,
    )
    blocked = series(
        "Blocked share",
        "Share of the time for which stalls have held the loop. 10 % means that one request in ten meets a blocked "
        "loop.",
        Query(scope.share(_HELD, *WHOLE_LOOP), legend(*_THIS)),
        unit="percentunit",
        steps=BLOCKED,
        width=12,
        height=6,
    )
    return Row("Now: is it blocked, by what, and whom does it hurt", [tiles, [held, blocked]])


def _lag(scope: Scope) -> Row:
    name = "asyncio.eventloop.lag"
    quantiles = [
        Query(scope.now(f"{name}.{which}", *WHOLE_LOOP), f"{which} {legend(*_THIS)}")
        for which in ("p50", "p90", "p99", "max")
    ]
    spread = [
        Query(scope.now(f"{name}.{which}", *WHOLE_LOOP), f"{which} {legend(*_THIS)}")
        for which in ("min", "mean", "stddev")
    ]
    return Row(
        "Lag: what newly arriving work waits",
        [
            [
                heat(
                    "Lag",
                    "How often timers were how late. Cells above 0.1 s are stalls; blue dots are examples with a "
                    "trace: click one to see what blocked, and what it belongs to. Requests that waited have a link to "
                    "that span.",
                    Query(scope.buckets(name, way="increase"), "{{le}}", form="heatmap", exemplars=True),
                ),
                series(
                    "Lag in each window",
                    "As the process computes them itself, exact to 5 %. p50 near p99: load; far below it: single "
                    "blocks.",
                    *quantiles,
                    unit="s",
                    steps=LAG,
                    height=9,
                ),
            ],
            [
                series(
                    "Lag: mean and spread",
                    "A spread above the mean says that a few blocks make it, and not a steady load.",
                    *spread,
                    unit="s",
                ),
                series(
                    "Lag p99 of the loops chosen, together",
                    "From the histogram, which also adds up over processes.",
                    Query(scope.quantile(0.99, name), "p99"),
                    Query(scope.quantile(0.9, name), "p90"),
                    unit="s",
                    steps=LAG,
                ),
            ],
        ],
    )


def _blockers(scope: Scope) -> Row:
    rows = (JOB, INSTANCE, catalog.LOOP, catalog.CAUSE, catalog.CULPRIT)
    counts = scope.grown("asyncio.eventloop.stalls", *rows, window=RANGE)
    blocked = scope.grown(_HELD, *rows, window=RANGE)
    return Row(
        "What blocks it, and why",
        [
            [
                series(
                    "Blocked time by culprit",
                    "Seconds per second for which a function held the loop. The highest is what to mend first: see "
                    "Flagged functions in the dashboard Offload for the remedy.",
                    Query(f"topk(10, {scope.share(_HELD, catalog.CULPRIT)})", legend(catalog.CULPRIT)),
                    stacked=True,
                ),
                series(
                    "Blocked time by cause",
                    "python, native_gil: move it to a worker process. native, io, sleep, lock: an asynchronous call, "
                    "or a thread. gil: another thread computes. gc: fewer objects, or gc.freeze(). starved: processor "
                    "or quota too small. suspended: the machine stopped it. overload: too many small callbacks.",
                    Query(scope.share(_HELD, catalog.CAUSE), legend(catalog.CAUSE)),
                    stacked=True,
                ),
            ],
            [
                series(
                    STARVED_TITLE,
                    "Share of the time in which stalls held a loop of the process whose thread was ready to run and "
                    "had no processor; part of the blocked time of any cause. All loops of a process together. quota: "
                    "raise the CPU limit of the container, or run fewer workers in it. neighbours: fewer busy "
                    "processes on the machine.",
                    Query(
                        scope.rate(STARVED, INSTANCE, catalog.STARVED_BY),
                        legend(catalog.STARVED_BY, INSTANCE),
                    ),
                    unit="percentunit",
                    stacked=True,
                ),
                series(
                    "Victims per second",
                    "Callbacks, timers and events that waited when stalls ended.",
                    Query(scope.rate("asyncio.eventloop.stall.victims", *WHOLE_LOOP), legend(*_THIS)),
                ),
            ],
            [
                table(
                    "Culprits in the time shown",
                    "Most blocked time first; click a culprit for the traces of its stalls, with stack and remedy.",
                    {
                        label(catalog.CULPRIT): "Culprit",
                        label(catalog.CAUSE): "Cause",
                        label(catalog.LOOP): "Loop",
                        INSTANCE: "Process",
                        JOB: "Service",
                    },
                    [
                        Column("Blocked", Query(f"{blocked} > 0", instant=True, form="table"), "s"),
                        Column("Stalls", Query(f"{counts} > 0", instant=True, form="table")),
                    ],
                    links={"Culprit": CULPRIT_TRACES},
                ),
            ],
        ],
    )


def _work(scope: Scope) -> Row:
    time = "asyncio.eventloop.time"
    return Row(
        "What it does",
        [
            [
                series(
                    "Utilization",
                    "Share of the time in which the loop was not waiting, in the last window.",
                    Query(scope.now("asyncio.eventloop.utilization", *WHOLE_LOOP), legend(*_THIS)),
                    unit="percentunit",
                    steps=BUSY,
                    highest=1,
                    width=8,
                ),
                series(
                    "Time by state",
                    "Seconds per second that loops were busy and idle. Both together are 1 for each loop that is "
                    "watched; less is time in which the process was stopped or not looked at.",
                    Query(scope.rate(time, catalog.LOOP_STATE), legend(catalog.LOOP_STATE)),
                    stacked=True,
                    width=8,
                ),
                series(
                    "Tasks alive",
                    "Tasks of the process. A line that only rises is a leak: tasks that nobody awaits or cancels.",
                    Query(scope.now("asyncio.tasks", JOB, INSTANCE), legend(INSTANCE), rare=True),
                    width=8,
                ),
            ],
            [
                series(
                    "Passes per second",
                    "How often the loop went round. Few passes and high utilization: long callbacks.",
                    Query(scope.rate("asyncio.eventloop.passes", *WHOLE_LOOP), legend(*_THIS)),
                ),
                series(
                    "Callbacks per second",
                    "Events of I/O that a loop of uvloop has taken up. Thousands in each pass: the cause overload. "
                    "Empty for loops of asyncio, which count passes only: see beside.",
                    Query(scope.rate("asyncio.eventloop.callbacks", *WHOLE_LOOP), legend(*_THIS), rare=True),
                ),
            ],
        ],
    )


def _gc(scope: Scope) -> Row:
    panels = [
        series(
            title,
            about,
            Query(scope.rate(name, INSTANCE, catalog.GENERATION), f"generation {legend(catalog.GENERATION, INSTANCE)}"),
            width=8,
        )
        for name, title, about in (
            (
                "cpython.gc.collections",
                "Collections per second",
                "Those of generation 2 walk over every object and hold the loop. More than one a minute: keep fewer "
                "objects, gc.freeze() after start, or a higher threshold.",
            ),
            (
                "cpython.gc.collected_objects",
                "Objects freed per second",
                "Objects in reference cycles. Many: break the cycles (tracebacks, closures, parents), and collections "
                "become cheap.",
            ),
            (
                "cpython.gc.uncollectable_objects",
                "Objects that could not be freed, per second",
                "Should be 0; else an extension keeps objects for ever.",
            ),
        )
    ]
    return Row("Garbage collector", [panels])


def _traces() -> Row:
    spans = found_traces(
        "Stalls as spans",
        "Each stall is a span in the trace of the code that blocked, with cause, stack and remedy; the requests that "
        "waited have an event and a link to it. Nothing here: choose a data source of traces above, and see whether "
        "the process exports spans.",
        f"{{ span.{catalog.CAUSE} != nil }}",
    )
    return Row("Traces", [[spans]], folded=True)

"""What several dashboards show in the same way, and the words that go with it."""

from __future__ import annotations

from loopwatch.telemetry.metrics import catalog

from .board import Mark
from .panels import RED, YELLOW, Query, explore_traces
from .promql import INSTANCE, JOB, Scope, label, legend

OVERVIEW, LOOP, WORKERS, OFFLOAD = "loopwatch-overview", "loopwatch-loop", "loopwatch-workers", "loopwatch-offload"
"""Of the dashboards; links rely on them."""

ILL = '"hung|zombie|orphan|dead"'
"""States of a worker that call for a person."""
ILL_WORKERS = f"{label(catalog.WORKER_STATE)}=~{ILL}"
OFF = f'{label(catalog.STATE)}=~"off|paused"'

STARVED = "asyncio.eventloop.stall.starved"
STARVED_TITLE = "Blocked time without a processor, by quota and neighbours"

WHOLE_LOOP = (JOB, INSTANCE, catalog.LOOP)
WHOLE_POOL = (JOB, INSTANCE, catalog.POOL, catalog.POOL_KIND)

CULPRIT_TRACES = (
    "Stalls of this culprit, as traces",
    explore_traces(f'{{ span.{catalog.CULPRIT} = "${{__value.raw}}" }}'),
)
"""A link of the column that has the culprit."""


def stall_marks(scope: Scope, *, shown: bool) -> Mark:
    """Mark the minutes in which a loop was held, and by whom."""
    expr = f"{scope.grown('asyncio.eventloop.stalls', JOB, INSTANCE, catalog.LOOP, catalog.CAUSE, catalog.CULPRIT)} > 0"
    said = f"{legend(catalog.CULPRIT)} held {legend(catalog.LOOP)} ({legend(catalog.CAUSE)}) in {legend(INSTANCE)}"
    return Mark("Stalls", Query(expr, said), YELLOW, shown)


def crash_marks(scope: Scope) -> Mark:
    """Mark the minutes in which workers died."""
    expr = f"{scope.grown('loopwatch.pool.crashes', JOB, INSTANCE, catalog.POOL, catalog.CRASH)} > 0"
    said = f"a worker of {legend(catalog.POOL)} died ({legend(catalog.CRASH)}) in {legend(INSTANCE)}"
    return Mark("Worker crashes", Query(expr, said), RED)


def restart_marks(scope: Scope) -> Mark:
    """Mark the minutes in which a process began anew."""
    started = scope.of("loopwatch.agent.start_time")
    expr = f"max by ({JOB}, {INSTANCE}) (changes({started}[$__rate_interval])) > 0"
    return Mark(
        "Process restarts", Query(expr, f"{legend(INSTANCE)} was started anew", rare=True), "purple", shown=False
    )


def hang_marks(scope: Scope) -> Mark:
    """Mark the time in which a loop was held for longer than ``Config.hang_after``."""
    expr = f"{scope.now('asyncio.eventloop.blocked_for', *WHOLE_LOOP)} > 2"
    said = f"{legend(catalog.LOOP)} in {legend(INSTANCE)} does not get on"
    return Mark("Loops that hang", Query(expr, said, rare=True), RED)

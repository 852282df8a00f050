"""Thresholds by route and task: a block is judged by the limit of its callback, and counts in full or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import pytest

import loopwatch
from loopwatch import Config
from loopwatch.agent import Agent
from loopwatch.events import Cause
from loopwatch.report.reader import read_journals
from loopwatch.watch.limits import limit_of, lowest
from loopwatch.watch.observation import Caller
from tests.conftest import Run
from tests.telemetry.traced import Exported, events, set_globally

pytestmark = pytest.mark.measures

REPORT = Caller("Task-1", "app.handle", {"http.route": "/report/{id}", "http.request.method": "GET"})
WEBSOCKET = Caller("Task-1", "app.handle", {"route": "/live/{room}"})


@pytest.mark.parametrize(
    ("pattern", "caller", "matches"),
    [
        ("GET /report/*", REPORT, True),
        ("GET /report/{id}", REPORT, True),
        ("/report/*", REPORT, True),
        ("POST /report/*", REPORT, False),
        ("get /report/*", REPORT, False),
        ("/report", REPORT, False),
        ("*", REPORT, True),
        ("Task-?", REPORT, True),
        ("app.*", REPORT, True),
        ("GET /live/*", WEBSOCKET, False),  # its method is not known
        ("/live/*", WEBSOCKET, True),
        ("*", Caller(None, None), False),  # nothing is known of it
    ],
)
def test_pattern(pattern: str, caller: Caller, matches: bool) -> None:
    """A pattern is compared with method and route, the route, the task and its coroutine, case-sensitively."""
    assert limit_of(Config(thresholds={pattern: 7.0}), caller) == (7.0 if matches else 0.1)


def test_first_pattern_that_matches_applies() -> None:
    """Patterns are tried in their order; the lowest limit of all is what the loop is watched by."""
    config = Config(threshold=0.1, thresholds={"GET /report/*": 0.5, "/report/*": 2.0, "Task-*": 0.03})
    assert limit_of(config, REPORT) == 0.5
    assert limit_of(config, WEBSOCKET) == 0.03
    assert limit_of(config, Caller("worker", "work")) == 0.1
    assert lowest(config) == 0.03
    assert lowest(Config(threshold=0.1, thresholds={"a": 0.5})) == 0.1


_route: ContextVar[str] = ContextVar("http.route")


async def block(seconds: float, *, route: str | None = None) -> None:
    if route is not None:
        _route.set(route)
    await asyncio.sleep(0.03)
    time.sleep(seconds)
    await asyncio.sleep(0.03)


@pytest.mark.measures
def test_higher_and_lower_limits(agent: Agent, run: Run) -> None:
    """Of blocks on both sides of a higher, a lower and the common limit, exactly those above their own are stalls."""
    agent.configure(thresholds={"slow-*": 0.6, "quick": 0.05}, context=("http.route",))
    blocks = [
        ("slow-1", 0.3), ("slow-2", 0.7), ("quick", 0.08), ("quick", 0.02), ("other", 0.08), ("other", 0.2),
    ]  # fmt: skip

    async def main() -> None:
        await asyncio.sleep(0.02)
        for name, seconds in blocks:
            await asyncio.create_task(block(seconds), name=name)
        assert await asyncio.to_thread(agent.flush, 5.0)
        (loop,) = agent.snapshot().loops
        stalls = [stall for stall in agent.stalls() if not stall.ongoing]
        assert (loop.stalls, len(stalls)) == (len(stalls), len(stalls))
        assert loop.blocked == pytest.approx(sum(stall.duration for stall in stalls), rel=0.1)

    run(main())
    found = [(stall.task, stall.evidence.threshold) for stall in agent.stalls() if stall.cause is not Cause.STARVED]
    assert found == [("slow-2", 0.6), ("quick", 0.05), ("other", 0.1)]


@pytest.mark.measures
def test_route(agent: Agent, run: Run) -> None:
    """A block under its route's limit is no stall, one of another route is."""
    agent.configure(thresholds={"/report/*": 0.6}, context=("http.route",))

    async def main() -> None:
        await asyncio.sleep(0.02)
        await asyncio.create_task(block(0.3, route="/report/{id}"))
        await asyncio.create_task(block(0.3, route="/items"))
        assert await asyncio.to_thread(agent.flush, 5.0)

    run(main())
    assert [stall.context["http.route"] for stall in agent.stalls()] == ["/items"]


@pytest.mark.measures
def test_hang_is_announced_by_the_limit_of_its_task(agent: Agent, run: Run) -> None:
    """A block is not announced, and not shown as going on, before its own limit."""
    agent.configure(thresholds={"migration": 0.9}, hang_after=0.2)
    during: list[tuple[float, float]] = []

    async def migrate(seconds: float) -> None:
        await asyncio.sleep(0.03)
        begun = time.monotonic()
        while (age := time.monotonic() - begun) < seconds:
            time.sleep(0.05)
            during.extend((age, loop.blocked_for) for loop in agent.snapshot().loops)
        await asyncio.sleep(0.03)

    async def main() -> None:
        await asyncio.create_task(migrate(0.5), name="migration")
        assert await asyncio.to_thread(agent.flush, 5.0)
        assert [blocked for _, blocked in during if blocked] == []
        await asyncio.create_task(migrate(1.6), name="migration")
        assert await asyncio.to_thread(agent.flush, 5.0)

    run(main())
    early, whole = agent.stalls()
    assert (early.ongoing, whole.ongoing, early.id == whole.id) == (True, False, True)
    assert 0.9 <= early.duration < whole.duration
    assert (early.evidence.threshold, whole.evidence.threshold) == (0.9, 0.9)
    shown = [age for age, blocked in during if blocked]
    assert shown
    assert min(shown) >= 0.8


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The program's providers."""
    with set_globally(monkeypatch, Exported()) as made:
        yield made


@pytest.mark.measures
@pytest.mark.parametrize("is_expected", [False, True])
def test_waiters_of_what_is_no_stall_are_left_alone(
    is_expected: bool, agent: Agent, exported: Exported, run: Run
) -> None:
    """The span of a request that waited for a block below its limit, or for an expected one, gets no event or link."""
    agent.configure(thresholds={} if is_expected else {"slow": 0.6})

    async def blocks() -> None:
        with exported.tracer.start_as_current_span("blocker"):
            await asyncio.sleep(0.05)
            if is_expected:
                with loopwatch.expected("warm-up"):
                    time.sleep(0.3)
            else:
                time.sleep(0.3)

    async def waits() -> None:
        with exported.tracer.start_as_current_span("waiter"):
            await asyncio.sleep(0.1)

    async def main() -> None:
        await asyncio.sleep(0.05)
        await asyncio.gather(asyncio.create_task(blocks(), name="slow"), waits())
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(agent.flush, 5.0)

    run(main())
    assert agent.stalls() == ()
    (waiter,) = exported.spans("waiter")
    assert (events(waiter), list(waiter.links)) == ([], [])
    assert exported.spans("asyncio.eventloop.stall") == []


@pytest.mark.measures
def test_journal_carries_the_limit_in_force(tmp_path: Path, run: Run) -> None:
    """The journal holds each stall with the threshold by which it was judged, and its severity by that."""
    agent = loopwatch.install(
        journal=f"{tmp_path}/", thresholds={"quick": 0.02}, log_level="CRITICAL", cpu_budget=1.0
    )  # fmt: skip

    async def main() -> None:
        await asyncio.sleep(0.02)
        for name in ("quick", "other"):
            await asyncio.create_task(block(0.25), name=name)
        assert await asyncio.to_thread(agent.flush, 5.0)

    run(main())
    loopwatch.uninstall()
    found = [(stall.task, stall.evidence.threshold, stall.severity) for stall in read_journals(str(tmp_path)).stalls]
    assert found == [("quick", 0.02, "error"), ("other", 0.1, "warning")]


def test_failing_patterns_are_a_fault_of_their_own(agent: Agent, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """If a pattern cannot be compared, the common threshold applies, and the fault is counted."""

    def broken(_config: Config, _caller: Caller) -> float:
        raise RuntimeError("broken")

    monkeypatch.setattr("loopwatch.watch.watcher.limit_of", broken)
    agent.configure(thresholds={"slow": 5.0})

    async def main() -> None:
        await asyncio.sleep(0.02)
        await asyncio.create_task(block(0.3), name="slow")
        assert await asyncio.to_thread(agent.flush, 5.0)

    run(main())
    assert "slow" in [stall.task for stall in agent.stalls()]  # a busy machine may delay the loop besides
    assert agent.snapshot().agent.faults["thresholds"] >= 1

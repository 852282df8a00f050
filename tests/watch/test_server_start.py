"""Blocks during a server's start-up are expected: one log line, and no stall; later blocks are reported as usual."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import Run

import loopwatch
from loopwatch.agent import Agent
from loopwatch.events import Cause, ExpectedBlocks
from loopwatch.testing import RecordingSink

pytestmark = pytest.mark.measures

LONG = 0.3
PATIENCE = 20.0


def warm_up() -> None:
    time.sleep(LONG)


def late() -> None:
    time.sleep(LONG)


def application(warm: Callable[[], object] = warm_up) -> Any:
    """Return an ASGI application whose lifespan blocks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        warm()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return app


async def until(happened: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


def uvicorn_server(app: Any) -> Any:
    uvicorn = pytest.importorskip("uvicorn")
    return uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, log_level="critical", lifespan="on"))


async def with_uvicorn(app: Any, then: Callable[[], Awaitable[None]]) -> None:
    server = uvicorn_server(app)
    serving = asyncio.ensure_future(server.serve())
    await until(lambda: server.started or serving.done())
    await then()
    server.should_exit = True
    await serving


async def with_hypercorn(app: Any, then: Callable[[], Awaitable[None]]) -> None:
    hypercorn = pytest.importorskip("hypercorn.asyncio")
    config = pytest.importorskip("hypercorn.config").Config()
    config.bind, config.errorlog = ["127.0.0.1:0"], None
    over = asyncio.Event()

    async def shutdown() -> None:
        await then()
        over.set()

    await hypercorn.serve(app, config, shutdown_trigger=shutdown)
    assert over.is_set()


async def with_aiohttp(_app: Any, then: Callable[[], Awaitable[None]]) -> None:
    web = pytest.importorskip("aiohttp.web")

    async def on_startup(_: Any) -> None:
        warm_up()

    app = web.Application()
    app.on_startup.append(on_startup)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await then()
    await runner.cleanup()


MODULES = {"uvicorn": "uvicorn", "hypercorn": "hypercorn.asyncio", "aiohttp": "aiohttp.web"}
SERVERS = {"uvicorn": with_uvicorn, "hypercorn": with_hypercorn, "aiohttp": with_aiohttp}


def start_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for record in caplog.records if "held the loop" in (line := record.getMessage())]


@pytest.mark.parametrize("name", SERVERS)
def test_start_of_a_server_is_expected(
    name: str, agent: Agent, sink: RecordingSink, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Start-up blocks are in the snapshot and in one line; a block once the server listens is a stall."""
    pytest.importorskip(MODULES[name])  # not within the loop, where the import would be a block
    caplog.set_level(logging.DEBUG, "loopwatch")
    found: list[ExpectedBlocks] = []

    async def then() -> None:
        await until(lambda: start_lines(caplog))
        await asyncio.sleep(0)
        late()
        await until(lambda: any(stall.culprit and stall.culprit.function == "late" for stall in sink.stalls))
        (loop,) = agent.snapshot().loops
        found.extend(loop.expected)
        assert loop.stalls == len(sink.stalls)

    run(SERVERS[name](application(), then))
    agent.flush()
    assert "warm_up" not in {stall.culprit.function for stall in agent.stalls() if stall.culprit}
    assert all(stall.expected is None for stall in agent.stalls())
    (blocks,) = found
    assert (blocks.reason, blocks.loop) == (f"start-up of {name}", "main")
    assert blocks.blocked >= blocks.longest >= LONG - 0.02
    if blocks.cause is not Cause.STARVED:  # a busy machine can hold the loop for longer than the program does
        assert blocks.culprit is not None
        assert blocks.culprit.function == "warm_up"
    (line,) = start_lines(caplog)
    assert line.startswith(f"loopwatch: start-up of {name} held the loop 'main' for ")
    assert blocks.culprit is None or f" by {blocks.culprit}: " in line


def test_start_of_sanic_is_expected(agent: Agent, sink: RecordingSink, caplog: pytest.LogCaptureFixture) -> None:
    """Sanic runs its loop for start-up alone: the block is one line, and the next run of the loop is no start-up."""
    sanic = pytest.importorskip("sanic.app")
    caplog.set_level(logging.DEBUG, "loopwatch")

    class App(sanic.Sanic):  # type: ignore[misc, name-defined]
        def finalize(self) -> None:
            warm_up()
            super().finalize()

    async def serve() -> None:
        await until(lambda: start_lines(caplog))
        late()
        await until(lambda: any(stall.culprit and stall.culprit.function == "late" for stall in sink.stalls))

    app = App("started")
    app.add_route(lambda _request: None, "/")
    with asyncio.Runner() as runner:
        runner.get_loop().run_until_complete(app._startup())
        runner.run(serve())
    agent.flush()
    assert "warm_up" not in {stall.culprit.function for stall in agent.stalls() if stall.culprit}
    (line,) = start_lines(caplog)
    assert line.startswith("loopwatch: start-up of sanic held the loop 'main' for ")


def test_start_that_is_long_is_reported(
    sink: RecordingSink, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that outlasts the expected start-up is announced with its culprit, and reported when it ends."""
    caplog.set_level(logging.DEBUG, "loopwatch")
    monkeypatch.setattr("loopwatch.watch.service.LONGEST", 0.8)
    agent = loopwatch.install(threshold=0.1, hang_after=0.4, on_stall=sink, log_level="WARNING", cpu_budget=1.0)
    announced_at: list[float] = []
    began: list[float] = []

    def endless() -> None:
        began.append(time.monotonic())
        ends = time.monotonic() + PATIENCE
        while not any(stall.ongoing for stall in sink.stalls):
            assert time.monotonic() < ends
            time.sleep(0.01)
        announced_at.append(time.monotonic())

    async def then() -> None:
        (loop,) = agent.snapshot().loops
        assert "endless" not in str([blocks.culprit for blocks in loop.expected])

    run(with_uvicorn(application(endless), then))
    agent.flush()
    notice, end = [stall for stall in sink.stalls if stall.culprit and stall.culprit.function.endswith("endless")]
    assert (notice.ongoing, end.ongoing, notice.id == end.id) == (True, False, True)
    assert announced_at[0] - began[0] > 0.4  # not before the start-up should be over
    assert "endless" not in str(start_lines(caplog))


def test_loop_that_serves_has_no_further_start(agent: Agent, sink: RecordingSink, run: Run) -> None:
    """The start of a second server on a loop that already serves holds requests up: it is a stall."""

    async def then() -> None:
        await asyncio.sleep(0.05)
        await with_uvicorn(application(late), lambda: asyncio.sleep(0))

    run(with_uvicorn(application(lambda: None), then))
    agent.flush()
    assert "late" in {stall.culprit.function for stall in sink.wait() if stall.culprit}


def test_agent_installed_during_a_start(sink: RecordingSink, run: Run) -> None:
    """If the application installs the agent in its module or lifespan, the rest of the start-up is expected."""

    def install_and_block() -> None:
        loopwatch.install(threshold=0.1, on_stall=sink, log_level="DEBUG", cpu_budget=1.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        install_and_block()
        await asyncio.sleep(0.01)
        warm_up()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def then() -> None:
        agent = loopwatch.current_agent()
        assert agent is not None
        await until(lambda: [blocks for loop in agent.snapshot().loops for blocks in loop.expected])

    run(with_uvicorn(app, then))
    assert "warm_up" not in {stall.culprit.function for stall in sink.stalls if stall.culprit}


def test_server_that_does_not_come_to_listen(
    agent: Agent, sink: RecordingSink, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A start-up that fails is logged too, as failed."""
    caplog.set_level(logging.DEBUG, "loopwatch")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        warm_up()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def then() -> None:
        pass

    with pytest.raises(SystemExit):
        run(with_uvicorn(app, then))
    agent.flush()
    loopwatch.uninstall()
    (line,) = start_lines(caplog)
    assert line.endswith("; it has not come to listen")
    assert sink.stalls == []


def test_servers_are_left_as_they_were(run: Run) -> None:
    """Replaced functions are restored, and nothing is replaced before a loop runs."""
    uvicorn = pytest.importorskip("uvicorn")
    names = ("serve", "startup", "main_loop")
    before = [vars(uvicorn.Server)[name] for name in names]
    for _ in range(2):
        loopwatch.install()
        assert [vars(uvicorn.Server)[name] for name in names] == before
        run(asyncio.sleep(0))
        assert all(vars(uvicorn.Server)[name] is not old for name, old in zip(names, before, strict=True))
        loopwatch.uninstall()
        assert all(vars(uvicorn.Server)[name] is old for name, old in zip(names, before, strict=True))

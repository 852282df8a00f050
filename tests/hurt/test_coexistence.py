"""Together with other tools that patch asyncio both work, and both can be removed, in any order."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

import pytest
from hostproc import program, succeeded

pytestmark = [pytest.mark.long, pytest.mark.measures]


@dataclass(frozen=True)
class Tool:
    """Another tool: the package to install, the module to look for, and how it is switched on and off.

    ``on()`` and ``off()`` run inside a running loop; ``there()`` returns whether its patches are in place.
    """

    package: str
    module: str
    code: str
    loops: tuple[str, ...] = ("asyncio", "uvloop")


TOOLS = {
    "sentry": Tool(
        "sentry-sdk",
        "sentry_sdk",
        """
        import sentry_sdk
        from sentry_sdk.integrations.asyncio import AsyncioIntegration

        def on():
            sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", integrations=[AsyncioIntegration()],
                            traces_sample_rate=1.0, default_integrations=False, transport=lambda *_: None)

        def there():
            factory = asyncio.get_running_loop().get_task_factory()
            return factory is not None and "sentry" in factory.__module__

        def off():
            asyncio.get_running_loop().set_task_factory(None)
            sentry_sdk.get_client().close()
        """,
    ),
    "newrelic": Tool(
        "newrelic",
        "newrelic",
        """
        os.environ.update(NEW_RELIC_DEVELOPER_MODE="true", NEW_RELIC_APP_NAME="test", NEW_RELIC_LOG="/dev/null")
        import newrelic.agent

        def on():
            newrelic.agent.initialize()

        def there():
            return any(type(finder).__module__.startswith("newrelic") for finder in sys.meta_path)

        def off():
            newrelic.agent.shutdown_agent(timeout=0)
        """,
    ),
    "opentelemetry": Tool(
        "opentelemetry-instrumentation-asyncio",
        "opentelemetry.instrumentation.asyncio",
        """
        os.environ.update(OTEL_PYTHON_ASYNCIO_FUTURE_TRACE_ENABLED="true",
                          OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE="blocked.<locals>.culprit,culprit")
        from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor

        names = "create_task", "ensure_future", "gather", "wait_for"
        plain = [getattr(asyncio, name) for name in names]
        instrumentor = AsyncioInstrumentor()

        def on():
            instrumentor.instrument()

        def there():
            # By identity: a wrapper is equal to the function it wraps.
            return all(getattr(asyncio, name) is not was for name, was in zip(names, plain))

        def off():
            instrumentor.uninstrument()
            assert all(getattr(asyncio, name) is was for name, was in zip(names, plain))
        """,
    ),
    "nest_asyncio": Tool(
        "nest_asyncio",
        "nest_asyncio",
        """
        import nest_asyncio

        def on():
            nest_asyncio.apply()

        def there():
            loop = asyncio.get_running_loop()
            return loop.run_until_complete(asyncio.sleep(0.01, "nested")) == "nested"

        def off():
            assert there()   # it cannot be undone
        """,
        ("asyncio",),
    ),
    "coverage": Tool(
        "coverage",
        "coverage",
        """
        import coverage
        measured = coverage.Coverage(data_file=None, config_file=False)

        def on():
            measured.start()

        def there():
            return coverage.Coverage.current() is measured

        def off():
            measured.stop()
        """,
    ),
}

TOGETHER = """
    import loopwatch
    quiet()
    kind, tool_first, agent_out_first = sys.argv[1], sys.argv[2] == "True", sys.argv[3] == "True"
    found = []

    def install():
        loopwatch.install(threshold=0.1, on_stall=found.append, cpu_budget=1.0)

    async def main():
        for step in (on, install) if tool_first else (install, on):
            step()
        beside = there()
        await blocked(0.25)
        agent = loopwatch.current_agent()
        agent.flush(10)
        stalls, faults = [stall for stall in found if stall.duration > 0.2], dict(agent.snapshot().agent.faults)
        if agent_out_first:
            loopwatch.uninstall()
            stays = there()
            off()
        else:
            off()
            stays = True
            loopwatch.uninstall()
        await blocked(0.15)
        later = await asyncio.gather(*[asyncio.create_task(asyncio.sleep(0.01, number)) for number in range(5)])
        return dict(beside=beside, stays=stays, later=later, faults=faults, stalls=len(stalls), after=len(found),
                    culprits=sorted({stall.culprit and stall.culprit.function for stall in stalls}, key=str))

    result = runner(kind)(main())
    result["again"] = runner(kind)(asyncio.sleep(0.01, "works"))
    result["after"] -= len(found)
    result["left"] = [type(item).__module__ for item in sys.meta_path if type(item).__module__.startswith("loopwatch")]
    say(**result)
"""

COMBINATIONS = [
    pytest.param(
        name,
        kind,
        tool_first,
        agent_out_first,
        id=f"{name}-{kind}-{'in_first' if tool_first else 'in_last'}-{'out_last' if agent_out_first else 'out_first'}",
    )
    for name, tool in TOOLS.items()
    for kind in tool.loops
    for tool_first in (True, False)
    for agent_out_first in (True, False)
    if kind == "asyncio" or (tool_first and agent_out_first)  # on the loops of uvloop nothing is replaced
]


def available(module: str) -> bool:
    """Whether ``module`` can be imported, without importing more than its parents."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(("name", "kind", "tool_first", "agent_out_first"), COMBINATIONS)
def test_beside_another_tool(name: str, kind: str, tool_first: bool, agent_out_first: bool) -> None:
    """With both on a block is reported once and the tool's patches stay; with both off the loop works."""
    tool = TOOLS[name]
    for package, module in ((tool.package, tool.module), *((("uvloop", "uvloop"),) if kind == "uvloop" else ())):
        if not available(module):
            pytest.skip(f"{package} is not installed (pip install {package})")
    ended = program(tool.code + TOGETHER.replace("\n    ", "\n        "), kind, tool_first, agent_out_first)
    assert ended.code == 0, ended.err
    assert "loopwatch" not in ended.err
    assert ended.last == {
        "beside": True,
        "stays": True,
        "later": [0, 1, 2, 3, 4],
        "faults": {},
        "stalls": 1,
        "culprits": ["nap"],
        "after": 0,
        "again": "works",
        "left": [],
    }


GEVENT = """
    from gevent import monkey
    monkey.patch_all()
    import logging, loopwatch
    logging.basicConfig(stream=sys.stdout, format='{"line": "%(message)s", "level": "%(levelname)s"}')
    before = threading.active_count()
    agent = loopwatch.install(threshold=0.05)
    again = loopwatch.install()
    state = agent.snapshot().agent
    say(state=state.state, reason=state.reason, same=again is agent, threads=threading.active_count() - before,
        ran=asyncio.run(asyncio.sleep(0.01, "ran")), faults=dict(state.faults))
    loopwatch.uninstall()
"""


def test_gevent_is_rejected() -> None:
    """In a process patched by gevent install() logs one line and returns an agent that is off, with the reason."""
    if not available("gevent"):
        pytest.skip("gevent is not installed (pip install gevent)")
    ended = program(GEVENT)
    assert ended.code == 0, ended.err
    (line, output) = ended.out
    assert line["level"] == "ERROR"
    assert line["line"].startswith("loopwatch: not started: gevent has patched this process")
    assert output["reason"] in line["line"]
    assert (output["state"], output["same"], output["threads"], output["ran"]) == ("off", True, 0, "ran")
    assert output["faults"] == {}


def test_gevent_imported_but_not_patched() -> None:
    """A program that only imports gevent is watched as usual."""
    if not available("gevent"):
        pytest.skip("gevent is not installed (pip install gevent)")
    source = """
        import gevent, loopwatch
        quiet()
        agent = loopwatch.install(threshold=0.1)
        asyncio.run(blocked(0.25))
        agent.flush()
        say(culprits=[stall.culprit.function for stall in agent.stalls() if stall.duration > 0.2])
    """
    assert succeeded(source) == {"culprits": ["nap"]}


TRIO = """
    import logging, loopwatch
    logging.basicConfig(stream=sys.stdout, format='{"line": "%(message)s", "level": "%(levelname)s"}')
    first = sys.argv[1] == "before"
    if first:
        import trio
    agent = loopwatch.install(threshold=0.05)
    import trio
    real = getattr(trio.run, "__wrapped__", None)

    async def main():
        await trio.sleep(0.01)
        return "ran"

    results = [trio.run(main) for _ in range(int(sys.argv[2]))]
    loopwatch.uninstall()
    say(results=results, back=trio.run is real, again=trio.run(main))
"""


@pytest.mark.parametrize("imported", ["before", "after"])
def test_trio_is_reported_as_unsupported(imported: str) -> None:
    """trio.run() works and one log line says it is not watched, whether trio was imported before or after install()."""
    if not available("trio"):
        pytest.skip("trio is not installed (pip install trio)")
    ended = program(TRIO, imported, 1)
    assert ended.code == 0, ended.err
    (line, output) = ended.out
    assert line["level"] == "WARNING"
    assert "trio is not supported" in line["line"]
    assert output == {"results": ["ran"], "back": True, "again": "ran"}


def test_trio_is_reported_once() -> None:
    """A program that calls trio.run() a hundred times logs one line, not a hundred."""
    if not available("trio"):
        pytest.skip("trio is not installed (pip install trio)")
    ended = program(TRIO, "before", 100)
    assert len([line for line in ended.out if "trio is not supported" in line.get("line", "")]) == 1


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the dictionary and the array are one since then")
@pytest.mark.parametrize("when", ["before", "within"])
def test_attributes_of_a_loop_stay_fast(when: str) -> None:
    """The agent does not make the interpreter materialize the ``__dict__`` of a loop or a task.

    Until then attributes are in an array, which is several times as fast; the referents of the object show it.
    """
    source = """
        import gc
        import loopwatch
        quiet()

        def has_dict(thing):
            found = [item for item in gc.get_referents(thing) if type(item) is dict]
            return any("_ready" in item or "_coro" in item for item in found)

        async def main():
            agent = loopwatch.install(threshold=0.1)
            await blocked(0.3)
            agent.snapshot(), agent.stalls(), agent.flush(5)
            say(found=has_dict(asyncio.get_running_loop()) or has_dict(asyncio.current_task()))
            vars(asyncio.get_running_loop())
            assert has_dict(asyncio.get_running_loop())

        if sys.argv[1] == "before":
            loopwatch.install(threshold=0.1)
        asyncio.run(main())
    """
    assert succeeded(source, when) == {"found": False}

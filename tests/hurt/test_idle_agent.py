"""An agent that is off loads nothing, and one in a program that replaced ``Thread.start`` works."""

from __future__ import annotations

import pytest
from hostproc import succeeded

pytestmark = pytest.mark.measures

OFF = """
    import concurrent.futures, loopwatch
    quiet()
    agent = loopwatch.install(enabled=False)
    before = set(sys.modules)
    async def main():
        remove = agent.on_stall(print)
        agent.watch_executor(concurrent.futures.ThreadPoolExecutor(1), "mine")
        agent.add_context("name")
        await agent.bridge(asyncio.sleep(0))
        agent.configure(threshold=0.3)
        remove()
        return agent.flush(), agent.snapshot().agent.state, agent.stalls(), agent.flagged()
    found = asyncio.run(main())
    new = {name for name in set(sys.modules) - before if name.startswith("loopwatch")}
    say(found=found, new=sorted(new))
"""


def test_an_agent_that_is_off_loads_nothing() -> None:
    """Using an agent that is switched off by its settings loads no module of it."""
    found = succeeded(OFF)
    assert found["found"] == [True, "off", [], []]
    assert found["new"] == []


REPLACED = """
    _original = threading.Thread.start
    _started = []
    def start(self):
        _started.append(self.name)
        return _original(self)
    threading.Thread.start = start
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.05)
    asyncio.run(blocked())
    agent.flush()
    faults, stalls = agent.snapshot().agent.faults, len(agent.stalls())
    loopwatch.uninstall()
    say(stalls=stalls, faults=faults)
"""


def test_a_program_that_replaced_thread_start() -> None:
    """The agent's threads start through the program's replacement of ``Thread.start``, without a fault."""
    found = succeeded(REPLACED)
    assert found == {"stalls": 1, "faults": {}}

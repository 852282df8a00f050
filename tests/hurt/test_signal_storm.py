"""Signal handlers that use the agent at any moment."""

from __future__ import annotations

import pytest
from hostproc import succeeded

pytestmark = pytest.mark.measures

STORM = """
    import loopwatch
    quiet()
    loopwatch.install().snapshot()  # imports, as a handler during an import may find a partly loaded module
    loopwatch.uninstall()
    count = 0
    def handle(number, frame):
        global count
        count += 1
        agent = loopwatch.current_agent()
        if count % 4 == 0:
            loopwatch.uninstall()
        elif count % 4 == 1:
            loopwatch.install(threshold=0.05)
        elif agent is not None:
            agent.snapshot()
    async def main():
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        while count < 80:
            await asyncio.sleep(0.02)
            time.sleep(0.06)
            await asyncio.to_thread(int)
        signal.setitimer(signal.ITIMER_REAL, 0)
        await asyncio.sleep(0.02)
    runner(sys.argv[1])(main())
    loopwatch.uninstall()
    agent_threads = lambda: [thread.name for thread in threading.enumerate() if thread.name.startswith("loopwatch")]
    until(lambda: not agent_threads())
    agent = loopwatch.install(threshold=0.05)
    runner(sys.argv[1])(blocked())
    agent.flush()
    stalls = len(agent.stalls())
    loopwatch.uninstall()
    say(left=agent_threads(), stalls=stalls, select=type(asyncio.events._set_running_loop).__name__)
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_handlers_that_install_and_uninstall_leave_nothing(kind: str) -> None:
    """Nothing hangs, no thread or patch is left, and the next agent finds its stall."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    found = succeeded(STORM, kind)
    assert found["left"] == []
    assert found["stalls"] >= 1
    assert found["select"] == "builtin_function_or_method"


IN_HEAPPUSH = """
    import loopwatch
    quiet()
    compare, installed = asyncio.TimerHandle.__lt__, []
    def install_once(one, other):  # where a signal handler of the program may run
        if not installed:
            installed.append(loopwatch.install(threshold=0.05))
        return compare(one, other)
    async def main():
        loop = asyncio.get_running_loop()
        fired = []
        for delay in (0.02, 0.01):  # the second is compared with the first
            loop.call_later(delay, fired.append, delay)
            asyncio.TimerHandle.__lt__ = install_once
        asyncio.TimerHandle.__lt__ = compare
        await asyncio.sleep(0.05)
        time.sleep(0.2)
        await asyncio.sleep(0.05)
        return fired
    fired = asyncio.run(main())
    installed[0].flush()
    say(fired=fired, stalls=len(installed[0].stalls()), faults=installed[0].snapshot().agent.faults)
    loopwatch.uninstall()
"""


def test_installing_while_a_timer_is_compared_spares_the_heap() -> None:
    """Timers fire in order and a block is found after ``install()`` in the middle of asyncio's heappush."""
    found = succeeded(IN_HEAPPUSH)
    assert found["fired"] == [0.01, 0.02]
    assert found["stalls"] == 1
    assert found["faults"] == {}

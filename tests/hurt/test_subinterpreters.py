"""With sub-interpreters nothing crashes; the main interpreter is watched, and sub-interpreters are not."""

from __future__ import annotations

import sys

import pytest
from hostproc import succeeded

HELPERS = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    def run_inside(code, kind):
        if sys.version_info >= (3, 13):
            number = interpreters.create(kind)
        else:
            number = interpreters.create(isolated=kind == "isolated")
        try:
            failure = getattr(interpreters, "exec", getattr(interpreters, "run_string", None))(number, code)
            assert failure is None, failure
        finally:
            interpreters.destroy(number)
"""
BESIDE = (
    HELPERS
    + """
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.05, cpu_budget=1.0)
    CODE = "import time\\ndef work(n):\\n  time.sleep(0.001); sum(range(3000))\\nfor n in range(400): work(n)"
    async def main():
        await asyncio.sleep(0.1)
        thread = threading.Thread(target=run_inside, args=(CODE, sys.argv[1]))
        thread.start()
        for _ in range(6):
            await asyncio.sleep(0.02)
            time.sleep(0.1)
        while thread.is_alive():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        nap(0.2)
        await asyncio.sleep(0.1)
    runner("asyncio")(main())
    agent.flush()
    stalls = agent.stalls()
    say(count=len(stalls), last=[frame.function for frame in stalls[-1].stack], faults=agent.snapshot().agent.faults)
    loopwatch.uninstall()
"""
)
INSIDE = (
    HELPERS
    + """
    import loopwatch
    import textwrap
    CODE = f"import sys; sys.path[:] = {sys.path!r}\\n" + textwrap.dedent('''
        import loopwatch
        agent = loopwatch.install(threshold=0.05)
        assert agent.snapshot().agent.state == "off", agent.snapshot().agent
        assert "sub-interpreter" in agent.snapshot().agent.reason
        import asyncio, time
        async def main():
            await asyncio.sleep(0.01)
            time.sleep(0.1)
        asyncio.run(main())
        import threading
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("loopwatch")]
        loopwatch.uninstall()
    ''')
    for _ in range(2):
        thread = threading.Thread(target=run_inside, args=(CODE, sys.argv[1]))
        thread.start()
        thread.join()
    say(over=True)
"""
)
KINDS = ("isolated", "legacy")


@pytest.mark.parametrize("kind", KINDS)
def test_stalls_are_found_beside_a_subinterpreter(kind: str) -> None:
    """Stalls are found while a sub-interpreter runs, and stacks are read again once it has ended."""
    if kind == "isolated" and (3, 12) <= sys.version_info < (3, 12, 2):
        pytest.skip("this interpreter's isolated sub-interpreters crash by themselves")
    found = succeeded(BESIDE, kind)
    assert found["count"] >= 5
    assert "nap" in found["last"]
    assert found["faults"] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_subinterpreter_is_not_watched(kind: str) -> None:
    """``install()`` in a sub-interpreter, as in one of a pool that imports the program, starts and raises nothing."""
    if kind == "isolated" and sys.version_info[:2] == (3, 12):
        pytest.skip("3.12 cannot import asyncio in isolated sub-interpreters again and again")
    assert succeeded(INSIDE, kind)["over"] is True

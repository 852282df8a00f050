"""A MemoryError at any call inside the agent on the loop's thread: the program's own work goes on."""

from __future__ import annotations

import pytest
from hostproc import succeeded

pytestmark = pytest.mark.measures

SWEEP = """
    import loopwatch, os, warnings
    from concurrent.futures import ThreadPoolExecutor
    warnings.simplefilter("ignore")
    quiet()
    PACKAGE = os.path.dirname(loopwatch.__file__)
    BOUNDARY = {"run", "always", "guarded", "_note", "<genexpr>"}  # the try is in it; a generator is closed, not called
    left, hit = 0, ""

    def ours(frame):
        return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)

    def trace(frame, event, _arg):
        global left, hit
        if left <= 0 or frame.f_code.co_name in BOUNDARY or not (ours(frame) and ours(frame.f_back)):
            return None
        left -= 1
        if left == 0:
            hit = f"{os.path.relpath(frame.f_code.co_filename, PACKAGE)} {frame.f_code.co_name}"
            raise MemoryError("injected")
        return None

    async def child(number):
        await asyncio.sleep(0)
        return number

    async def main():
        loop, got = asyncio.get_running_loop(), []
        loop.call_soon(got.append, "soon")
        loop.call_later(0.001, got.append, "later")
        loop.call_soon_threadsafe(got.append, "thread")
        children = await asyncio.gather(*map(child, range(3)))
        default = await loop.run_in_executor(None, int)
        with ThreadPoolExecutor(1) as executor:
            own = await loop.run_in_executor(executor, int)
        await asyncio.sleep(0.003)
        return children, default, own, sorted(got)

    run, wrong, number = runner(sys.argv[1]), [], 0
    loopwatch.install().snapshot()
    loopwatch.uninstall()
    while True:
        number, hit = number + 1, ""
        loopwatch.install()
        left = number
        sys.settrace(trace)
        try:
            found = run(main())
        except BaseException as exc:
            found = repr(exc)
        sys.settrace(None)
        loopwatch.uninstall()
        if found != ([0, 1, 2], 0, 0, ["later", "soon", "thread"]):
            wrong.append((hit, str(found)))
        if not hit or number > 5000:
            break
    agent = loopwatch.install(threshold=0.05)
    run(blocked())
    agent.flush()
    stalls = len(agent.stalls())
    loopwatch.uninstall()
    say(seams=number - 1, wrong=wrong, stalls=stalls)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_no_memory_error_of_the_agent_reaches_the_program(kind: str) -> None:
    """Each of some hundred calls fails once: results are right each time, and the next agent finds its stall."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    found = succeeded(SWEEP, kind)
    assert found["wrong"] == []
    assert found["seams"] >= 200
    assert found["stalls"] >= 1

"""The agent's memory is bounded at the start, and afterwards by the ring of stalls."""

from __future__ import annotations

import statistics
import sys

import pytest
from hostproc import succeeded

pytestmark = pytest.mark.measures

RESIDENT = """
    import logging
    def resident():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
"""

INSTALLED = (
    RESIDENT
    + """
    async def main():
        await asyncio.sleep(0.3)
        return resident()

    if sys.argv[1] == "on":
        import loopwatch
        loopwatch.install()
    say(resident=asyncio.run(main()))
"""
)

STALLS = (
    RESIDENT
    + """
    import dataclasses, gc, loopwatch

    logging.getLogger("loopwatch").addHandler(logging.NullHandler())
    logging.getLogger("loopwatch").propagate = False
    agent = loopwatch.install(threshold=0.05, journal=sys.argv[1], max_stalls=512, max_frames=50)
    taken = []
    take = agent._parts.sinks.observe

    def keep(seen):
        taken.append(seen)
        take(seen)

    agent._parts.sinks.observe = keep
    asyncio.run(blocked(0.3))
    agent.flush()
    agent._parts.sinks.observe = take
    model = max(taken, key=lambda seen: len(seen.samples))

    def feed(number):
        # Each stall has its own culprit, task and label, as if ten thousand functions blocked in turn.
        code = nap.__code__.replace(co_name=f"function_{number}", co_qualname=f"function_{number}")
        sample = model.samples[-1]
        frame = sample.stack.frames[0]._replace(code=code)
        stack = dataclasses.replace(sample.stack, frames=(frame,) + sample.stack.frames[1:])
        samples = [dataclasses.replace(sample, stack=stack) for _ in range(4)]
        agent._parts.sinks.observe(dataclasses.replace(model, id=f"{number:x}", samples=samples, task=f"task-{number}",
                                        coroutine=f"handler_{number}", context={"request": str(number)}))

    def feed_all(first, last):
        for start in range(first, last, 500):
            for number in range(start, min(start + 500, last)):
                feed(number)
            assert agent.flush(30)
        gc.collect()

    feed_all(0, 1000)
    before, rss = len(gc.get_objects()), resident()
    feed_all(1000, 11_000)
    say(kept=len(agent.stalls()), objects=len(gc.get_objects()) - before, rss_grown=resident() - rss,
        dropped=agent.snapshot().agent.dropped, faults=dict(agent.snapshot().agent.faults), last=agent.stalls()[-1].id)
"""
)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_install_adds_less_than_12_mb() -> None:
    """An asyncio program has at most 12 MB more resident memory with the agent than without; medians of five."""
    sizes = {}
    for switch in ("off", "on"):
        sizes[switch] = statistics.median(succeeded(INSTALLED, switch)["resident"] for _ in range(5))
    added = (sizes["on"] - sizes["off"]) / 1e6
    assert 0 < added <= 12, f"{added:.1f} MB"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_stalls_stay_within_the_ring(tmp_path: object) -> None:
    """After ten thousand stalls with different culprits, journaled and logged, only the latest 512 are kept."""
    found = succeeded(STALLS, tmp_path)
    assert found["kept"] == 512
    assert found["last"] == f"{10_999:x}"
    assert (found["dropped"], found["faults"]) == (0, {})
    assert found["objects"] < 500
    assert found["rss_grown"] < 4_000_000

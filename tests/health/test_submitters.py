"""Who submitted to a process pool is remembered: pickling in the pool's own threads is that line's doing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from loopwatch.diagnosis.feeder import is_feeder, on_behalf_of
from loopwatch.health.submitters import KEPT, LONGEST, Submitters
from loopwatch.watch.stacks import RawFrame, RawStack


def test_the_latest_submission_is_found() -> None:
    """The latest submission before a time is found, a bounded number is kept, and none is found a while later."""
    known = Submitters()
    assert known.latest(time.monotonic()) is None
    for _ in range(3 * KEPT):
        known.note(sys._getframe())
    now = time.monotonic()
    found = known.latest(now)
    assert found is not None
    assert found.frames[0].code is sys._getframe().f_code
    assert len(known._known) == KEPT
    assert known.latest(now + LONGEST + 1) is None
    assert known.latest(now - 60) is None
    known.forget()
    assert known.latest(now) is None


def raw(module: str, qualname: str) -> RawFrame:
    code = raw.__code__.replace(co_name=qualname.rpartition(".")[2], co_qualname=qualname)
    return RawFrame(code, 1, 0, module)


def test_only_threads_of_pools_work_on_behalf_of_others() -> None:
    """The stack of a feeder thread goes on with the submitter's; that of any other thread is left as it is."""
    feeder = RawStack((raw("multiprocessing.reduction", "dumps"), raw("multiprocessing.queues", "Queue._feed")))
    manager = RawStack((raw("concurrent.futures.process", "_ExecutorManagerThread.run"),))
    other, submitter = RawStack((raw("app", "scan"),)), RawStack((raw("app", "handler"),))
    assert [is_feeder(stack) for stack in (feeder, manager, other)] == [True, True, False]
    assert on_behalf_of(feeder, submitter).frames == (*feeder.frames, *submitter.frames)
    assert on_behalf_of(feeder, None) is feeder
    assert on_behalf_of(other, submitter) is other


SUBMITS = """
    import asyncio, concurrent.futures, multiprocessing
    import loopwatch

    async def submits(pool, payload):
        await asyncio.get_running_loop().run_in_executor(pool, len, payload)

    async def main():
        payload = [{"name": f"n{n}", "value": n} for n in range(1_200_000)]
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, abs, -1)
            await asyncio.sleep(0.3)
            await submits(pool, payload)
            await asyncio.sleep(0.1)

    if __name__ == "__main__":
        agent = loopwatch.install(threshold=0.1, log_level="CRITICAL", cpu_budget=1.0)
        asyncio.run(main())
        assert agent.flush(10)
        stalls = [stall for stall in agent.stalls() if stall.cause in ("gil", "gc")]
        longest = max(stalls, key=lambda stall: stall.duration)
        print(longest.culprit and longest.culprit.function)
"""


@pytest.mark.measures
def test_a_big_argument_is_the_submitters(tmp_path: Path) -> None:
    """A loop that waits while a pool pickles a big argument is held by the line that submitted it."""
    program = tmp_path / "submits.py"
    program.write_text(textwrap.dedent(SUBMITS))
    command = [sys.executable, str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "submits"


def test_submit_without_a_caller(tmp_path: Path) -> None:
    """A thread that begins with ``submit`` itself has no Python caller: the call is submitted as without the agent."""
    program = tmp_path / "bare.py"
    program.write_text(
        textwrap.dedent("""
        import _thread, concurrent.futures, multiprocessing, time
        import loopwatch

        if __name__ == "__main__":
            loopwatch.install(log_level="CRITICAL")
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                before = pool.submit(abs, -1).result()
                _thread.start_new_thread(pool.submit, (abs, -2))
                while pool._queue_count < 2:
                    time.sleep(0.01)
            print("submitted")
    """)
    )
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("submitted", "")

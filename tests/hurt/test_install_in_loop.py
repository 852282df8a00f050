"""install() on a running loop watches it at once, with all that is used later in the same callback."""

from __future__ import annotations

import sys

import pytest
from hostproc import succeeded

pytestmark = pytest.mark.measures

PRELUDE = """
    import loopwatch

    def burn(seconds):
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            sum(range(1000))
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_block_right_after_install_is_found(kind: str) -> None:
    """Duration and culprit are right when the callback that installs the agent then blocks."""
    pytest.importorskip(kind)
    found = succeeded(
        PRELUDE
        + """
    quiet()
    async def main():
        agent = loopwatch.install(threshold=0.1)
        burn(0.4)
        await asyncio.sleep(0.2)
        (stall,) = agent.stalls()
        loopwatch.uninstall()
        say(culprit=stall.culprit.function, duration=stall.duration)

    runner(sys.argv[1])(main())
    """,
        kind,
    )
    assert "burn" in found["culprit"] or found["culprit"] == "main"
    assert found["duration"] >= 0.4


def test_pools_made_right_after_install_are_watched() -> None:
    """Used and unused pools of threads and processes made in the same callback are listed with their calls."""
    found = succeeded(
        PRELUDE
        + """
    quiet()
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    async def main():
        agent, loop = loopwatch.install(), asyncio.get_running_loop()
        idle = ThreadPoolExecutor(1)
        threads = ThreadPoolExecutor(1, thread_name_prefix="resize")
        await loop.run_in_executor(threads, len, "abc")
        processes = ProcessPoolExecutor(1)
        await loop.run_in_executor(processes, len, "abc")
        await loop.run_in_executor(None, len, "abc")
        pools = {pool.name: [pool.kind, pool.completed] for pool in agent.snapshot().pools}
        for pool in (idle, threads, processes):
            pool.shutdown()
        loopwatch.uninstall()
        say(pools=pools)

    if __name__ == "__main__":
        asyncio.run(main())
    """
    )
    kinds = sorted((kind, completed) for kind, completed in found["pools"].values())
    assert kinds == [("default", 1), ("process", 1), ("thread", 0), ("thread", 1)]
    assert any("resize" in name for name in found["pools"])


def test_a_bad_variable_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard variable with an invalid value makes install() raise before anything has started."""
    found = succeeded(
        PRELUDE
        + """
    async def main():
        try:
            loopwatch.install()
        except loopwatch.ConfigError as exc:
            say(error=str(exc), agent=loopwatch.current_agent() is None, threads=threading.active_count())

    asyncio.run(main())
    """,
        env={"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in found["error"] and "smoke" in found["error"]
    assert (found["agent"], found["threads"]) == (True, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is tested on Linux")
def test_a_fork_right_after_install() -> None:
    """A child forked in the same callback has an agent, which reports the child's own block."""
    found = succeeded(
        PRELUDE
        + """
    quiet()
    async def main():
        loopwatch.install(threshold=0.1)
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            def child():
                asyncio.run(blocked())
                agent = loopwatch.current_agent()
                agent.flush(5)
                os.write(writes, json.dumps([stall.cause for stall in agent.stalls()]).encode())
                os._exit(0)
            thread = threading.Thread(target=child)
            thread.start()
            thread.join()
        _, status = os.waitpid(pid, 0)
        say(causes=json.loads(os.read(reads, 1000)), status=status, own=len(loopwatch.current_agent().stalls()) <= 1)

    asyncio.run(main())
    """
    )
    assert found == {"causes": ["sleep"], "status": 0, "own": True}


def test_the_agent_is_usable_in_the_same_callback() -> None:
    """All methods of the agent work right after install()."""
    found = succeeded(
        PRELUDE
        + """
    quiet()
    async def main():
        agent = loopwatch.install(threshold=0.1)
        seen = []
        agent.on_stall(seen.append)
        changes = agent.configure(threshold=0.05)
        agent.pause(), agent.resume()
        time.sleep(0.2)
        await asyncio.sleep(0.05)
        flushed = agent.flush(5)
        loopwatch.install(threshold=0.07)
        state = agent.snapshot().agent
        say(changes=changes, flushed=flushed, seen=len(seen), flagged=len(agent.flagged()), state=state.state,
            faults=dict(state.faults), threshold=agent.config.threshold)
        loopwatch.uninstall()

    asyncio.run(main())
    """
    )
    assert found == {
        "changes": {"threshold": [0.1, 0.05]}, "flushed": True, "seen": 1, "flagged": 0, "state": "watching",
        "faults": {}, "threshold": 0.07,
    }  # fmt: skip

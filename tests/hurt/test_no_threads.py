"""On a system that allows no more threads the program runs as it would without the agent."""

from __future__ import annotations

from pathlib import Path

from hostproc import succeeded

from loopwatch.health.pool_workers import PoolWorkers

NO_THREADS = """
    import warnings
    from concurrent.futures import ProcessPoolExecutor
    import loopwatch
    warnings.simplefilter("ignore", DeprecationWarning)  # of the fork: the pool's threads have only just ended
    quiet()
    from loopwatch.core.threads import untraced
    start = threading.Thread.start

    def refused(thread):
        if thread.name.startswith("loopwatch-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = untraced._start = refused  # the system refuses them all
    agent = loopwatch.install(
        prometheus_port=0, otlp_endpoint="http://127.0.0.1:9", export_interval=0.1, journal=sys.argv[1], threshold=0.05
    )

    async def main():
        await blocked(0.1)
        return await asyncio.to_thread(len, "ab")

    results = [asyncio.run(main())]
    with ProcessPoolExecutor(1) as pool:
        results.append(pool.submit(len, "abc").result())
    pid = os.fork()
    if not pid:
        os._exit(asyncio.run(main()))
    results.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    agent = agent.snapshot().agent
    loopwatch.uninstall()
    say(results=results, prometheus=agent.prometheus, faults=agent.faults, threads=threading.active_count())
"""


def test_no_thread_can_be_started(tmp_path: Path) -> None:
    """install() does not raise, parts that need a thread are counted as faults, and the program's results are right."""
    found = succeeded(NO_THREADS, tmp_path)
    assert (found["results"], found["threads"], found["prometheus"]) == ([2, 3, 2], 1, "")
    assert found["faults"]["prometheus"] == 1
    assert found["faults"]["health"] >= 1


def test_reading_workers_is_reentrant() -> None:
    """A signal handler or finalizer that uses a pool while its workers are read does not dead-lock."""
    pool_workers, inner = PoolWorkers(None), []
    pool_workers.look([1], 0.0, count=lambda: inner.append(pool_workers.look([1, 2], 0.0)))
    assert (inner, pool_workers.started, pool_workers.pids()) == ([None], 2, [1])

"""uninstall() removes all patches of pools and processes, and closes all that export and scrape have opened."""

from __future__ import annotations

import importlib.util

import pytest
from hostproc import succeeded

ROUNDS = """
    import concurrent.futures.process, concurrent.futures.thread, faulthandler, gc, importlib, multiprocessing
    import subprocess, urllib.request
    from types import ModuleType
    sys.modules.update({name: importlib.import_module(name) for name in (
        "multiprocessing.pool", "multiprocessing.process", "multiprocessing.popen_fork",
        "multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver", "multiprocessing.util",
        "multiprocessing.queues", "multiprocessing.context", "asyncio.base_events", "asyncio.subprocess",
    )})
    import loopwatch
    quiet()
    kind, place, full = sys.argv[1], sys.argv[2], sys.argv[3] == "full"
    run = runner(kind)
    settings = dict(threshold=60)  # a stall on a busy machine would be journaled and load the diagnosis
    if full:
        settings |= dict(prometheus_port=0, otlp_endpoint="http://127.0.0.1:9", journal=place)

    def attributes():
        owners = [module for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)
                  and name.partition(".")[0] in ("os", "posix", "subprocess", "concurrent", "multiprocessing",
                                                 "asyncio", "uvloop", "faulthandler", "threading", "loky")]
        owners += [value for owner in owners for value in list(vars(owner).values()) if isinstance(value, type)]
        found = {}
        for owner in owners:
            for name, value in list(vars(owner).items()):
                if not name.startswith(("_counter", "_cached", "_dangling", "_active", "_shutdown_locks", "__")):
                    found[owner.__name__, id(owner), name] = id(value) if callable(value) else type(value).__name__
        return found, [id(item) for item in sys.meta_path], list(threading._threading_atexits), len(gc.callbacks)

    def used():
        async def main():
            await asyncio.to_thread(len, "ab")
            process = await asyncio.create_subprocess_exec("/bin/true")
            await process.wait()
        run(main())
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            threads.submit(len, "ab").result()
        subprocess.run(["/bin/true"])

    def pools():
        with concurrent.futures.ProcessPoolExecutor(1) as processes:
            processes.submit(len, "ab").result()
        with multiprocessing.Pool(1) as pool:
            pool.apply(len, ("ab",))

    def counts():
        gc.collect()
        until(lambda: threading.active_count() == 1)
        return threading.active_count(), len(os.listdir("/proc/self/fd")), os.listdir(place)

    def memory():
        gc.collect()
        return sys.getallocatedblocks()

    used(), pools()
    loopwatch.install(**settings), used(), pools(), loopwatch.uninstall()  # load all modules once
    before, there, blocks = attributes(), counts(), []
    for number in range(50):
        agent = loopwatch.install(**settings)
        if number % 10 == 0:
            used()
            if number == 0:
                pools()
            if full:
                urllib.request.urlopen(agent.snapshot().agent.prometheus).read()
        elif number % 2:
            run(asyncio.sleep(0.001))
        loopwatch.uninstall()
        if number in (19, 29, 39, 49):
            blocks.append(memory())
    grown = min(later - earlier for earlier, later in zip(blocks, blocks[1:]))  # a leak is in each of them
    now = attributes()
    changed = sorted(str(key) for key in now[0].keys() | before[0].keys() if now[0].get(key) != before[0].get(key))
    threads, descriptors, files = counts()
    # Fewer descriptors: the first installation's may have been closed a moment later.
    same = (threads, files) == (there[0], there[2]) and descriptors <= there[1]
    counted = same or (threads, descriptors, files, there)
    say(changed=changed[:5], lists=now[1:] == before[1:], counts=counted, grown=grown, many=len(now[0]) > 2000,
        faults=agent.snapshot().agent.faults)
"""

UVLOOP = pytest.param(
    "uvloop", marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
)


@pytest.mark.long
@pytest.mark.parametrize("what", ["plain", "full"])
@pytest.mark.parametrize("kind", ["asyncio", UVLOOP])
def test_fifty_times(kind: str, what: str, tmp_path: object) -> None:
    """After fifty installs all attributes of pools, processes and loops, threads and descriptors are as before."""
    found = succeeded(ROUNDS, kind, tmp_path, what)
    grown = found.pop("grown")
    assert found == {"changed": [], "lists": True, "counts": True, "many": True, "faults": {}}
    assert grown < 10 * 100, "number of objects left by ten installs"

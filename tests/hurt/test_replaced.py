"""Programs that replace functions of the interpreter: detectors of blocking calls, stopped clocks, simulated time.

The detectors raise on the thread of a loop. They must find no call of the agent there, and the program's blocks must be
found as usual.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from hostproc import program, succeeded

pytestmark = pytest.mark.measures

GUARDS = {
    # After Home Assistant's block_async_io, but stricter: its functions must not be called where a loop runs.
    "home assistant": """
        import builtins, glob, importlib, pathlib, ssl
        from http.client import HTTPConnection
        calls = []

        def protect(owner, name):
            original = getattr(owner, name)
            def guarded(*args, **kwargs):
                if asyncio._get_running_loop() is not None:
                    calls.append(name)
                    raise RuntimeError(f"Caught blocking call to {name} inside the event loop")
                return original(*args, **kwargs)
            setattr(owner, name, guarded)

        def on():
            for owner, *names in ((time, "sleep"), (builtins, "open"), (glob, "glob", "iglob"),
                                  (os, "listdir", "scandir", "walk", "open", "read", "stat", "fsync"),
                                  (importlib, "import_module"), (HTTPConnection, "putrequest"),
                                  (pathlib.Path, "open", "read_text", "read_bytes", "write_text", "write_bytes"),
                                  (ssl.SSLContext, "load_default_certs", "load_verify_locations"),
                                  (threading.Thread, "join")):
                for name in names:
                    protect(owner, name)
    """,
    "blockbuster": """
        from blockbuster import BlockBuster
        calls = []
        on = BlockBuster().activate
    """,
}

EVERYTHING = """
    import loopwatch
    loopwatch.install  # resolved, as in a program that has used it before
    quiet()
    reported = {}

    def compute(seconds):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    async def main(folder):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.update(context))
        agent = loopwatch.install(threshold=0.1, journal=folder + "/a.jsonl", cpu_budget=1.0)
        for _ in range(3):
            compute(0.15)
            for _ in range(20):
                await asyncio.sleep(0.005)
        agent.snapshot()
        agent.flagged()
        agent.configure(journal=folder + "/b.jsonl", hang_after=1.0)
        agent.pause()
        agent.resume()
        ends = time.perf_counter() + 1.0
        while time.perf_counter() < ends:  # a loop that never waits and lets the watcher in
            await asyncio.sleep(0)
        compute(0.15)
        await asyncio.sleep(0.05)
        agent.flush()
        faults = dict(agent.snapshot().agent.faults)
        stalls = [stall.duration for stall in agent.stalls() if not stall.ongoing]
        loopwatch.uninstall()
        again = loopwatch.install(threshold=0.1)
        await asyncio.sleep(0.05)
        loopwatch.uninstall()
        faults.update(again.snapshot().agent.faults)
        say(faults=faults, stalls=stalls, calls=calls, reported=str(reported))

    run = runner(sys.argv[1])
    on()
    run(main(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("guard", sorted(GUARDS))
def test_detectors_find_no_blocking_call_of_the_agent(guard: str, kind: str, tmp_path: Path) -> None:
    """No method of the agent makes a blocking call on a guarded loop, no part fails, and the blocks are found."""
    if guard == "blockbuster":
        pytest.importorskip("blockbuster")
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    found = succeeded(dedent(GUARDS[guard]) + dedent(EVERYTHING), kind, tmp_path)
    assert (found["faults"], found["calls"], found["reported"]) == ({}, [], "{}")
    assert len([seconds for seconds in found["stalls"] if seconds >= 0.1]) >= 4
    written = sorted(path.name.partition(".")[0] for path in tmp_path.glob("*.jsonl") if path.stat().st_size)
    assert written == ["a", "b"]


CLOCKS = {
    "freezegun": "import freezegun; freezegun.freeze_time('1970-01-01 02:44:00', real_asyncio=True).start()",
    "time-machine": "import time_machine; time_machine.travel(9840).start()",
    "by hand": "time.monotonic = lambda: 7.0; time.time = lambda: 9840.0; time.sleep = lambda seconds: None",
}

DATED = """
    import subprocess
    import loopwatch
    quiet()
    real = time.sleep
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)

    async def main():
        for _ in range(5):
            await asyncio.sleep(0)
        real(0.25)
        for _ in range(5):
            await asyncio.sleep(0)

    {stop}
    asyncio.run(main())
    agent.flush()
    now = float(subprocess.check_output(["date", "+%s.%N"]))
    say(stalls=[(now - stall.started_at, stall.duration) for stall in agent.stalls() if not stall.ongoing],
        lag=[None if loop.lag is None else loop.lag.max for loop in agent.snapshot().loops],
        faults=dict(agent.snapshot().agent.faults))
"""


@pytest.mark.parametrize("clock", sorted(CLOCKS))
def test_stalls_are_dated_by_the_real_clock(clock: str) -> None:
    """A stall has its true duration and date while the program's clocks stand still or are set."""
    if clock != "by hand":
        pytest.importorskip(clock.replace("-", "_"))
    found = succeeded(DATED.replace("{stop}", CLOCKS[clock]))
    assert found["faults"] == {}
    (ago, seconds), *others = found["stalls"]
    assert others == []
    assert 0.24 <= seconds < 5
    assert seconds - 0.1 <= ago < 60


SIMULATED = """
    import selectors
    import loopwatch
    quiet()

    class Selector(selectors.SelectSelector):
        selects = 0

        def select(self, timeout=None):
            self.selects += 1
            if timeout is None:
                raise RuntimeError("nothing is scheduled any more")
            self.loop.now += timeout
            return super().select(0)

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self):
            self.now = 0.0
            selector = Selector()
            selector.loop = self
            super().__init__(selector)

        def time(self):
            return self.now

    def simulate():
        loop = Loop()

        async def day():
            await asyncio.sleep(86400)
            return loop.time()

        async def never():
            await asyncio.Event().wait()

        async def block():
            nap(0.2)

        now = loop.run_until_complete(day())
        selects = loop._selector.selects
        loop.run_until_complete(block())
        try:
            loop.run_until_complete(never())
        except RuntimeError as exc:
            ended = str(exc)
        asyncio.gather(*asyncio.all_tasks(loop)).cancel()
        asyncio._set_running_loop(None)
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        return now, selects, ended, len(loop._scheduled)

    stock = simulate()
    agent = loopwatch.install(threshold=0.1, cpu_budget=1.0)
    watched = simulate()
    agent.flush()
    say(stock=stock, watched=watched, stalls=[stall.duration for stall in agent.stalls()],
        loops=[(loop.kind, loop.lag) for loop in agent.snapshot().loops])
    loopwatch.uninstall()
    os._exit(0)  # loops are left open
"""


def test_a_simulated_day_takes_as_many_polls_as_without_the_agent() -> None:
    """Time, polls and dead-lock of a loop with simulated time are as without the agent, and its block is found."""
    found = succeeded(SIMULATED)
    assert found["watched"] == found["stock"]
    assert found["stock"][:3] == [86400.0, found["stock"][1], "nothing is scheduled any more"]
    assert len(found["stalls"]) == 1
    assert 0.19 <= found["stalls"][0] < 5


SOLIPSISM = """
    import async_solipsism
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.1)
    loop = async_solipsism.EventLoop()

    async def hour():
        before = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - before

    async def never():
        await asyncio.Event().wait()

    slept = loop.run_until_complete(hour())
    try:
        loop.run_until_complete(never())
    except BaseException as exc:
        ended = type(exc).__name__
    say(slept=slept, ended=ended)
    os._exit(0)
"""


def test_async_solipsism() -> None:
    """A loop of async_solipsism sleeps an hour of its own time and still detects a dead-lock."""
    pytest.importorskip("async_solipsism")
    assert succeeded(SOLIPSISM) == {"slept": 3600.0, "ended": "SleepForeverError"}


MOCKED = """
    from unittest import mock
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.1)
    fake = mock.Mock()
    asyncio._set_running_loop(fake)
    asyncio._set_running_loop(None)

    loop = asyncio.SelectorEventLoop()
    real, loop._selector = loop._selector, mock.Mock()
    loop._selector.select.return_value = ()
    loop.call_soon(loop.stop)
    loop.run_forever()
    polls = loop._selector.select.call_count
    loop._selector = real
    loop.close()

    async def main():
        await blocked(0.2)

    asyncio.run(main())
    agent.flush()
    say(fake=len(fake.mock_calls), polls=polls, found=len(agent.stalls()), faults=dict(agent.snapshot().agent.faults))
"""


def test_mocks_of_loops_and_selectors_are_not_touched() -> None:
    """A mock of a loop is not used, a mock of a selector is called once a poll, and other loops are watched."""
    assert succeeded(MOCKED) == {"fake": 0, "polls": 1, "found": 1, "faults": {}}


SWAPPED = """
    import selectors
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.1, hang_after=0.5, cpu_budget=1.0)

    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.1)
        selector = loop._selector
        stock = type(selector).select
        selector.select = lambda timeout: stock(selector, timeout)
        ends = time.monotonic() + 5
        while agent.snapshot().loops and time.monotonic() < ends:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.6)
        del selector.select

    asyncio.run(main())
    loops = len(agent.snapshot().loops)
    asyncio.run(blocked(0.2))
    agent.flush()
    say(stalls=[(stall.ongoing, stall.duration > 1) for stall in agent.stalls()], loops=loops,
        faults=dict(agent.snapshot().agent.faults))
"""


def test_a_select_that_is_replaced_while_the_loop_runs() -> None:
    """A loop that bypasses the agent's select is not reported as blocked, and later loops are watched."""
    assert succeeded(SWAPPED) == {"stalls": [[False, False]], "loops": 0, "faults": {}}


SIGNALLED = """
    import loopwatch
    quiet()
    agent = loopwatch.install(threshold=0.02)

    class TimedOut(Exception):
        pass

    def alarm(*_):
        raise TimedOut

    signal.signal(signal.SIGALRM, alarm)

    async def busy():
        while True:
            nap(0.03)
            await asyncio.sleep(0)

    caught = 0
    for _ in range(40):
        loop = asyncio.new_event_loop()
        task = loop.create_task(busy())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            loop.run_until_complete(task)
        except TimedOut:
            caught += 1
        task.cancel()
        task._log_destroy_pending = False
        loop.close()
    say(caught=caught, faults=dict(agent.snapshot().agent.faults))
"""


def test_time_outs_by_signals_reach_the_program() -> None:
    """A signal handler that raises while the agent's code runs on the loop's thread ends the run as usual."""
    assert succeeded(SIGNALLED) == {"caught": 40, "faults": {}}


CLOSED = """
    import faulthandler, gc
    import uvloop
    import loopwatch
    from loopwatch.watch.watcher import Watcher
    faulthandler.enable()
    quiet()
    reading, closed = threading.Event(), threading.Event()
    running = threading.Event()

    def loops():
        async def main():
            running.set()
            while not reading.is_set():
                await asyncio.sleep(0.001)
        uvloop.run(main())
        gc.collect()
        closed.set()

    thread = threading.Thread(target=loops)
    agent = loopwatch.install(threshold=0.05)
    thread.start()
    running.wait()
    stock = Watcher.collect

    def collect(self, loop):  # here the thread that removes the loop releases the GIL, in the middle of reading it
        if threading.current_thread() is threading.main_thread() and not closed.is_set():
            reading.set()
            closed.wait()
        return stock(self, loop)

    Watcher.collect = collect
    {remove}
    say(closed=closed.is_set(), stats=[loop.name for loop in agent.snapshot().loops])
    thread.join()
"""


@pytest.mark.parametrize("remove", ["loopwatch.uninstall()", "agent._watch.watcher.remove(agent._watch.watcher.loops)"])
def test_a_loop_of_uvloop_that_closes_while_it_is_read(remove: str) -> None:
    """A thread that is about to stop watching a loop reads no freed memory if the loop is closed meanwhile."""
    pytest.importorskip("uvloop")
    found = succeeded(CLOSED.replace("{remove}", remove))
    assert found == {"closed": True, "stats": []}


TOGGLED = """
    import faulthandler, random
    import uvloop
    import loopwatch
    faulthandler.enable()
    quiet()
    done = threading.Event()
    counts = dict(loops=0, installs=0, reads=0)

    def loops():
        async def main():
            await asyncio.sleep(0.002)
        while not done.is_set():
            uvloop.run(main())
            counts["loops"] += 1

    def reads():
        while not done.is_set():
            agent = loopwatch.current_agent()
            if agent is not None:
                agent.snapshot()
                if agent._parts is not None:  # None until it has started
                    agent._parts.telemetry._inputs()
                counts["reads"] += 1

    threads = [threading.Thread(target=target) for target in (loops, loops, reads)]
    for thread in threads:
        thread.start()
    while counts["installs"] < 100 or counts["loops"] < 300 or counts["reads"] < 100:
        loopwatch.install(threshold=10, max_stalls=1 + counts["installs"] % 2)
        time.sleep(random.uniform(0, 0.005))
        loopwatch.uninstall()
        counts["installs"] += 1
    done.set()
    for thread in threads:
        thread.join()
    say(**counts)
"""


def test_uvloop_survives_installs_while_loops_end() -> None:
    """Nothing crashes or hangs when hundreds of loops end during installs, uninstalls and snapshots."""
    pytest.importorskip("uvloop")
    found = program(TOGGLED).last
    assert found["installs"] >= 100
    assert found["loops"] >= 300

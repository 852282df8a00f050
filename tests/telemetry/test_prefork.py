"""Every process of a server is scraped on its own port and identifies itself, however it was started."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from scraping import DEADLINE, fetch, free_range, scraped, target_info, targets, until

pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

APP = """
    import os, loopwatch
    if "EXPLICIT" in os.environ:
        loopwatch.install(prometheus_port=int(os.environ["EXPLICIT"]))

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


class Program:
    """A program, its processes, and the ports from ``base`` on."""

    def __init__(self, args: list[str], folder: Path, base: int, env: Mapping[str, str] | None = None) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPWATCH_", "OTEL_", "COV_"))}
        self.base = base
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                args, cwd=folder, env={**kept, "HOME": str(folder), **(env or {})}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def url(self, index: int) -> str:
        return f"http://127.0.0.1:{self.base + index}/metrics"

    def target_info(self, index: int) -> dict[str, str]:
        """Return the resource attributes of the process at an index, as soon as it listens."""
        try:
            return until(lambda: target_info(self.url(index)))
        except AssertionError as exc:
            raise AssertionError(self.log.read_text(errors="replace")) from exc

    def is_free(self, index: int) -> bool:
        try:
            fetch(self.url(index))
        except OSError:
            return True
        return False

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs; they end with the test, and leave no port open."""
    started: list[Program] = []

    def start(args: list[str], env: Mapping[str, str] | None = None, *, base: int | None = None) -> Program:
        base = free_range() if base is None else base
        filled = [arg.replace("BASE", str(base)) for arg in args]
        filled_env = {name: value.replace("BASE", str(base)) for name, value in (env or {}).items()}
        program = Program(filled, tmp_path, base, filled_env)
        started.append(program)
        return program

    (tmp_path / "served.py").write_text(textwrap.dedent(APP))
    yield start
    for program in started:
        program.end()
    for program in started:
        assert until(functools.partial(_all_free, program))


def until_number_logged(program: Program) -> None:
    """Wait until the program has logged a line that is a number; other lines may surround it."""
    until(lambda: any(line.isdecimal() for line in program.log.read_text().splitlines()))


def _all_free(program: Program) -> bool:
    return all(program.is_free(index) for index in range(5))


def python(source: str) -> list[str]:
    return [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(source)]


def all_different(*infos: Mapping[str, str]) -> None:
    for name in ("process_pid", "service_instance_id"):
        assert len({each[name] for each in infos}) == len(infos), name
    numbers = sorted(each["loopwatch_worker_index"] for each in infos if "loopwatch_worker_index" in each)
    assert numbers == [str(number) for number in range(len(numbers))]
    assert len(numbers) >= len(infos) - 1, "only a supervisor has none"
    assert len({each["service_name"] for each in infos}) == 1


FORKS = """
    import asyncio, os, loopwatch
    loopwatch.install(prometheus_port=BASE)

    def child():
        pid = os.fork()
        if not pid:
            asyncio.run(asyncio.sleep(600))
            os._exit(0)
        return pid

    children = {child(), child()}
    while True:
        ended, _ = os.wait()
        children.remove(ended)
        children.add(child())
"""


def test_forked_children_take_the_next_ports(start: Start) -> None:
    """Each forked child that runs a loop takes the next port; a replacement of a killed child takes its port; the
    parent's port is free as soon as it dies, although its children live on."""
    program = start(python(FORKS))
    parent, first, second = (program.target_info(index) for index in range(3))
    all_different(parent, first, second)
    assert parent["process_pid"] == str(program.process.pid)
    assert first["process_parent_pid"] == second["process_parent_pid"] == parent["process_pid"]
    assert "loopwatch_worker_index" not in parent
    assert program.is_free(3)
    assert targets(program.url(2)).keys() == {f"127.0.0.1:{program.base + index}" for index in range(3)}

    os.kill(int(first["process_pid"]), signal.SIGKILL)
    again = until(lambda: (now := program.target_info(1))["process_pid"] != first["process_pid"] and now)
    assert isinstance(again, dict)
    all_different(parent, again, second)
    assert again["service_instance_id"] != first["service_instance_id"]

    os.kill(program.process.pid, signal.SIGKILL)
    program.process.wait()
    assert program.is_free(0)
    assert program.target_info(2)["process_pid"] == second["process_pid"]


def test_forked_workers_of_a_pool_take_no_port(start: Start) -> None:
    """They run no loop, and their parent exports their metrics, so they use no port."""
    source = """
        import time, multiprocessing, loopwatch
        from concurrent.futures import ProcessPoolExecutor
        loopwatch.install(prometheus_port=BASE)
        pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
        print(sum(pool.map(len, ["ab", "c"] * 10)), flush=True)
        time.sleep(600)
    """
    program = start(python(source))
    until_number_logged(program)
    url = program.url(0)
    assert until(lambda: _values(url, "loopwatch_pool_completed_total", {"loopwatch_pool_kind": "process"}) == [20.0])
    assert targets(url).keys() == {f"127.0.0.1:{program.base}"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_take_the_next_ports(start: Start, tmp_path: Path, method: str) -> None:
    """Children of multiprocessing that install as their parent does take the next ports, and export their names."""
    (tmp_path / "main.py").write_text(
        textwrap.dedent(f"""
            import asyncio, multiprocessing, loopwatch
            loopwatch.install(prometheus_port=int(__import__("sys").argv[1]))

            def work():
                asyncio.run(asyncio.sleep(600))

            if __name__ == "__main__":
                context = multiprocessing.get_context("{method}")
                children = [context.Process(target=work) for _ in range(2)]
                for each in children:
                    each.start()
                for each in children:
                    each.join()
        """)
    )
    program = start([sys.executable, "-W", "ignore", "main.py", "BASE"])
    parent, *children = (program.target_info(index) for index in range(3))
    all_different(parent, *children)
    assert "loopwatch_worker_name" not in parent
    kind = {"fork": "ForkProcess", "spawn": "SpawnProcess", "forkserver": "ForkServerProcess"}[method]
    assert {each["loopwatch_worker_name"] for each in children} == {f"{kind}-1", f"{kind}-2"}


SERVERS = {
    "uvicorn": ["-m", "uvicorn", "served:app", "--workers", "2", "--port", "0", "--log-level", "warning"],
    "gunicorn": ["-m", "gunicorn", "served:app", "-w", "2", "-k", "uvicorn.workers.UvicornWorker", "-b", "127.0.0.1:0"],
}
SERVERS["gunicorn --preload"] = [*SERVERS["gunicorn"], "--preload"]


@pytest.mark.parametrize(
    ("server", "way"),
    [
        ("uvicorn", "run"),
        ("uvicorn", "explicit"),
        ("gunicorn", "explicit"),
        ("gunicorn", "hook"),
        ("gunicorn --preload", "run"),
    ],
)
def test_workers_of_servers_are_scraped(start: Start, tmp_path: Path, server: str, way: str) -> None:
    """Both workers of a server are scraped, and its supervisor if it is watched, which counts a worker's crash; the
    replacement gets the same port."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("gunicorn")
    python, variable = [sys.executable, "-W", "ignore"], {"LOOPWATCH_PROMETHEUS_PORT": "BASE"}
    if way == "explicit":
        program = start([*python, *SERVERS[server]], {"EXPLICIT": "BASE"})
    elif way == "hook":
        (tmp_path / "conf.py").write_text("from loopwatch.integrations.gunicorn import on_starting\n")
        program = start([*python, *SERVERS[server], "-c", "conf.py"], variable)
    else:
        program = start([*python, "-m", "loopwatch", "run", *SERVERS[server]], variable)
    found = until(lambda: _listening(program) if _is_up(program) else {})
    supervisor = str(program.process.pid)
    workers = {index: each for index, each in found.items() if each["process_pid"] != supervisor}
    assert len(workers) == 2, (found, program.log.read_text(errors="replace"))
    all_different(*found.values())
    assert all(each["process_parent_pid"] == supervisor for each in workers.values())
    assert {each["service_name"] for each in found.values()} == {"served"}

    index, killed = min(workers.items())
    born = psutil.Process(int(killed["process_pid"])).create_time()
    os.kill(int(killed["process_pid"]), signal.SIGKILL)
    again = until(lambda: (now := program.target_info(index))["process_pid"] != killed["process_pid"] and now)
    assert isinstance(again, dict)
    assert again["process_parent_pid"] == supervisor
    assert again["loopwatch_worker_index"] == killed["loopwatch_worker_index"]
    assert psutil.Process(int(again["process_pid"])).create_time() > born
    assert {each["__meta_loopwatch_pid"] for each in until(lambda: targets(program.url(index))).values()} >= {
        again["process_pid"]
    }
    if len(found) > len(workers):
        dead = {"loopwatch_pool_kind": "children", "loopwatch_crash_reason": "SIGKILL"}
        assert until(lambda: _values(program.url(0), "loopwatch_pool_crashes_total", dead) == [1.0])
        assert _values(program.url(0), "loopwatch_pool_started_total", {"loopwatch_pool_kind": "children"}) == [3.0]
    assert (len(found) > len(workers)) == (way != "explicit")
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(DEADLINE) in (0, -signal.SIGTERM)
    assert until(lambda: not _listening(program))


def _values(url: str, name: str, labels: Mapping[str, str]) -> list[float]:
    return [each.value for each in scraped(url) if each.name == name and labels.items() <= each.labels.items()]


def _listening(program: Program) -> dict[int, dict[str, str]]:
    found = {}
    for index in range(4):
        with contextlib.suppress(OSError):
            found[index] = target_info(program.url(index))
    return found


def _is_up(program: Program) -> bool:
    """Whether both workers are scraped."""
    if program.process.poll() is not None:
        raise AssertionError(program.log.read_text(errors="replace"))
    return sum(each["process_pid"] != str(program.process.pid) for each in _listening(program).values()) == 2


LOOPING = """
    import asyncio, loopwatch, sys
    async def main():
        print(loopwatch.current_agent().snapshot().agent, flush=True)
        await asyncio.sleep(600)
    asyncio.run(main())
"""


def test_executed_programs_take_the_next_port(start: Start) -> None:
    """A program that another one executes inherits its variables and takes the next port."""
    source = f"""
        import asyncio, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {textwrap.dedent(LOOPING)!r}])
        asyncio.run(asyncio.sleep(600))
    """
    run = [sys.executable, "-m", "loopwatch", "run", sys.executable, "-c", textwrap.dedent(source)]
    program = start(run, {"LOOPWATCH_PROMETHEUS_PORT": "BASE"})
    parent, child = program.target_info(0), program.target_info(1)
    assert {parent["process_pid"], child["process_parent_pid"]} == {str(program.process.pid)}


def test_executed_programs_with_the_same_install_take_the_next_port(start: Start) -> None:
    """A program that another one executes, and that installs with the same lines, takes the next port; a process that
    is forked only to execute another program takes none."""
    lines = "import subprocess, sys, os, time, loopwatch; loopwatch.install(prometheus_port=BASE)"
    source = f"""
        {lines}
        subprocess.run(["sleep", "0.3"], preexec_fn=os.setpgrp)
        child = subprocess.Popen([sys.executable, "-c", {lines + "; time.sleep(600)"!r}])
        time.sleep(600)
    """
    program = start(python(source))
    parent, child = program.target_info(0), program.target_info(1)
    assert {parent["process_pid"], child["process_parent_pid"]} == {str(program.process.pid)}


def test_a_port_in_use_does_not_stop_the_program(start: Start, tmp_path: Path) -> None:
    """Under ``loopwatch run`` a port that another program has is one line in the log, and the program starts and is
    watched; given as an argument it is an error."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = [sys.executable, "-m", "loopwatch", "run", sys.executable, "-c", textwrap.dedent(LOOPING)]
        program = start(run, {"LOOPWATCH_PROMETHEUS_PORT": str(port)})
        log = until(lambda: text if "state=" in (text := program.log.read_text()) else "")
        assert "state='watching'" in log
        assert f"prometheus_port={port}: 127.0.0.1:{port} is in use" in log
        assert len([line for line in log.splitlines() if "prometheus_port" in line]) == 1
        program.end()
        explicit = f"import loopwatch; loopwatch.install(prometheus_port={port})"
        ended = subprocess.run(
            [sys.executable, "-c", explicit], capture_output=True, text=True, timeout=30, check=False
        )
        assert ended.returncode == 1
        assert f"127.0.0.1:{port} is in use" in ended.stderr.splitlines()[-1]


def test_two_programs_with_one_variable_are_both_scraped(start: Start) -> None:
    """The second program of one environment takes the next port, and exports its own service name."""
    idle = python("import loopwatch, time; loopwatch.install(); time.sleep(600)")
    one = start(idle, {"LOOPWATCH_PROMETHEUS_PORT": "BASE", "OTEL_SERVICE_NAME": "one"})
    assert one.target_info(0)["service_name"] == "one"
    start(idle, {"LOOPWATCH_PROMETHEUS_PORT": "BASE", "OTEL_SERVICE_NAME": "two"}, base=one.base)
    assert one.target_info(1)["service_name"] == "two"
    assert {each["__meta_loopwatch_service"] for each in targets(one.url(0)).values()} == {"one", "two"}


def test_workers_of_a_worker_pool_take_no_port(start: Start, tmp_path: Path) -> None:
    """The parent exports the metrics of its ``WorkerPool``, whatever the start method is."""
    (tmp_path / "pooled.py").write_text(
        textwrap.dedent("""
            import asyncio, loopwatch, os, sys
            async def main():
                async with loopwatch.WorkerPool(workers=2, start_method=sys.argv[1]) as pool:
                    print(await pool.run(os.getpid), flush=True)
                    await asyncio.sleep(600)
            if __name__ == "__main__":
                asyncio.run(main())
        """)
    )
    run = [sys.executable, "-m", "loopwatch", "run", "pooled.py"]
    for method in ("forkserver", "spawn"):
        program = start([*run, method], {"LOOPWATCH_PROMETHEUS_PORT": "BASE"})
        until_number_logged(program)
        assert program.target_info(0)["process_pid"] == str(program.process.pid)
        time.sleep(0.3)  # longer than a forked child waits
        assert program.is_free(1)
        program.end()


def test_a_worker_without_a_free_port_logs_it(start: Start) -> None:
    """A worker for which no port is left runs, is watched, and logs that in one line."""
    source = """
        import asyncio, os, loopwatch
        from loopwatch.telemetry import ports
        ports.SPAN = 1
        loopwatch.install(prometheus_port=BASE)
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        else:
            asyncio.run(asyncio.sleep(0.5))
            print(loopwatch.current_agent().snapshot().agent, flush=True)
            os._exit(0)
    """
    program = start(python(source))
    assert program.process.wait(DEADLINE) == 0
    log = program.log.read_text()
    assert "prometheus=''" in log
    assert len([line for line in log.splitlines() if "Prometheus cannot scrape process" in line]) == 1


def test_a_program_that_forks_often_is_scraped(start: Start) -> None:
    """A program that keeps forking short-lived children is scraped meanwhile, and loses no port."""
    source = """
        import os, time, loopwatch
        loopwatch.install(prometheus_port=BASE)
        ends = time.monotonic() + 600
        while time.monotonic() < ends:
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
    """
    program = start(python(source))
    program.target_info(0)
    for _ in range(30):
        assert len(scraped(program.url(0))) >= 1
    assert program.is_free(1)

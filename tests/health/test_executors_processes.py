"""Process pools of the program: what each worker runs and how it died is known under every start method."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
import tasks_of_pools as tasks
from test_executors import only, pools, replaced, states, watch
from tests_of_pools import Gate, until

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.events import WorkerState
from loopwatch.health import in_worker
from loopwatch.health import states as states_module
from loopwatch.health.in_worker import SAMPLE, SlotNotes
from loopwatch.health.kinds.multiprocessing import LOST, MANY
from loopwatch.health.service import HealthService
from loopwatch.health.task_board import SIZE, SLOTS, Address, TaskBoard, claim

pytestmark = pytest.mark.measures

__all__ = ["watch"]
HERE = Path(__file__).name
METHODS = ["fork", "spawn", "forkserver"]
FAILS = "concurrent.futures.process.BrokenProcessPool"


@pytest.fixture(autouse=True)
def no_server_is_left() -> Iterator[None]:
    """End the fork server and the resource tracker after each test; they would live as long as the process."""
    yield
    gc.collect()  # what the tracker would report as leaked
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is opened at the end of the test."""
    with Gate(tmp_path) as gate:
        yield gate


@pytest.mark.parametrize("method", METHODS)
def test_stats_of_processes(watch: HealthService, tmp_path: Path, method: str) -> None:
    """Running, queued and finished tasks of processes are counted, and results and errors are unchanged."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as executor, Gate(tmp_path) as go:
        held = [executor.submit(tasks.until_there, str(go)) for _ in range(2)]
        futures = [executor.submit(tasks.even, number) for number in range(5)]
        until(lambda: only(watch).running == 2)
        stats = only(watch)
        assert (stats.kind, stats.queued, stats.submitted, stats.max_workers) == ("process", 5, 7, 2)
        assert stats.name.startswith(f"ProcessPoolExecutor at {HERE}:")
        assert states(stats) == ["busy", "busy"]
        assert {worker.task for worker in stats.workers} == {"tasks_of_pools:until_there"}
        go.open()
        assert {future.result() for future in held} == {worker.pid for worker in stats.workers}
        errors = [future.exception() for future in futures]
        assert [type(error) for error in errors] == [type(None), tasks.Odd, type(None), tasks.Odd, type(None)]
        remote = "".join(traceback.format_exception(errors[1]))
        assert "tasks_of_pools.py" in remote
        assert "loopwatch" not in remote.replace(str(Path.cwd()), "")
        assert list(executor.map(tasks.double, range(4), chunksize=2)) == [0, 2, 4, 6]
        with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
            executor.submit(lambda: None).result()
        with pytest.raises((AttributeError, pickle.PicklingError)) as raised:
            executor.submit(tasks.unpicklable).result()
        assert "loopwatch/" not in "".join(traceback.format_exception(raised.value))
        executor.submit(tasks.burn, 0.05).result()
        until(lambda: only(watch).completed == 8)
        stats = only(watch)
        assert (stats.queued, stats.running, states(stats)) == (0, 0, ["idle", "idle"])
        assert sum(stats.failures.values()) == 4
        assert stats.failures["tasks_of_pools.Odd"] == 2
        assert stats.task_cpu is not None
        assert stats.task_cpu >= 0.05
        assert (stats.decoding or 0.0) > 0.0
        assert (stats.crashed, stats.recycled, stats.started) == (0, 0, 2)
    (reading,) = [each for each in watch.readings() if each.stats.kind == "process"]
    assert reading.runs.count == reading.waits.count == 11  # the call that could not be pickled did not run
    assert reading.runs.highest >= 0.05
    assert (reading.stats.closed, reading.stats.workers, reading.stats.recycled) == (True, (), 0)


@pytest.mark.parametrize(
    ("method", "task", "argument", "reason"),
    [("fork", tasks.killed, 9, "SIGKILL"), ("spawn", tasks.killed, 11, "SIGSEGV"), ("fork", tasks.exits, 3, "exit 3")],
)
def test_crashes(watch: HealthService, method: str, task: Any, argument: int, reason: str) -> None:
    """A dead worker is listed with its exit reason and task, and the executor breaks as it would without the agent."""
    executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))
    with pytest.raises(BrokenProcessPool):
        executor.submit(task, argument).result()
    until(lambda: only(watch).crashes == {reason: 1})
    until(lambda: states(only(watch)) == [WorkerState.DEAD])
    stats = only(watch)
    (dead,) = stats.workers
    assert dead.exitcode == (argument if reason.startswith("exit") else -argument)
    assert dead.reason == f"it has ended ({reason}) while it ran tasks_of_pools:{task.__name__}"
    assert (stats.crashed, stats.closed, stats.failures) == (1, True, {FAILS: 1})
    with pytest.raises(BrokenProcessPool):
        executor.submit(int)
    executor.shutdown()


def test_starting_and_cancelled(watch: HealthService, go: Gate) -> None:
    """A worker in its initializer is starting, and calls cancelled by a shutdown are counted."""
    executor = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=tasks.until_there, initargs=(str(go),)
    )
    futures = [executor.submit(tasks.double, number) for number in range(8)]
    until(lambda: states(only(watch)) == [WorkerState.STARTING])
    until(lambda: sum(future.running() for future in futures) >= 2)
    executor.shutdown(wait=False, cancel_futures=True)
    go.open()
    until(lambda: all(future.done() for future in futures))
    cancelled = sum(future.cancelled() for future in futures)
    assert cancelled >= 5
    until(lambda: only(watch).workers == ())
    stats = only(watch)
    assert (stats.cancelled, stats.completed, stats.queued) == (cancelled, 8 - cancelled, 0)


@pytest.mark.parametrize("how", ["shut down", "collected"])
def test_orphans(watch: HealthService, go: Gate, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A worker that still runs a task after its executor was shut down or collected is an orphan."""
    monkeypatch.setattr(states_module, "GRACE", 0.05)
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    future: Future[int] = executor.submit(tasks.until_there, str(go))
    until(lambda: only(watch).running == 1)
    if how == "shut down":
        executor.shutdown(wait=False)
    del executor
    until(lambda: states(only(watch)) == [WorkerState.ORPHAN])
    (worker,) = only(watch).workers
    assert f"its executor was {how}" in worker.reason
    assert "it still runs tasks_of_pools:until_there" in worker.reason
    go.open()
    assert future.result(10) == worker.pid
    until(lambda: only(watch).workers == ())


def test_nested(watch: HealthService) -> None:
    """Executors inside a worker work as usual and are not listed in the parent."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        assert executor.submit(tasks.nested, 4).result() == (8, 8)
        assert len(pools(watch)) == 1


def test_executors_of_a_forked_child(watch: HealthService) -> None:
    """A forked child watches its own executors and forgets those of its parent."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        assert executor.submit(tasks.double, 1).result() == 2
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                watch.after_fork_in_child()
                before = len(pools(watch))
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as own:
                    own.submit(tasks.double, 2).result()
                    stats = only(watch)
                    seen = (before, stats.completed, stats.run is not None and stats.run.count, states(stats))
                os.write(writer, json.dumps(seen).encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as file:  # noqa: PTH123
            assert json.loads(file.read()) == [0, 1, 1, ["idle"]]
        os.waitpid(pid, 0)
        assert executor.submit(tasks.double, 3).result() == 6
        assert only(watch).completed == 2


NOT_IMPORTABLE = """
import sys
sys.path[:0] = {path!r}
import loopwatch, multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    agent = loopwatch.install()
    sys.path.remove({path!r}[0])
    for method in ("spawn", "forkserver"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as executor:
            assert executor.submit(abs, -3).result() == 3
            stats = agent.snapshot().pools[-1]
            print(stats.completed, *(worker.state for worker in stats.workers), stats.run)
"""


def test_workers_that_cannot_import_loopwatch(tmp_path: Path) -> None:
    """Tasks run normally in a worker that cannot import loopwatch, whose state is then unknown."""
    path = [str(Path(__file__).parents[2]), *(each for each in sys.path if "site-packages" in each)]
    script = tmp_path / "script.py"
    script.write_text(NOT_IMPORTABLE.format(path=path))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "1"]
    assert all(line.endswith("None") and "busy" not in line for line in done.stdout.splitlines())


LOKY = """
import json, sys
sys.path.insert(0, {here!r})
import loopwatch
agent = loopwatch.install(log_level="CRITICAL")
import loky, tasks_of_pools as tasks  # after us
from pathlib import Path
from tests_of_pools import Gate, until

def only():
    return next(stats for stats in agent.snapshot().pools if stats.kind == "loky")

if __name__ == "__main__":
    with loky.ProcessPoolExecutor(1, timeout=None) as executor, Gate(Path({folder!r})) as go:
        held = executor.submit(tasks.until_there, str(go))
        until(lambda: only().running == 1)
        (worker,) = only().workers
        go.open()
        same = held.result() == worker.pid
        results = list(executor.map(tasks.double, range(3)))
        until(lambda: only().completed == 4)
        run = only().run.count
        try:
            executor.submit(tasks.killed, 9).result()
        except loky.process_executor.BrokenProcessPool:
            until(lambda: only().crashes)
            print(json.dumps([worker.state, worker.task, same, results, run, only().crashes]))
"""


def test_loky(tmp_path: Path) -> None:
    """Executors of loky are watched once it is imported, and a crash of a worker is counted."""
    pytest.importorskip("loky")
    script = tmp_path / "script.py"
    script.write_text(LOKY.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "busy", "tasks_of_pools:until_there", True, [0, 2, 4], 4, {"SIGKILL": 1},
    ]  # fmt: skip


# -- multiprocessing.Pool -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_pool(watch: HealthService, tmp_path: Path, method: str) -> None:
    """All methods of a pool return what they should; a worker that dies with a task is a crash and its task is lost."""
    with multiprocessing.get_context(method).Pool(2) as pool, Gate(tmp_path) as go:
        held = [pool.apply_async(tasks.until_there, (str(go),)) for _ in range(2)]
        waiting = pool.map_async(tasks.double, range(6), chunksize=2)
        until(lambda: only(watch).running == 2)
        stats = only(watch)
        assert (stats.kind, stats.queued, stats.max_workers) == ("multiprocessing", 3, 2)
        assert states(stats) == ["busy", "busy"]
        assert {worker.task for worker in stats.workers} == {"tasks_of_pools:until_there"}
        go.open()
        assert {each.get() for each in held} == {worker.pid for worker in stats.workers}
        assert waiting.get() == [0, 2, 4, 6, 8, 10]
        assert pool.apply(tasks.double, (2,)) == 4
        assert pool.starmap(divmod, [(7, 2)]) == [(3, 1)]
        assert list(pool.imap(tasks.double, range(3))) == [0, 2, 4]
        assert sorted(pool.imap_unordered(tasks.double, range(3), chunksize=2)) == [0, 2, 4]
        with pytest.raises(tasks.Odd):
            pool.map(tasks.even, [1])
        until(lambda: sum(only(watch).failures.values()) == 1)
        stats = only(watch)
        assert (stats.completed, stats.failures) == (2 + 3 + 1 + 1 + 3 + 2, {"tasks_of_pools.Odd": 1})
        assert stats.run is not None
        assert stats.run.count == 13
        lost = pool.apply_async(tasks.killed, (9,))
        until(lambda: only(watch).crashes == {"SIGKILL": 1})
        until(lambda: len(only(watch).workers) == 3)
        stats = only(watch)
        (dead,) = [worker for worker in stats.workers if worker.state == WorkerState.DEAD]
        assert dead.reason == "it has ended (SIGKILL) while it ran tasks_of_pools:killed, whose result will never come"
        assert (stats.failures[LOST], stats.queued, stats.running, stats.started) == (1, 0, 0, 3)
        assert not lost.ready()
        assert pool.apply(tasks.double, (3,)) == 6
    pool.join()
    until(lambda: states(only(watch)) == [WorkerState.DEAD])
    assert only(watch).closed


def test_workers_that_are_replaced(watch: HealthService) -> None:
    """A worker that ends after ``maxtasksperchild`` tasks is recycled, not crashed."""
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=2) as pool:
        assert pool.map(tasks.double, range(6), chunksize=1) == [0, 2, 4, 6, 8, 10]
        until(lambda: only(watch).recycled >= 2)
        stats = only(watch)
        assert (stats.crashes, stats.completed, stats.started >= 3) == ({}, 6, True)
    pool.join()


def test_pool_of_threads(watch: HealthService, tmp_path: Path) -> None:
    """``multiprocessing.pool.ThreadPool`` is listed as a pool of threads."""
    with ThreadPool(2) as pool, Gate(tmp_path) as go:
        held = pool.apply_async(tasks.until_there, (str(go),))
        until(lambda: only(watch).running == 1)
        stats = only(watch)
        assert (stats.kind, states(stats)) == ("thread", ["busy", "idle"])
        assert {worker.task for worker in stats.workers} == {"tasks_of_pools:until_there", None}
        go.open()
        assert held.get() == os.getpid()
        with pytest.raises(tasks.Odd):
            pool.map(tasks.even, [1], 1)
        until(lambda: only(watch).failures == {"tasks_of_pools.Odd": 1})
        assert only(watch).completed == 1
        assert (only(watch).run.count, only(watch).wait.count) == (2, 2)  # type: ignore[union-attr]
    pool.join()


def test_finished_jobs_are_forgotten(watch: HealthService) -> None:
    """The list of finished jobs stays bounded even if stats are never read."""
    with ThreadPool(1) as pool:
        for _ in range(5000):
            pool.apply(int)
        (watched,) = watch._executors.each()
        assert len(watched.jobs) <= MANY + 1


def test_pools_that_existed_before() -> None:
    """Existing pools are found with workers in unknown state, as these were started without hooks; all is undone."""
    before = replaced()
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool, ProcessPoolExecutor(1, mp_context=context) as executor:
        assert pool.apply(tasks.double, (1,)) == executor.submit(tasks.double, 1).result() == 2
        patches, faults = PatchSet(), Faults()
        found = HealthService(lambda: Config(log_level="CRITICAL"), patches, faults, lambda _loop: None)
        found.start()
        assert pool.apply(tasks.double, (2,)) == executor.submit(tasks.double, 2).result() == 4
        until(lambda: [stats.completed for stats in pools(found)] == [1, 1])
        assert {worker.state for stats in pools(found) for worker in stats.workers} == {WorkerState.UNKNOWN}
        assert {stats.run for stats in pools(found)} == {None}
        found.stop()
        patches.undo_all()
        assert (replaced(), faults.counts) == (before, {})
        assert pool.apply(tasks.double, (3,)) == executor.submit(tasks.double, 3).result() == 6
    pool.join()


# -- the task board -------------------------------------------------------------------------------------------------


def test_task_board() -> None:
    """Each worker gets a slot of its own, free slots are used again, and a closed board cannot be claimed."""
    board = TaskBoard()
    slots = [claim(board.address, pid) for pid in range(1, 40)]
    assert len({slot.base for slot in slots if slot is not None}) == 39
    same = claim(board.address, 1 + SLOTS)  # where the first one sits
    assert same is not None
    assert same.base not in {slot.base for slot in slots if slot is not None}
    same.begin(0, 5_000_000_000, 7)
    index = board.slot_of(1 + SLOTS)
    assert index is not None
    assert (board.now(index).number, board.now(index).since) == (0, 5.0)
    same.end(0, 5_000_000_000, 6_500_000_000, 250_000_000)
    assert board.finished(index, 0) == (5.0, 6.5, 0.25)
    assert board.finished(index, 64) is None  # would be at the same place
    assert board.now(index)[1:6] == (None, 5.0, 1, 1.5, 0.25)
    board.free(index)
    assert board.slot_of(1 + SLOTS) is None
    for slot in (*slots, same):
        assert slot is not None
        slot.close()
    address = board.address
    board.close()
    assert claim(address, 1) is None
    gc.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="memfd and its seals are Linux's")
def test_a_task_board_cannot_be_truncated() -> None:
    """A worker cannot truncate the task board, which would kill the parent by SIGBUS at its next read."""
    board = TaskBoard()
    with open(f"/proc/self/fd/{board.address.fd}", "r+b") as file:  # noqa: PTH123 - as a worker opens it
        for size in (0, SIZE + 1):
            with pytest.raises(PermissionError):
                file.truncate(size)
    assert board.slot_of(1) is None
    board.close()


def test_garbage_on_the_task_board(watch: HealthService) -> None:
    """If workers write garbage to the task board nothing is raised, tasks go on, and stats stay finite."""
    noise = random.Random(7)
    with ProcessPoolExecutor(2) as executor:
        assert executor.submit(tasks.double, 1).result() == 2
        board = watch._executors._board
        assert board is not None
        for turn in range(30):
            for slot in range(SLOTS):
                pid = board._words[slot * (SIZE // SLOTS // 8)]
                start = slot * (SIZE // SLOTS)
                if pid:  # all but the pid, or that too
                    board._map[start + 8 * (turn % 2 == 0) : start + SIZE // SLOTS] = noise.randbytes(
                        SIZE // SLOTS - 8 * (turn % 2 == 0)
                    )
            assert executor.submit(tasks.double, turn).result() == 2 * turn
            stats = only(watch)
            for summary in (stats.wait, stats.run):
                assert summary is None or all(map(math.isfinite, (summary.min, summary.mean, summary.p99, summary.max)))
        assert watch._faults.counts == {}


def test_a_reused_descriptor_is_not_taken_for_the_task_board(tmp_path: Path) -> None:
    """A worker that starts late does not write to another file whose descriptor has the board's old number."""
    path = tmp_path / "other"
    path.write_bytes(b"other")
    with path.open("r+b") as file:
        found = os.fstat(file.fileno())
        assert claim(Address(os.getpid(), file.fileno(), found.st_dev, found.st_ino + 1), 1) is None
    assert path.read_bytes() == b"other"


def test_overhead_between_tasks_is_not_counted_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampled gap between tasks stands for those before it, so a worker with two tasks is charged for one gap."""
    clock = itertools.count(0, 1000)  # 1 us of processor time between two readings of its clock
    board = TaskBoard()
    slot = claim(board.address, pid=os.getpid())
    assert slot is not None
    monkeypatch.setattr(in_worker.time, "process_time_ns", lambda: next(clock))
    notes, overheads = SlotNotes(slot), []
    for number in range(2 * SAMPLE + 2):
        notes.begin(number)
        notes.end()
        index = board.slot_of(os.getpid())
        assert index is not None
        overheads.append(round(board.now(index).overhead * 1e6))
    assert overheads == [0, *[1] * SAMPLE, *[1 + SAMPLE] * SAMPLE, 1 + 2 * SAMPLE]
    slot.close()
    board.close()

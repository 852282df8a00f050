"""The conformance suite of executor kinds: one entry for each kind, and a kind without an entry fails."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import multiprocessing.pool
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import pytest
import tasks_of_pools as tasks
from tests_of_pools import until

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.events import PoolStats
from loopwatch.health.history import PROCESSES, THREADS
from loopwatch.health.kinds import KINDS, OTHER
from loopwatch.health.service import HealthService


class Inline(concurrent.futures.Executor):
    """An executor of no known kind that runs each call at once."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc)
        return future


class Entry(NamedTuple):
    """How to use one kind of pool.

    Attributes:
        kind: as in :class:`loopwatch.events.PoolStats`.
        make: returns a new pool of two workers.
        call: runs a function there and returns its result.
        end: ends it and waits.
    """

    kind: str
    make: Callable[[], Any]
    call: Callable[..., Any]
    end: Callable[[Any], object]


def _submitted(pool: Any, function: Any, *args: Any) -> Any:
    return pool.submit(function, *args).result(60)


def _applied(pool: Any, function: Any, *args: Any) -> Any:
    return pool.apply_async(function, args).get(60)


def _loky() -> Any:
    return pytest.importorskip("loky").ProcessPoolExecutor(2)


def _joined(pool: Any) -> None:
    pool.close()
    pool.join()


def _spawned() -> Any:
    return multiprocessing.get_context("spawn")


ENTRIES = (
    Entry("thread", lambda: concurrent.futures.ThreadPoolExecutor(2), _submitted, lambda pool: pool.shutdown()),
    Entry(
        "process", lambda: concurrent.futures.ProcessPoolExecutor(2, mp_context=_spawned()), _submitted,
        lambda pool: pool.shutdown(),
    ),
    Entry("loky", _loky, _submitted, lambda pool: pool.shutdown()),
    Entry("multiprocessing", lambda: _spawned().Pool(2), _applied, _joined),
    Entry("other", Inline, _submitted, lambda pool: pool.shutdown()),
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_helpers() -> Iterator[None]:
    """End the resource tracker of multiprocessing after each test, so that the next one starts a new one."""
    yield
    gc.collect()  # what the tracker would report as leaked
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture
def watch() -> Iterator[HealthService]:
    """A health service of its own, checked to have no faults, that undoes its patches."""
    patches, faults = PatchSet(), Faults()
    watch = HealthService(lambda: Config(log_level="CRITICAL"), patches, faults, lambda _loop: "main")
    watch.start()
    yield watch
    watch.stop()
    patches.undo_all()
    assert faults.counts == {}


def stats_of(watch: HealthService, kind: str) -> PoolStats:
    (found,) = [reading.stats for reading in watch.readings() if reading.stats.kind == kind]
    return found


def made(watch: HealthService, entry: Entry) -> Any:
    pool = entry.make()
    if entry.kind == "other":
        watch.watch(pool, "inline")
    return pool


def test_every_kind_has_an_entry() -> None:
    """Every kind is tested here, and the finding rules know whether its workers are threads or processes."""
    modules = {module for kind in KINDS for module in kind.modules}
    assert len(modules) == sum(len(kind.modules) for kind in KINDS)
    names = {entry.kind for entry in ENTRIES}
    assert len(KINDS) + 1 == len(names), "an executor kind has no entry in this module"
    assert names - PROCESSES - THREADS == {"other"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_tasks_are_counted(watch: HealthService, entry: Entry) -> None:
    """Calls, failures by type, and the place where the pool was made are recorded."""
    pool = made(watch, entry)
    try:
        assert [entry.call(pool, tasks.double, number) for number in (1, 2)] == [2, 4]
        with pytest.raises(tasks.Odd):
            entry.call(pool, tasks.even, 1)
        until(lambda: stats_of(watch, entry.kind).failed == 1)
        stats = stats_of(watch, entry.kind)
        assert (stats.submitted, stats.completed, stats.queued, stats.running) == (3, 2, 0, 0)
        assert stats.failures == {"tasks_of_pools.Odd": 1}
        assert "test_kinds.py" in stats.created_at
        assert not stats.closed
    finally:
        entry.end(pool)
    until(lambda: stats_of(watch, entry.kind).closed)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_a_pool_is_not_kept_alive(watch: HealthService, entry: Entry) -> None:
    """A pool is collected once the program drops its last reference."""
    pool = made(watch, entry)
    entry.call(pool, tasks.double, 1)
    watch.readings()
    entry.end(pool)
    gone = weakref.ref(pool)
    del pool

    def is_collected() -> bool:
        gc.collect()
        return gone() is None

    until(is_collected)


@pytest.mark.parametrize("kind", [*KINDS, OTHER], ids=lambda kind: type(kind).__name__)
def test_a_kind_accepts_only_its_own_executors(kind: Any) -> None:
    """A kind owns no plain object and none with a false ``__class__``, and needs the base class's constructor."""

    class Posing:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            return concurrent.futures.ThreadPoolExecutor

    assert not kind.owns(object())
    assert not kind.owns(Posing())
    assert kind is OTHER or not kind.is_made(object())

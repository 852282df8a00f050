"""Adapters that drive foreign process pools for ``pool.py``, each in a few lines, as its documentation shows it.

Each is imported when it is started; a pool that is not installed is left out with a reason.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


class Peer:
    """A pool under test.

    Attributes:
        name: for the table.
        requirement: argument of pip install, "" for the standard library.
        module: module that is imported to check the installation.
        restless: it computes and communicates while it is idle, so that it is measured apart from the others.
    """

    name = ""
    requirement = ""
    module = ""
    restless = False

    async def start(self, workers: int) -> None:
        """Start the workers."""
        raise NotImplementedError

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Run ``function(*args)`` in a worker."""
        raise NotImplementedError

    async def close(self) -> None:
        """End it."""

    def version(self) -> str:
        """Return its name and version; raise ImportError if it is not installed."""
        importlib.import_module(self.module)
        return f"{self.name} {importlib.metadata.version(self.requirement)}" if self.requirement else self.name


class ExecutorPeer(Peer):
    """Something with the interface of ``concurrent.futures``."""

    async def start(self, workers: int) -> None:
        self._executor = self.make(workers)
        self._loop = asyncio.get_running_loop()

    def make(self, workers: int) -> Executor:
        """Return the executor."""
        raise NotImplementedError

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return self._loop.run_in_executor(self._executor, function, *args)

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


class Control(ExecutorPeer):
    """The baseline of the comparison."""

    name = "ProcessPoolExecutor"
    module = "concurrent.futures"

    def make(self, workers: int) -> Executor:
        return ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))


class Ours(Peer):
    """This project."""

    name = "loopwatch.WorkerPool"
    module = "loopwatch"

    def __init__(self, **options: Any) -> None:
        self._options = options

    async def start(self, workers: int) -> None:
        import loopwatch

        self.pool = loopwatch.WorkerPool(workers, **self._options)
        self.run = self.pool.run  # type: ignore[method-assign]
        await self.pool.ready()

    async def close(self) -> None:
        await self.pool.close(force=True)


class MultiprocessingPool(Peer):
    name = "multiprocessing.Pool"
    module = "multiprocessing"

    async def start(self, workers: int) -> None:
        self._pool = get_context("forkserver").Pool(workers)
        self._loop = asyncio.get_running_loop()

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        future = self._loop.create_future()

        def on_loop(settle: Callable[[Any], None]) -> Callable[[Any], None]:
            return lambda value: self._loop.call_soon_threadsafe(_unless_done, future, settle, value)

        self._pool.apply_async(function, args, {}, on_loop(future.set_result), on_loop(future.set_exception))
        return future

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.terminate)


def _unless_done(future: asyncio.Future[Any], settle: Callable[[Any], None], value: Any) -> None:
    if not future.done():
        settle(value)


class Loky(ExecutorPeer):
    name = "loky"
    requirement = "loky"
    module = "loky"

    def make(self, workers: int) -> Executor:
        from loky import ProcessPoolExecutor as LokyExecutor

        executor: Executor = LokyExecutor(workers)
        return executor

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown, wait=True)


class Pebble(Peer):
    name = "pebble"
    requirement = "pebble"
    module = "pebble"

    async def start(self, workers: int) -> None:
        from pebble import ProcessPool

        self._pool = ProcessPool(max_workers=workers, context=get_context("forkserver"))

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return asyncio.wrap_future(self._pool.schedule(function, args=args))

    async def close(self) -> None:
        self._pool.stop()
        await asyncio.to_thread(self._pool.join)


class Anyio(Peer):
    """Its workers end with the loop: it has no way to end them before."""

    name = "anyio.to_process"
    requirement = "anyio"
    module = "anyio.to_process"

    async def start(self, workers: int) -> None:
        from anyio import CapacityLimiter, to_process

        self._limiter, self._to_process = CapacityLimiter(workers), to_process

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        call: Awaitable[Any] = self._to_process.run_sync(function, *args, cancellable=True, limiter=self._limiter)
        return call


async def _as_coroutine(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class Aiomultiprocess(Peer):
    name = "aiomultiprocess"
    requirement = "aiomultiprocess"
    module = "aiomultiprocess"

    async def start(self, workers: int) -> None:
        from aiomultiprocess import Pool

        self._pool = Pool(processes=workers)

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        call: Awaitable[Any] = self._pool.apply(_as_coroutine, (function, *args))
        return call

    async def close(self) -> None:
        self._pool.terminate()
        await self._pool.join()


class Deadpool(ExecutorPeer):
    name = "deadpool"
    requirement = "deadpool-executor"
    module = "deadpool"

    def make(self, workers: int) -> Executor:
        from deadpool import Deadpool as DeadpoolExecutor

        executor: Executor = DeadpoolExecutor(max_workers=workers, mp_context="forkserver")
        return executor


class Dask(Peer):
    """Its scheduler runs in this process, on this loop, because of ``asynchronous=True``."""

    name = "dask"
    requirement = "distributed"
    module = "distributed"
    restless = True

    async def start(self, workers: int) -> None:
        from distributed import Client, LocalCluster

        warnings.filterwarnings("ignore", module="distributed")
        self._cluster = await LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            asynchronous=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
        self._client = await Client(self._cluster, asynchronous=True)

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        call: Awaitable[Any] = self._client.submit(function, *args, pure=False).result()
        return call

    async def close(self) -> None:
        await self._client.close()
        await self._cluster.close()


class Ray(Peer):
    name = "ray"
    requirement = "ray"
    module = "ray"
    restless = True

    async def start(self, workers: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._remote: dict[Callable[..., Any], Any] = {}
        await asyncio.to_thread(
            ray.init, num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )

    def run(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        import ray

        if function not in self._remote:
            self._remote[function] = ray.remote(function)
        call: Awaitable[Any] = asyncio.wrap_future(self._remote[function].remote(*args).future())
        return call

    async def close(self) -> None:
        import ray

        with contextlib.suppress(Exception):
            await asyncio.to_thread(ray.shutdown)


PEERS: tuple[type[Peer], ...] = (MultiprocessingPool, Loky, Pebble, Anyio, Aiomultiprocess, Deadpool, Dask, Ray)


def chosen(names: str) -> list[type[Peer]]:
    """Return the adapters named by ``names``: ``all``, ``none``, or some with commas.

    Raises:
        ValueError: there is none of that name.
    """
    if names in ("all", "none"):
        return list(PEERS) if names == "all" else []
    known = {peer.name.lower(): peer for peer in PEERS}
    wanted = [name.strip().lower() for name in names.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no peer is called {', '.join(unknown)}: all, none, or some of {', '.join(known)}")
    return [known[name] for name in wanted]

"""The default worker pool and threads of ``@offload``: created on first use, one set per process.

A pool belongs to a loop. The first loop that offloads owns it; other loops that run at the same time, in other
threads, submit through that loop. When it ends, the pool ends with it, and the next loop that offloads gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from loopwatch.core.process_state import one
from loopwatch.errors import PoolClosed
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.settings import settings
from loopwatch.workers.thread_backend import ThreadBackend


class _Defaults:
    """The default pool and threads of this process.

    Attributes:
        lock: held while any of them changes.
        pool: the worker processes, None while there are none.
        owner: the loop that the pool belongs to.
        lifetime: asynchronous generator that ends with that loop, and then closes the pool.
        threads: the default threads, None while there are none.
        closing: tasks that close a pool.
        stay: ``process`` and ``thread``, if used by other functions than auto-offloaded ones.
    """

    def __init__(self) -> None:
        self.closing: set[asyncio.Task[None]] = set()
        self.stay: set[str] = set()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Reset everything; a forked child has no threads, and its copy of the pool has abandoned the workers."""
        self.lock = threading.Lock()
        self.pool: WorkerPool | None = None
        self.owner: asyncio.AbstractEventLoop | None = None
        self.lifetime: AsyncGenerator[None, None] | None = None
        self.threads: ThreadBackend | None = None


_defaults = one(_Defaults)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_defaults.begin_anew)


class _JustClosed(Exception):  # noqa: N818 - internal
    """The pool was closed before the call was submitted."""


async def in_process(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, *, stays: bool = True
) -> Any:
    """Run a call in the default pool, whichever loop that belongs to.

    Args:
        function, args, kwargs, options: the call.
        stays: keep the pool when auto-offload stops.
    """
    loop = asyncio.get_running_loop()
    while True:
        pool, owner = await _default_pool(loop)
        if stays:
            _defaults.stay.add("process")
        call = _submit(pool, function, args, kwargs, options)
        try:
            if owner is loop:
                return await call
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, owner))
        except _JustClosed:
            continue


async def _submit(
    pool: WorkerPool, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Any:
    if pool.closed:
        raise _JustClosed
    return await pool.submit(function, args, kwargs, options)


async def in_thread(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, *, stays: bool = True
) -> Any:
    """Run a call in the default threads; arguments as those of :func:`in_process`."""
    if stays:
        _defaults.stay.add("thread")
    try:
        future = threads().submit(function, args, kwargs, options)
    except PoolClosed:  # closed a moment ago: create new ones
        future = threads().submit(function, args, kwargs, options)
    return await future


async def _default_pool(loop: asyncio.AbstractEventLoop) -> tuple[WorkerPool, asyncio.AbstractEventLoop]:
    now = _defaults
    with now.lock:
        if now.pool is not None and now.owner is not None and not now.pool.closed and now.owner.is_running():
            return now.pool, now.owner
        if now.pool is not None and not now.pool.closed:
            now.pool.abandon()
        pool = WorkerPool(settings.workers, name="default")
        now.pool, now.owner, now.lifetime = pool, loop, _until_loop_ends(pool)
        now.stay.discard("process")
        begin = anext(now.lifetime)
    await begin
    return pool, loop


async def _until_loop_ends(pool: WorkerPool) -> AsyncGenerator[None, None]:
    """Close ``pool`` when the loop shuts down its asynchronous generators, as ``asyncio.run`` does at its end."""
    try:
        yield
    finally:
        await pool.close(force=True)


def threads() -> ThreadBackend:
    """Return the default threads; they are created on first use."""
    with _defaults.lock:
        if _defaults.threads is None:
            _defaults.threads = ThreadBackend()
            _defaults.stay.discard("thread")
        return _defaults.threads


def current_pool() -> WorkerPool | None:
    """Return the default pool, None while there is none."""
    return _defaults.pool


def end_what_was_moved() -> None:
    """End the default pool and threads once their calls are done; from any thread.

    Those also used by other functions than auto-offloaded ones stay.
    """
    now = _defaults
    with now.lock:
        pool, owner, kept = now.pool, now.owner, now.threads
        if "thread" not in now.stay:
            now.threads = None
    if kept is not None and "thread" not in now.stay:
        kept.dismiss()
    if pool is not None and owner is not None and not pool.closed and "process" not in now.stay:
        with contextlib.suppress(RuntimeError):  # its loop is closed, and the pool ends with it
            owner.call_soon_threadsafe(_close, pool, owner)


def _close(pool: WorkerPool, owner: asyncio.AbstractEventLoop) -> None:
    closing = owner.create_task(pool.close())
    _defaults.closing.add(closing)
    closing.add_done_callback(_defaults.closing.discard)


async def shut_down() -> None:
    """Close the default pool and threads, for a program that wants them closed before its loop ends."""
    pool = _defaults.pool
    if pool is not None and not pool.closed and _defaults.owner is asyncio.get_running_loop():
        await pool.close()
    kept, _defaults.threads = _defaults.threads, None
    if kept is not None:
        await kept.close()

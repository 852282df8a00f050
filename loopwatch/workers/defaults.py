"""The pool and the threads that ``@offload`` uses where none are given: made on first use, one set per process.

A pool belongs to a loop. The first loop that offloads owns it; other loops that run at the same time, in other
threads, go through that loop. When it ends, the pool ends with it, and the next loop that offloads gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from loopwatch.workers import settings
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.threads import ThreadBackend

_lock = threading.Lock()
_pool: WorkerPool | None = None
_owner: asyncio.AbstractEventLoop | None = None
_lifetime: AsyncGenerator[None, None] | None = None
_threads: ThreadBackend | None = None
_closing: set[asyncio.Task[None]] = set()


async def in_process(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Any:
    """Run a call in the default pool, whichever loop that belongs to."""
    loop = asyncio.get_running_loop()
    pool, owner = await _default_pool(loop)
    call: Callable[[], Any] = lambda: pool.submit(function, args, kwargs, options)  # noqa: E731
    if owner is loop:
        return await call()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_await(call), owner))


async def _await(call: Callable[[], Any]) -> Any:
    return await call()


async def _default_pool(loop: asyncio.AbstractEventLoop) -> tuple[WorkerPool, asyncio.AbstractEventLoop]:
    global _pool, _owner, _lifetime
    with _lock:
        if _pool is None or _owner is None or _pool.closed or not _owner.is_running():
            if _pool is not None and not _pool.closed:
                _pool.abandon()
            _pool, _owner = WorkerPool(settings.workers, name="default"), loop
            _lifetime = _until_loop_ends(_pool)
            begin = anext(_lifetime)
        else:
            return _pool, _owner
        pool = _pool
    await begin
    return pool, loop


async def _until_loop_ends(pool: WorkerPool) -> AsyncGenerator[None, None]:
    """Close ``pool`` when the loop shuts its asynchronous generators down, as ``asyncio.run`` has it do at its end."""
    try:
        yield
    finally:
        await pool.close(force=True)


def threads() -> ThreadBackend:
    """Return the default threads."""
    global _threads
    with _lock:
        if _threads is None:
            _threads = ThreadBackend()
        return _threads


def current_pool() -> WorkerPool | None:
    """Return the default pool, None while there is none."""
    return _pool


def _forget() -> None:
    """Begin anew in a forked child: threads do not exist there, and the pool has let go of its workers."""
    global _pool, _owner, _lifetime, _threads, _lock
    _lock = threading.Lock()
    _pool = _owner = _lifetime = _threads = None


def close_soon() -> None:
    """Have the default pool closed, from any thread, once it has done what it was given."""
    with _lock:
        pool, owner = _pool, _owner
    if pool is not None and owner is not None and not pool.closed:
        with contextlib.suppress(RuntimeError):  # its loop is closed, and it ends with that
            owner.call_soon_threadsafe(_close, pool, owner)


def _close(pool: WorkerPool, owner: asyncio.AbstractEventLoop) -> None:
    closing = owner.create_task(pool.close())
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)


async def shut_down() -> None:
    """Close what was made, for a program that wants to see it gone before its loop ends."""
    global _threads
    if _pool is not None and not _pool.closed and _owner is asyncio.get_running_loop():
        await _pool.close()
    kept, _threads = _threads, None
    if kept is not None:
        await kept.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

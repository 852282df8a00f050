"""The pool and the threads that ``@offload`` uses where none are given: made on first use, one set per process.

A pool belongs to a loop. The first loop that offloads owns it; other loops that run at the same time, in other
threads, go through that loop. When it ends, the pool ends with it, and the next loop that offloads gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from loopwatch.errors import PoolClosed
from loopwatch.workers import settings
from loopwatch.workers.options import CallOptions
from loopwatch.workers.pool import WorkerPool
from loopwatch.workers.thread_backend import ThreadBackend

_lock = threading.Lock()
_pool: WorkerPool | None = None
_owner: asyncio.AbstractEventLoop | None = None
_lifetime: AsyncGenerator[None, None] | None = None
_threads: ThreadBackend | None = None
_closing: set[asyncio.Task[None]] = set()
_stay: set[str] = set()
"""``process``, ``thread``: which of them are used by more than what the agent moves."""


class _JustClosed(Exception):  # noqa: N818 - it is never seen
    """The pool was closed before the call could be given to it."""


async def in_process(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, *, stays: bool = True
) -> Any:
    """Run a call in the default pool, whichever loop that belongs to.

    Args:
        function, args, kwargs, options: the call.
        stays: the pool is used beyond what the agent moves, and is not ended with that.
    """
    loop = asyncio.get_running_loop()
    while True:
        pool, owner = await _default_pool(loop)
        if stays:
            _stay.add("process")
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
        _stay.add("thread")
    try:
        future = threads().submit(function, args, kwargs, options)
    except PoolClosed:  # they have just been; now there are others
        future = threads().submit(function, args, kwargs, options)
    return await future


async def _default_pool(loop: asyncio.AbstractEventLoop) -> tuple[WorkerPool, asyncio.AbstractEventLoop]:
    global _pool, _owner, _lifetime
    with _lock:
        if _pool is None or _owner is None or _pool.closed or not _owner.is_running():
            if _pool is not None and not _pool.closed:
                _pool.abandon()
            _pool, _owner = WorkerPool(settings.workers, name="default"), loop
            _stay.discard("process")
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
            _stay.discard("thread")
        return _threads


def current_pool() -> WorkerPool | None:
    """Return the default pool, None while there is none."""
    return _pool


def _forget() -> None:
    """Begin anew in a forked child: threads do not exist there, and the pool has let go of its workers."""
    global _pool, _owner, _lifetime, _threads, _lock
    _lock = threading.Lock()
    _pool = _owner = _lifetime = _threads = None


def end_what_was_moved() -> None:
    """Have the default pool and threads end once they have done what they were given, from any thread.

    Unless they are used by more than what the agent moves.
    """
    global _threads
    with _lock:
        pool, owner, kept = _pool, _owner, _threads
        if "thread" not in _stay:
            _threads = None
    if kept is not None and "thread" not in _stay:
        kept.dismiss()
    if pool is not None and owner is not None and not pool.closed and "process" not in _stay:
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
